"""What the service does with twice the requests that it can answer: goodput, refusals and how fast they come, memory, recovery.

Server on one core, client and stores on another. Capacity comes first, of a service that refuses nothing; then an open loop
sends another one `factor` times as much, in bursts, whatever comes back; then single requests show when it is itself again.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from loadgen.bench.children import BenchError, Child, add_key, pinned, start_weir
from loadgen.bench.closed_loop import ClosedLoop
from loadgen.bench.overload.job import Answers, OverloadJob, OverloadOutcome, run_overload_job
from loadgen.bench.overload.result import Memory, OverloadOptions, OverloadResult
from loadgen.bench.payloads import Payloads
from loadgen.bench.sizing import FLAGGED_SETTING
from loadgen.bench.touch import touch_cards
from loadgen.sender import Client, SendError, Target
from models.machine import machine
from models.scorers import missing_scorer

CAPACITY_CONNECTIONS = 64
BURSTS_DEPTH = 8  # requests under way per connection when capacity is measured with bursts
PROBES = 200  # single requests before the load
PROBE_EVERY_S = 0.005
RECOVERED_PROBES = 20  # in a row
RECOVERED_TIMES = 3.0  # of the p50 before
RECOVERED_US = 2_000.0  # that much is as fast as before in any case: a shared machine has such pauses by itself
RECOVERY_DEADLINE_S = 60.0
UNBOUNDED = ("queue.events_max=10000000", "queue.wait_ms_max=60000", "queue.eager_wait_ms_max=60000")
MEMORY_EVERY_S = 0.5
SENT_SHARE_MIN = 0.95  # of the schedule; less, and the client was the limit
LATE_P99_US_MAX = 5_000


class _Service(msgspec.Struct):
    child: Child
    target: Target
    payloads: Payloads


async def run_overload(options: OverloadOptions, work_dir: Path | None, say: Callable[[str], None]) -> OverloadResult:
    """Raises BenchError."""
    if (reason := missing_scorer(options.scorer)) is not None:
        raise BenchError(reason)
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir)))
        closed, bursts = await _capacity(options, work / "capacity", server_core, client_core)
        service = await _start(options, work / "load", server_core, client_core)
        stack.callback(service.child.stop)
        stack.enter_context(pinned(client_core))
        capacity = max(closed, bursts)
        say(f"capacity: {closed:,.0f} requests/s in a closed loop, {bursts:,.0f} in bursts")
        await asyncio.sleep(1.0)
        before_us = await _probe(service, PROBES)
        memory_before = service.child.memory_mb()[0]
        rate = capacity * options.factor
        say(f"sending {rate:,.0f} requests/s for {options.seconds:g} s")
        job = _job(service, options, rate, options.seconds, options.depth)
        outcome, series = await _load(service, job)
        memory_end = service.child.memory_mb()[0]
        recovery_s, after_us = await _recover(service, before_us)
        memory = Memory(memory_before, max([memory_before, *series]), memory_end, service.child.memory_mb()[0])
    return _result(
        options, (server_core, client_core), (closed, bursts), outcome, memory, series, (recovery_s, before_us, after_us)
    )


async def _start(
    options: OverloadOptions, work: Path, server_core: int | None, client_core: int | None, *more: str
) -> _Service:
    """A service whose cards all have profiles. `more`: settings. Raises BenchError."""
    data_dir = work / "data"
    data_dir.mkdir(parents=True)
    key = add_key(data_dir)
    settings = [
        FLAGGED_SETTING,
        *options.settings,
        *more,
        f"scorer={options.scorer}",
        *(("embedded=true",) if options.stores else ()),
    ]
    with pinned(server_core):
        child = start_weir(data_dir, work, settings)
    child.stores.pin(client_core)
    target = Target.parse(child.url, key)
    service = _Service(child, target, Payloads(target, options.cards))
    try:
        with pinned(client_core):
            await touch_cards(child, target, service.payloads, options.cards)
    except BaseException:
        child.stop()
        raise
    return service


async def _capacity(
    options: OverloadOptions, work: Path, server_core: int | None, client_core: int | None
) -> tuple[float, float]:
    """Requests per second in a closed loop and in bursts, of a service of its own that refuses none. Raises BenchError."""
    service = await _start(options, work, server_core, client_core, *UNBOUNDED)
    try:
        with pinned(client_core):
            closed = await _capacity_closed(service, options)
            return closed, await _capacity_bursts(service, options, closed)
    finally:
        service.child.stop()


async def _capacity_closed(service: _Service, options: OverloadOptions) -> float:
    loop = ClosedLoop(service.target, service.payloads.one, CAPACITY_CONNECTIONS)
    sample = await loop.run(min(1.0, options.capacity_s), options.capacity_s, service.child)
    if sample.errors:
        raise BenchError(f"{sample.errors} requests failed when capacity was measured, first {sample.error_example}")
    return sample.requests_per_s


async def _capacity_bursts(service: _Service, options: OverloadOptions, closed: float) -> float:
    """What comes back when there is always more to do than fits: each connection keeps a few requests under way, no more."""
    job = _job(service, options, closed * 3, options.capacity_s, BURSTS_DEPTH)
    outcome = await run_overload_job(msgspec.structs.replace(job, connections=CAPACITY_CONNECTIONS))
    service.payloads.n_events += outcome.due
    return _goodput(outcome, options.capacity_s)


def _job(service: _Service, options: OverloadOptions, rate: float, seconds: float, depth: int) -> OverloadJob:
    first = service.payloads.n_events
    service.payloads.n_events += int(rate * seconds) + (1 << 16)  # it makes some requests ahead
    target = service.target
    return OverloadJob(
        target.host, target.port, target.key, rate, seconds, options.connections,
        depth=depth, burst=options.burst, cards=options.cards, first=first,
    )  # fmt: skip


async def _load(service: _Service, job: OverloadJob) -> tuple[OverloadOutcome, list[float]]:
    """The load, and the server's memory meanwhile."""
    series: list[float] = []

    async def watch() -> None:
        while True:
            series.append(service.child.memory_mb()[0])
            await asyncio.sleep(MEMORY_EVERY_S)

    task = asyncio.create_task(watch())
    try:
        return await run_overload_job(job), series
    finally:
        task.cancel()


