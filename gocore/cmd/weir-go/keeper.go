package main

import (
	"context"
	"log/slog"
	"time"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/pipeline"
)

const trimEvery = time.Minute

// keeper moves decisions to the local store, makes partial profiles whole, and trims the journal.
type keeper struct {
	pipeline  *pipeline.Pipeline
	decisions *decisions.Index
	journal   *journal.Journal
	flush     time.Duration
	complete  time.Duration
	keep      time.Duration
	// low is the lowest position of every consumer of the journal.
	low func() uint64
}

// run works until ctx ends. What fails is tried again in the next round: the journal keeps everything.
func (k *keeper) run(ctx context.Context) {
	flush, complete, trim := time.NewTicker(k.flush), time.NewTicker(k.complete), time.NewTicker(trimEvery)
	defer flush.Stop()
	defer complete.Stop()
	defer trim.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-flush.C:
			if err := k.flushDecisions(ctx); err != nil {
				slog.Error("decisions could not be moved to the local store", "problem", err)
			}
		case <-complete.C:
			if _, err := k.pipeline.Complete(ctx); err != nil {
				slog.Error("partial profiles could not be completed", "problem", err)
			}
		case <-trim.C:
			low := k.low()
			freed, err := k.journal.Trim(low+1, k.keep)
			if err != nil {
				slog.Error("journal not trimmed", "problem", err)
			} else if freed > 0 {
				slog.Info("journal trimmed", "below_lsn", low+1, "bytes", freed)
			}
		}
	}
}

// flushDecisions gives the store every decision of this moment, once its entry is durable. The store's own flush makes them durable
// there, and moves their position.
func (k *keeper) flushDecisions(ctx context.Context) error {
	var seen uint64
	k.pipeline.Do(func() { seen = k.journal.Last() }) // between two batches: what is in the journal was added
	if err := k.journal.SyncTo(seen); err != nil {
		return err
	}
	return k.decisions.Flush(ctx, seen)
}
