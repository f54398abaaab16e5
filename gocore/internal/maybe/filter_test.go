package maybe

import (
	"errors"
	"fmt"
	"math"
	"testing"
)

func list(from, to int) (keys []byte) {
	for i := from; i < to; i++ {
		keys = fmt.Appendf(keys, "t-%d\n", i)
	}
	return keys
}

func TestTake_KeysOfAnyGeneration_NeverDenied(t *testing.T) {
	var filters []*Filter
	const n = 1_000
	found := make([]uint8, n)
	for generation := range 4 {
		f, err := New(n, 0.01)
		if err != nil {
			t.Fatal(err)
		}
		filters = append([]*Filter{f}, filters...)
		if err := Take(filters, list(generation*n, (generation+1)*n), found); err != nil {
			t.Fatal(err)
		}
		for earlier := range generation + 1 {
			if err := Find(filters, list(earlier*n, (earlier+1)*n), found); err != nil {
				t.Fatal(err)
			}
			for i, maybe := range found {
				if maybe != 1 {
					t.Fatalf("key %d of generation %d is denied after generation %d", i, earlier, generation)
				}
			}
		}
	}
}

func TestTake_SameKeyTwiceInAList_SecondMaybe(t *testing.T) {
	f, _ := New(1_000, 1e-6)
	found := make([]uint8, 5)
	if err := Take([]*Filter{f}, []byte("a\nb\n\na\n\n"), found); err != nil || fmt.Sprint(found) != "[0 0 0 1 0]" {
		t.Errorf("%v, %v", found, err)
	}
	if err := Find([]*Filter{f}, []byte("b\nc\nc\n\na\n"), found); err != nil || fmt.Sprint(found) != "[1 0 0 0 1]" {
		t.Errorf("%v, %v", found, err)
	}
	if err := Take([]*Filter{f}, []byte("a\nb\nc\nd\ne"), found); !errors.Is(err, ErrFilter) {
		t.Errorf("a list without its last line feed: %v", err)
	}
}

func TestFilter_RateOfFalsePositives(t *testing.T) {
	const n = 200_000
	for _, fpp := range []float64{0.05, 0.01, 0.002, 1e-4} {
		f, err := New(n, fpp)
		if err != nil {
			t.Fatal(err)
		}
		found := make([]uint8, n)
		if err := Take([]*Filter{f}, list(0, n), found); err != nil {
			t.Fatal(err)
		}
		wrong := 0
		if err := Find([]*Filter{f}, list(n, 2*n), found); err != nil {
			t.Fatal(err)
		}
		for _, maybe := range found {
			wrong += int(maybe)
		}
		rate, limit := float64(wrong)/n, fpp+4*math.Sqrt(fpp/n)
		t.Logf("%v: %.6f at %.1f bits a key", fpp, rate, float64(f.Bytes())*8/n)
		if rate > limit {
			t.Errorf("%v wrong, promised %v", rate, fpp)
		}
	}
}

func TestNew_OddSizes_ErrFilter(t *testing.T) {
	for _, keys := range []int64{0, -1, KeysMax + 1} {
		if _, err := New(keys, 0.01); !errors.Is(err, ErrFilter) {
			t.Errorf("%d keys: %v", keys, err)
		}
	}
	for _, fpp := range []float64{0, 1, -1, math.NaN(), math.Inf(1)} {
		if _, err := New(10, fpp); !errors.Is(err, ErrFilter) {
			t.Errorf("rate %v: %v", fpp, err)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	for _, n := range []int64{10_000, 10_000_000} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			f, err := New(n, 0.002)
			if err != nil {
				b.Fatal(err)
			}
			const rows = 512
			var lists [64][]byte
			for i := range lists {
				lists[i] = list(i*rows, (i+1)*rows)
			}
			found := make([]uint8, rows)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := Take([]*Filter{f}, lists[i%len(lists)], found); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*rows), "ns/key")
		})
	}
}
