"""What a run of the load generator found out, from the outcomes of its workers: percentiles, rates, whether it counts.

Histograms of the workers are added, never their percentiles. A run is void if the generator was late: a send lag whose p99 is
above 5 % of the latency's p99 says that the latencies are partly the generator's own.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
from hdrh.histogram import HdrHistogram

from loadgen.bench.load.job import LoadJob, Outcome
from loadgen.recorder import DIGITS, LATENCY_US_MAX, ErrorCount, LatencySummary, percentile_curve, summarise
from models.machine import Machine

PERCENTILES = (50.0, 66.0, 75.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.9, 99.99, 100.0)  # the published table's
LAG_SHARE_MAX = 0.05  # of the latency's p99
BUSY_SHARE = 0.9  # of a core: from there on the generator may be what limits

Scenario = Literal["closed", "open", "single-stream", "server", "offline"]


class ServerUse(msgspec.Struct):
    """What a run cost. CPU in ms per request; MiB of PSS, all processes, the larger of before and after the run."""

    cpu_ms_per_request: float
    cpu_share: float
    database_cpu_ms_per_request: float | None
    pss_mb: float


class Interval(msgspec.Struct):
    """One second of the time line. µs."""

    answered: int
    failed: int
    p50: int
    p99: int


class Run(msgspec.Struct):
    """One run. µs and requests per second; failures are in the latencies with the deadline. `percentiles` by "99.9".

    `offered_per_s`: of the open loop. `waited`: requests that found no free connection. `void`: why the run does not count.
    `realtime`: workers went before all others on their cores. `histogram`: all latencies, HDR, encoded.
    """

    scenario: Scenario
    connections: int
    rows: int
    seconds: float
    offered_per_s: float | None
    requests: int
    requests_per_s: float
    rows_per_s: float
    failures: int
    failures_per_s: float
    latency_us: LatencySummary
    percentiles: dict[str, int]
    curve: list[tuple[float, int]]
    histogram: str
    send_lag_us: LatencySummary | None
    waited: int
    client_cpu_share: float
    void: str | None
    errors: list[ErrorCount]
    timeline: list[Interval]
    server: ServerUse | None = None
    realtime: bool = False

    @property
    def p99_ms(self) -> float:
        return self.latency_us.p99 / 1_000


class LoadOptions(msgspec.Struct, frozen=True):
    """What `weir bench load` was asked."""

    url: str
    payload: str
    scenario: Scenario
    rates: tuple[float, ...]
    arrivals: str
    connections: int
    workers: int
    rows: int
    warm_s: float
    seconds: float
    deadline_s: float
    cards: int
    merchants: int
    zipf: float
    seed: int
    p99_bound_ms: float
    path: str = ""


class WrkCheck(msgspec.Struct):
    """Our closed loop beside wrk's, on the same endpoint: medians. `ratios`: ours over wrk's, ascending. `verdict` in words."""

    connections: int
    wrk_per_s: float
    own_per_s: float
    ratio: float
    ratios: list[float]
    verdict: str


class LoadResult(msgspec.Struct):
    """What --json writes. `ceiling`: the same load on a server that does nothing. `best_per_s`: of the scenario server."""

    kind: str
    created: str
    options: LoadOptions
    machine: Machine
    payload_mix: str
    runs: list[Run]
    best_per_s: float | None
    knee_per_s: float | None
    ceiling: Run | None
    wrk: WrkCheck | None
    caveats: list[str]


def void_reason(lag: LatencySummary | None, latency: LatencySummary) -> str | None:
    """Why a run does not count, or None if it does: send lag above 5 % of latency, both at p99; or nothing measured."""
    if latency.n == 0:
        return "void: no request was measured"
    if lag is None or lag.n == 0:
        return None
    limit = LAG_SHARE_MAX * latency.p99
    if lag.p99 <= limit:
        return None
    return (
        f"void: the generator was {lag.p99:,} µs late at p99, above {LAG_SHARE_MAX:.0%} of the latency's {latency.p99:,} µs;"
        " lower the rate or give it a core of its own"
    )


def make_run(scenario: Scenario, job: LoadJob, outcomes: Sequence[Outcome]) -> Run:
    """The run that `outcomes`, one per worker, are the parts of."""
    latencies = merge([outcome.latency for outcome in outcomes], max(o.latency_max_us for o in outcomes))
    lag = None
    if job.rate is not None:
        lag = summarise(merge([outcome.lag for outcome in outcomes], max(o.lag_max_us for o in outcomes)))
    latency = summarise(latencies)
    answered, failed = sum(o.answered for o in outcomes), sum(o.failed for o in outcomes)
    due = sum(o.due for o in outcomes)
    return Run(
        scenario=scenario,
        connections=job.connections,
        rows=job.rows,
        seconds=job.seconds,
        offered_per_s=round(due / job.seconds, 1) if job.rate is not None else None,
        requests=answered,
        requests_per_s=round(answered / job.seconds, 1),
        rows_per_s=round(answered * job.rows / job.seconds, 1),
        failures=failed,
        failures_per_s=round(failed / job.seconds, 2),
        latency_us=latency,
        percentiles=percentile_table(latencies),
        curve=percentile_curve(latencies),
        histogram=str(latencies.encode(), "ascii") if latency.n else "",
        send_lag_us=lag,
        waited=sum(o.waited for o in outcomes),
        client_cpu_share=round(max(o.cpu_s for o in outcomes) / job.seconds, 3),
        void=void_reason(lag, latency),
        errors=_errors(outcomes),
        timeline=_timeline(outcomes),
        realtime=all(outcome.realtime for outcome in outcomes),
    )


def merge(encoded: Sequence[str], largest_us: int) -> HdrHistogram:
    """One histogram of all; `largest_us` is the exact largest value, which an encoded one rounds up."""
    total = HdrHistogram(1, LATENCY_US_MAX, DIGITS)
    for text in encoded:
        if text:
            total.add(HdrHistogram.decode(text))
    if total.get_total_count():
        total.max_value = largest_us
    return total


def percentile_table(histogram: HdrHistogram) -> dict[str, int]:
    """µs at PERCENTILES, keyed "50", ..., "99.99", "100"; all 0 without values."""
    if not histogram.get_total_count():
        return {f"{q:g}": 0 for q in PERCENTILES}
    largest = int(histogram.max_value)
    return {f"{q:g}": min(int(histogram.get_value_at_percentile(q)), largest) for q in PERCENTILES}


def pooled(runs: Sequence[Run]) -> HdrHistogram:
    """All requests of several runs of the same thing in one histogram."""
    return merge([run.histogram for run in runs], max((run.latency_us.max for run in runs), default=0))


def find_knee(runs: Sequence[Run], p99_bound_us: float) -> float | None:
    """The highest offered rate up to which every run of a sweep keeps up: 98 % answered, no failures, p99 within the bound."""
    best = None
    for run in sorted((r for r in runs if r.offered_per_s), key=lambda r: r.offered_per_s or 0.0):
        if not keeps_up(run, p99_bound_us):
            break
        best = run.offered_per_s
    return best


def keeps_up(run: Run, p99_bound_us: float) -> bool:
    """Whether a run of the open loop was answered as fast as it was sent, without failures, its p99 within the bound."""
    offered = run.offered_per_s or 0.0
    return run.failures == 0 and run.requests_per_s >= 0.98 * offered and 0 < run.latency_us.p99 <= p99_bound_us


def _errors(outcomes: Sequence[Outcome]) -> list[ErrorCount]:
    found: dict[str, ErrorCount] = {}
    for error in (error for outcome in outcomes for error in outcome.errors):
        known = found.setdefault(error.kind, ErrorCount(error.kind, 0, error.example))
        known.count += error.count
    return sorted(found.values(), key=lambda e: (-e.count, e.kind))


def _timeline(outcomes: Sequence[Outcome]) -> list[Interval]:
    intervals = []
    for parts in zip(*(outcome.seconds for outcome in outcomes), strict=True):
        histogram = merge([part.histogram for part in parts], LATENCY_US_MAX)
        summary = summarise(histogram)
        intervals.append(Interval(sum(p.answered for p in parts), sum(p.failed for p in parts), summary.p50, summary.p99))
    return intervals
