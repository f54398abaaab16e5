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
				if err := x.Remove(slot); (ids[slot] == "") != errors.Is(err, ErrEntry) {
					t.Fatalf("remove %d: %v, it had %q", slot, err, ids[slot])
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
	if err := x.Remove(7); !errors.Is(err, ErrEntry) {
		t.Errorf("an empty slot: %v", err)
	}
}

func TestPutMany_RemoveMany_UpToTheFirstThatCannotBe(t *testing.T) {
	x := New()
	if err := x.PutMany([]byte("a\nb\nc\n"), []int64{4, 0, 2}); err != nil {
		t.Fatal(err)
	}
	if got := string(x.AppendIDs(nil, []int64{0, 1, 2, 3, 4})); got != "b\n\nc\n\na\n" {
		t.Errorf("%q", got)
	}
	for _, list := range []string{"d\n", "d\ne\nf\n", "d\n\ne", "d\ne"} {
		if err := x.PutMany([]byte(list), []int64{5, 6}); !errors.Is(err, ErrEntry) || x.Find([]byte("d")) != -1 {
			t.Errorf("another number of ids, %q: %v", list, err)
		}
	}
	if err := x.PutMany([]byte("e\nb\nf\n"), []int64{7, 8, 9}); !errors.Is(err, ErrEntry) || x.Find([]byte("f")) != -1 {
		t.Errorf("an id that is there: %v", err)
	}
	if err := x.RemoveMany([]int64{4, 1, 0}); !errors.Is(err, ErrEntry) || x.Find([]byte("a")) != -1 || x.Find([]byte("b")) != 0 {
		t.Errorf("a slot that nobody has: %v", err)
	}
	if err := x.RemoveMany([]int64{0, 2}); err != nil || x.Find([]byte("b")) != -1 || x.Find([]byte("c")) != -1 {
		t.Errorf("two slots: %v", err)
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
