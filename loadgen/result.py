"""The result of a replay as one value: what --json writes and what the page and the terminal show."""

import math
import resource
import time
from typing import Any

import msgspec
import numpy as np

from loadgen.recorder import (
    ErrorCount,
    Latencies,
    LatencySummary,
    Recorder,
    percentile_curve,
    summarise,
)
from loadgen.replay import Options, TierCount
from models.dataset import Dataset
from models.machine import Machine, machine
from models.metrics import Quality, quality

TIME_BINS = 60  # bins of event time in the outcome mix
SCORE_BINS = 50  # bins of the score distribution, each 0.02 wide
MINUTE_MS = 60_000


class Rows(msgspec.Struct):
    """Where the rows went: scored + failed + not_sent = total. `replayed` are scored rows that were known before."""

    total: int
    scored: int
    replayed: int
    failed: int
    not_sent: int


class TierUse(msgspec.Struct):
    """What a tier was asked during the run; `hit_ratio` is None if it was not asked."""

    name: str
    enabled: bool | None
    state: str
    lookups: int
    hits: int
    misses: int
    unavailable: int
    hit_ratio: float | None


class Series(msgspec.Struct):
    """What the plots show. Times in ms of event time, `scores` are counts in SCORE_BINS bins by label."""

    latency_curve: list[tuple[float, int]]
    rows_per_second: list[int]
    scores: dict[str, list[int]]
    outcome_ts: list[int]
    outcomes: dict[str, list[int]]


class Result(msgspec.Struct):
    """Everything a replay found out. Latencies in µs and per request; in mode batch a request holds many rows."""

    kind: str
    created: str
    source: str
    spec: str
    url: str
    options: Options
    machine: Machine
    interrupted: bool
    problem: str | None
    rows: Rows
    wall_s: float
    active_s: float
    rows_per_s: float
    client_cpu_s: float
    client_cpu_share: float
    latency_us: LatencySummary
    send_lag_us: LatencySummary | None
    labels_sent: int
    retries: int
    connects: int
    outcomes: dict[str, int]
    degraded: dict[str, int]
    models: dict[str, int]
    errors: list[ErrorCount]
    tiers: list[TierUse] | None
    quality: Quality | None
    series: Series


class Run(msgspec.Struct):
    """What the command knows about a run beside the recorder."""

    source: str
    spec: str
    url: str
    options: Options
    wall_s: float
    cpu_s: float
    interrupted: bool
    problem: str | None
    connects: int
    tiers: list[TierCount] | None


def cpu_seconds() -> float:
    """CPU that this process has used so far, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def build_result(run: Run, dataset: Dataset, recorder: Recorder) -> Result:
    latencies = Latencies.merged(recorder.requests)
    active_s = recorder.active_s()
    scored = recorder.outcome >= 0
    failed = recorder.n_failed
    return Result(
        kind="replay",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        source=run.source,
        spec=run.spec,
        url=run.url,
        options=run.options,
        machine=machine(),
        interrupted=run.interrupted,
        problem=run.problem,
        rows=Rows(
            total=recorder.n_rows,
            scored=recorder.n_scored,
            replayed=int(recorder.replayed.sum()),
            failed=failed,
            not_sent=recorder.n_rows - recorder.n_scored - failed,
        ),
        wall_s=round(run.wall_s, 3),
        active_s=round(active_s, 3),
        rows_per_s=round(recorder.n_scored / active_s, 1) if active_s > 0 else 0.0,
        client_cpu_s=round(run.cpu_s, 3),
        client_cpu_share=round(run.cpu_s / run.wall_s, 3) if run.wall_s > 0 else 0.0,
        latency_us=summarise(latencies),
        send_lag_us=summarise(Latencies.merged(recorder.lags)) if run.options.rate else None,
        labels_sent=recorder.n_labels,
        retries=recorder.n_retries,
        connects=run.connects,
        outcomes=recorder.outcome_counts(),
        degraded=recorder.degraded_counts(),
        models=dict(recorder.models),
        errors=recorder.errors(),
        tiers=None if run.tiers is None else [tier_use(tier) for tier in run.tiers],
        quality=_quality(dataset, recorder) if bool((dataset.labels[scored] >= 0).any()) else None,
        series=Series(
            latency_curve=percentile_curve(latencies),
            rows_per_second=[recorder.per_second[s] for s in range(int(active_s) + 1)],
            scores=_score_counts(dataset, recorder),
            **_outcome_series(dataset, recorder),
        ),
    )


def tiers_between(before: list[TierCount] | None, after: list[TierCount] | None) -> list[TierCount] | None:
    """What was counted between two readings; a counter that went back was reset by a restart and counts from 0."""
    if before is None or after is None:
        return None
    earlier = {tier.name: tier for tier in before}
    counted = []
    for now in after:
        then = earlier.get(now.name, TierCount(now.name))
        if now.lookups < then.lookups:
            then = TierCount(now.name)
        counted.append(
            TierCount(
                name=now.name,
                enabled=now.enabled,
                state=now.state,
                lookups=now.lookups - then.lookups,
                hits=now.hits - then.hits,
                misses=now.misses - then.misses,
                unavailable=now.unavailable - then.unavailable,
            )
        )
    return counted


def tier_use(tier: TierCount) -> TierUse:
    """The same with the ratio of hits."""
    return TierUse(
        name=tier.name,
        enabled=tier.enabled,
        state=tier.state,
        lookups=tier.lookups,
        hits=tier.hits,
        misses=tier.misses,
        unavailable=tier.unavailable,
        hit_ratio=round(tier.hits / tier.lookups, 6) if tier.lookups > 0 else None,
    )


def _quality(dataset: Dataset, recorder: Recorder) -> Quality:
    rows = np.flatnonzero((recorder.outcome >= 0) & (dataset.labels >= 0))
    cards = dataset.card_ids
    return quality(recorder.score[rows], dataset.labels[rows], dataset.ts[rows], [cards[row] for row in rows])


def _score_counts(dataset: Dataset, recorder: Recorder) -> dict[str, list[int]]:
    counts = {}
    for name, label in (("legit", 0), ("fraud", 1), ("unknown", -1)):
        rows = (recorder.outcome >= 0) & (dataset.labels == label)
        if rows.any():
            counts[name] = np.histogram(recorder.score[rows], bins=SCORE_BINS, range=(0.0, 1.0))[0].tolist()
    return counts


def _outcome_series(dataset: Dataset, recorder: Recorder) -> dict[str, Any]:
    rows = np.flatnonzero(recorder.outcome >= 0)
    if len(rows) == 0:
        return {"outcome_ts": [], "outcomes": {}}
    ts, codes = dataset.ts[rows], recorder.outcome[rows]
    width = max(MINUTE_MS, math.ceil((int(ts[-1]) - int(ts[0]) + 1) / TIME_BINS))
    bins = (ts - ts[0]) // width
    n_bins = int(bins[-1]) + 1
    outcomes = {
        word: np.bincount(bins[codes == code], minlength=n_bins).tolist() for code, word in enumerate(recorder.outcomes.words)
    }
    return {"outcome_ts": [int(ts[0]) + n * width for n in range(n_bins)], "outcomes": outcomes}
