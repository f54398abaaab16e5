"""Events per second through one endless POST /v1/score/stream: `weir serve` with its stores, and a client, on all cores.

Each arm is a service of its own over an empty directory. A first pass, not timed, gives every entity its profile in L1; then
the ledger may become level. A timed pass sends new events of the same entities and ends with the last reply; what the ledger is
behind then, and how long it takes to become level, is said beside it. Arms take turns; one that is not measured is paused.
"""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, cast

import msgspec

from loadgen.bench.children import BenchError, Child, add_key, start_weir
from loadgen.bench.file_system import file_system, is_memory
from loadgen.bench.lag import slope_per_s, until_level, watched
from loadgen.bench.sizing import FLAGGED_SETTING, l1_setting, profile_bytes
from loadgen.bench.stream.job import Job, run_job
from loadgen.bench.stream.result import ARMS, LEDGER, StreamOptions, StreamResult, StreamRun, make_arms
from loadgen.sender import Target
from models.machine import machine
from models.scorers import missing_scorer

LAG_EVERY_S = 1.0


class _Arm(msgspec.Struct):
    name: str
    child: Child
    data_dir: Path
    target: Target
    n_events: int = 0


async def run_stream(options: StreamOptions, work_dir: Path | None, say: Callable[[str], None]) -> StreamResult:
    """Raises BenchError."""
    skipped = {arm: reason for arm in options.arms if (reason := missing_scorer(ARMS[arm][0])) is not None}
    names = [arm for arm in options.arms if arm not in skipped]
    if not names:
        raise BenchError("no arm is left to measure: " + "; ".join(f"{arm}: {reason}" for arm, reason in skipped.items()))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir)))
        arms = []
        for name in names:
            arms.append(_start(name, work, options))
            stack.callback(arms[-1].child.stop)
            say(f"{name}: ready; {options.entities:,} entities of each kind get their profiles")
            await _warm(arms[-1], options)
            arms[-1].child.pause()
        runs = []
        for number in range(options.rounds):
            first = number % len(arms)
            for arm in arms[first:] + arms[:first]:
                run = await _measure(arm, number, options)
                runs.append(run)
                say(f"round {number + 1} of {options.rounds}, {arm.name}: {run.events_per_s:,.0f} events/s, ledger {_lag(run)}")
        return StreamResult(
            kind="bench stream",
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            options=options,
            machine=machine(),
            file_system=file_system(work),
            arms=make_arms(runs),
            runs=runs,
            skipped=skipped,
            caveats=_caveats(options, work, runs),
        )


def _start(name: str, work: Path, options: StreamOptions) -> _Arm:
    data_dir = work / name.replace(" ", "-")
    data_dir.mkdir()
    key = add_key(data_dir)
    settings = [FLAGGED_SETTING, l1_setting(options.entities), *options.settings, f"scorer={ARMS[name][0]}"]
    if options.stores:
        settings.append("embedded=true")
    child = start_weir(data_dir, work, settings, f"weir-{name}")
    return _Arm(name, child, data_dir, Target.parse(child.url, key))


async def _warm(arm: _Arm, options: StreamOptions) -> None:
    outcome = await run_job(_job(arm, options, events=options.entities, each_card=True), arm.name)
    if outcome.errors:
        raise BenchError(f"{arm.name}: {outcome.errors:,} of the first events were refused: {outcome.error_example}")
    arm.n_events += options.entities
    await until_level(arm.target, [LEDGER], options.settle_s)


def _job(arm: _Arm, options: StreamOptions, *, events: int, each_card: bool = False, rate: float | None = None) -> Job:
    mode = cast(Literal["stream", "batch"], ARMS[arm.name][1])
    return Job(
        host=arm.target.host,
        port=arm.target.port,
        key=arm.target.key,
        mode=mode,
        events=events,
        cards=options.entities,
        first=arm.n_events,
        each_card=each_card,
        connections=options.connections,
        chunk_rows=options.chunk_rows if mode == "stream" else options.batch_rows,
        rate=rate,
        zipf=options.zipf,
    )


