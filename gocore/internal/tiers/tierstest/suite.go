// Package tierstest is the suite of tests that every tier has to pass, and the profiles that tests put into one.
package tierstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"weir/gocore/internal/profile"
	"weir/gocore/internal/tiers"
)

// Made is a profile of that LSN under key, recognisable by its last byte.
func Made(key string, lsn uint64, mark byte) tiers.Profile {
	b := make([]byte, 128)
	b[0] = profile.Version
	binary.LittleEndian.PutUint64(b[profile.LSNOffset:], lsn)
	b[127] = mark
	return tiers.Profile{Key: []byte(key), Bytes: b}
}

// Marks asks tier for keys and gives the last byte of each profile, 0 for none.
func Marks(t testing.TB, tier tiers.Tier, keys ...string) []byte {
	t.Helper()
	asked := make([][]byte, len(keys))
	for i, key := range keys {
		asked[i] = []byte(key)
	}
	found, err := tier.Fill(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	marks := make([]byte, len(keys))
	for i := range keys {
		if found[i] != nil {
			marks[i] = found[i][127]
		}
	}
	return marks
}

// Run runs the suite. start gives an empty tier whose Position was read; settle makes what was put durable, for a tier
// that does not do so by itself.
func Run(t *testing.T, start func(t *testing.T) (tier tiers.Tier, settle func() error)) {
	for name, test := range map[string]func(*testing.T, tiers.Tier, func() error){
		"Put_LowerEqualHigherLSN_OnlyHigherWins": onlyHigherWins,
		"Fill_SomeMissing_KeepsTheOrder":         keepsTheOrder,
		"Position_Lower_StaysWhereItWas":         positionStays,
		"Put_AroundASlice_EverythingArrives":     aroundASlice,
		"Put_ByFourAtOnce_HighestLSNWins":        byFourAtOnce,
		"Keys_All_OnceEach":                      keysOnceEach,
	} {
		t.Run(name, func(t *testing.T) {
			tier, settle := start(t)
			test(t, tier, settle)
		})
	}
}

func put(t testing.TB, tier tiers.Tier, position uint64, profiles ...tiers.Profile) {
	t.Helper()
	if err := tier.Put(t.Context(), profiles, position); err != nil {
		t.Fatal(err)
	}
}

func onlyHigherWins(t *testing.T, tier tiers.Tier, _ func() error) {
	const epoch = 1 << 48
	put(t, tier, 0, Made("card:a", epoch|5, 1))
	for _, c := range []struct {
		lsn  uint64
		mark byte
		want byte
	}{
		{epoch | 4, 2, 1}, {epoch | 5, 3, 1}, {epoch | 6, 4, 4}, {2*epoch | 1, 5, 5}, {epoch | 1<<40, 6, 5},
		{2*epoch | 1<<33, 7, 7}, {2*epoch | 1<<32, 8, 7}, {2*epoch | 1<<33 | 1, 9, 9},
	} {
		put(t, tier, 0, Made("card:a", c.lsn, c.mark))
		if got := Marks(t, tier, "card:a")[0]; got != c.want {
			t.Errorf("after LSN %x: profile %d, not %d", c.lsn, got, c.want)
		}
	}
}

func keepsTheOrder(t *testing.T, tier tiers.Tier, _ func() error) {
	put(t, tier, 1, Made("card:b", 1, 2), Made("card:a", 1, 1), Made("card:ü\x00\n", 1, 3))
	asked := []string{"card:x", "card:b", "card:", "card:a", "card:aa", "card:b", "card:ü\x00\n"}
	if got, want := Marks(t, tier, asked...), []byte{0, 2, 0, 1, 0, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
	if found, err := tier.Fill(t.Context(), nil); err != nil || len(found) != 0 {
		t.Errorf("no keys: %v, %v", found, err)
	}
}

func positionStays(t *testing.T, tier tiers.Tier, settle func() error) {
	for _, c := range []struct{ put, want uint64 }{{0, 0}, {7, 7}, {6, 7}, {0, 7}, {1<<48 | 1, 1<<48 | 1}, {1 << 33, 1<<48 | 1}} {
		put(t, tier, c.put)
		if err := settle(); err != nil {
			t.Fatal(err)
		}
		if got, err := tier.Position(t.Context()); err != nil || got != c.want {
			t.Errorf("after %x: %x, not %x (%v)", c.put, got, c.want, err)
		}
	}
}

func aroundASlice(t *testing.T, tier tiers.Tier, settle func() error) {
	for lsn, n := range []int{1, 255, 256, 257, 1_000} {
		var profiles []tiers.Profile
		var keys []string
		for i := range n {
			keys = append(keys, fmt.Sprintf("card:%d-%d", n, i))
			profiles = append(profiles, Made(keys[i], 1, byte(1+i%200)))
		}
		put(t, tier, uint64(lsn+1), profiles...)
		for i, mark := range Marks(t, tier, keys...) {
			if mark != byte(1+i%200) {
				t.Fatalf("%d profiles: number %d is %d", n, i, mark)
			}
		}
		if err := settle(); err != nil {
			t.Fatal(err)
		}
		if got, err := tier.Position(t.Context()); err != nil || got != uint64(lsn+1) {
			t.Errorf("%d profiles: position %d (%v)", n, got, err)
		}
	}
}

func byFourAtOnce(t *testing.T, tier tiers.Tier, _ func() error) {
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 25 {
				lsn := uint64(4*i + g + 1)
				both := []tiers.Profile{Made("card:b", lsn, byte(lsn)), Made("card:a", lsn, byte(lsn))}
				if err := tier.Put(t.Context(), both, 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := Marks(t, tier, "card:a", "card:b"); !slices.Equal(got, []byte{100, 100}) {
		t.Errorf("%v", got)
	}
}

func keysOnceEach(t *testing.T, tier tiers.Tier, _ func() error) {
	source, ok := tier.(tiers.Keys)
	if !ok {
		t.Skip("its keys cannot be listed")
	}
	var profiles []tiers.Profile
	for i := range 2_001 { // one past a page of Postgres
		profiles = append(profiles, Made(fmt.Sprintf("card:%d", i), 1, 1))
	}
	put(t, tier, 1, profiles...)
	seen := map[string]int{}
	err := source.Keys(t.Context(), func(key []byte) error {
		seen[string(key)]++
		return nil
	})
	if err != nil || len(seen) != len(profiles) {
		t.Errorf("%d keys of %d (%v)", len(seen), len(profiles), err)
	}
	stop := errors.New("enough")
	if err := source.Keys(t.Context(), func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
}
