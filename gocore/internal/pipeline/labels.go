package pipeline

import (
	"fmt"
	"sync"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/problem"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/tx"
)

// What became of a label.
const (
	Applied      = "applied"
	Unchanged    = "unchanged"
	UnknownEvent = "unknown_event"
)

const stepLabels = 128 // labels applied at a time

// LabelAnswer is what became of a label; LSN is 0 unless there is one.
type LabelAnswer struct {
	EventID, Status string
	LSN             uint64
}

// labelTurn makes steps of labels follow each other: one changes decisions that the next one reads.
type labelTurn struct{ sync.Mutex }

// Label applies labels in order. One label per event: the same again changes nothing, another one applies the difference. An error
// (JournalUnavailable, TierUnavailable, NotReady) means that the step at fault and those after it did not happen.
func (p *Pipeline) Label(labels []tx.Label) ([]LabelAnswer, error) {
	if err := p.CheckOpen(); err != nil {
		return nil, err
	}
	p.labelTurn.Lock()
	defer p.labelTurn.Unlock()
	answers := make([]LabelAnswer, 0, len(labels))
	last := uint64(0)
	for start := 0; start < len(labels); start += stepLabels {
		step, err := p.labelStep(labels[start:min(start+stepLabels, len(labels))])
		if err != nil {
			return nil, err
		}
		for _, a := range step {
			last = max(last, a.LSN)
		}
		answers = append(answers, step...)
	}
	if p.Journal.SyncedBeforeReply() {
		if err := p.Journal.SyncTo(last); err != nil {
			return nil, problem.New(problem.JournalUnavailable, "", "%v; applied, but not known to be durable", err)
		}
	}
	return answers, nil
}

// labelStep finds decisions and profiles first, then changes everything at once.
func (p *Pipeline) labelStep(labels []tx.Label) (answers []LabelAnswer, err error) {
	ticket := newTicket(1)
	ticket.rows = make([]Row, len(labels))
	found := make(map[string]*decisions.Stored, len(labels))
	for i, label := range labels {
		stored, err := p.Decisions.Find(label.EventID)
		if err != nil {
			return nil, tierUnavailable(err)
		}
		if stored == nil {
			continue
		}
		row := &ticket.rows[i]
		row.ticket = ticket
		if row.tx, err = stored.Transaction(); err != nil {
			return nil, fmt.Errorf("decision of LSN %d: %w", stored.LSN, err)
		}
		found[label.EventID] = stored
	}
	isFraud := map[string]bool{} // a first "legit" changes no profile: it needs none
	for _, label := range labels {
		stored := found[label.EventID]
		isFraud[label.EventID] = isFraud[label.EventID] || label.Label == tx.Fraud || stored != nil && stored.Label == tx.Fraud
	}
	for i, label := range labels {
		for kind := range p.idOf {
			if row := &ticket.rows[i]; row.ticket != nil && isFraud[label.EventID] && p.Plan.Kinds[kind].KeepsFrauds {
				row.ids[kind] = p.idOf[kind](&row.tx)
			}
		}
	}
	ticket.pinned = func(ticket *Ticket) {
		answers, err = p.changeAll(labels, found, ticket.live)
		p.unpin(ticket.live)
		ticket.answer(0, Answer{})
	}
	p.Do(func() { p.take(ticket) })
	<-ticket.done
	return answers, err
}

// changeAll is a step of labels on the pipeline's goroutine: all of it counts, or none.
func (p *Pipeline) changeAll(labels []tx.Label, found map[string]*decisions.Stored, rows []*Row) ([]LabelAnswer, error) {
	next := p.Journal.Next()
	var before images
	before.take(p.L1.Slabs(), rows)
	answers := make([]LabelAnswer, len(labels))
	var changed []*decisions.Stored
	var entries []journal.Entry
	var touched []touch
	for i, label := range labels {
		stored := found[label.EventID] // an earlier label of this step may have changed it
		switch {
		case stored == nil:
			answers[i] = LabelAnswer{label.EventID, UnknownEvent, 0}
			continue
		case stored.Label == label.Label:
			answers[i] = LabelAnswer{label.EventID, Unchanged, stored.LabelLSN}
			continue
		}
		lsn := next + uint64(len(entries))
		delta := fraud(label.Label) - fraud(stored.Label)
		if delta != 0 {
			touches, err := p.changeOne(rows[i], delta, lsn)
			if err != nil {
				before.restore(p.L1.Slabs())
				return nil, err
			}
			touched = append(touched, touches...)
		}
		record := decisions.LabelRecord{EventID: label.EventID, Label: label.Label, TS: label.TS, Delta: delta, Body: stored.Body, TxLSN: stored.LSN}
		entries = append(entries, journal.Entry{Kind: journal.Label, Body: record.Append(nil)})
		relabelled := *stored
		relabelled.Label, relabelled.LabelLSN = label.Label, lsn
		found[label.EventID] = &relabelled
		changed = append(changed, &relabelled)
		answers[i] = LabelAnswer{label.EventID, Applied, lsn}
	}
	if len(entries) == 0 {
		return answers, nil
	}
	if _, err := p.Journal.Append(entries); err != nil {
		before.restore(p.L1.Slabs())
		return nil, problem.New(problem.JournalUnavailable, "", "%v; these labels were not applied", err)
	}
	p.countLabels(labels, answers, changed, touched)
	return answers, nil
}

// countLabels is for a step that is in the journal.
func (p *Pipeline) countLabels(labels []tx.Label, answers []LabelAnswer, changed []*decisions.Stored, touched []touch) {
	n := 0
	for i, a := range answers {
		if a.Status == Applied {
			p.Decisions.Add(labels[i].EventID, changed[n])
			n++
		}
	}
	for _, t := range touched {
		p.WriteBehind.Mark(t.kind, t.slot, t.id, t.lsn)
	}
}

func fraud(label string) int64 {
	if label == tx.Fraud {
		return 1
	}
	return 0
}

// touch is one profile that a label changed.
type touch struct {
	entity
	slot int
	lsn  uint64
}

// changeOne adds delta frauds to the profiles of a row.
func (p *Pipeline) changeOne(row *Row, delta int64, lsn uint64) (touched []touch, err error) {
	for kind := range p.idOf {
		slot := row.slots[kind]
		if slot < 0 || !p.Plan.Kinds[kind].KeepsFrauds {
			continue
		}
		if _, err := p.arena.Label(kind, slot, row.tx.TS, delta, int64(lsn)); err != nil {
			return nil, err
		}
		// An entity that every store has lost has no profile to be written; an empty partial one gets the label later.
		if bytes := p.L1.Slabs()[kind].Bytes(slot); !profile.IsEmpty(bytes) || profile.IsPartial(bytes) {
			touched = append(touched, touch{entity{kind, row.ids[kind]}, slot, lsn})
		}
	}
	return touched, nil
}
