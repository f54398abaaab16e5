package pipeline

import (
	"fmt"
	"log/slog"
	"math"
	"strings"

	"weir/gocore/internal/decide"
	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/problem"
	"weir/gocore/internal/score"
)

// batch is rows that were scored together and are in the journal.
type batch struct {
	rows   []*Row
	stored []decisions.Stored
	err    error // its fsync failed
}

// score is one micro-batch, all or nothing.
func (p *Pipeline) score(rows []*Row) {
	first := p.Journal.Next()
	slabs := p.L1.Slabs()
	p.images.take(slabs, rows)
	kinds := len(slabs)
	for i, row := range rows {
		p.arena.Put(i, int64(first)+int64(i), row.slots[:kinds], &row.columns)
	}
	stored, err := p.decideAll(rows, first)
	if err != nil {
		p.Journal.Burn(len(rows))
		slog.Error("scoring failed", "rows", len(rows), "problem", err)
		p.failAll(rows, problem.New(problem.ScoringFailed, "", "the scorer failed; nothing was changed"))
		return
	}
	if err := p.append(rows, stored); err != nil {
		slog.Error("journal append failed", "rows", len(rows), "problem", err)
		p.failAll(rows, problem.New(problem.JournalUnavailable, "", "%v; nothing was changed", err))
		return
	}
	b := &batch{rows: rows, stored: stored}
	p.commit(b)
	if p.Journal.SyncedBeforeReply() {
		p.syncing <- b
	} else {
		p.reply(b)
	}
}

// decideAll advances the profiles and decides. The error says that some of them may be advanced.
func (p *Pipeline) decideAll(rows []*Row, first uint64) (stored []decisions.Stored, err error) {
	defer func() { // a panic in a kernel must leave no trace either
		if r := recover(); r != nil {
			err = fmt.Errorf("panic while scoring: %v", r)
		}
	}()
	if err := p.arena.Run(p.Model, 0, len(rows), score.Advance|score.Risk); err != nil {
		return nil, err
	}
	stored = make([]decisions.Stored, len(rows))
	for i, row := range rows {
		risk := float64(p.arena.Risk[i])
		if math.IsNaN(risk) || math.IsInf(risk, 0) {
			return nil, fmt.Errorf("the model gave a risk score that is no number")
		}
		outcome, reasons := p.Policy.Decide(row.columns[1], risk, len(row.degraded) > 0)
		stored[i] = decisions.Stored{
			LSN: first + uint64(i), Body: row.body, Score: risk, Outcome: outcome, Model: p.ModelName, Scorer: scorerName,
			Degraded: row.degraded, Reasons: reasons,
		}
	}
	return stored, nil
}

func (p *Pipeline) append(rows []*Row, stored []decisions.Stored) error {
	p.entries, p.packed = p.entries[:0], p.packed[:0]
	for i, row := range rows {
		start := len(p.packed)
		p.packed = stored[i].AppendOutcome(p.packed)
		p.entries = append(p.entries, journal.Entry{Kind: journal.TX, Body: row.body, Decision: p.packed[start:]})
	}
	_, err := p.Journal.Append(p.entries)
	return err
}

// commit is for a batch that is in the journal: what was prepared counts now.
func (p *Pipeline) commit(b *batch) {
	newest := int64(0)
	for i, row := range b.rows {
		decision := &b.stored[i]
		p.Decisions.Add(strings.Clone(row.tx.EventID), decision)
		for kind := range p.idOf {
			if slot := row.slots[kind]; slot >= 0 {
				p.WriteBehind.Mark(kind, slot, row.ids[kind], decision.LSN)
			}
		}
		p.count(decision.Outcome)
		newest = max(newest, row.tx.TS)
	}
	p.Clock.Note(newest)
	p.unpin(b.rows)
	p.Counters.Batches.Add(1)
	p.Counters.Rows.Add(int64(len(b.rows)))
}

func (p *Pipeline) count(outcome string) {
	switch outcome {
	case decide.Approve:
		p.Counters.Approved.Add(1)
	case decide.Review:
		p.Counters.Reviewed.Add(1)
	default:
		p.Counters.Declined.Add(1)
	}
}

// syncBatches waits for the fsync that everybody shares, before the reply (journal.sync = group).
func (p *Pipeline) syncBatches() {
	for b := range p.syncing {
		b.err = p.Journal.SyncTo(b.stored[len(b.stored)-1].LSN)
		p.synced <- b
	}
}

// reply answers a batch.
func (p *Pipeline) reply(b *batch) {
	if b.err != nil {
		slog.Error("journal sync failed", "problem", b.err)
		p.answerAll(b.rows, problem.New(problem.JournalUnavailable, "", "%v; accepted, but not known to be durable", b.err))
		return
	}
	for i, row := range b.rows {
		delete(p.inFlight, row.tx.EventID)
		decision := &b.stored[i]
		for _, twin := range row.twins {
			twin.ticket.answer(twin.index, Answer{Decision: decision, Replayed: true})
		}
		row.ticket.answer(row.index, Answer{Decision: decision})
	}
}

// failAll undoes a batch and answers all of it.
func (p *Pipeline) failAll(rows []*Row, err error) {
	p.images.restore(p.L1.Slabs())
	p.Counters.FailedBatches.Add(1)
	p.unpin(rows)
	p.answerAll(rows, err)
}

func (p *Pipeline) answerAll(rows []*Row, err error) {
	for _, row := range rows {
		delete(p.inFlight, row.tx.EventID)
		for _, twin := range row.twins {
			twin.ticket.answer(twin.index, Answer{Err: err})
		}
		row.ticket.answer(row.index, Answer{Err: err})
	}
}

func (p *Pipeline) unpin(rows []*Row) {
	for _, row := range rows {
		for kind := range p.idOf {
			if slot := row.slots[kind]; slot >= 0 {
				p.L1.Unpin(kind, slot)
			}
		}
	}
	p.L1.Trim()
}