async def _measure(arm: _Arm, number: int, options: StreamOptions) -> StreamRun:
    child = arm.child
    child.resume()
    try:
        events = options.events if options.rate is None else int(options.rate * options.minutes * 60)
        job = _job(arm, options, events=events, rate=options.rate)
        journal = _bytes_below(arm.data_dir / "journal")
        server, stores = child.cpu_s(), child.stores.cpu_s()
        async with watched(arm.target, LAG_EVERY_S) as lags:
            outcome = await run_job(job, arm.name)
            server_then, stores_then = child.cpu_s(), child.stores.cpu_s()
            journal = _bytes_below(arm.data_dir / "journal") - journal
        arm.n_events += events
        has_ledger = LEDGER in lags[-1].lags
        level_s = await until_level(arm.target, [LEDGER], options.settle_s) if has_ledger else None
        server_level, stores_level = child.cpu_s(), child.stores.cpu_s()
        memory, memory_max = child.memory_mb()
        return StreamRun(
            arm=arm.name,
            round=number,
            events=events,
            errors=outcome.errors,
            error_example=outcome.error_example,
            checked=outcome.checked,
            seconds=outcome.seconds,
            events_per_s=round(events / outcome.seconds, 1),
            server_cpu_us=_per_event(server_then - server, events),
            client_cpu_us=_per_event(outcome.cpu_s, events),
            stores_cpu_us=_per_event(stores_then - stores, events),
            server_level_cpu_us=_per_event(server_level - server, events),
            stores_level_cpu_us=_per_event(stores_level - stores, events),
            client_cpu_share=round(outcome.cpu_s / outcome.seconds, 3),
            chunk_p50_us=outcome.chunk_us.p50,
            chunk_p99_us=outcome.chunk_us.p99,
            late_s=outcome.late_s,
            memory_mb=round(memory, 1),
            memory_max_mb=round(memory_max, 1),
            stores_mb=round(child.stores.memory_mb(), 1),
            journal_bytes=journal,
            lag_end=lags[-1].lags.get(LEDGER),
            level_s=level_s,
            lag_slope_per_s=slope_per_s(lags, LEDGER),
            lags=lags,
        )
    finally:
        if child.alive():
            child.pause()


def _per_event(cpu_s: float, events: int) -> float:
    return round(cpu_s / events * 1e6, 3)


def _bytes_below(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.seg"))


def _lag(run: StreamRun) -> str:
    if run.lag_end is None:
        return "none"
    return f"{run.lag_end:,} behind, " + ("not level in time" if run.level_s is None else f"level after {run.level_s:.1f} s")


def _caveats(options: StreamOptions, work: Path, runs: list[StreamRun]) -> list[str]:
    cores = len(os.sched_getaffinity(0))
    caveats = [
        f"Server, stores and client share {cores} core(s), unpinned; loopback, no TLS: the client takes CPU from the server.",
        f"{options.entities:,} cards with a device and an address each, {profile_bytes(options.entities) / 2**20:,.0f} MiB of"
        " profiles, all of them in L1; no labels, no lists, no explanations, no traces.",
        "A pass ends with the last reply. What the ledger lacks then is in the journal and comes later: the second figure of"
        " CPU has it in. Profiles that write-behind has not shipped yet are in neither.",
        "Latency is of a chunk, from its last byte written to the reply of its last row: without --rate the client writes as"
        " much as the server takes, so it says how much is under way, not how fast one event is answered.",
        "Of each part that arrives one reply is parsed and its place checked; all are counted, and refused rows too.",
    ]
    if options.rate is not None and any(run.late_s > 1.0 for run in runs):
        caveats.append("The schedule was not kept: the client was more than a second behind it in some pass.")
    if not options.stores:
        caveats.append("No Valkey and no Postgres: there is no ledger.")
    if is_memory(work):
        caveats.append("The data directories were in memory, where fsync does nothing.")
    return caveats
