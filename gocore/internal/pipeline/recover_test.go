package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"weir/gocore/internal/journal"
	"weir/gocore/internal/problem"
	"weir/gocore/internal/tx"
)

// labels of every third event of items, the first of them twice.
func labelsOf(items []Submission) (labels []tx.Label) {
	for i := 0; i < len(items); i += 3 {
		label := tx.Fraud
		if i%2 == 1 {
			label = tx.Legit
		}
		labels = append(labels, tx.Label{EventID: items[i].Tx.EventID, Label: label, TS: items[i].Tx.TS})
	}
	return labels
}

func TestRecover_FromAnyPosition_TheBytesOfTheLiveEngine(t *testing.T) {
	live := start(t, config{})
	items := stream(200)
	live.score(t, items[:120]...)
	_, err := live.Label(labelsOf(items[:100]))
	fatal(t, err)
	live.score(t, items[120:]...)
	fatal(t, live.journal.SyncTo(live.journal.Last()))
	want := live.profiles(items)
	first := uint64(1<<journal.EpochShift | 1)
	for _, position := range []uint64{0, first, first + 130, first + 180, live.journal.Last()} {
		directory := t.TempDir()
		fatal(t, os.CopyFS(filepath.Join(directory, "journal"), os.DirFS(filepath.Join(live.directory, "journal"))))
		// What is stored is as new as it can be: profiles ignore what they have.
		again := start(t, config{directory: directory, isRunning: true, levels: []Level{{Tier: &shelf{profiles: stored(want, position)}, Complete: true}}})
		n, err := again.Recover(context.Background(), position, 0)
		fatal(t, err)
		if n != int(live.journal.Last()-first+1) {
			t.Errorf("position %d: %d entries", position, n)
		}
		again.run(t)
		if position < live.journal.Last() {
			got := again.profiles(items)
			for key := range got {
				if !slices.Equal(got[key], want[key]) {
					t.Errorf("position %x: %s differs", position, key)
				}
			}
		}
		replayed := again.score(t, items[150])[0]
		if !replayed.Replayed || replayed.Decision.LSN != live.score(t, items[150])[0].Decision.LSN {
			t.Errorf("position %d: the decision was forgotten", position)
		}
	}
}

// stored is what a store may hold that has everything up to position.
func stored(profiles map[string][]byte, position uint64) map[string][]byte {
	if position == 0 {
		return nil
	}
	return profiles
}

func TestRecover_StreamClock_GoesOn(t *testing.T) {
	live := start(t, config{})
	live.score(t, event("a", "c", "m", 90*86400))
	fatal(t, live.journal.Close())
	again := start(t, config{directory: live.directory, isRunning: true})
	_, err := again.Recover(context.Background(), live.journal.Last(), live.journal.Last())
	fatal(t, err)
	again.run(t)
	if answers, _ := again.Score([]Submission{event("old", "c", "m", 0)}); !errors.Is(answers[0].Err, problem.InvalidEvent) {
		t.Fatalf("%+v", answers)
	}
}

func TestRecover_Erasure_IsRefused(t *testing.T) {
	live := start(t, config{})
	live.score(t, event("a", "c", "m", 1))
	_, err := live.journal.Append([]journal.Entry{{Kind: journal.Erasure, Body: []byte("\x92\xa4card\xa1c")}})
	fatal(t, err)
	fatal(t, live.journal.Close())
	again := start(t, config{directory: live.directory, isRunning: true})
	if _, err := again.Recover(context.Background(), 0, 0); !errors.Is(err, ErrErasure) {
		t.Fatal(err)
	}
}

