package decisions

import (
	"context"
	"sync"
)

// Store holds records on disk, by event id.
type Store interface {
	Get(key []byte) ([]byte, error)
	PutMany(keys, values [][]byte, position uint64) error
}

// Filter is a set of event ids that never says no wrongly.
type Filter interface {
	MaybeHas(key []byte) bool
	Add(key []byte)
	ConfirmAbsent()
}

// flushMax is how many records one write holds.
const flushMax = 512

// Index is every decision: in RAM what the store lacks, then the store. Safe for concurrent use; Add belongs to one goroutine.
type Index struct {
	store  Store // nil keeps everything in RAM
	filter Filter

	mu      sync.RWMutex
	recent  map[string]*Stored
	leaving map[string]*Stored // being written to the store
}

// New makes an index over a store, with a filter in front of it. Both may be nil.
func New(store Store, filter Filter) *Index {
	return &Index{store: store, filter: filter, recent: map[string]*Stored{}, leaving: map[string]*Stored{}}
}

// Len is how many decisions only RAM has.
func (x *Index) Len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.recent) + len(x.leaving)
}

// Find is the stored decision, nil for an unknown event. At most one read of the store.
func (x *Index) Find(eventID string) (*Stored, error) {
	if found := x.inRAM(eventID); found != nil || x.store == nil {
		return found, nil
	}
	record, err := x.store.Get([]byte(eventID))
	if err != nil || record == nil {
		return nil, err
	}
	return Decode(record)
}

// FindRecent is Find for an event that was accepted within the window of idempotency: a new one costs no read.
func (x *Index) FindRecent(eventID string) (*Stored, error) {
	if found := x.inRAM(eventID); found != nil {
		return found, nil
	}
	if x.filter != nil && !x.filter.MaybeHas([]byte(eventID)) {
		return nil, nil
	}
	found, err := x.Find(eventID)
	if x.filter != nil && found == nil && err == nil {
		x.filter.ConfirmAbsent()
	}
	return found, err
}

func (x *Index) inRAM(eventID string) *Stored {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if found := x.recent[eventID]; found != nil {
		return found
	}
	return x.leaving[eventID]
}

// Add is for a new or a changed decision.
func (x *Index) Add(eventID string, decision *Stored) {
	x.mu.Lock()
	x.recent[eventID] = decision
	x.mu.Unlock()
	if x.filter != nil {
		x.filter.Add([]byte(eventID))
	}
}

// Flush moves what the journal durably has from RAM to the store, and then the store's position: every entry up to position is
// durable, and was added before the call. What came later stays: if a power failure took it from the journal, an event that never
// happened would be known here. A label above position holds its decision back, and the store's position below that. After an
// error what was not written stays in RAM. One call at a time.
func (x *Index) Flush(ctx context.Context, position uint64) error {
	if x.store == nil {
		return nil
	}
	x.mu.Lock()
	durable := position
	for eventID, decision := range x.recent { // leaving is empty, or what an earlier flush did not write
		if max(decision.LSN, decision.LabelLSN) <= durable {
			x.leaving[eventID] = decision
			delete(x.recent, eventID)
		} else if decision.LSN <= durable {
			position = min(position, decision.LSN-1)
		}
	}
	leaving := x.leaving // added to by nobody until the end
	x.mu.Unlock()
	keys, values := make([][]byte, 0, flushMax), make([][]byte, 0, flushMax)
	for eventID, decision := range leaving {
		keys, values = append(keys, []byte(eventID)), append(values, decision.Append(nil))
		if len(keys) == flushMax {
			if err := x.store.PutMany(keys, values, 0); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			keys, values = keys[:0], values[:0]
		}
	}
	if err := x.store.PutMany(keys, values, position); err != nil {
		return err
	}
	x.mu.Lock()
	x.leaving = map[string]*Stored{}
	x.mu.Unlock()
	return nil
}