async def _probe(service: _Service, n: int) -> float:
    """p50 of single requests in µs. Raises BenchError."""
    client = Client(service.target, 10.0)
    times = []
    try:
        for _ in range(n):
            started = time.perf_counter()
            reply = await client.request(service.payloads.one())
            times.append((time.perf_counter() - started) * 1e6)
            if reply.status != 200:
                raise BenchError(f"a single request was answered with {reply.status}: {reply.body[:200]!r}")
            await asyncio.sleep(PROBE_EVERY_S)
    except SendError as error:
        raise BenchError(f"a single request failed: {error}") from error
    finally:
        client.close()
    return round(statistics.median(times), 1)


async def _recover(service: _Service, before_us: float) -> tuple[float | None, float]:
    """Seconds until RECOVERED_PROBES single requests in a row were answered and fast, and their p50."""
    client, started = Client(service.target, 10.0), time.perf_counter()
    limit_us = max(before_us * RECOVERED_TIMES, RECOVERED_US)
    fast: list[float] = []
    since = started
    try:
        while time.perf_counter() - started < RECOVERY_DEADLINE_S:
            sent = time.perf_counter()
            try:
                status = (await client.request(service.payloads.one())).status
            except SendError:
                status = 0
            took_us = (time.perf_counter() - sent) * 1e6
            if status == 200 and took_us <= limit_us:
                if not fast:
                    since = sent
                fast.append(took_us)
                if len(fast) == RECOVERED_PROBES:
                    return round(since - started, 3), round(statistics.median(fast), 1)
            else:
                fast.clear()
            await asyncio.sleep(PROBE_EVERY_S)
    finally:
        client.close()
    return None, 0.0


def answers_of(outcome: OverloadOutcome, status: int) -> Answers | None:
    return next((answers for answers in outcome.answers if answers.status == status), None)


def _goodput(outcome: OverloadOutcome, seconds: float) -> float:
    """200s per second that came while it was sent; those of the time after do not count."""
    accepted = answers_of(outcome, 200)
    whole = max(1, int(seconds))
    return round(sum(accepted.per_second[:whole]) / whole, 1) if accepted else 0.0


def _result(
    options: OverloadOptions,
    cores: tuple[int | None, int | None],
    capacities: tuple[float, float],
    outcome: OverloadOutcome,
    memory: Memory,
    series: list[float],
    probes: tuple[float | None, float, float],
) -> OverloadResult:
    capacity = max(capacities)
    goodput = _goodput(outcome, options.seconds)
    accepted, refused = answers_of(outcome, 200), answers_of(outcome, 429)
    n_refused, n_answered = refused.n if refused else 0, sum(answers.n for answers in outcome.answers)
    limit = outcome.sent < outcome.due * SENT_SHARE_MIN or outcome.late_us.p99 > LATE_P99_US_MAX
    return OverloadResult(
        kind="bench overload",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        options=options,
        machine=machine(),
        server_core=cores[0],
        client_core=cores[1],
        capacity_closed=capacities[0],
        capacity_bursts=capacities[1],
        capacity=capacity,
        rate=round(capacity * options.factor, 1),
        sent_per_s=round(outcome.sent / options.seconds, 1),
        goodput=goodput,
        goodput_share=round(goodput / capacity, 3),
        refused=n_refused,
        refused_share=round(n_refused / n_answered, 4) if n_answered else 0.0,
        refused_p99_us=refused.latency_us.p99 if refused else 0,
        retry_after_share=round(outcome.retry_after / n_refused, 4) if n_refused else 1.0,
        accepted_p50_us=accepted.latency_us.p50 if accepted else 0,
        accepted_p99_us=accepted.latency_us.p99 if accepted else 0,
        client_cpu_share=round(outcome.cpu_s / outcome.seconds, 3),
        outcome=outcome,
        memory=memory,
        memory_series_mb=[round(mb, 1) for mb in series],
        recovery_s=probes[0],
        probe_before_us=probes[1],
        probe_after_us=probes[2],
        client_was_limit=limit,
        caveats=_caveats(options, outcome, limit=limit),
    )


def _caveats(options: OverloadOptions, outcome: OverloadOutcome, *, limit: bool) -> list[str]:
    caveats = [
        f"Requests come {options.burst} at a time over {options.connections} connections, several on one before its replies."
        " Each read and write of a socket is paid once for them: a crowd of clients with a connection each costs the server"
        " more per request, scored or refused. Hence both capacities, and --burst and --connections.",
        "Latency counts from the time that a request was due, so what waits in sockets or in the client is the server's.",
        "The client reads status lines and Retry-After, not bodies; the first second has the build-up of the queue in.",
        f"{options.cards:,} cards, every event new, all profiles in L1, loopback, no TLS.",
    ]
    if limit:
        caveats.append(
            f"The client was the limit: it sent {outcome.sent:,} of {outcome.due:,} that were due, p99 of the delay"
            f" {outcome.late_us.p99:,} µs."
        )
    if outcome.blocked:
        caveats.append(f"{outcome.blocked:,} writes found a full socket: the server held clients back there by not reading.")
    if outcome.lost:
        caveats.append(f"{outcome.lost:,} requests had no reply when the client gave up.")
    return caveats
