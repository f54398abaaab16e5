"""What the client process of `weir bench overload` is told on stdin and answers on stdout: one JSON object each."""

import asyncio
import sys

import msgspec

from loadgen.bench.children import STDERR_TAIL, BenchError
from loadgen.recorder import LatencySummary


class OverloadJob(msgspec.Struct, frozen=True):
    """An open loop of `rate` requests per second for `seconds` over `connections`, whatever comes back, `burst` in one write.

    `depth`: requests under way on a connection at most; those that are due and find no place wait in the client and are late.
    0: no limit. `first` is the number of the first event.
    """

    host: str
    port: int
    key: str
    rate: float
    seconds: float
    connections: int
    depth: int = 0
    burst: int = 1
    cards: int = 10_000
    first: int = 0
    drain_s: float = 30.0
    core: int | None = None


class Answers(msgspec.Struct):
    """Replies of one status. Latency in µs from the time that a request was due. `per_second` by second of their arrival."""

    status: int
    n: int
    latency_us: LatencySummary
    per_second: list[int]


class OverloadOutcome(msgspec.Struct):
    """What came back. `due` requests, of which `sent` were written; `lost` got no reply. `retry_after` of the 429s name a time.

    `late_us`: from due to written. `blocked` counts writes that a socket did not take whole: the server was not reading.
    """

    due: int
    sent: int
    lost: int
    answers: list[Answers]
    retry_after: int
    late_us: LatencySummary
    blocked: int
    seconds: float
    cpu_s: float
    problem: str = ""


async def run_overload_job(job: OverloadJob) -> OverloadOutcome:
    """The load in a process of its own. Raises BenchError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen.bench.overload.client",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await process.communicate(msgspec.json.encode(job))
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        raise BenchError(f"the client ended with code {process.returncode}: {err.decode()[-STDERR_TAIL:].strip()}")
    outcome = msgspec.json.decode(out, type=OverloadOutcome)
    if outcome.problem:
        raise BenchError(outcome.problem)
    return outcome
