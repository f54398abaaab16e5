package tiers

import (
	"context"
	"errors"
	"testing"
)

func TestSlices_AtLimitAndPast_CutsThere(t *testing.T) {
	of := func(sizes ...int) (profiles []Profile) {
		for _, n := range sizes {
			profiles = append(profiles, Profile{Bytes: make([]byte, n)})
		}
		return profiles
	}
	for _, c := range []struct {
		sizes []int
		want  []int
	}{
		{nil, []int{0}},
		{[]int{1}, []int{1}},
		{[]int{1, 1}, []int{2}},
		{[]int{1, 1, 1}, []int{3}},
		{[]int{1, 1, 1, 1}, []int{3, 1}},
		{[]int{99, 1, 1}, []int{2, 1}},
		{[]int{99, 1}, []int{2}},
		{[]int{200, 1}, []int{1, 1}},
	} {
		parts := Slices(of(c.sizes...), 3, 100)
		var got []int
		for _, part := range parts {
			got = append(got, len(part))
		}
		if len(got) != len(c.want) {
			t.Errorf("%v: %v, not %v", c.sizes, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%v: %v, not %v", c.sizes, got, c.want)
			}
		}
	}
}

func TestBreaker_Failure_OpenUntilReset(t *testing.T) {
	b, cause := NewBreaker("redis"), errors.New("no answer")
	if err := b.Check(); err != nil {
		t.Fatal(err)
	}
	if err := b.Trip(t.Context(), cause); !errors.Is(err, cause) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("trip: %v", err)
	}
	if err := b.Check(); !errors.Is(err, cause) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("open: %v", err)
	}
	b.Reset()
	if err := b.Check(); err != nil {
		t.Errorf("reset: %v", err)
	}
}

func TestBreaker_CallerGaveUp_StaysClosed(t *testing.T) {
	b := NewBreaker("redis")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Trip(ctx, ctx.Err()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("trip: %v", err)
	}
	if err := b.Check(); err != nil {
		t.Errorf("open: %v", err)
	}
}

func TestUnavailable_Twice_SaysItOnce(t *testing.T) {
	err := Unavailable("postgres", Unavailable("postgres", errors.New("gone")))
	if got := err.Error(); got != "postgres: tier unavailable: gone" {
		t.Error(got)
	}
}

func TestEntityKey_KindAndID_AsInEveryTier(t *testing.T) {
	if got := string(EntityKey("card", "c:1")); got != "card:c:1" {
		t.Error(got)
	}
}
