package main

import (
	"runtime"

	"weir/gocore/internal/httpapi"
)

// metrics are the numbers of /metrics, under the names of the Python service where it has them.
func (a *app) metrics() *httpapi.Metrics {
	m := httpapi.NewMetrics()
	m.Counters = func() map[string]int64 {
		c := &a.pipeline.Counters
		found := map[string]int64{
			`tx_total{outcome="approve"}`: c.Approved.Load(), `tx_total{outcome="review"}`: c.Reviewed.Load(),
			`tx_total{outcome="decline"}`: c.Declined.Load(), "tx_replayed_total": c.Replayed.Load(),
			"batches_total": c.Batches.Load(), "batch_rows_total": c.Rows.Load(), "failed_batches_total": c.FailedBatches.Load(),
			"l1_misses_total": c.Misses.Load(), "profiles_unknown_total": c.Unknown.Load(),
		}
		for _, level := range a.behind.Status() {
			found[`write_behind_written_total{consumer="`+level.Name+`"}`] = level.Written
		}
		return found
	}
	m.Gauges = func() map[string]float64 {
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		found := map[string]float64{
			"ready": 0, "queue_events": float64(a.pipeline.Waiting()), "journal_bytes": float64(a.journal.Bytes()),
			"journal_durable_lag": float64(a.journal.Last() - a.journal.Durable()), "decisions_waiting": float64(a.index.Len()),
			"go_heap_bytes": float64(memory.HeapAlloc), "go_gc_pause_seconds": float64(memory.PauseTotalNs) / 1e9,
		}
		if a.reason.Load() == "" {
			found["ready"] = 1
		}
		a.pipeline.Do(func() {
			stats := a.l1.Stats()
			found["l1_profiles"], found["l1_bytes"] = float64(stats.Profiles), float64(stats.Bytes)
			found["l1_hits"], found["l1_evicted"] = float64(stats.Hits), float64(stats.Evicted)
			found["write_behind_profiles"] = float64(a.behind.NWaiting())
			found["profiles_partial"] = float64(a.pipeline.NPartial())
		})
		if a.feed != nil {
			found["ledger_lag"] = float64(a.journal.Last() - min(a.feed.Position(), a.journal.Last()))
		}
		for _, level := range a.behind.Status() {
			state := 1.0
			if level.IsDown {
				state = 0
			}
			found[`tier_state{tier="`+level.Name+`"}`] = state
			found[`write_behind_dirty{consumer="`+level.Name+`"}`] = float64(level.Dirty)
		}
		return found
	}
	return m
}
