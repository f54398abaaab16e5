package advance_test

import (
	"slices"
	"testing"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
)

// FuzzProfile: whatever a stored profile holds behind a header that passes Check, working on it stays inside it: no panic, no
// endless loop. Its content may well be nonsense. ts, lsn and delta are within what package score lets through.
func FuzzProfile(f *testing.F) {
	p, short := plantest.Load(f, "cards"), plantest.Load(f, "handbook")
	for k := range p.Kinds {
		e := newEntity(p, k)
		for i := range int64(20) {
			e.apply(baseMS+i*dayMS, i*1000, i+1, i)
		}
		f.Add(byte(k), profile.AsBytes(e.words), baseMS+21*dayMS, int64(1000))
		f.Add(byte(k), profile.AsBytes(slices.Repeat([]int64{-1}, e.kind.Words())), baseMS, int64(1))
	}
	f.Add(byte(0), []byte{}, int64(0), int64(1))
	f.Fuzz(func(t *testing.T, number byte, data []byte, ts, lsn int64) {
		for _, p := range []*plan.Plan{p, short} {
			work(t, p, int(number)%len(p.Kinds), data, ts&(1<<62-1), max(lsn, 1))
		}
	})
}

func work(t *testing.T, p *plan.Plan, k int, data []byte, ts, lsn int64) {
	t.Helper()
	fuzzed := func() *entity {
		e := newEntity(p, k)
		b := profile.AsBytes(e.words)
		copy(b, data)
		e.words[plan.WVersion] = e.words[plan.WVersion]&^0xFFFF | profile.VersionWord(e.kind)
		e.words[plan.WLayout] = e.kind.Layout
		if err := profile.Check(e.kind, b); err != nil {
			t.Fatal(err)
		}
		return e
	}
	e, other := fuzzed(), fuzzed()
	for _, at := range []int64{ts, e.words[plan.WLastSeen], e.words[plan.WLastSeen] - 1, e.words[plan.WLastSeen] + 1, 0, 1 << 62} {
		if at >= 0 && at <= 1<<62 {
			e.apply(at, 1<<37-1, lsn, 5, 5, 5, 5, 5, 5, 5, 5, 5)
			e.label(at, 1, lsn)
			e.label(at, -1, lsn+1)
			lsn += 2
		}
	}
	if len(e.words) != e.kind.Words() || len(e.observed) != e.kind.Observed() {
		t.Fatal("something grew")
	}
	first := merged(e.kind, e.words, other.words)
	if !slices.Equal(first, merged(e.kind, other.words, e.words)) {
		t.Fatal("merging depends on the order")
	}
	if err := profile.Check(e.kind, profile.AsBytes(first)); err != nil {
		t.Fatal(err)
	}
}
