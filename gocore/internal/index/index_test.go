package index

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestIndex_AnyOrderOfCalls_LikeAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(4117, 0))
	for range 20 {
		x, slots, ids := New(), map[string]int{}, map[int]string{}
		for range 5_000 {
			id := fmt.Sprintf("%s%d", strings.Repeat("x", rng.IntN(3)*20), rng.IntN(400))
			slot := rng.IntN(600)
			switch _, has := slots[id]; {
			case rng.IntN(3) > 0:
				err := x.Put([]byte(id), slot)
				if taken := ids[slot] != ""; (has || taken) != errors.Is(err, ErrEntry) {
					t.Fatalf("put %q in %d: %v", id, slot, err)
				}
				if err == nil {
					slots[id], ids[slot] = slot, id
				}
			default:
				got, err := x.Remove(slot, nil)
				if string(got) != ids[slot] || (ids[slot] == "") != errors.Is(err, ErrEntry) {
					t.Fatalf("remove %d: %q, %v, want %q", slot, got, err, ids[slot])
				}
				delete(slots, ids[slot])
				delete(ids, slot)
			}
			if got, want := x.Find([]byte(id)), slots[id]; got != want && (got != -1 || ids[want] == id) {
				t.Fatalf("find %q: %d, want %d", id, got, want)
			}
		}
		if x.n != len(slots) {
			t.Fatalf("%d entries, want %d", x.n, len(slots))
		}
		for id, slot := range slots {
			if x.Find([]byte(id)) != slot || string(x.AppendIDs(nil, []int64{int64(slot)})) != id+"\n" {
				t.Fatalf("%q: %d, want %d", id, x.Find([]byte(id)), slot)
			}
		}
	}
}

func TestFindMany_ListWithGaps_SlotsAndCountOfMissing(t *testing.T) {
	x := New()
	for slot, id := range []string{"a", "b", strings.Repeat("c", inlineMax), strings.Repeat("d", inlineMax+1)} {
		if err := x.Put([]byte(id), slot); err != nil {
			t.Fatal(err)
		}
	}
	slots := make([]int64, 6)
	list := []byte("b\n\nz\n" + strings.Repeat("d", inlineMax+1) + "\na\n" + strings.Repeat("c", inlineMax) + "\n")
	rest, missing, err := x.FindMany(append(list, 'x'), slots)
	if fmt.Sprint(slots) != "[1 -1 -1 3 0 2]" || missing != 1 || string(rest) != "x" || err != nil {
		t.Errorf("%v, %d missing, %q left, %v", slots, missing, rest, err)
	}
	if _, _, err := x.FindMany(bytes.TrimSuffix(list, []byte("\n")), slots); !errors.Is(err, ErrEntry) {
		t.Errorf("a list that is too short: %v", err)
	}
	if got := x.AppendIDs(nil, []int64{1, -1, 99, 0}); string(got) != "b\n\n\na\n" {
		t.Errorf("%q", got)
	}
}

func TestPut_OddEntries_ErrEntry(t *testing.T) {
	x := New()
	for _, slot := range []int{-1, SlotMax + 1} {
		if err := x.Put([]byte("a"), slot); !errors.Is(err, ErrEntry) {
			t.Errorf("slot %d: %v", slot, err)
		}
	}
	if err := x.Put(nil, 1); !errors.Is(err, ErrEntry) {
		t.Errorf("an empty id: %v", err)
	}
	if _, err := x.Remove(7, nil); !errors.Is(err, ErrEntry) {
		t.Errorf("an empty slot: %v", err)
	}
}

func TestFindMany_NoAllocations(t *testing.T) {
	x, list := New(), []byte(nil)
	for slot := range 100 {
		id := fmt.Appendf(nil, "card-%d", slot)
		if err := x.Put(id, slot); err != nil {
			t.Fatal(err)
		}
		list = append(append(list, id...), '\n')
	}
	slots := make([]int64, 100)
	if n := testing.AllocsPerRun(100, func() { _, _, _ = x.FindMany(list, slots) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			x, rng := New(), rand.New(rand.NewPCG(1, 2))
			for slot := range n {
				if err := x.Put(fmt.Appendf(nil, "card-%d", slot), slot); err != nil {
					b.Fatal(err)
				}
			}
			const rows = 512
			var lists [64][]byte
			for i := range lists {
				for range rows {
					lists[i] = fmt.Appendf(lists[i], "card-%d\n", rng.IntN(n))
				}
			}
			slots := make([]int64, rows)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, _, err := x.FindMany(lists[i%len(lists)], slots); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*rows), "ns/id")
		})
	}
}
