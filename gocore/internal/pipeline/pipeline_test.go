package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"weir/gocore/internal/decide"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/problem"
	"weir/gocore/internal/tx"
)

func TestScore_Stream_EveryAnswerInOrderAndJournaled(t *testing.T) {
	e := start(t, config{})
	items := stream(300)
	answers := e.score(t, items...)
	n := 0
	fatal(t, e.journal.Read(0, func(b *journal.Block) error {
		for i, entry := range b.Entries {
			got, err := tx.DecodeBody(entry.Body)
			fatal(t, err)
			a := answers[n]
			if got.EventID != items[n].Tx.EventID || a.Decision.LSN != b.First+uint64(i) || a.Replayed || a.Decision.Outcome == "" {
				t.Fatalf("entry %d: %s, answer %+v", n, got.EventID, a.Decision)
			}
			n++
		}
		return nil
	}))
	if n != 300 || e.behind.marks != 4*300 || e.Waiting() != 0 || e.Counters.Rows.Load() != 300 {
		t.Fatalf("%d entries, %d marks, %d waiting", n, e.behind.marks, e.Waiting())
	}
}

func TestScore_OneByOneOrTogether_SameScoresAndProfiles(t *testing.T) {
	one, together := start(t, config{}), start(t, config{})
	items := stream(100)
	all := together.score(t, items...)
	for i := range items {
		if got := one.score(t, items[i])[0].Decision.Score; got != all[i].Decision.Score {
			t.Fatalf("event %d: %v alone, %v in a batch", i, got, all[i].Decision.Score)
		}
	}
	sameProfiles(t, one.profiles(items), together.profiles(items))
}

func TestScore_SameIDAgain_ReplayedOrConflict(t *testing.T) {
	e := start(t, config{})
	first := event("a", "c", "m", 0)
	other := event("a", "c", "m", 1)
	answers, err := e.Score([]Submission{first, first, other})
	fatal(t, err)
	if answers[0].Replayed || !answers[1].Replayed || answers[1].Decision != answers[0].Decision || !errors.Is(answers[2].Err, problem.Conflict) {
		t.Fatalf("in one request: %+v", answers)
	}
	if again := e.score(t, first)[0]; !again.Replayed || again.Decision.LSN != answers[0].Decision.LSN {
		t.Fatalf("later: %+v", again)
	}
	if answers, err = e.Score([]Submission{other}); err != nil || !errors.Is(answers[0].Err, problem.Conflict) {
		t.Fatalf("later, another body: %+v", answers)
	}
	if n := e.Counters.Rows.Load(); n != 1 {
		t.Fatalf("%d rows counted", n)
	}
}

func TestScore_SameIDAtOnce_OneCounts(t *testing.T) {
	e := start(t, config{sync: journal.SyncGroup})
	var wait sync.WaitGroup
	var fresh sync.Map
	for range 50 {
		wait.Go(func() {
			answers, err := e.Score([]Submission{event("a", "c", "m", 0)})
			if err != nil || answers[0].Err != nil {
				t.Errorf("%v %v", err, answers)
				return
			}
			fresh.Store(answers[0].Replayed, answers[0].Decision.LSN)
		})
	}
	wait.Wait()
	if n := e.Counters.Rows.Load(); n != 1 {
		t.Fatalf("%d rows counted", n)
	}
}

func TestScore_GroupSync_DurableBeforeTheReply(t *testing.T) {
	e := start(t, config{sync: journal.SyncGroup})
	for i := range 20 {
		a := e.score(t, event(fmt.Sprint(i), "c", "m", int64(i)))[0]
		if e.journal.Durable() < a.Decision.LSN {
			t.Fatalf("answered LSN %d, durable %d", a.Decision.LSN, e.journal.Durable())
		}
	}
}

func TestScore_WhatIsRefused_InItsPlace(t *testing.T) {
	e := start(t, config{})
	e.score(t, event("now", "c", "m", 90*86400))
	foreign := event("b", "c", "m", 90*86400)
	foreign.Tx.Currency = "XXX"
	answers, err := e.Score([]Submission{{Err: problem.New(problem.MalformedBody, "", "x")}, foreign, event("old", "c", "m", 0), event("ok", "c", "m", 90*86400)})
	fatal(t, err)
	if !errors.Is(answers[0].Err, problem.MalformedBody) || !errors.Is(answers[1].Err, problem.InvalidEvent) ||
		!errors.Is(answers[2].Err, problem.InvalidEvent) || answers[3].Err != nil {
		t.Fatalf("%+v", answers)
	}
}

