package l2

import (
	"bytes"
	"context"
)

// Decisions are exact records by event id beside the profiles, durable after the store's next flush.
type Decisions struct{ s *Store }

// Decisions gives the store's records of decisions.
func (s *Store) Decisions() Decisions { return Decisions{s} }

// Get is a copy of the value of key, nil if there is none.
func (d Decisions) Get(key []byte) ([]byte, error) {
	var found []byte
	err := d.s.view(context.Background(), decisionPrefix, [][]byte{key}, func(_ int, value []byte) { found = bytes.Clone(value) })
	if err != nil {
		return nil, err
	}
	return found, nil
}

// PutMany stores values[i] under keys[i], the newest call wins, and the position if it is higher: all or nothing.
// Position 0 leaves it as it is.
func (d Decisions) PutMany(keys, values [][]byte, position uint64) error {
	d.s.writing.Lock()
	defer d.s.writing.Unlock()
	return d.s.write(&d.s.decisions, position, decisionPrefix, len(keys), func(i int) (key, value []byte) {
		return keys[i], values[i]
	})
}

// Position is the highest one that is on disk: every decision up to this LSN is.
func (d Decisions) Position(context.Context) (uint64, error) {
	return d.s.decisions.persistent.Load(), nil
}

// Keys implements tiers.Keys: all event ids of a snapshot, in order.
func (d Decisions) Keys(ctx context.Context, visit func(key []byte) error) error {
	return d.s.keys(ctx, decisionPrefix, visit)
}
