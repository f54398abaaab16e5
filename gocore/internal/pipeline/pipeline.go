// Package pipeline is the spine: the way of one transaction, each stop called once and in this order.
//
//	submit → find profiles (l1, write-behind, Bloom, levels) → score → decide → journal → reply; write-behind takes over
//
// One goroutine, Run, owns the arena, L1 and the journal's end; nothing of theirs is locked. It drains what is ready and scores
// it in one call; no timer holds a lone transaction back, and one whose profiles are all in L1 never waits. A ticket (the rows of
// one request) is scored in its own order, and tickets that share a card in order of arrival: one that still misses a profile
// holds back only those. From numbering to journal nothing is waited for, so a batch is one step: profiles advance and the journal
// takes it, or neither (pre-images). Behaviour is that of service/pipeline.py and service/fetch.py.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"weir/gocore/internal/decide"
	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/l1"
	"weir/gocore/internal/ort"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/problem"
	"weir/gocore/internal/score"
	"weir/gocore/internal/tx"
)

// KindsMax bounds the kinds of a plan: a row has room for as many.
const KindsMax = 8

// scorerName is what decisions say about who scored.
const scorerName = "go"

// ErrPlan is wrapped when a plan cannot be served.
var ErrPlan = errors.New("plan cannot be served")

// WriteBehind takes over what changed, and keeps the bytes of a profile that left L1 before a level had them. All calls come from
// the pipeline's goroutine.
type WriteBehind interface {
	// Mark says that the profile of id in slot was changed by the entry lsn.
	Mark(kind, slot int, id string, lsn uint64)
	// Waiting is the newest bytes of a profile that left L1, nil if they are in a level.
	Waiting(key []byte) []byte
	// TakeWaiting is the same for good: the caller puts them into L1.
	TakeWaiting(key []byte) []byte
	// Readable reports whether the level with that number answers, and answers with the newest bytes of key.
	Readable(level int, key []byte) bool
	// Position is the LSN up to which the level with that number has every change; false while it is down. Any goroutine.
	Position(level int) (lsn uint64, isUp bool)
}

// Filter is a set of entity keys that never says no wrongly.
type Filter interface {
	MaybeHas(key []byte) bool
	Add(key []byte)
	ConfirmAbsent()
}

// Options are the stops that the pipeline joins, and its bounds. Filter may be nil.
type Options struct {
	Plan        *plan.Plan
	L1          *l1.L1
	Levels      []Level // in read order
	Filter      Filter
	WriteBehind WriteBehind
	Model       *ort.Model
	ModelName   string
	Policy      decide.Policy
	Decisions   *decisions.Index
	Journal     *journal.Journal
	Clock       *Clock
	EventsMax   int // transactions that wait; beyond it they are refused
	BatchMax    int // transactions scored in one call
}

// Pipeline scores transactions. Submit, Score and the like may be called from any goroutine.
type Pipeline struct {
	Counters Counters

	Options
	rates     *tx.Rates
	idOf      []func(*tx.Transaction) string
	arena     *score.Arena
	dry       *dryRun
	isOpen    atomic.Bool
	labelTurn labelTurn

	waiting  atomic.Int64 // rows that were submitted and have no answer yet
	tickets  chan *Ticket
	arrivals chan []arrival
	synced   chan *batch
	calls    chan func()
	stop     chan struct{}
	syncing  chan *batch
	workers  sync.WaitGroup

	// The goroutine of Run only:
	inFlight     map[string]*Row
	waitingCards map[string]*Ticket
	ready        []*Ticket
	flying       map[entity]*miss
	next         []*miss             // not asked for yet
	fetches      int                 // under way
	partial      map[entity][]string // profiles begun while the stored one could not be asked for -> levels that did not answer
	images       images
	entries      []journal.Entry
	packed       []byte
}

// entity names a profile.
type entity struct {
	kind int
	id   string
}

// Counters are numbers for /metrics.
type Counters struct {
	Batches, Rows, FailedBatches, Replayed atomic.Int64
	Approved, Reviewed, Declined           atomic.Int64
	Misses, Unknown                        atomic.Int64
}

