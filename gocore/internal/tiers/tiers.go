// Package tiers says what every store of profiles below L1 promises, and what they share: keys, LSNs, slices of a put.
//
// A profile is opaque bytes here; all that a tier knows of it is its LSN. Invariants of every Tier:
//   - Put never takes a profile back to a lower LSN, and never the position either; a repeated Put changes nothing;
//   - the position is stored with the data: what Position gives is never ahead of what the store durably holds;
//   - a call answers or fails with ErrUnavailable within its deadline; it never gives a profile that it knows is stale;
//   - after ErrUnavailable the caller calls Position, which accepts the store as it is now, before it trusts it again.
//
// The Python service's tiers (service/tiers) keep the same promises in the same stores: either reads what the other wrote.
package tiers

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"weir/gocore/internal/profile"
)

// ErrUnavailable is wrapped by every error of a tier: it did not answer in time, refused, or is not the store it was.
var ErrUnavailable = errors.New("tier unavailable")

// Profile is one profile under its key, as EntityKey makes it.
type Profile struct {
	Key, Bytes []byte
}

// LSN is the LSN that the profile has reached.
func (p Profile) LSN() uint64 { return profile.LSN(p.Bytes) }

// Tier is one level below L1. Its methods may be called from several goroutines at once.
type Tier interface {
	// Name is what decisions name when the tier could not be asked: l2, redis, postgres.
	Name() string
	// Fill gives the profile of each key in the order of keys, nil where there is none: one round trip. The bytes are
	// copies, safe to keep.
	Fill(ctx context.Context, keys [][]byte) ([][]byte, error)
	// Put stores each profile unless the tier has it at the same or a higher LSN, then the position if it is higher:
	// every change up to it is in the tier once Put returns. Position 0 leaves it as it is. After an error an unknown
	// part is stored and the call may be repeated.
	Put(ctx context.Context, profiles []Profile, position uint64) error
	// Position is the position that is durably stored, 0 in an empty tier.
	Position(ctx context.Context) (uint64, error)
}

// Keys is a tier whose keys can be listed, which a Bloom filter over them needs.
type Keys interface {
	// Keys calls visit with each key of the tier, valid only during the call, and ends at the first error. A key that
	// is put meanwhile may be missing: its writer adds it to the filter.
	Keys(ctx context.Context, visit func(key []byte) error) error
}

// Unavailable is an error of the tier called name that wraps ErrUnavailable and cause; cause itself if it does already.
func Unavailable(name string, cause error) error {
	if errors.Is(cause, ErrUnavailable) {
		return cause
	}
	return fmt.Errorf("%s: %w: %w", name, ErrUnavailable, cause)
}

// EntityKey is the key of an entity in every tier: `card:c1`.
func EntityKey(kind, id string) []byte {
	key := make([]byte, 0, len(kind)+1+len(id))
	key = append(key, kind...)
	key = append(key, ':')
	return append(key, id...)
}

// PackLSN is lsn as it stands in a profile: 8 bytes, little-endian.
func PackLSN(lsn uint64) []byte { return binary.LittleEndian.AppendUint64(nil, lsn) }

// Slices cuts profiles into parts of at most keysMax; a part that reaches bytesMax bytes ends too. There is at least
// one part, which is empty if profiles is.
func Slices(profiles []Profile, keysMax, bytesMax int) [][]Profile {
	var parts [][]Profile
	start, bytes := 0, 0
	for i, p := range profiles {
		bytes += len(p.Bytes)
		if i+1-start == keysMax || bytes >= bytesMax {
			parts = append(parts, profiles[start:i+1])
			start, bytes = i+1, 0
		}
	}
	if start < len(profiles) || parts == nil {
		parts = append(parts, profiles[start:])
	}
	return parts
}
