package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"weir/gocore/internal/card"
	"weir/gocore/internal/decide"
	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/l1"
	"weir/gocore/internal/ort"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/tiers"
	"weir/gocore/internal/tx"
)

const t0 = 1_750_000_000_000

// library is where libonnxruntime is: WEIR_TEST_ONNXRUNTIME, or what the build put beside the Go core.
func library(t testing.TB) string {
	t.Helper()
	for _, path := range []string{os.Getenv("WEIR_TEST_ONNXRUNTIME"), "../../build/libonnxruntime.so"} {
		if _, err := os.Stat(path); err == nil {
			absolute, err := filepath.Abs(path)
			if err != nil {
				t.Fatal(err)
			}
			return absolute
		}
	}
	t.Skip("no libonnxruntime at WEIR_TEST_ONNXRUNTIME nor in gocore/build; run make go")
	return ""
}

var loaded struct {
	sync.Once
	plan *plan.Plan
	card *card.Card
	err  error
}

// load is the plan and the card of cards, read once: slabs are bound to the plan's kinds.
func load(t testing.TB) (*plan.Plan, *card.Card) {
	t.Helper()
	path := library(t)
	loaded.Do(func() {
		var err error
		loaded.plan = plantest.Load(t, "cards")
		loaded.card, err = card.Load("../../../models/artifacts/cards", loaded.plan)
		loaded.err = errors.Join(err, ort.Open(path))
	})
	if loaded.err != nil {
		t.Fatal(loaded.err)
	}
	return loaded.plan, loaded.card
}

// behind keeps what leaves L1 and notes what changed, as write-behind does.
type behind struct {
	engine   *engine
	waiting  map[string][]byte
	marks    int
	isAway   bool   // no level may be asked
	position uint64 // of every level
}

func (b *behind) Mark(int, int, string, uint64) { b.marks++ }
func (b *behind) Waiting(key []byte) []byte     { return b.waiting[string(key)] }
func (b *behind) Readable(int, []byte) bool     { return !b.isAway }
func (b *behind) Position(int) (uint64, bool)   { return b.position, !b.isAway }
func (b *behind) TakeWaiting(key []byte) []byte {
	found := b.waiting[string(key)]
	delete(b.waiting, string(key))
	return found
}

func (b *behind) evict(kind int, id string, slot int) {
	if p := b.engine.l1.Slabs()[kind].Bytes(slot); !profile.IsEmpty(p) {
		b.waiting[string(tiers.EntityKey(b.engine.plan.Kinds[kind].Name, id))] = bytes.Clone(p)
	}
}

// shelf is a tier in memory, whose answers can be held back or refused.
type shelf struct {
	mu       sync.Mutex
	profiles map[string][]byte
	isDown   bool
	hold     chan struct{} // nil: answers at once
	fills    int
}

func (s *shelf) Name() string { return "shelf" }

func (s *shelf) Fill(_ context.Context, keys [][]byte) ([][]byte, error) {
	s.mu.Lock()
	s.fills++
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isDown {
		return nil, tiers.Unavailable("shelf", errors.New("switched off"))
	}
	found := make([][]byte, len(keys))
	for i, key := range keys {
		found[i] = bytes.Clone(s.profiles[string(key)])
	}
	return found, nil
}

func (s *shelf) Put(context.Context, []tiers.Profile, uint64) error { return nil }
func (s *shelf) Position(context.Context) (uint64, error)           { return 0, nil }

func (s *shelf) set(isDown bool, hold chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isDown, s.hold = isDown, hold
}

// engine is a pipeline with everything around it in memory but the journal.
type engine struct {
	*Pipeline
	plan      *plan.Plan
	l1        *l1.L1
	model     *ort.Model
	behind    *behind
	journal   *journal.Journal
	directory string
}

type config struct {
	directory string
	sync      string
	l1Bytes   int64
	events    int
	levels    []Level
	isRunning bool // Recover is the test's own
}

func start(t testing.TB, c config) *engine {
	t.Helper()
	p, card := load(t)
	if c.directory == "" {
		c.directory = t.TempDir()
	}
	if c.sync == "" {
		c.sync = journal.SyncOS
	}
	if c.l1Bytes == 0 {
		c.l1Bytes = 8 << 20
	}
	if c.events == 0 {
		c.events = 1024
	}
	e := &engine{plan: p, directory: c.directory}
	e.behind = &behind{engine: e, waiting: map[string][]byte{}}
	var err error
	e.l1, err = l1.New(p, c.l1Bytes, 4096, e.behind.evict)
	fatal(t, err)
	e.journal, err = journal.Open(filepath.Join(c.directory, "journal"), journal.Options{
		Sync: c.sync, Interval: 50 * time.Millisecond, SegmentBytes: 1 << 20,
	})
	fatal(t, err)
	e.model, err = ort.Load(card.ONNX, len(p.Features))
	fatal(t, err)
	e.Pipeline, err = New(Options{
		Plan: p, L1: e.l1, Levels: c.levels, WriteBehind: e.behind, Model: e.model, ModelName: card.Model,
		Policy:    decide.Policy{Review: card.Review, Decline: card.Decline, UnknownOutcome: decide.Review},
		Decisions: decisions.New(nil, nil), Journal: e.journal, Clock: &Clock{Stream: true, PastMSMax: p.LongestMS},
		EventsMax: c.events, BatchMax: 128,
	})
	fatal(t, err)
	if !c.isRunning {
		e.run(t)
	}
	return e
}

// run starts the loop; the test's end stops it.
func (e *engine) run(t testing.TB) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run()
	}()
	e.Open()
	t.Cleanup(func() {
		e.Stop()
		<-done
		_ = e.journal.Close()
		e.model.Close()
		for _, slab := range e.l1.Slabs() {
			_ = slab.Close()
		}
	})
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// event is a transaction of card c at merchant m, n seconds after t0.
func event(id, card, merchant string, n int64) Submission {
	return Submission{Tx: tx.Transaction{
		EventID: id, TS: t0 + 1000*n, Amount: 1000 + 37*n%5000, Currency: "EUR", CardID: card, MerchantID: merchant, MCC: 5411,
		DeviceID: "d-" + card, IP: "203.0.113.7", Country: "DE", Channel: "ecom",
	}}
}

// stream is n events of few cards and merchants.
func stream(n int) (list []Submission) {
	for i := range n {
		list = append(list, event(fmt.Sprint("e", i), fmt.Sprint("c", i*i%23), fmt.Sprint("m", i%7), int64(i*977)))
	}
	return list
}

// score is the answers, none of which is a problem.
func (e *engine) score(t testing.TB, items ...Submission) []Answer {
	t.Helper()
	answers, err := e.Score(items)
	fatal(t, err)
	for i := range answers {
		fatal(t, answers[i].Err)
	}
	return answers
}

// profiles are copies of everything in L1 or waiting, by key.
func (e *engine) profiles(items []Submission) map[string][]byte {
	found := map[string][]byte{}
	e.Do(func() {
		for i := range items {
			for kind := range e.idOf {
				id := e.idOf[kind](&items[i].Tx)
				key := tiers.EntityKey(e.plan.Kinds[kind].Name, id)
				if p := e.l1.Peek(kind, id); p != nil {
					found[string(key)] = bytes.Clone(p)
				} else if p := e.behind.waiting[string(key)]; p != nil {
					found[string(key)] = p
				}
			}
		}
	})
	return found
}

func sameProfiles(t testing.TB, got, want map[string][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d profiles, not %d", len(got), len(want))
	}
	for key := range want {
		if !bytes.Equal(got[key], want[key]) {
			t.Errorf("%s differs", key)
		}
	}
}
