package advance_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"weir/gocore/internal/advance"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
)

const (
	baseMS = int64(1_750_000_000_000)
	hourMS = int64(3_600_000)
	dayMS  = 24 * hourMS
)

// entity is one profile and what its advances left behind.
type entity struct {
	kind     *plan.Kind
	clock    *advance.Clock
	words    []int64
	observed []int64
	late     []int64
}

func newEntity(p *plan.Plan, kind int) *entity {
	k := &p.Kinds[kind]
	return &entity{k, advance.NewClock(p), make([]int64, k.Words()), make([]int64, k.Observed()), make([]int64, len(k.Rings))}
}

func (e *entity) apply(ts, amount, lsn int64, more ...int64) {
	columns := [plan.Columns]int64{plan.TS: ts, plan.Amount: amount}
	for c := plan.Country; c < plan.Columns; c++ {
		columns[c] = -1
	}
	copy(columns[plan.Country:], more)
	advance.Apply(e.kind, e.words, e.clock.At(&columns, lsn), e.observed, e.late)
}

func (e *entity) label(ts, delta, lsn int64) bool {
	return advance.Label(e.kind, e.words, ts, delta, lsn, e.late)
}

// window is the value of the first window of the kind that keeps code, undelayed or not.
func (e *entity) window(t *testing.T, code int, delayed bool) int64 {
	t.Helper()
	for i := range e.kind.Rings {
		for _, w := range e.kind.Rings[i].Windows {
			if w.Code == code && (w.Skip > 0) == delayed {
				return e.words[w.Word]
			}
		}
	}
	t.Fatalf("%s has no such window", e.kind.Name)
	return 0
}

func TestApply_FirstEvent_BeginsTheProfile(t *testing.T) {
	e := newEntity(plantest.Load(t, "cards"), 0)
	e.words[plan.WVersion] = 1 << 16 // partial: that stays
	e.apply(baseMS, 500, 9)
	if err := profile.Check(e.kind, profile.AsBytes(e.words)); err != nil {
		t.Fatal(err)
	}
	if !profile.IsPartial(profile.AsBytes(e.words)) {
		t.Error("the flag was lost")
	}
	want := []int64{9, 9, baseMS, baseMS, 0}
	if got := e.words[plan.WLSN : plan.WLateDropped+1]; !slices.Equal(got, want) {
		t.Errorf("lsn, first lsn, first seen, last seen, late dropped: %v, want %v", got, want)
	}
	if want := []int64{1, 1, baseMS, -1}; !slices.Equal(e.observed[:plan.ObsFixed], want) {
		t.Errorf("observed %v, want %v", e.observed[:plan.ObsFixed], want)
	}
}

func TestApply_LSNNotAbove_ChangesNothing(t *testing.T) {
	e := newEntity(plantest.Load(t, "cards"), 0)
	e.apply(baseMS, 500, 9)
	e.apply(baseMS+dayMS, 500, 12)
	before := slices.Clone(e.words)
	for _, lsn := range []int64{1, 11, 12} {
		e.apply(baseMS+3*dayMS, 1, lsn)
		e.apply(baseMS-400*dayMS, 1, lsn)
		e.label(baseMS, 1, lsn)
	}
	if !slices.Equal(e.words, before) {
		t.Error("the profile changed")
	}
	if slices.ContainsFunc(e.late, func(n int64) bool { return n != 0 }) {
		t.Errorf("late events were counted: %v", e.late)
	}
}

func TestApply_LateEvent_CountsWhereTheRingHasItsTile(t *testing.T) {
	e := newEntity(plantest.Load(t, "cards"), 0)
	e.apply(baseMS, 500, 1)
	count := e.window(t, plan.Count, false)
	e.apply(baseMS-1, 500, 2)
	if got := e.window(t, plan.Count, false); got != count+1 {
		t.Errorf("the window counts %d, want %d", got, count+1)
	}
	if e.words[plan.WFirstSeen] != baseMS-1 || e.words[plan.WLastSeen] != baseMS {
		t.Errorf("first seen %d, last seen %d", e.words[plan.WFirstSeen], e.words[plan.WLastSeen])
	}
	before := slices.Clone(e.words)
	e.apply(baseMS-400*dayMS, 500, 3)
	rings := int64(len(e.kind.Rings))
	if e.words[plan.WLateDropped] != rings {
		t.Errorf("%d late, want one per ring: %d", e.words[plan.WLateDropped], rings)
	}
	for i, n := range e.late {
		if n != 1 {
			t.Errorf("ring %d dropped %d, want 1", i, n)
		}
	}
	before[plan.WLSN], before[plan.WFirstSeen], before[plan.WLateDropped] = 3, baseMS-400*dayMS, rings
	if !slices.Equal(e.words, before) {
		t.Error("an event that no ring has a tile for changed more than lsn, first seen and its count")
	}
}