func TestScore_QueueAtLimitAndOnePast_Overloaded(t *testing.T) {
	hold := make(chan struct{})
	e := start(t, config{events: 200, levels: []Level{{Tier: &shelf{hold: hold}}}})
	var wait sync.WaitGroup
	wait.Go(func() { e.score(t, stream(100)...) })
	for e.Waiting() < 100 {
		time.Sleep(time.Millisecond)
	}
	wait.Go(func() { e.score(t, stream(200)[100:]...) })
	for e.Waiting() < 200 {
		time.Sleep(time.Millisecond)
	}
	if _, err := e.Score(stream(201)[200:]); !errors.Is(err, problem.Overloaded) {
		t.Errorf("one past: %v", err)
	}
	close(hold)
	wait.Wait()
	e.score(t, stream(201)[200:]...)
}

func TestScore_BeforeOpenAndAfterShut_NotReady(t *testing.T) {
	e := start(t, config{})
	e.Shut()
	if _, err := e.Score(stream(1)); !errors.Is(err, problem.NotReady) {
		t.Error(err)
	}
	if _, err := e.Label([]tx.Label{{EventID: "x"}}); !errors.Is(err, problem.NotReady) {
		t.Error(err)
	}
	fatal(t, e.Drain(context.Background()))
}

func TestScore_ModelFails_NothingChanged(t *testing.T) {
	e := start(t, config{})
	items := stream(40)
	e.score(t, items[:20]...)
	before := e.profiles(items)
	e.model.Close()
	answers, err := e.Score(items[20:])
	fatal(t, err)
	for _, a := range answers {
		if !errors.Is(a.Err, problem.ScoringFailed) {
			t.Fatal(a.Err)
		}
	}
	sameProfiles(t, e.profiles(items), before)
	if last, next := e.journal.Last(), uint64(0); true {
		e.Do(func() { next = e.journal.Next() })
		if next != last+21 {
			t.Errorf("LSNs of the failed batch are used again: last %d, next %d", last, next)
		}
	}
}

func TestScore_JournalFails_NothingChangedAndTheIDIsFree(t *testing.T) {
	e := start(t, config{})
	items := stream(40)
	e.score(t, items[:20]...)
	before := e.profiles(items)
	fatal(t, e.journal.Close())
	for range 2 {
		answers, err := e.Score(items[20:])
		fatal(t, err)
		for _, a := range answers {
			if !errors.Is(a.Err, problem.JournalUnavailable) {
				t.Fatal(a.Err)
			}
		}
	}
	sameProfiles(t, e.profiles(items), before)
}

func TestScore_Miss_HoldsBackOnlyItsCards(t *testing.T) {
	tier := &shelf{}
	e := start(t, config{levels: []Level{{Tier: tier, Complete: true}}})
	e.score(t, event("warm", "here", "m", 0))
	hold := make(chan struct{})
	tier.set(false, hold)
	var mu sync.Mutex
	var order []string
	var wait sync.WaitGroup
	send := func(id, card string, n int64) {
		wait.Go(func() {
			e.score(t, event(id, card, "m", n))
			mu.Lock()
			order = append(order, id)
			mu.Unlock()
		})
		time.Sleep(20 * time.Millisecond)
	}
	send("cold-1", "cold", 1)
	send("cold-2", "cold", 2)
	send("warm-2", "here", 3)
	mu.Lock()
	if len(order) != 1 || order[0] != "warm-2" {
		t.Errorf("before the tier answers: %v", order)
	}
	mu.Unlock()
	close(hold)
	wait.Wait()
	lsns := map[string]uint64{}
	for id, n := range map[string]int64{"cold-1": 1, "cold-2": 2} {
		lsns[id] = e.score(t, event(id, "cold", "m", n))[0].Decision.LSN
	}
	if lsns["cold-1"] > lsns["cold-2"] {
		t.Errorf("a card's transactions changed places: %v", lsns)
	}
}

func TestScore_SameMissTwice_OneReadForBoth(t *testing.T) {
	hold := make(chan struct{})
	tier := &shelf{hold: hold}
	e := start(t, config{levels: []Level{{Tier: tier, Complete: true}}})
	var wait sync.WaitGroup
	for i := range 10 {
		wait.Go(func() { e.score(t, event(fmt.Sprint(i), "c", "m", int64(i))) })
		time.Sleep(2 * time.Millisecond)
	}
	close(hold)
	wait.Wait()
	if tier.fills != 1 {
		t.Errorf("%d reads", tier.fills)
	}
}

