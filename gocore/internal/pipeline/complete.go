package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/score"
	"weir/gocore/internal/tiers"
	"weir/gocore/internal/tx"
)

// completeMax is how many profiles one pass makes whole: 6 MB of copies.
const completeMax = 4_096

// NPartial is how many profiles are partial. Only on the goroutine of Run (Do).
func (p *Pipeline) NPartial() int { return len(p.partial) }

// rebuild is copies of stored profiles on their way to the journal's end.
type rebuild struct {
	p     *Pipeline
	arena *score.Arena
	slabs []*profile.Slab
	slots []map[string]int // by kind
	next  uint64           // the first LSN that was not applied
}

// Complete makes partial profiles whole for which the levels answer again, and returns how many. The stored profile is advanced by
// every entry that it lacks, so the outcome has the very bytes that it would have had without the outage: from the lowest position of
// the levels that were asked on, because any of them may hold an old copy. The journal reaches back that far. Call it on any goroutine but Run's, one call at a time.
func (p *Pipeline) Complete(ctx context.Context) (int, error) {
	var misses []*miss
	p.Do(func() {
		for name := range p.partial {
			if len(misses) == completeMax {
				break
			}
			misses = append(misses, &miss{entity: name, key: tiers.EntityKey(p.Plan.Kinds[name.kind].Name, name.id)})
		}
	})
	if len(misses) == 0 {
		return 0, nil
	}
	r := &rebuild{p: p, next: p.askOld(misses)} // before the levels are asked: what is written in between is applied twice, and ignored once
	var stored []arrival
	for _, found := range p.read(ctx, misses) {
		if found.bytes != nil || len(found.degraded) == 0 {
			stored = append(stored, found)
		}
	}
	if len(stored) == 0 {
		return 0, nil
	}
	if err := r.begin(stored); err != nil {
		return 0, err
	}
	defer r.close()
	if err := r.catchUp(); err != nil {
		return 0, err
	}
	var err error
	p.Do(func() { // the rest, and then nobody appends until the copies are the truth
		if err = r.catchUp(); err == nil {
			for i := range stored {
				r.replace(&stored[i])
			}
			p.L1.Trim()
		}
	})
	if err == nil {
		slog.Info("partial profiles completed", "profiles", len(stored))
	}
	return len(stored), err
}

// begin copies what is stored into slabs of its own.
func (r *rebuild) begin(stored []arrival) error {
	kinds := r.p.Plan.Kinds
	r.slots = make([]map[string]int, len(kinds))
	for kind := range kinds {
		r.slots[kind] = map[string]int{}
	}
	for i := range stored {
		name := stored[i].miss.entity
		r.slots[name.kind][name.id] = len(r.slots[name.kind])
	}
	for kind := range kinds {
		slab, err := profile.NewSlab(&kinds[kind], len(r.slots[kind]))
		if err != nil {
			return err
		}
		r.slabs = append(r.slabs, slab)
	}
	for i := range stored {
		name := stored[i].miss.entity
		copy(r.slabs[name.kind].Bytes(r.slots[name.kind][name.id]), stored[i].bytes)
	}
	var err error
	r.arena, err = score.New(r.p.Plan, r.slabs, 1)
	return err
}

func (r *rebuild) close() {
	_ = r.arena.Close() // unmapping what was mapped
	for _, slab := range r.slabs {
		_ = slab.Close()
	}
}

// catchUp applies every entry up to the journal's last one of now. The profile's LSN guard leaves out what it already has.
func (r *rebuild) catchUp() error {
	last := r.p.Journal.Last()
	if r.next > last {
		return nil
	}
	err := r.p.Journal.Read(r.next, func(b *journal.Block) error {
		for i := range b.Entries {
			if err := r.apply(b.First+uint64(i), &b.Entries[i]); err != nil {
				return err
			}
		}
		r.next = b.Last() + 1
		return nil
	})
	return err
}

func (r *rebuild) apply(lsn uint64, entry *journal.Entry) error {
	body, delta := entry.Body, int64(0)
	if entry.Kind == journal.Label {
		record, err := decisions.DecodeLabel(entry.Body)
		if err != nil {
			return err
		}
		if body, delta = record.Body, record.Delta; delta == 0 {
			return nil
		}
	} else if entry.Kind != journal.TX {
		return nil
	}
	t, err := tx.DecodeBody(body)
	if err != nil {
		return err
	}
	var slots [KindsMax]int
	isWanted := false
	for kind := range r.slots {
		slot, ok := r.slots[kind][r.p.idOf[kind](&t)]
		if !ok {
			slots[kind] = -1
			continue
		}
		slots[kind], isWanted = slot, true
		if delta != 0 && r.p.Plan.Kinds[kind].KeepsFrauds {
			if _, err := r.arena.Label(kind, slot, t.TS, delta, int64(lsn)); err != nil {
				return err
			}
		}
	}
	if !isWanted || delta != 0 {
		return nil
	}
	var columns [plan.Columns]int64
	if err := r.p.rates.Columns(&t, &columns); err != nil {
		return err
	}
	r.arena.Put(0, int64(lsn), slots[:len(r.slots)], &columns)
	return r.arena.Run(nil, 0, 1, score.Advance)
}

// replace puts a rebuilt profile where the partial one is.
func (r *rebuild) replace(stored *arrival) {
	p, name := r.p, stored.miss.entity
	whole := r.slabs[name.kind].Bytes(r.slots[name.kind][name.id])
	delete(p.partial, name)
	slot := p.L1.Find(name.kind, name.id)
	if slot < 0 {
		p.WriteBehind.TakeWaiting(stored.miss.key)
		if profile.IsEmpty(whole) || bytes.Equal(whole, stored.bytes) {
			return
		}
		slot = p.claim(name) // write-behind finds it here
	}
	copy(p.L1.Slabs()[name.kind].Bytes(slot), whole)
	p.L1.Unpin(name.kind, slot)
}

// ErrReach is returned by Changed when the journal does not go back far enough.
var ErrReach = errors.New("the journal does not reach back that far")

// Changed calls mark with the key of every profile that an entry above the LSN after changed, and the entry's LSN, in order. reach is
// the LSN below which the journal cannot tell.
func (p *Pipeline) Changed(ctx context.Context, after, reach uint64, mark func(key []byte, lsn uint64)) error {
	if after < reach {
		return fmt.Errorf("%w: to LSN %d, it begins after %d", ErrReach, after, reach)
	}
	return p.Journal.Read(after+1, func(b *journal.Block) error {
		for i := range b.Entries {
			body, isLabel := b.Entries[i].Body, b.Entries[i].Kind == journal.Label
			if isLabel {
				record, err := decisions.DecodeLabel(body)
				if err != nil {
					return err
				}
				if body = record.Body; record.Delta == 0 {
					continue
				}
			} else if b.Entries[i].Kind != journal.TX {
				continue
			}
			t, err := tx.DecodeBody(body)
			if err != nil {
				return err
			}
			for kind := range p.idOf {
				if id := p.idOf[kind](&t); id != "" && (!isLabel || p.Plan.Kinds[kind].KeepsFrauds) {
					mark(tiers.EntityKey(p.Plan.Kinds[kind].Name, id), b.First+uint64(i))
				}
			}
		}
		return ctx.Err()
	})
}