func TestApply_OldestTileOfARing_IsItsLastButOne(t *testing.T) {
	p := plantest.Load(t, "cards")
	for k := range p.Kinds {
		for i := range p.Kinds[k].Rings {
			ring := &p.Kinds[k].Rings[i]
			span := int64(ring.Tiles) * ring.TileMS
			last := baseMS/span*span + span - 1 // the ring begins at a multiple of its span, so its oldest tile is the first
			for ts, dropped := range map[int64]int64{last - span: 1, last - span + 1: 0, last: 0} {
				e := newEntity(p, k)
				e.apply(last, 5, 1)
				e.apply(ts, 5, 2)
				if e.late[i] != dropped {
					t.Errorf("%s.%s: an event %d ms older: %d dropped, want %d", e.kind.Name, ring.Name, last-ts, e.late[i], dropped)
				}
			}
		}
	}
}

func TestClock_AnyTimes_GivesTheirTiles(t *testing.T) {
	rng := plantest.Seeded(t)
	p := plantest.Load(t, "cards")
	used, ts := newEntity(p, 0), baseMS
	for lsn := range int64(3000) {
		width := p.Widths[rng.IntN(len(p.Widths))]
		switch rng.IntN(4) {
		case 0:
			ts = ts/width*width + width // the very first moment of the next tile
		case 1:
			ts = ts/width*width - 1 // the very last of the one before
		case 2:
			ts += rng.Int64N(width)
		}
		fresh := newEntity(p, 0)
		copy(fresh.words, used.words)
		fresh.apply(ts, 5, lsn+1)
		used.apply(ts, 5, lsn+1)
		if !slices.Equal(fresh.words, used.words) || !slices.Equal(fresh.observed, used.observed) {
			t.Fatalf("at %d a clock that was used gives other tiles than a new one", ts)
		}
	}
}

func TestLabel_Profile_CountsFraudsNeverBelowZero(t *testing.T) {
	e := newEntity(plantest.Load(t, "cards"), 1)
	if e.label(baseMS, 1, 1) || slices.ContainsFunc(e.words, func(w int64) bool { return w != 0 }) {
		t.Fatal("a label began a profile")
	}
	e.apply(baseMS, 500, 2)
	e.apply(baseMS+9*dayMS, 500, 3)
	for _, step := range []struct {
		delta, frauds int64
	}{{-1, 0}, {1, 1}, {1, 2}, {-1, 1}, {-1, 0}, {-1, 0}} {
		if !e.label(baseMS, step.delta, e.words[plan.WLSN]+1) {
			t.Fatal("a label with a new lsn changed nothing")
		}
		if got := e.window(t, plan.Frauds, true); got != step.frauds {
			t.Fatalf("after %+d there are %d frauds, want %d", step.delta, got, step.frauds)
		}
	}
	if e.words[plan.WLateDropped] != 0 {
		t.Errorf("%d labels counted as late", e.words[plan.WLateDropped])
	}
}

func TestLabel_TileThatTheRingHasNot_CountsAsLate(t *testing.T) {
	for name, ts := range map[string]int64{"too old": baseMS - 60*dayMS, "newer than last seen": baseMS + 2*dayMS} {
		t.Run(name, func(t *testing.T) {
			e := newEntity(plantest.Load(t, "cards"), 1)
			e.apply(baseMS, 500, 1)
			before := slices.Clone(e.words)
			if !e.label(ts, 1, 2) {
				t.Error("the lsn is new, so the label changes the profile")
			}
			before[plan.WLSN], before[plan.WLateDropped] = 2, 1
			if !slices.Equal(e.words, before) {
				t.Error("more changed than lsn and late dropped")
			}
		})
	}
}

// build is the profile of a kind after random events, all of other times than those of other parities.
func build(rng *rand.Rand, p *plan.Plan, kind int, parity, firstLSN int64, n int) *entity {
	e := newEntity(p, kind)
	ts := baseMS + rng.Int64N(40*dayMS)
	for i := range int64(n) {
		at := ts/4*4 + parity
		e.apply(at, rng.Int64N(1<<37), firstLSN+2*i, rng.Int64N(30)-1, 5411, 1, rng.Int64N(1<<32), rng.Int64N(1<<32))
		if rng.IntN(3) == 0 {
			e.label(at, 1-2*rng.Int64N(2), firstLSN+2*i+1)
		}
		ts += []int64{1000, 100_000, hourMS, dayMS, 30 * dayMS, -hourMS, -10 * dayMS}[rng.IntN(7)]
	}
	return e
}

