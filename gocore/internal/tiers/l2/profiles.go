package l2

import (
	"bytes"
	"context"

	"weir/gocore/internal/profile"
	"weir/gocore/internal/tiers"
)

// Profiles is the tier of profiles over a Store, which it does not own. Puts are visible at once and durable, with their
// position, after the store's next flush.
type Profiles struct{ s *Store }

// Profiles gives the store as a tier.
func (s *Store) Profiles() Profiles { return Profiles{s} }

// Name implements tiers.Tier.
func (Profiles) Name() string { return name }

// Fill implements tiers.Tier.
func (p Profiles) Fill(ctx context.Context, keys [][]byte) ([][]byte, error) {
	found := make([][]byte, len(keys))
	if len(keys) == 0 {
		return found, nil
	}
	err := p.s.view(ctx, profilePrefix, keys, func(i int, value []byte) { found[i] = bytes.Clone(value) })
	if err != nil {
		return nil, err
	}
	return found, nil
}

// Put implements tiers.Tier: all or nothing.
func (p Profiles) Put(ctx context.Context, profiles []tiers.Profile, position uint64) error {
	p.s.writing.Lock()
	defer p.s.writing.Unlock()
	keys := make([][]byte, len(profiles))
	for i := range profiles {
		keys[i] = profiles[i].Key
	}
	isOld := make([]bool, len(profiles))
	err := p.s.view(ctx, profilePrefix, keys, func(i int, value []byte) {
		isOld[i] = profile.LSN(value) >= profiles[i].LSN()
	})
	if err != nil {
		return err
	}
	return p.s.write(&p.s.profiles, position, profilePrefix, len(profiles), func(i int) (key, value []byte) {
		if isOld[i] {
			return nil, nil
		}
		return keys[i], profiles[i].Bytes
	})
}

// Position implements tiers.Tier: that of the last flush.
func (p Profiles) Position(context.Context) (uint64, error) {
	return p.s.profiles.persistent.Load(), nil
}

// Keys implements tiers.Keys: those of a snapshot, in order.
func (p Profiles) Keys(ctx context.Context, visit func(key []byte) error) error {
	return p.s.keys(ctx, profilePrefix, visit)
}
