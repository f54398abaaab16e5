"""The scenarios of the load generator, from runs: a sweep over rates, the highest rate under a p99 bound, the ceiling, wrk.

`single-stream`: one request after the other on one connection. `server`: Poisson arrivals, the highest rate whose p99 stays
within a bound. `offline`: everything is there from the start, in requests of many rows. After MLPerf's inference scenarios.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from loadgen.bench.arms import NULL, start_arm
from loadgen.bench.children import BenchError, Child
from loadgen.bench.load.job import LoadJob
from loadgen.bench.load.requests import CardRequests
from loadgen.bench.load.result import BUSY_SHARE, Run, WrkCheck, keeps_up
from loadgen.bench.load.run import run_load
from loadgen.bench.wrk import RUNS_MAX, build_script, run_wrk
from loadgen.sender import Target

Measure = Callable[[float], Awaitable[Run]]
WRK_AGREES = 0.10  # of our rate
WRK_ROUNDS = 7


async def search_rate(measure: Measure, capacity_per_s: float, p99_bound_us: float, steps: int) -> tuple[Run | None, list[Run]]:
    """The run at the highest rate that keeps up with its p99 within the bound: halves what lies between 0 and `capacity_per_s`.

    A run that is void counts if it keeps within the bound nevertheless: a late generator only adds to latencies.
    """
    low, high = 0.0, capacity_per_s
    best: Run | None = None
    runs = []
    for _ in range(steps):
        rate = round((low + high) / 2, 1)
        if rate < 1.0:
            break
        run = await measure(rate)
        runs.append(run)
        if keeps_up(run, p99_bound_us):
            best, low = run, rate
        else:
            high = rate
    return best, runs


async def run_ceiling(job: LoadJob) -> Run:
    """The same load on a server that does nothing: what the generator itself can do. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as work:
        child: Child = await asyncio.to_thread(start_arm, NULL, Path(work), Path(work), ())
        try:
            target = Target.parse(child.url, "")
            job = msgspec.structs.replace(
                job, host=target.host, port=target.port, base_path="", key="", payload="null", rows=1, rate=None, path=""
            )
            return await run_load("closed", job)
        finally:
            child.stop()


async def check_wrk(job: LoadJob) -> WrkCheck:
    """Our closed loop and wrk's in turn, on the same endpoint with the same connections. Raises BenchError."""
    if job.payload not in ("weir", "stack") or job.rows != 1:
        raise BenchError("--wrk: wrk sends single events only (--payload weir or stack, --rows 1)")
    target = Target(job.host, job.port, job.base_path, job.key)
    head, tails = CardRequests(target, job).parts()
    own: list[float] = []
    by_wrk: list[float] = []
    busy = 0.0
    url = f"http://{job.host}:{job.port}{job.base_path}"
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as folder:
        # Each goes first in turn: what a machine does in a second is more like the second after than like the one before last.
        for number in range(2 * WRK_ROUNDS):
            if number % 4 in (0, 3):
                run = await run_load("closed", job)
                own.append(run.requests_per_s)
                busy = max(busy, run.client_cpu_share)
                continue
            script = build_script(head, tails, (int(time.time()) + number) % RUNS_MAX, 0, Path(folder))
            summary = (await asyncio.to_thread(run_wrk, url, script, job.connections, job.seconds)).summary
            if summary.errors:
                raise BenchError(f"wrk saw errors: {summary.error_example}")
            by_wrk.append(summary.requests / (summary.duration_us / 1e6))
    return judge_wrk(job.connections, own, by_wrk, busy)


def judge_wrk(connections: int, own: Sequence[float], by_wrk: Sequence[float], client_cpu_share: float) -> WrkCheck:
    """Whether both rates agree within WRK_AGREES; else whether our client's core, or noise, explains it.

    By the median of the rounds' ratios: a slow minute of the machine hits both of a round. Noise: 1 is between their quartiles.
    """
    ratios = sorted(mine / theirs if theirs else 0.0 for mine, theirs in zip(own, by_wrk, strict=True))
    ratio, low, high = statistics.median(ratios), ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    if round(abs(ratio - 1), 6) <= WRK_AGREES:
        verdict = f"agrees within {WRK_AGREES:.0%}"
    elif ratio < 1 and client_cpu_share >= BUSY_SHARE:
        verdict = f"explained: our client used {client_cpu_share:.0%} of its core, so it was the limit, not the server"
    elif low <= 1 <= high:
        verdict = f"not told apart: half of the rounds' ratios lie between {low:.2f} and {high:.2f}"
    else:
        verdict = f"differs by {abs(ratio - 1):.0%} and nothing measured explains it; repeat on a quiet machine"
    return WrkCheck(
        connections=connections,
        wrk_per_s=round(statistics.median(by_wrk), 1),
        own_per_s=round(statistics.median(own), 1),
        ratio=round(ratio, 3),
        ratios=[round(value, 3) for value in ratios],
        verdict=verdict,
    )
