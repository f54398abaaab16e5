"""One run of the load generator: its workers are started, let go at the same moment, and their outcomes become one `Run`."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from loadgen.bench.children import STDERR_TAIL, BenchError
from loadgen.bench.load.job import LoadJob, Outcome
from loadgen.bench.load.requests import first_event_number
from loadgen.bench.load.result import Run, Scenario, ServerUse, make_run
from loadgen.bench.processes import cpu_s, pss_mb

READY_DEADLINE_S = 60.0  # s for a worker to start and to connect
END_DEADLINE_S = 60.0  # s beyond the run and the deadline of its last request
LEAD_S = 0.02  # s between "go" and the first request: every worker has read it by then


class Watched(msgspec.Struct, frozen=True):
    """Whose CPU and memory a run is charged to: functions, since processes come and go."""

    server: Callable[[], Sequence[int]]
    database: Callable[[], Sequence[int]] | None = None


async def run_load(scenario: Scenario, job: LoadJob, watched: Watched | None = None) -> Run:
    """Send `job`, by `job.workers` processes. Raises BenchError if a worker cannot start or connect."""
    job = msgspec.structs.replace(job, first=job.first or first_event_number(), seed=job.seed)
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(_worker(msgspec.structs.replace(job, worker=number)))
            for number in range(job.workers)
        ]
        for worker in workers:
            await _ready(worker)
        memory_mb = pss_mb(watched.server()) if watched is not None else 0.0
        started = time.perf_counter() + LEAD_S
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(f"go {started!r}\n".encode())
        use = await _watch(job, watched, started, memory_mb)
        outcomes = [await _outcome(worker, job) for worker in workers]
    run = make_run(scenario, job, outcomes)
    if use is not None:
        run.server = _per_request(use, run)
    return run


@contextlib.asynccontextmanager
async def _worker(job: LoadJob) -> "AsyncIterator[asyncio.subprocess.Process]":
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen.bench.load.worker",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=1 << 26,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _ready(worker: asyncio.subprocess.Process) -> None:
    assert worker.stdout is not None
    try:
        line = await asyncio.wait_for(worker.stdout.readline(), READY_DEADLINE_S)
    except TimeoutError:
        raise BenchError(f"a worker of the load generator was not ready within {READY_DEADLINE_S:.0f} s") from None
    if line != b"ready\n":
        raise BenchError(await _last_words(worker))


async def _outcome(worker: asyncio.subprocess.Process, job: LoadJob) -> Outcome:
    assert worker.stdout is not None
    seconds = job.deadline_s + END_DEADLINE_S
    try:
        line = await asyncio.wait_for(worker.stdout.readline(), seconds)
    except TimeoutError:
        raise BenchError(f"a worker of the load generator did not end within {seconds:.0f} s of its run") from None
    if not line:
        raise BenchError(await _last_words(worker))
    return msgspec.json.decode(line, type=Outcome)


async def _last_words(worker: asyncio.subprocess.Process) -> str:
    assert worker.stderr is not None
    text = (await worker.stderr.read()).decode(errors="replace").strip()
    lines = text.splitlines()
    if lines and not text.startswith("Traceback"):
        return lines[-1][-STDERR_TAIL:]
    return f"a worker of the load generator ended: {text[-STDERR_TAIL:] or 'no output'}"


class _Use(msgspec.Struct):
    server_s: float
    database_s: float | None
    pss_mb: float


async def _watch(job: LoadJob, watched: Watched | None, started: float, memory_mb: float) -> _Use | None:
    """Wait for the measured time to pass; what the watched processes used in it."""
    await asyncio.sleep(max(0.0, started + job.warm_s - time.perf_counter()))
    server, database = _cpu(watched)
    await asyncio.sleep(max(0.0, started + job.warm_s + job.seconds - time.perf_counter()))
    if watched is None:
        return None
    server_end, database_end = _cpu(watched)
    memory_mb = max(memory_mb, pss_mb(watched.server()))
    used = None if database is None or database_end is None else database_end - database
    return _Use(server_end - server, used, memory_mb)


def _cpu(watched: Watched | None) -> tuple[float, float | None]:
    if watched is None:
        return 0.0, None
    return cpu_s(watched.server()), None if watched.database is None else cpu_s(watched.database())


def _per_request(use: _Use, run: Run) -> ServerUse:
    n = max(1, run.requests)
    return ServerUse(
        cpu_ms_per_request=round(use.server_s * 1e3 / n, 5),
        cpu_share=round(use.server_s / run.seconds, 3),
        database_cpu_ms_per_request=None if use.database_s is None else round(use.database_s * 1e3 / n, 5),
        pss_mb=round(use.pss_mb, 1),
    )