func merged(kind *plan.Kind, left, right []int64) []int64 {
	out := make([]int64, kind.Words())
	advance.Merge(kind, left, right, out)
	return out
}

func TestMerge_RandomProfiles_CommutesAssociatesAndAdvances(t *testing.T) {
	rng := plantest.Seeded(t)
	for _, name := range []string{"cards", "handbook", "handbook40"} {
		p := plantest.Load(t, name)
		for round := range 60 {
			k := round % len(p.Kinds)
			kind := &p.Kinds[k]
			a, b, c := build(rng, p, k, 0, 1, 12), build(rng, p, k, 1, 100, 12), build(rng, p, k, 2, 200, 12)
			ab := merged(kind, a.words, b.words)
			if !slices.Equal(ab, merged(kind, b.words, a.words)) {
				t.Fatalf("%s: merging two %ss depends on their order", name, kind.Name)
			}
			if !slices.Equal(merged(kind, ab, c.words), merged(kind, a.words, merged(kind, b.words, c.words))) {
				t.Fatalf("%s: merging three %ss depends on what comes first", name, kind.Name)
			}
			later := max(a.words[plan.WLastSeen], b.words[plan.WLastSeen])/4*4 + 4*rng.Int64N(20*hourMS) + 7
			joined := &entity{kind, a.clock, ab, a.observed, a.late}
			joined.apply(later, 77, 1000, 9)
			a.apply(later, 77, 1000, 9)
			if !slices.Equal(joined.words, merged(kind, a.words, b.words)) {
				t.Fatalf("%s: advancing a %s after a merge differs from merging after the advance", name, kind.Name)
			}
		}
	}
}

func TestMerge_Partial_IsPartialOnlyIfBothAre(t *testing.T) {
	p := plantest.Load(t, "cards")
	sides := map[bool]*entity{true: newEntity(p, 0), false: newEntity(p, 0)}
	sides[true].words[plan.WVersion] = 1 << 16
	for _, e := range sides {
		e.apply(baseMS, 5, 1)
	}
	for _, left := range []bool{true, false} {
		for _, right := range []bool{true, false} {
			b := profile.AsBytes(merged(sides[left].kind, sides[left].words, sides[right].words))
			if profile.IsPartial(b) != (left && right) {
				t.Errorf("partial %v with %v gives %v", left, right, profile.IsPartial(b))
			}
		}
	}
}

func TestMerge_InterleavedHalves_EqualTheWholeButForLateness(t *testing.T) {
	rng := plantest.Seeded(t)
	p := plantest.Load(t, "cards")
	for round := range 40 {
		k := round % len(p.Kinds)
		sides := []*entity{newEntity(p, k), newEntity(p, k), newEntity(p, k)}
		ts := baseMS
		for i := range int64(30) {
			ts += rng.Int64N(3*dayMS) - hourMS
			amount, country, side := rng.Int64N(1<<33), rng.Int64N(30)-1, i%2
			for _, e := range []*entity{sides[side], sides[2]} {
				e.apply(ts/64*64+i, amount, i+1, country)
			}
		}
		got := merged(sides[2].kind, sides[0].words, sides[1].words)
		got[plan.WLateDropped] = sides[2].words[plan.WLateDropped]
		if !slices.Equal(got, sides[2].words) {
			t.Fatalf("the merged halves of a %s differ from the whole", sides[2].kind.Name)
		}
	}
}

func TestApply_SteadyState_AllocatesNothing(t *testing.T) {
	e := newEntity(plantest.Load(t, "cards"), 0)
	columns := [plan.Columns]int64{plan.TS: baseMS, plan.Amount: 5}
	lsn := int64(0)
	allocs := testing.AllocsPerRun(500, func() {
		lsn++
		columns[plan.TS] += 7 * 60_000 // rings move, now and then an event is late
		if lsn%5 == 0 {
			columns[plan.TS] -= 20 * 60_000
		}
		advance.Apply(e.kind, e.words, e.clock.At(&columns, lsn), e.observed, e.late)
	})
	if allocs != 0 {
		t.Errorf("%v allocations per event, want none", allocs)
	}
}

func TestMerge_LastSeenTheGreatestNumber_Ends(t *testing.T) {
	e := newEntity(plantest.Load(t, "cards"), 0)
	for i := range e.kind.Rings {
		e.kind.Rings[i].TileMS = 1
	}
	e.apply(baseMS, 5, 1)
	e.words[plan.WLastSeen] = 1<<63 - 1
	if got := merged(e.kind, e.words, e.words)[plan.WLastSeen]; got != 1<<63-1 {
		t.Errorf("last seen %d", got)
	}
}