func TestLabel_EachCase_StatusAndProfiles(t *testing.T) {
	e := start(t, config{})
	items := stream(10)
	e.score(t, items...)
	before := e.profiles(items)
	label := func(event, says string) LabelAnswer {
		t.Helper()
		answers, err := e.Label([]tx.Label{{EventID: event, Label: says, TS: t0}})
		fatal(t, err)
		return answers[0]
	}
	next := e.journal.Last() + 1
	for i, c := range []struct{ event, says, status string }{
		{"nobody", tx.Fraud, UnknownEvent}, {"e1", tx.Legit, Applied}, {"e1", tx.Legit, Unchanged}, {"e1", tx.Fraud, Applied},
		{"e1", tx.Fraud, Unchanged}, {"e1", tx.Legit, Applied},
	} {
		if got := label(c.event, c.says); got.Status != c.status || (got.LSN == 0) != (c.status == UnknownEvent) {
			t.Errorf("step %d: %+v", i, got)
		}
	}
	if e.journal.Last() != next+2 {
		t.Errorf("%d entries", e.journal.Last()+1-next)
	}
	after := e.profiles(items)
	changed := 0
	for key := range before {
		if !slices.Equal(before[key], after[key]) {
			changed++ // its LSN at least: a fraud came and went
		}
	}
	if changed != 2 {
		t.Errorf("%d profiles changed, a label changes the merchant and the device", changed)
	}
}

func TestLabel_TwiceInOneRequest_SecondIsUnchanged(t *testing.T) {
	e := start(t, config{})
	e.score(t, stream(1)...)
	answers, err := e.Label([]tx.Label{{EventID: "e0", Label: tx.Fraud, TS: t0}, {EventID: "e0", Label: tx.Fraud, TS: t0}, {EventID: "e0", Label: tx.Legit, TS: t0}})
	fatal(t, err)
	if answers[0].Status != Applied || answers[1].Status != Unchanged || answers[1].LSN != answers[0].LSN || answers[2].Status != Applied {
		t.Fatalf("%+v", answers)
	}
}

func TestLabel_JournalFails_NothingChanged(t *testing.T) {
	e := start(t, config{})
	items := stream(10)
	e.score(t, items...)
	before := e.profiles(items)
	fatal(t, e.journal.Close())
	if _, err := e.Label(labelsOf(items)); !errors.Is(err, problem.JournalUnavailable) {
		t.Fatal(err)
	}
	sameProfiles(t, e.profiles(items), before)
}

func TestChanged_AfterAnLSN_EveryKeyAndBelowReachAnError(t *testing.T) {
	e := start(t, config{})
	items := stream(5)
	answers := e.score(t, items...)
	seen := map[string]uint64{}
	mark := func(key []byte, lsn uint64) { seen[string(key)] = lsn }
	fatal(t, e.Changed(context.Background(), answers[2].Decision.LSN, 0, mark))
	if len(seen) != 7 || seen["merchant:m4"] != answers[4].Decision.LSN || seen["card:c9"] != answers[3].Decision.LSN {
		t.Errorf("%v", seen)
	}
	if err := e.Changed(context.Background(), 4, 5, mark); !errors.Is(err, ErrReach) {
		t.Error(err)
	}
}

func TestClock_WallAndStream_WhatIsTooFar(t *testing.T) {
	wall := &Clock{FutureMSMax: 60, PastMSMax: 100, WallMS: func() int64 { return 1000 }}
	stream := &Clock{Stream: true, FutureMSMax: 60, PastMSMax: 100}
	stream.Note(1000)
	stream.Note(10)
	for _, c := range []struct {
		ts               int64
		isWall, isStream bool
	}{{900, true, true}, {899, false, false}, {1060, true, true}, {1061, false, true}} {
		if err := wall.Check(c.ts); (err == nil) != c.isWall {
			t.Errorf("wall, %d: %v", c.ts, err)
		}
		if err := stream.Check(c.ts); (err == nil) != c.isStream {
			t.Errorf("stream, %d: %v", c.ts, err)
		}
	}
}

func BenchmarkScore(b *testing.B) {
	for _, rows := range []int{1, 128} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			e := start(b, config{l1Bytes: 64 << 20})
			items := make([]Submission, rows)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				for i := range items {
					items[i] = event(fmt.Sprint("e", n), fmt.Sprint("c", n*7919%5000), fmt.Sprint("m", n%300), int64(n))
					n++
				}
				e.score(b, items...)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/tx")
		})
	}
}