func TestScore_EvictedProfile_ComesBackFromWaiting(t *testing.T) {
	small, large := start(t, config{l1Bytes: 20 << 10}), start(t, config{})
	items := stream(400)
	for i := range items {
		small.score(t, items[i])
	}
	large.score(t, items...)
	if small.l1.Stats().Evicted == 0 {
		t.Fatal("nothing was evicted")
	}
	sameProfiles(t, small.profiles(items), large.profiles(items))
}

func TestScore_TierDown_DegradedThenMadeWhole(t *testing.T) {
	plain := start(t, config{})
	items := stream(60)
	plain.score(t, items[:30]...)
	tier := &shelf{profiles: plain.profiles(items[:30])}
	broken := start(t, config{directory: plain.directory + "-broken", levels: []Level{{Tier: tier, Complete: true}}})
	broken.journalStartsLike(t, plain)
	tier.set(true, nil)
	for _, a := range broken.score(t, items[30:]...) {
		if a.Decision.Outcome == decide.Approve || len(a.Decision.Degraded) != 1 || a.Decision.Degraded[0] != "shelf" {
			t.Fatalf("%+v", a.Decision)
		}
	}
	if n, err := broken.Complete(context.Background()); n != 0 || err != nil {
		t.Fatalf("while it is down: %d, %v", n, err)
	}
	tier.set(false, nil)
	if n, err := broken.Complete(context.Background()); n == 0 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	plain.score(t, items[30:]...)
	sameProfiles(t, broken.profiles(items[30:]), plain.profiles(items[30:]))
	if again := broken.score(t, event("after", "c1", "m1", 400_000))[0].Decision; len(again.Degraded) > 0 {
		t.Errorf("still degraded: %v", again.Degraded)
	}
}

func TestComplete_LevelHoldsAnOldCopy_GetsEverythingThatItLacks(t *testing.T) {
	plain, items := start(t, config{}), []Submission{}
	for n := range int64(9) {
		items = append(items, event(fmt.Sprint("e", n), "c", "m", n))
	}
	tier := &shelf{}
	broken := start(t, config{l1Bytes: 20 << 10, levels: []Level{{Tier: tier}}})
	answers := broken.score(t, items[:3]...)
	tier.profiles = broken.profiles(items[:3])
	broken.behind.position = answers[2].Decision.LSN
	broken.score(t, items[3:6]...) // which the level is not given
	for n := range int64(200) {
		broken.score(t, event(fmt.Sprint("other", n), fmt.Sprint("other", n), fmt.Sprint("other", n), n))
	}
	names := []string{"card:c", "merchant:m"}
	for _, key := range names { // another level had them, and goes away
		if broken.behind.TakeWaiting([]byte(key)) == nil {
			t.Fatalf("%s was not evicted", key)
		}
	}
	broken.behind.isAway = true
	if got := broken.score(t, items[6:]...)[0].Decision; len(got.Degraded) == 0 {
		t.Fatal("not degraded")
	}
	broken.behind.isAway = false
	if n, err := broken.Complete(context.Background()); n == 0 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	plain.score(t, items[:6]...)
	plain.Do(func() { plain.journal.Burn(200) })
	plain.score(t, items[6:]...)
	got, want := broken.profiles(items), plain.profiles(items)
	for _, key := range names {
		sameProfiles(t, map[string][]byte{key: got[key]}, map[string][]byte{key: want[key]})
	}
}

// journalStartsLike burns the LSNs that another engine has used, so that both number alike.
func (e *engine) journalStartsLike(t *testing.T, other *engine) {
	t.Helper()
	e.Do(func() { e.journal.Burn(int(other.journal.Last() & (1<<journal.EpochShift - 1))) })
}

func TestDryRun_ThenScore_SameAnswerAndNothingChanged(t *testing.T) {
	e := start(t, config{levels: []Level{{Tier: &shelf{}, Complete: true}}})
	items := stream(50)
	e.score(t, items[:49]...)
	before, last := e.profiles(items[:49]), e.journal.Last()
	dry := e.DryRun(context.Background(), &items[49].Tx)
	fatal(t, dry.Err)
	sameProfiles(t, e.profiles(items[:49]), before)
	if e.journal.Last() != last || dry.Decision.LSN != 0 {
		t.Errorf("journal %d, LSN %d", e.journal.Last(), dry.Decision.LSN)
	}
	if got := e.score(t, items[49])[0].Decision; got.Score != dry.Decision.Score || got.Outcome != dry.Decision.Outcome {
		t.Errorf("dry %v, then %v", dry.Decision.Score, got.Score)
	}
	items[49].Tx.Currency = "XXX"
	if a := e.DryRun(context.Background(), &items[49].Tx); !errors.Is(a.Err, problem.InvalidEvent) {
		t.Error(a.Err)
	}
}