// New joins the stops. Nothing runs before Run, nothing is taken before Open.
func New(o Options) (*Pipeline, error) {
	if len(o.Plan.Kinds) > KindsMax {
		return nil, fmt.Errorf("%w: it has %d kinds of entities, at most %d", ErrPlan, len(o.Plan.Kinds), KindsMax)
	}
	p := &Pipeline{
		Options: o, rates: tx.NewRates(o.Plan.Currencies),
		tickets: make(chan *Ticket, o.EventsMax), arrivals: make(chan []arrival, fetchesMax), synced: make(chan *batch, o.EventsMax),
		calls: make(chan func()), stop: make(chan struct{}), syncing: make(chan *batch, o.EventsMax),
		inFlight: map[string]*Row{}, waitingCards: map[string]*Ticket{}, flying: map[entity]*miss{}, partial: map[entity][]string{},
	}
	for i := range o.Plan.Kinds {
		idOf := tx.IDOf(o.Plan.Kinds[i].IDField)
		if idOf == nil {
			return nil, fmt.Errorf("%w: kind %s is named by %s, which is no id", ErrPlan, o.Plan.Kinds[i].Name, o.Plan.Kinds[i].IDField)
		}
		p.idOf = append(p.idOf, idOf)
	}
	var err error
	if p.arena, err = score.New(o.Plan, o.L1.Slabs(), o.BatchMax); err != nil {
		return nil, err
	}
	if p.dry, err = newDryRun(o.Plan); err != nil {
		return nil, err
	}
	p.images.size(o.Plan, o.BatchMax)
	return p, nil
}

// Open and Shut begin and end the taking of transactions.
func (p *Pipeline) Open() { p.isOpen.Store(true) }

// Shut makes every later call answer NotReady.
func (p *Pipeline) Shut() { p.isOpen.Store(false) }

// CheckOpen is a problem of kind NotReady before the start is done and once the stop has begun.
func (p *Pipeline) CheckOpen() error {
	if !p.isOpen.Load() {
		return problem.New(problem.NotReady, "", "the service is starting or stopping; try again")
	}
	return nil
}

// Waiting is how many transactions were taken and have no answer yet.
func (p *Pipeline) Waiting() int { return int(p.waiting.Load()) }

// Do runs call on the goroutine that owns L1 and the journal's end, and returns when it is done.
func (p *Pipeline) Do(call func()) {
	done := make(chan struct{})
	p.calls <- func() {
		defer close(done)
		call()
	}
	<-done
}

// Run is the loop; it ends when Stop is called.
func (p *Pipeline) Run() {
	p.workers.Go(p.syncBatches)
	for {
		if len(p.ready) == 0 {
			select {
			case ticket := <-p.tickets:
				p.take(ticket)
			case list := <-p.arrivals:
				p.arrive(list)
			case b := <-p.synced:
				p.reply(b)
			case call := <-p.calls:
				call()
			case <-p.stop:
				close(p.syncing)
				p.workers.Wait()
				return
			}
		}
		p.drain()
		p.startFetch()
		if rows := p.nextBatch(); len(rows) > 0 {
			p.score(rows)
		}
	}
}

// drain takes everything that is there, as far as a batch has room.
func (p *Pipeline) drain() {
	rows := 0
	for _, ticket := range p.ready {
		rows += len(ticket.rows)
	}
	for rows < p.BatchMax {
		select {
		case list := <-p.arrivals:
			p.arrive(list)
		case b := <-p.synced:
			p.reply(b)
		case call := <-p.calls:
			call()
		default:
			select {
			case ticket := <-p.tickets:
				rows += len(ticket.rows)
				p.take(ticket)
			default:
				return
			}
		}
	}
}

// nextBatch takes ready tickets, at most BatchMax rows.
func (p *Pipeline) nextBatch() []*Row {
	var rows []*Row
	n := 0
	for n < len(p.ready) && (n == 0 || len(rows)+len(p.ready[n].live) <= p.BatchMax) {
		rows = append(rows, p.ready[n].live...)
		n++
	}
	left := copy(p.ready, p.ready[n:])
	clear(p.ready[left:])
	p.ready = p.ready[:left]
	return rows
}

// Drain returns when everything that was taken is answered, or with the context's error.
func (p *Pipeline) Drain(ctx context.Context) error {
	for {
		idle := false
		p.Do(func() { idle = len(p.inFlight) == 0 && len(p.flying) == 0 && p.waiting.Load() == 0 })
		if idle {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d transactions were left without an answer: %w", p.Waiting(), ctx.Err())
		case <-drainPoll():
		}
	}
}

// Stop ends Run. Nobody may call anything any more.
func (p *Pipeline) Stop() { close(p.stop) }
