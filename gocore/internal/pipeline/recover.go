package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/score"
	"weir/gocore/internal/tiers"
	"weir/gocore/internal/tx"
)

const progressEvery = 2 * time.Second

// ErrErasure is returned by Recover for an entry that only the Python service knows how to apply.
var ErrErasure = errors.New("an erasure, which weir-go does not know: open this data directory with weir serve")

// Recover applies every journal entry above position (profiles) and decisionsPosition (decisions, labels), in LSN order, and
// returns how many it read. Call it once, before Run. Each profile ignores what it already has, so it does not matter how much of
// a crash's last seconds had reached which store: afterwards the bytes are those of a fresh engine fed the whole journal.
func (p *Pipeline) Recover(ctx context.Context, position, decisionsPosition uint64) (n int, err error) {
	start := time.Now()
	progress := start
	r := recovery{p: p, position: position, decisionsPosition: decisionsPosition}
	err = p.Journal.Read(min(position, decisionsPosition)+1, func(b *journal.Block) error {
		for i := range b.Entries {
			if err := r.apply(ctx, b.First+uint64(i), &b.Entries[i]); err != nil {
				return fmt.Errorf("entry %d of the journal: %w", b.First+uint64(i), err)
			}
		}
		n += len(b.Entries)
		if time.Since(progress) > progressEvery {
			progress = time.Now()
			slog.Info("recovering", "entries", n, "lsn", b.Last(), "of", p.Journal.Last())
		}
		return ctx.Err()
	})
	if err == nil {
		err = r.advance(ctx)
	}
	if err == nil {
		err = r.noteNewest()
	}
	if err == nil && n > 0 {
		slog.Info("recovered", "entries", n, "seconds", time.Since(start).Seconds(), "lsn", p.Journal.Last())
	}
	return n, err
}

// recovery is rows that wait to be applied together.
type recovery struct {
	p                           *Pipeline
	position, decisionsPosition uint64
	rows                        []Row
	lsns                        []uint64
}

func (r *recovery) apply(ctx context.Context, lsn uint64, entry *journal.Entry) error {
	p := r.p
	switch entry.Kind {
	case journal.TX:
		t, err := tx.DecodeBody(entry.Body)
		if err != nil {
			return err
		}
		p.Clock.Note(t.TS)
		if lsn > r.decisionsPosition {
			stored, err := decisions.DecodeOutcome(lsn, entry.Body, entry.Decision)
			if err != nil {
				return err
			}
			p.Decisions.Add(t.EventID, stored)
		}
		if lsn > r.position {
			row := Row{tx: t}
			p.prepare(&row)
			if row.refused != nil {
				return row.refused
			}
			r.rows, r.lsns = append(r.rows, row), append(r.lsns, lsn)
			if len(r.rows) == p.BatchMax {
				return r.advance(ctx)
			}
		}
	case journal.Label:
		return r.label(ctx, lsn, entry.Body)
	case journal.Erasure:
		// The profile would have to be forgotten here and in every tier; blanked entries would count as other entities.
		return ErrErasure
	}
	return nil // list changes are not this server's
}

// advance applies the waiting rows to their profiles.
func (r *recovery) advance(ctx context.Context) error {
	if len(r.rows) == 0 {
		return nil
	}
	p := r.p
	live := make([]*Row, len(r.rows))
	for i := range r.rows {
		live[i] = &r.rows[i]
	}
	p.pinNow(ctx, live)
	for i, row := range live {
		p.arena.Put(i, int64(r.lsns[i]), row.slots[:len(p.idOf)], &row.columns)
	}
	if err := p.arena.Run(nil, 0, len(live), score.Advance); err != nil {
		return err
	}
	for i, row := range live {
		for kind := range p.idOf {
			if slot := row.slots[kind]; slot >= 0 {
				p.WriteBehind.Mark(kind, slot, row.ids[kind], r.lsns[i])
			}
		}
	}
	p.unpin(live)
	r.rows, r.lsns = r.rows[:0], r.lsns[:0]
	return nil
}

func (r *recovery) label(ctx context.Context, lsn uint64, body []byte) error {
	p := r.p
	record, err := decisions.DecodeLabel(body)
	if err != nil {
		return err
	}
	t, err := tx.DecodeBody(record.Body)
	if err != nil {
		return err
	}
	if lsn > r.decisionsPosition {
		stored, err := p.Decisions.Find(record.EventID)
		if err != nil {
			return err
		}
		if stored != nil {
			relabelled := *stored
			relabelled.Label, relabelled.LabelLSN = record.Label, lsn
			p.Decisions.Add(record.EventID, &relabelled)
		}
	}
	if lsn <= r.position || record.Delta == 0 {
		return nil
	}
	if err := r.advance(ctx); err != nil {
		return err
	}
	row := &Row{tx: t}
	for kind := range p.idOf {
		if p.Plan.Kinds[kind].KeepsFrauds {
			row.ids[kind] = p.idOf[kind](&t)
		}
	}
	p.pinNow(ctx, []*Row{row})
	touched, err := p.changeOne(row, record.Delta, lsn)
	if err != nil {
		return err
	}
	for _, t := range touched {
		p.WriteBehind.Mark(t.kind, t.slot, t.id, t.lsn)
	}
	p.unpin([]*Row{row})
	return nil
}

// pinNow pins every profile of rows, read from the levels at once where L1 lacks it. A copy that lacks changes will do: the
// journal brings them.
func (p *Pipeline) pinNow(ctx context.Context, rows []*Row) {
	var misses []*miss
	for _, row := range rows {
		for kind := range p.idOf {
			name := entity{kind, row.ids[kind]}
			row.slots[kind] = -1
			if name.id == "" {
				continue
			}
			slot := p.L1.Find(kind, name.id)
			if slot < 0 {
				key := tiers.EntityKey(p.Plan.Kinds[kind].Name, name.id)
				if p.Filter != nil {
					p.Filter.Add(key)
				}
				if bytes := p.WriteBehind.TakeWaiting(key); bytes != nil {
					slot = p.place(name, bytes)
				} else {
					slot = p.claim(name)
					misses = append(misses, &miss{entity: name, key: key})
				}
			}
			row.slots[kind] = slot
		}
	}
	if len(misses) == 0 {
		return
	}
	p.ask(misses) // not those that are down or lack more than the journal brings: write-behind knows which
	for _, found := range p.read(ctx, misses) {
		name := found.miss.entity
		slot := p.L1.Find(name.kind, name.id)
		bytes := p.L1.Slabs()[name.kind].Bytes(slot)
		switch {
		case found.bytes != nil:
			copy(bytes, found.bytes)
			if profile.IsPartial(found.bytes) {
				p.notePartial(name, []string{unknownLevel})
			}
		case len(found.degraded) > 0:
			p.Counters.Unknown.Add(1)
			markPartial(bytes)
			p.notePartial(name, found.degraded)
		}
		p.L1.Unpin(name.kind, slot)
	}
}

// noteNewest lets the stream clock go on where it stopped, about: at the last entries, if none of them had to be applied again.
func (r *recovery) noteNewest() error {
	last := r.p.Journal.Last()
	if last == 0 {
		return nil
	}
	return r.p.Journal.Read(last, func(b *journal.Block) error {
		for _, entry := range b.Entries {
			if entry.Kind != journal.TX {
				continue
			}
			t, err := tx.DecodeBody(entry.Body)
			if err != nil {
				return err
			}
			r.p.Clock.Note(t.TS)
		}
		return nil
	})
}
