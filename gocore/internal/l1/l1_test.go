package l1

import (
	"fmt"
	"slices"
	"testing"

	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
)

// newL1 has room for n cards and notes who leaves.
func newL1(t testing.TB, n, pinnedMax int) (*L1, *[]string) {
	t.Helper()
	p := plantest.Load(t, "cards")
	var gone []string
	l, err := New(p, int64(n*p.Kinds[0].Size), pinnedMax, func(kind int, id string, _ int) {
		gone = append(gone, fmt.Sprint(kind, id))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, slab := range l.Slabs() {
			if err := slab.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return l, &gone
}

// rest claims id as an unpinned profile that is not empty.
func rest(l *L1, kind int, id string) int {
	slot := l.Claim(kind, id)
	l.Slabs()[kind].Bytes(slot)[0] = profile.Version
	l.Unpin(kind, slot)
	return slot
}

func TestFind_UnknownID_IsMinusOne(t *testing.T) {
	l, _ := newL1(t, 4, 1)
	if slot := l.Find(0, "c1"); slot != -1 {
		t.Errorf("slot %d", slot)
	}
}

func TestFind_SameIDOfAnotherKind_IsAnotherProfile(t *testing.T) {
	l, _ := newL1(t, 4, 1)
	rest(l, 0, "x")
	if slot := l.Find(1, "x"); slot != -1 {
		t.Errorf("slot %d", slot)
	}
}

func TestPeek_EmptySlot_IsNoProfile(t *testing.T) {
	l, _ := newL1(t, 4, 1)
	l.Claim(0, "c1")
	if b := l.Peek(0, "c1"); b != nil {
		t.Errorf("%d bytes", len(b))
	}
	if b := l.Peek(0, "c2"); b != nil {
		t.Errorf("unknown: %d bytes", len(b))
	}
}

func TestClaim_ReusedSlot_IsAllZero(t *testing.T) {
	l, gone := newL1(t, 1, 1)
	first := rest(l, 0, "c1")
	second := l.Claim(0, "c2")
	if first != second || !slices.Equal(*gone, []string{"0c1"}) {
		t.Fatalf("slots %d and %d, gone %v", first, second, *gone)
	}
	if b := l.Slabs()[0].Bytes(second); slices.ContainsFunc(b, func(x byte) bool { return x != 0 }) {
		t.Error("bytes of the profile before are still there")
	}
}

func TestClaim_AtLimitAndOnePast_EvictsOnlyPast(t *testing.T) {
	l, gone := newL1(t, 3, 1)
	for _, id := range []string{"a", "b", "c"} {
		rest(l, 0, id)
	}
	if len(*gone) != 0 {
		t.Fatalf("at the limit: gone %v", *gone)
	}
	rest(l, 0, "d")
	if !slices.Equal(*gone, []string{"0a"}) {
		t.Errorf("one past: gone %v", *gone)
	}
}

func TestEvict_Visited_StaysOneRound(t *testing.T) {
	l, gone := newL1(t, 3, 1)
	for _, id := range []string{"a", "b", "c"} {
		rest(l, 0, id)
	}
	l.Unpin(0, l.Find(0, "a"))
	rest(l, 0, "d")
	rest(l, 0, "e")
	if !slices.Equal(*gone, []string{"0b", "0c"}) {
		t.Errorf("gone %v", *gone)
	}
}

func TestEvict_EverythingPinned_GrowsAndTrimsLater(t *testing.T) {
	l, gone := newL1(t, 2, 3)
	var slots []int
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		slots = append(slots, l.Claim(0, id))
	}
	if s := l.Stats(); s.Profiles != 5 || len(*gone) != 0 {
		t.Fatalf("%d profiles, gone %v", s.Profiles, *gone)
	}
	for _, slot := range slots {
		l.Unpin(0, slot)
	}
	l.Trim()
	if s := l.Stats(); s.Profiles != 2 || s.Bytes != int64(2*l.Slabs()[0].Kind.Size) {
		t.Errorf("%+v, gone %v", s, *gone)
	}
}

func TestEvict_LargestKindPinned_TakesTheNext(t *testing.T) {
	l, gone := newL1(t, 3, 4)
	l.Claim(0, "a")
	l.Claim(0, "b")
	rest(l, 3, "10.0.0.1")
	l.Claim(0, "c")
	if !slices.Equal(*gone, []string{"310.0.0.1"}) {
		t.Errorf("gone %v", *gone)
	}
}

func TestEvict_DuringOnEvict_BytesAreStillThere(t *testing.T) {
	p := plantest.Load(t, "cards")
	var l *L1
	var seen []byte
	l, err := New(p, int64(p.Kinds[0].Size), 1, func(kind int, _ string, slot int) {
		seen = slices.Clone(l.Slabs()[kind].Bytes(slot))
	})
	if err != nil {
		t.Fatal(err)
	}
	b := l.Slabs()[0].Bytes(rest(l, 0, "a"))
	b[100] = 7
	rest(l, 0, "b")
	if len(seen) == 0 || seen[0] != profile.Version || seen[100] != 7 {
		t.Error("onEvict did not see the profile")
	}
}

func TestRandom_AgainstModel_BoundsHold(t *testing.T) {
	l, gone := newL1(t, 50, 8)
	live := map[string]bool{}
	for i := range 20_000 {
		kind := i % 4
		id := fmt.Sprint((i * 7919) % 400)
		slot := l.Find(kind, id)
		if key := fmt.Sprint(kind, id); (slot >= 0) != live[key] {
			t.Fatalf("step %d: %s in slot %d, expected there: %v", i, key, slot, live[key])
		}
		if slot < 0 {
			slot = l.Claim(kind, id)
			live[fmt.Sprint(kind, id)] = true
		}
		for _, key := range *gone {
			delete(live, key)
		}
		*gone = (*gone)[:0]
		l.Unpin(kind, slot)
		l.Trim()
		if s := l.Stats(); s.Bytes > l.bytesMax || int(s.Profiles) != len(live) {
			t.Fatalf("step %d: %+v, %d alive", i, s, len(live))
		}
	}
}

func BenchmarkFind_Hit(b *testing.B) {
	l, _ := newL1(b, 20_000, 8)
	ids := make([]string, 10_000)
	for i := range ids {
		ids[i] = fmt.Sprintf("card-%08d", i*7919)
		rest(l, 0, ids[i])
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		l.Unpin(0, l.Find(0, ids[i*31%len(ids)]))
	}
}

func BenchmarkClaim_Evict(b *testing.B) {
	l, gone := newL1(b, 10_000, 8)
	ids := make([]string, 40_000)
	for i := range ids {
		ids[i] = fmt.Sprintf("card-%08d", i*7919)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		rest(l, 0, ids[i%len(ids)])
		*gone = (*gone)[:0]
	}
}
