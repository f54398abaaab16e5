"""What /metrics reads from the engine at each scrape."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any, Final

from models.scorers import NAMES
from service.engine import Engine
from service.levels import BREAKERS, OFF, ON
from service.metrics import Counts, Metrics
from service.model_gauges import count_models, watch_models
from service.settings import Settings
from service.skew_note import SkewNotes
from service.tiers.l2 import L2

LEDGER: Final = "ledger"
BREAKER_STATES: Final = tuple(BREAKERS.values())

Numbers = dict[Any, float]


def watch_engine(metrics: Metrics, engine: Engine) -> None:
    """Register every gauge of the stops, and hand their counters over at scrape time."""
    pipeline, l1 = engine.pipeline, engine.l1
    metrics.watch("ready", lambda: float(engine.ready[0]))
    recovery = engine.recovery
    metrics.watch("recovery_entries", lambda: recovery.n_entries)
    metrics.watch("recovery_share", lambda: recovery.share)
    metrics.watch("recovery_seconds", lambda: recovery.seconds)
    metrics.watch("recovery_cpu_seconds", lambda: recovery.cpu_seconds)
    metrics.watch("queue_events", lambda: pipeline.n_waiting)
    metrics.watch("profiles_fetching", lambda: engine.fetcher.n_fetching)
    metrics.watch("l1_profiles", lambda: {k.name: len(s) for k, s in zip(engine.plan.kinds, l1.sieves, strict=True)})
    metrics.watch("l1_bytes", lambda: l1.bytes_used)
    metrics.watch("l1_bytes_max", lambda: l1.bytes_max)
    metrics.watch("bloom_keys", lambda: engine.bloom.n_keys)
    metrics.watch("bloom_covers", lambda: float(engine.bloom.covered))
    metrics.watch("erasures_pending", lambda: len(engine.erasures.pending))
    metrics.watch("scorer", lambda: {name: float(pipeline.scorer.name == name) for name in NAMES})
    metrics.watch("infer_waiting", lambda: _infer_waiting(engine))
    _watch_tiers(metrics, engine)
    _watch_journal(metrics, engine)
    tally = pipeline.tally
    metrics.batch_rows[()], metrics.batch_waves[()] = tally.rows, tally.waves
    for stop, histogram in tally.seconds.items():
        metrics.batch_seconds[stop,] = histogram
    metrics.l1_seconds[()] = engine.shadow.l1_seconds
    for name, shadowed in engine.shadow.tallies.items():
        metrics.shadow_behind[name,] = shadowed.behind
    watch_models(metrics, engine.models)
    metrics.before_scrape = lambda: _copy_counts(metrics, engine)


def watch_settings(metrics: Metrics, settings: Settings) -> None:
    """Register the gauges of limits, of the disk, and of what is known without the engine."""
    build = {(importlib.metadata.version("weir"), platform.python_version()): 1.0}
    notes = SkewNotes(settings.data_dir)

    def skew_rows() -> Numbers:
        note = notes.newest()
        return {} if note is None else {"compared": float(note.compared), "differing": float(note.differing)}

    def skew_checked() -> Numbers:
        note = notes.newest()
        return {} if note is None else {(): note.at_s}

    metrics.watch("build", lambda: build)
    metrics.watch("queue_events_max", lambda: settings.queue.events_max)
    metrics.watch("write_behind_profiles_max", lambda: settings.write_behind.profiles_max)
    metrics.watch("disk_bytes", lambda: _disk(settings.data_dir)[0])
    metrics.watch("disk_free_bytes", lambda: _disk(settings.data_dir)[1])
    metrics.watch("skew_rows", skew_rows)
    metrics.watch("skew_checked_seconds", skew_checked)


def _watch_tiers(metrics: Metrics, engine: Engine) -> None:
    levels, l1, bloom = engine.levels, engine.l1, engine.bloom

    def enabled() -> Numbers:
        return {"l1": float(l1.bytes_max > 0), "bloom": float(bloom.is_on)} | {
            level.name: float(level.state != OFF) for level in levels
        }

    def breakers() -> Numbers:
        return {(level.name, state): float(BREAKERS[level.state] == state) for level in levels for state in BREAKER_STATES}

    metrics.watch("tier_enabled", enabled)
    metrics.watch("tier_state", lambda: {level.name: float(level.state == ON) for level in levels})
    metrics.watch("tier_breaker", breakers)
    for level in levels:
        metrics.tier_seconds[level.name,] = level.read_seconds


def _watch_journal(metrics: Metrics, engine: Engine) -> None:
    journal, behind, feed = engine.journal, engine.write_behind, engine.ledger_feed
    metrics.watch("journal_bytes", lambda: journal.bytes_total)
    metrics.watch("journal_bytes_max", lambda: journal.bytes_max)
    metrics.watch("journal_durable_lag", lambda: max(journal.last_lsn - journal.durable_lsn, 0))
    metrics.watch("write_behind_profiles", lambda: behind.n_waiting)
    metrics.watch("write_behind_lag", lambda: dict(behind.lags()))
    metrics.watch("consumer_lag", engine.consumer_lags)
    l2 = engine.levels[0].tier
    assert isinstance(l2, L2)
    metrics.watch("l2_flush_lag", lambda: journal.n_entries_after(l2.flushed_position))
    metrics.sync_seconds[()] = journal.sync_seconds
    for consumer in behind.consumers:
        metrics.write_seconds[consumer.level.name,] = consumer.write_seconds
    if feed is not None:
        metrics.watch("ledger_lag", lambda: max(journal.last_lsn - feed.position, 0))
        metrics.watch("ledger_up", lambda: float(feed.state == ON))
        metrics.write_seconds[LEDGER,] = feed.write_seconds


def _copy_counts(metrics: Metrics, engine: Engine) -> None:
    """The stops count in plain attributes, which cost nothing; a scrape copies them."""
    pipeline, levels = engine.pipeline, engine.levels
    pipeline.tally.fold()
    for outcome, count in pipeline.outcomes.items():
        metrics.tx[outcome,] = count
    for name in NAMES:
        scorer = pipeline.tally.scorers.get(name)
        metrics.tx_scored[name,] = scorer.n_rows if scorer else 0
        if scorer:
            metrics.score_seconds[name,] = scorer.seconds
    metrics.replayed[()], metrics.twins[()] = pipeline.n_replayed, pipeline.n_twins
    metrics.batch_failed[()] = pipeline.n_failed_batches
    metrics.unknown[()] = engine.fetcher.n_unknown
    for side, count in engine.clock.n_refused.items():
        metrics.out_of_time[side,] = count
    for result, count in engine.labels.n_results.items():
        metrics.labels[result,] = count
    for kind, n_evicted in zip(engine.plan.kinds, engine.l1.n_evicted, strict=True):
        metrics.evictions[kind.name,] = n_evicted
    for level in levels:
        _lookups(metrics.tier_lookups, level.name, level.n_lookups, level.n_hits, level.n_unavailable)
        metrics.tier_failures[level.name,] = level.n_failures
        metrics.tx_degraded[level.name,] = pipeline.tally.degraded.get(level.name, 0)
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


def _infer_waiting(engine: Engine) -> Numbers:
    """By model, the versions together."""
    if engine.inference is None:
        return {}
    return {name: float(sum(lane.n_inside for lane in lanes.values())) for name, lanes in engine.inference.lanes.items()}


def _disk(directory: Path) -> tuple[float, float]:
    """Bytes of the file system, and those that are free for us; NaN where it cannot be asked."""
    try:
        stat = os.statvfs(directory)
    except OSError:
        return float("nan"), float("nan")
    return float(stat.f_blocks * stat.f_frsize), float(stat.f_bavail * stat.f_frsize)
