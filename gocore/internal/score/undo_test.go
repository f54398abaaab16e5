package score

import (
	"math/rand/v2"
	"slices"
	"testing"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
)

// profilesOf is every word of every slab, and the counters of late events.
func profilesOf(a *Arena) (words []int64) {
	for _, slab := range a.Slabs {
		words = append(append(words, slab.All()...), slab.LateDropped...)
	}
	return words
}

func TestTakeBack_AnyBatch_EveryProfileAsItWas(t *testing.T) {
	const rows, slots = 64, 12
	for _, spec := range []string{"cards", "handbook"} {
		rng := rand.New(rand.NewPCG(7, 11))
		s := newStream(t, plantest.Load(t, spec), slots, rows, 1000)
		a := s.arena
		for batch := range 200 {
			s.fill(rows)
			for row := range rows {
				switch rng.IntN(6) { // rings move, events are late, entities are absent
				case 0:
					a.columns(row)[plan.TS] += rng.Int64N(40 * 86_400_000)
				case 1:
					a.columns(row)[plan.TS] = max(0, a.columns(row)[plan.TS]-rng.Int64N(40*86_400_000))
				case 2:
					a.slots(row)[rng.IntN(len(a.lanes))] = -1
				}
			}
			before, lsn := profilesOf(a), a.lsn(0)
			if err := a.Run(nil, 0, rows, Advance|Undo); err != nil {
				t.Fatal(err)
			}
			after := profilesOf(a)
			if slices.Equal(before, after) {
				t.Fatal("the batch changed nothing")
			}
			if err := a.TakeBack(lsn + 1); err != nil || !slices.Equal(profilesOf(a), after) {
				t.Fatalf("%s, batch %d: another LSN took something back, %v", spec, batch, err)
			}
			if err := a.TakeBack(lsn); err != nil || !slices.Equal(profilesOf(a), before) {
				t.Fatalf("%s, batch %d: not as before, %v", spec, batch, err)
			}
			if batch%2 == 0 {
				if err := a.Run(nil, 0, rows, Advance); err != nil {
					t.Fatal(err)
				}
			}
			after = profilesOf(a)
			if err := a.TakeBack(lsn); err != nil || !slices.Equal(profilesOf(a), after) {
				t.Fatalf("%s, batch %d: taken back twice, %v", spec, batch, err)
			}
		}
	}
}

func TestTakeBack_RefusedRun_KeepsTheOneBefore(t *testing.T) {
	a := ready(t)
	if err := a.Run(nil, 0, testRows, Advance|Undo); err != nil {
		t.Fatal(err)
	}
	lsn, after := a.lsn(0), profilesOf(a)
	if err := a.Run(nil, 0, testRows+1, Advance|Undo); err == nil {
		t.Fatal("too many rows were taken")
	}
	if err := a.TakeBack(lsn); err != nil || !slices.Equal(profilesOf(a), after) {
		t.Fatalf("what the run before had changed was taken back, %v", err)
	}
	a.Claim()
	if err := a.TakeBack(lsn); err == nil {
		t.Fatal("an arena in use was taken")
	}
	a.Release()
}
