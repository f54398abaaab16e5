"""What the client process of `weir bench stream` is told on stdin and answers on stdout: one JSON object each."""

import asyncio
import sys
from typing import Literal

import msgspec

from loadgen.bench.children import STDERR_TAIL, BenchError
from loadgen.recorder import LatencySummary


class Job(msgspec.Struct, frozen=True):
    """One pass over `events` events of `cards` cards.

    `first` is the number of the first event; `each_card`: event n is of card n, else cards are drawn. `rate` in events per
    second makes it an open loop. `deadline_s` without any reply ends the pass.
    """

    host: str
    port: int
    key: str
    mode: Literal["stream", "batch"]
    events: int
    cards: int
    first: int = 0
    each_card: bool = False
    connections: int = 1
    chunk_rows: int = 1_024
    rate: float | None = None
    seed: int = 7
    zipf: float = 0.0
    deadline_s: float = 60.0


class Outcome(msgspec.Struct):
    """What a pass found out. `replies` are lines; of them `checked` were parsed and stood in their place.

    `errors` are refused rows, `problem` is what ended the pass early. `chunk_us`: from the write of a chunk's last byte to the
    reply of its last row. `late_s`: how far the open loop was behind its schedule at most.
    """

    replies: int
    errors: int
    error_example: str
    checked: int
    seconds: float
    cpu_s: float
    chunk_us: LatencySummary
    late_s: float
    bytes_sent: int
    bytes_received: int
    problem: str = ""


async def run_job(job: Job, name: str) -> Outcome:
    """The pass in a process of its own. Raises BenchError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen.bench.stream.client",
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
        raise BenchError(f"the client of {name} ended with code {process.returncode}: {err.decode()[-STDERR_TAIL:].strip()}")
    outcome = msgspec.json.decode(out, type=Outcome)
    if outcome.problem:
        raise BenchError(f"{name}: {outcome.problem}")
    if outcome.replies != job.events:
        raise BenchError(f"{name}: {job.events:,} events were sent and {outcome.replies:,} answered")
    return outcome
