"""Resident memory of the service after it has seen N cards, and the time to ready with an empty and a full directory."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from loadgen.bench.children import BenchError, Child, add_key, start_weir
from loadgen.bench.payloads import Payloads
from loadgen.sender import Client, SendError, Target
from models.machine import Machine, machine

BATCH_ROWS = 1_000  # new cards per request
SETTLE_S = 2.0  # s for write-behind after the last batch


class MemoryOptions(msgspec.Struct, frozen=True):
    """`entities`: numbers of cards, a fresh data directory for each."""

    entities: tuple[int, ...] = (10_000, 1_000_000)
    settings: tuple[str, ...] = ()


class MemoryRow(msgspec.Struct):
    """One number of cards. MiB resident, seconds; `data_mb` is the size of the data directory after the stop."""

    entities: int
    ready_empty_s: float
    memory_start_mb: float
    memory_mb: float
    memory_max_mb: float
    touch_s: float
    events_per_s: float
    stop_s: float
    data_mb: float
    ready_full_s: float
    memory_restarted_mb: float
    ready_after_kill_s: float


class MemoryResult(msgspec.Struct):
    """What --json writes."""

    kind: str
    created: str
    options: MemoryOptions
    machine: Machine
    rows: list[MemoryRow]
    caveats: list[str]


async def run_memory(options: MemoryOptions, say: Callable[[str], None]) -> MemoryResult:
    """Raises BenchError."""
    rows = []
    for entities in options.entities:
        say(f"{entities:,} cards")
        with tempfile.TemporaryDirectory(prefix="weir-bench-") as work:
            rows.append(await _measure(entities, Path(work), options))
    return MemoryResult(
        kind="bench memory",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        options=options,
        machine=machine(),
        rows=rows,
        caveats=[
            "One transaction a card, of one merchant, without device and address: cards are the only new entities.",
            "Resident memory counts shared pages of libraries too; memory that L1 has reserved counts once touched.",
            "Ready with a full directory: once after a graceful stop, once after SIGKILL right after new events.",
        ],
    )


async def _measure(entities: int, work: Path, options: MemoryOptions) -> MemoryRow:
    data_dir = work / "data"
    data_dir.mkdir()
    key = add_key(data_dir)
    child = start_weir(data_dir, work, options.settings, "weir-empty")
    try:
        ready_empty_s, (memory_start, _) = child.ready_s, child.memory_mb()
        payloads = Payloads(Target.parse(child.url, key), 1)
        touch_s = await _touch(child, key, payloads, 0, entities)
        time.sleep(SETTLE_S)  # noqa: ASYNC251  # nothing else runs on this loop
        memory, memory_max = child.memory_mb()
    finally:
        stop_s = child.stop()
    data_mb = sum(file.stat().st_size for file in data_dir.rglob("*") if file.is_file()) / 2**20
    child = start_weir(data_dir, work, options.settings, "weir-full")
    try:
        ready_full_s, (memory_restarted, _) = child.ready_s, child.memory_mb()
        await _touch(child, key, payloads, 0, min(entities, 10_000))
    finally:
        child.kill()
    child = start_weir(data_dir, work, options.settings, "weir-killed")
    ready_after_kill_s = child.ready_s
    child.stop()
    return MemoryRow(
        entities=entities,
        ready_empty_s=round(ready_empty_s, 3),
        memory_start_mb=round(memory_start, 1),
        memory_mb=round(memory, 1),
        memory_max_mb=round(memory_max, 1),
        touch_s=round(touch_s, 2),
        events_per_s=round(entities / touch_s, 1),
        stop_s=round(stop_s, 2),
        data_mb=round(data_mb, 1),
        ready_full_s=round(ready_full_s, 3),
        memory_restarted_mb=round(memory_restarted, 1),
        ready_after_kill_s=round(ready_after_kill_s, 3),
    )


async def _touch(child: Child, key: str, payloads: Payloads, first: int, stop: int) -> float:
    """One event for each of the cards; seconds it took."""
    target = Target.parse(child.url, key)
    payloads.aim(target)
    client = Client(target, 120.0)
    started = time.perf_counter()
    try:
        for start in range(first, stop, BATCH_ROWS):
            reply = await client.request(payloads.each_card_alone(start, min(start + BATCH_ROWS, stop)))
            if reply.status != 200 or b'"status":' in reply.body:
                raise BenchError(f"weir refused events: {reply.status} {reply.body[:400]!r}")
    except SendError as error:
        raise BenchError(f"weir: {error}") from error
    finally:
        client.close()
    return time.perf_counter() - started
