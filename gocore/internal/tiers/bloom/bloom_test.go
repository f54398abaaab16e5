package bloom

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"weir/gocore/internal/tiers"
)

func key(i int) []byte { return fmt.Appendf(nil, "card:c%d", i) }

func TestMaybe_BeforeCover_AlwaysMaybe(t *testing.T) {
	m := NewMaybe(100, 0.01)
	if !m.MaybeHas(key(1)) {
		t.Error("a set that does not cover said no")
	}
	m.Cover()
	if m.MaybeHas(key(1)) {
		t.Error("an empty set that covers said maybe")
	}
}

func TestMaybe_TenTimesItsCapacity_NoWrongNoAndFppHolds(t *testing.T) {
	const capacity, fpp = 2_000, 0.01
	m := NewMaybe(capacity, fpp)
	m.Cover()
	for i := range 10 * capacity {
		m.Add(key(i))
	}
	for i := range 10 * capacity {
		if !m.MaybeHas(key(i)) {
			t.Fatalf("key %d was added", i)
		}
	}
	const asked = 100_000
	wrong := 0
	for i := range asked {
		if m.MaybeHas(key(-1 - i)) {
			wrong++
		}
	}
	if rate := float64(wrong) / asked; rate > 1.2*fpp {
		t.Errorf("%.4f wrong maybes, promised %.4f", rate, fpp)
	}
	if s := m.Stats(); s.Generations != 4 || s.Lookups != asked+10*capacity || s.Negatives != int64(asked-wrong) {
		t.Errorf("%+v", s)
	}
}

func TestMaybe_GenerationAtLimitAndOnePast_GrowsOnlyPast(t *testing.T) {
	m := NewMaybe(10, 1e-9)
	for i := range 10 {
		m.Add(key(i))
		m.Add(key(i)) // twice counts once
	}
	if n := m.Stats().Generations; n != 1 {
		t.Errorf("at the limit: %d generations", n)
	}
	m.Add(key(10))
	if n := m.Stats().Generations; n != 2 {
		t.Errorf("one past: %d generations", n)
	}
}

func TestRotating_KeyWithinWindow_IsThere(t *testing.T) {
	now := int64(0)
	r := NewRotating(1000, 400, 0.001, func() int64 { return now })
	r.Cover()
	r.Add(key(1))
	for _, at := range []int64{0, 999, 1000} {
		now = at
		r.Add(key(int(at) + 100))
		if !r.MaybeHas(key(1)) {
			t.Errorf("gone after %d ms", at)
		}
	}
	now = 1300
	r.Add(key(2))
	if r.MaybeHas(key(1)) {
		t.Error("still there 300 ms past the window")
	}
}

func TestRotating_ClockStepsBack_KeepsKeys(t *testing.T) {
	now := int64(10_000)
	r := NewRotating(1000, 400, 0.001, func() int64 { return now })
	r.Cover()
	r.Add(key(1))
	now = 0
	r.Add(key(2))
	if !r.MaybeHas(key(1)) || !r.MaybeHas(key(2)) {
		t.Error("a key was lost")
	}
}

func TestRotating_MoreKeysThanItKeeps_MaybeUntilTheyExpire(t *testing.T) {
	now := int64(0)
	r := NewRotating(1000, 40, 0.001, func() int64 { return now })
	r.Cover()
	for i := range generationsMax*10 + 1 { // 10 keys per generation
		r.Add(key(i))
	}
	if !r.MaybeHas(key(-1)) {
		t.Error("said no after it had to forget")
	}
	if n := r.Stats().Generations; n != generationsMax {
		t.Errorf("%d generations", n)
	}
	now = 1001
	if r.MaybeHas(key(-1)) {
		t.Error("still maybe after the forgotten keys expired")
	}
}

func TestRotating_FalsePositives_CountOnlyWhileSure(t *testing.T) {
	r := NewRotating(1000, 40, 0.001, func() int64 { return 0 })
	r.ConfirmAbsent()
	r.Cover()
	r.ConfirmAbsent()
	if n := r.Stats().FalsePositives; n != 1 {
		t.Errorf("%d false positives", n)
	}
}

type source struct {
	keys [][]byte
	err  error
}

func (s source) Keys(_ context.Context, visit func([]byte) error) error {
	for _, k := range s.keys {
		if err := visit(k); err != nil {
			return err
		}
	}
	return s.err
}

func TestCover_SourceFails_StaysMaybe(t *testing.T) {
	m := NewMaybe(100, 0.01)
	broken := source{[][]byte{key(1)}, tiers.ErrUnavailable}
	if err := Cover(t.Context(), m, source{}, broken); !errors.Is(err, tiers.ErrUnavailable) {
		t.Fatalf("error %v", err)
	}
	if !m.MaybeHas(key(2)) {
		t.Error("said no although a source failed")
	}
	if err := Cover(t.Context(), m, source{[][]byte{key(1), key(2)}, nil}); err != nil {
		t.Fatal(err)
	}
	if !m.MaybeHas(key(1)) || !m.MaybeHas(key(2)) || m.MaybeHas(key(3)) {
		t.Error("wrong answers after covering")
	}
}

func BenchmarkMaybe_Miss_TenMillionKeys(b *testing.B) {
	m := NewMaybe(10_000_000, 0.01)
	for i := range 1_000_000 {
		m.Add(key(i))
	}
	m.Cover()
	keys := make([][]byte, 4096)
	for i := range keys {
		keys[i] = key(-1 - i*7919)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.MaybeHas(keys[i%len(keys)])
	}
}
