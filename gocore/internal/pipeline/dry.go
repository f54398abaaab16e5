package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/problem"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/score"
	"weir/gocore/internal/tiers"
	"weir/gocore/internal/tx"
)

// dryRun is slabs of one profile per kind, and an arena over them: copies are advanced here and thrown away.
type dryRun struct {
	mu    sync.Mutex
	slabs []*profile.Slab
	arena *score.Arena
}

func newDryRun(p *plan.Plan) (*dryRun, error) {
	d := &dryRun{}
	for i := range p.Kinds {
		slab, err := profile.NewSlab(&p.Kinds[i], 1)
		if err != nil {
			return nil, err
		}
		d.slabs = append(d.slabs, slab)
	}
	var err error
	d.arena, err = score.New(p, d.slabs, 1)
	return d, err
}

// DryRun answers what the transaction would be answered now, with LSN 0. Nothing is stored, counted or pinned.
func (p *Pipeline) DryRun(ctx context.Context, t *tx.Transaction) Answer {
	row := Row{tx: *t}
	p.prepare(&row)
	if err := p.Clock.Check(t.TS); err != nil {
		return Answer{Err: err}
	}
	if row.refused != nil {
		return Answer{Err: row.refused}
	}
	profiles := p.newest(ctx, &row)
	risk, err := p.dry.score(p, &row, profiles)
	if err != nil {
		return Answer{Err: problem.New(problem.ScoringFailed, "", "the scorer failed; nothing was changed")}
	}
	outcome, reasons := p.Policy.Decide(row.columns[1], risk, len(row.degraded) > 0)
	return Answer{Decision: &decisions.Stored{
		Body: row.body, Score: risk, Outcome: outcome, Model: p.ModelName, Scorer: scorerName, Degraded: row.degraded, Reasons: reasons,
	}}
}

// newest is the newest bytes of each of the row's profiles, without touching L1 or the filter.
func (p *Pipeline) newest(ctx context.Context, row *Row) (profiles [KindsMax][]byte) {
	var misses []*miss
	p.Do(func() {
		for kind := range p.idOf {
			name := entity{kind, row.ids[kind]}
			if name.id == "" {
				continue
			}
			row.degrade(p.degraded(name))
			key := tiers.EntityKey(p.Plan.Kinds[kind].Name, name.id)
			switch found, waiting := p.L1.Peek(kind, name.id), p.WriteBehind.Waiting(key); {
			case found != nil:
				profiles[kind] = bytes.Clone(found)
			case waiting != nil:
				profiles[kind] = bytes.Clone(waiting)
			case p.Filter == nil || p.Filter.MaybeHas(key):
				misses = append(misses, &miss{entity: name, key: key})
			}
		}
		p.ask(misses)
	})
	if len(misses) == 0 {
		return profiles
	}
	for _, found := range p.read(ctx, misses) {
		profiles[found.miss.kind] = found.bytes
		if found.bytes == nil {
			row.degrade(found.degraded)
		}
	}
	return profiles
}

func (d *dryRun) score(p *Pipeline, row *Row, profiles [KindsMax][]byte) (float64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	lsn := uint64(0)
	slots := make([]int, len(d.slabs))
	for kind, slab := range d.slabs {
		slots[kind] = -1
		if row.ids[kind] == "" {
			continue
		}
		slots[kind] = 0
		clear(slab.Bytes(0))
		if profiles[kind] != nil {
			copy(slab.Bytes(0), profiles[kind])
			lsn = max(lsn, profile.LSN(profiles[kind]))
		}
	}
	d.arena.Put(0, int64(lsn)+1, slots, &row.columns) // above what every profile already has
	if err := d.arena.Run(p.Model, 0, 1, score.Advance|score.Risk); err != nil {
		return 0, fmt.Errorf("dry run: %w", err)
	}
	return float64(d.arena.Risk[0]), nil
}
