package main

import (
	"context"
	"time"
)

const stopDeadline = 20 * time.Second // for each of pipeline, ledger and write-behind; what is left is in the journal

// startBackground begins everything that runs beside the requests. At the stop: no new requests, then what was taken is answered,
// write-behind, decisions, the pipeline itself; the journal and the stores follow.
func (a *app) startBackground() {
	s := a.settings
	go a.pipeline.Run()
	a.onClose(a.pipeline.Stop)
	k := &keeper{
		pipeline: a.pipeline, decisions: a.index, journal: a.journal, low: a.low,
		flush: time.Duration(s.L2FlushIntervalMS) * time.Millisecond, complete: time.Duration(s.WriteIntervalMS) * time.Millisecond,
		keep: time.Duration(s.KeepHours) * time.Hour,
	}
	ctx, cancel := context.WithCancel(context.Background())
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		k.run(ctx)
	}()
	a.onClose(func() {
		cancel()
		<-kept
		complain("decisions could not be moved to the local store", k.flushDecisions(context.Background()))
	})
	if a.stores.pool != nil {
		a.feed = a.newFeed()
		a.feed.Start()
		a.onClose(func() { within(stopDeadline, "ledger", a.feed.Drain) })
	}
	a.behind.Start()
	covered := make(chan struct{})
	go func() {
		defer close(covered)
		a.stores.cover(ctx, a.profiles, a.events)
	}()
	a.onClose(func() {
		a.pipeline.Shut()
		within(stopDeadline, "requests", a.pipeline.Drain)
		cancel()
		<-covered
		<-kept
		within(stopDeadline, "write-behind", a.behind.Drain)
	})
	a.pipeline.Open()
}

// low is the lowest position of every consumer of the journal.
func (a *app) low() uint64 {
	low, err := a.stores.local.Decisions().Position(context.Background())
	for _, level := range a.behind.Status() {
		low = min(low, level.Position)
	}
	if a.feed != nil {
		low = min(low, a.feed.Position())
	}
	if a.settings.L2 && err == nil {
		var position uint64
		position, err = a.stores.local.Profiles().Position(context.Background())
		low = min(low, position)
	}
	if err != nil || len(a.stores.levels) == 0 {
		return 0
	}
	return low
}

func within(deadline time.Duration, what string, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	complain(what+" not finished at the stop", do(ctx))
}
