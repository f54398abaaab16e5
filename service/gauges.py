"""What /metrics reads from the engine at each scrape."""

from service.engine import Engine
from service.levels import ON
from service.metrics import Counts, Metrics
from service.model_gauges import count_models, watch_models
from service.tiers.l2 import L2


def watch_engine(metrics: Metrics, engine: Engine) -> None:
    """Register every gauge, and hand the counters of the stops over at scrape time."""
    pipeline, journal, l1 = engine.pipeline, engine.journal, engine.l1
    metrics.watch("ready", lambda: float(engine.ready[0]))
    recovery = engine.recovery
    metrics.watch("recovery_entries", lambda: recovery.n_entries)
    metrics.watch("recovery_share", lambda: recovery.share)
    metrics.watch("recovery_seconds", lambda: recovery.seconds)
    metrics.watch("recovery_cpu_seconds", lambda: recovery.cpu_seconds)
    metrics.watch("queue_events", lambda: pipeline.n_waiting)
    metrics.watch("l1_profiles", lambda: {k.name: len(s) for k, s in zip(engine.plan.kinds, l1.sieves, strict=True)})
    metrics.watch("l1_bytes", lambda: l1.bytes_used)
    metrics.watch("journal_bytes", lambda: journal.bytes_total)
    metrics.watch("journal_bytes_max", lambda: journal.bytes_max)
    metrics.watch("journal_durable_lag", lambda: max(journal.last_lsn - journal.durable_lsn, 0))
    metrics.watch("write_behind_profiles", lambda: engine.write_behind.n_waiting)
    metrics.watch("write_behind_lag", lambda: dict(engine.write_behind.lags()))
    metrics.watch("consumer_lag", engine.consumer_lags)
    metrics.watch("erasures_pending", lambda: len(engine.erasures.pending))
    metrics.watch("tier_state", lambda: {level.name: float(level.state == ON) for level in engine.levels})
    l2 = engine.levels[0].tier
    assert isinstance(l2, L2)
    metrics.watch("l2_flush_lag", lambda: journal.n_entries_after(l2.flushed_position))
    if engine.ledger_feed is not None:
        feed = engine.ledger_feed
        metrics.watch("ledger_lag", lambda: max(journal.last_lsn - feed.position, 0))
    metrics.batch_rows[()], metrics.batch_waves[()] = pipeline.batch_rows, pipeline.batch_waves
    for stop, histogram in pipeline.batch_seconds.items():
        metrics.batch_seconds[stop,] = histogram
    for level in engine.levels:
        metrics.tier_seconds[level.name,] = level.read_seconds
    for name, tally in engine.shadow.tallies.items():
        metrics.shadow_behind[name,] = tally.behind
    watch_models(metrics, engine.models)
    metrics.before_scrape = lambda: _copy_counts(metrics, engine)


def _copy_counts(metrics: Metrics, engine: Engine) -> None:
    """The stops count in plain attributes, which cost nothing; a scrape copies them."""
    for outcome, count in engine.pipeline.outcomes.items():
        metrics.tx[outcome,] = count
    metrics.replayed[()] = engine.pipeline.n_replayed
    for kind, n_evicted in zip(engine.plan.kinds, engine.l1.n_evicted, strict=True):
        metrics.evictions[kind.name,] = n_evicted
    for level in engine.levels:
        _lookups(metrics.tier_lookups, level.name, level.n_lookups, level.n_hits, level.n_unavailable)
    for name, tally in engine.shadow.tallies.items():
        for result, count in tally.results.items():
            metrics.shadow[name, result] = count
    l1_hits = engine.l1.n_hits
    _lookups(metrics.tier_lookups, "l1", l1_hits + engine.fetcher.n_misses, l1_hits, 0)
    metrics.bloom["profiles", "negative"] = engine.bloom.negatives
    metrics.bloom["profiles", "positive"] = engine.bloom.lookups - engine.bloom.negatives
    metrics.bloom["profiles", "false_positive"] = engine.bloom.false_positives
    count_models(metrics, engine.models)
    for reason, count in engine.journal.n_refused.items():
        metrics.journal_refused[reason,] = count
    for slab in engine.l1.slabs:
        for ring, count in zip(slab.kind.rings, slab.late_dropped.tolist(), strict=True):
            metrics.late_dropped[ring.name,] = count
    for name, count in engine.write_behind.n_written.items():
        metrics.written[name,] = count


def _lookups(counts: Counts, tier: str, n_lookups: int, n_hits: int, n_unavailable: int) -> None:
    counts[tier, "hit"] = n_hits
    counts[tier, "unavailable"] = n_unavailable
    counts[tier, "miss"] = n_lookups - n_hits - n_unavailable
