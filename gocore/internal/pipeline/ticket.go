package pipeline

import (
	"weir/gocore/internal/decisions"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/problem"
	"weir/gocore/internal/tx"
)

// Answer is what one transaction is answered: a decision, which may be an earlier one, or a problem.
type Answer struct {
	Decision *decisions.Stored
	Replayed bool
	Err      error
}

// Row is one transaction in flight. ids and slots have one item per kind.
type Row struct {
	tx       tx.Transaction
	body     []byte
	columns  [plan.Columns]int64
	refused  error // by its currency; an earlier answer goes before
	ids      [KindsMax]string
	slots    [KindsMax]int
	degraded []string
	ticket   *Ticket
	index    int
	twins    []place // others with the same event id and body
}

// place is one answer of a ticket.
type place struct {
	ticket *Ticket
	index  int
}

// degrade notes levels that could not be asked for one of the row's profiles.
func (r *Row) degrade(levels []string) {
	for _, level := range levels {
		known := false
		for _, have := range r.degraded {
			known = known || have == level
		}
		if !known {
			r.degraded = append(r.degraded, level)
		}
	}
}

// Ticket is the rows of one request, or of one step of a long one.
type Ticket struct {
	rows      []Row
	live      []*Row // those that are to be scored
	missing   int    // profiles on their way
	ahead     int    // tickets of the same cards that go first
	followers []*Ticket
	answers   []Answer
	open      int // rows without an answer
	done      chan struct{}
	pinned    func(*Ticket) // called instead of scoring, once every profile is pinned
}

func newTicket(n int) *Ticket {
	return &Ticket{answers: make([]Answer, n), open: n, done: make(chan struct{})}
}

func (t *Ticket) answer(index int, a Answer) {
	t.answers[index] = a
	if t.open--; t.open == 0 {
		close(t.done)
	}
}

// waitBehind keeps t from starting before earlier, which shares a card with it.
func (t *Ticket) waitBehind(earlier *Ticket) {
	if earlier == nil || earlier == t {
		return
	}
	for _, follower := range earlier.followers {
		if follower == t {
			return
		}
	}
	earlier.followers = append(earlier.followers, t)
	t.ahead++
}

// Submission is one item of a request: a transaction, or why there is none.
type Submission struct {
	Tx  tx.Transaction
	Err error
}

// Score answers items in order, problems in their places. More than a batch goes in steps, one after the other. The error is for
// the request as a whole: NotReady or Overloaded.
func (p *Pipeline) Score(items []Submission) ([]Answer, error) {
	if len(items) <= p.BatchMax {
		return p.step(items)
	}
	answers := make([]Answer, 0, len(items))
	for start := 0; start < len(items); start += p.BatchMax {
		part, err := p.step(items[start:min(start+p.BatchMax, len(items))])
		if err != nil {
			return nil, err
		}
		answers = append(answers, part...)
	}
	return answers, nil
}

func (p *Pipeline) step(items []Submission) ([]Answer, error) {
	if err := p.admit(len(items)); err != nil {
		return nil, err
	}
	ticket := newTicket(len(items))
	ticket.rows = make([]Row, 0, len(items))
	for i := range items {
		if items[i].Err != nil {
			ticket.answers[i].Err = items[i].Err
			ticket.open--
			continue
		}
		ticket.rows = append(ticket.rows, Row{tx: items[i].Tx, ticket: ticket, index: i})
		row := &ticket.rows[len(ticket.rows)-1]
		p.prepare(row)
	}
	p.waiting.Add(-int64(len(items) - len(ticket.rows)))
	if len(ticket.rows) == 0 {
		return ticket.answers, nil
	}
	p.tickets <- ticket // there is room: admit bounds the rows, and each ticket has one
	<-ticket.done
	p.waiting.Add(-int64(len(ticket.rows)))
	return ticket.answers, nil
}

// prepare is the work on a row that needs nobody else: it happens on the caller's goroutine.
func (p *Pipeline) prepare(row *Row) {
	t := &row.tx
	row.body = t.AppendBody(make([]byte, 0, 256))
	row.refused = p.rates.Columns(t, &row.columns)
	for kind, idOf := range p.idOf {
		row.ids[kind] = idOf(t)
	}
}

// admit reserves places for n rows.
func (p *Pipeline) admit(n int) error {
	if err := p.CheckOpen(); err != nil {
		return err
	}
	if now := p.waiting.Add(int64(n)); now > int64(p.EventsMax) {
		p.waiting.Add(-int64(n))
		return problem.New(problem.Overloaded, "", "the queue holds %d of queue.events_max = %d transactions", now-int64(n), p.EventsMax)
	}
	return nil
}

// take gives each row of a ticket its place, or answers it from an earlier one with the same event id and body; then it looks for
// the profiles of the others.
func (p *Pipeline) take(ticket *Ticket) {
	if ticket.pinned != nil {
		for i := range ticket.rows {
			ticket.live = append(ticket.live, &ticket.rows[i])
		}
		p.lookUp(ticket)
		return
	}
	for i := range ticket.rows {
		row := &ticket.rows[i]
		if answer, isAnswered := p.earlier(row); isAnswered {
			ticket.answer(row.index, answer)
		} else if row.ticket != nil {
			ticket.live = append(ticket.live, row)
		}
	}
	if len(ticket.live) > 0 {
		p.lookUp(ticket)
	}
}

// earlier is the answer that a row has already, or its refusal. A row that waits for its twin has neither, and no ticket any more.
func (p *Pipeline) earlier(row *Row) (Answer, bool) {
	eventID := row.tx.EventID
	if twin := p.inFlight[eventID]; twin != nil {
		if string(twin.body) != string(row.body) {
			return Answer{Err: conflict()}, true
		}
		twin.twins = append(twin.twins, place{row.ticket, row.index})
		row.ticket = nil
		return Answer{}, false
	}
	stored, err := p.Decisions.FindRecent(eventID)
	switch {
	case err != nil:
		return Answer{Err: tierUnavailable(err)}, true
	case stored != nil && string(stored.Body) != string(row.body):
		return Answer{Err: conflict()}, true
	case stored != nil:
		p.Counters.Replayed.Add(1)
		return Answer{Decision: stored, Replayed: true}, true
	}
	if err := p.Clock.Check(row.tx.TS); err != nil {
		return Answer{Err: err}, true
	}
	if row.refused != nil {
		return Answer{Err: row.refused}, true
	}
	p.inFlight[eventID] = row
	return Answer{}, false
}

func conflict() error {
	return problem.New(problem.Conflict, "event_id",
		"event_id: it was accepted before with another body; an event_id names one transaction")
}

func tierUnavailable(err error) error {
	return problem.New(problem.TierUnavailable, "", "%v", err)
}
