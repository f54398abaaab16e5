"""What a million cards cost: memory beside their profiles, the tail, and throughput when L1 holds only a tenth of them.

Three services over directories of their own: few cards, many cards, and many with a small L1. Each card is seen once; then a
closed loop of single events draws cards evenly. Server on one core, client on another, rounds interleaved, the others paused.
"""

import asyncio
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from loadgen.bench.children import BenchError, Child, add_key, pinned, start_weir
from loadgen.bench.closed_loop import ClosedLoop, Sample
from loadgen.bench.entities.result import EntitiesOptions, EntitiesResult, EntitiesRow, limit_mb, paired_ratio
from loadgen.bench.payloads import DRAWS, Payloads
from loadgen.bench.sizing import FLAGGED_SETTING, l1_setting, profile_bytes
from loadgen.replay import ReplayStopped, TierCount, read_tiers
from loadgen.sender import Client, SendError, Target, pause_after
from models.machine import machine

FEW, MANY, SPILL = "few", "many", "small L1"
TOUCH_ROWS = 1_000
DRAWS_MAX = 1 << 20
DEADLINE_S = 120.0
L1_BYTES_MIN = 64 * 1024
TOUCH_DEADLINE_S = 600.0
SETTLE_S = 2.0  # for write-behind after the last touch
GAUGE = re.compile(rb"^weir_l1_(profiles|bytes)(?:\{[^}]*\})? (\S+)", re.MULTILINE)


class _Arm(msgspec.Struct):
    name: str
    cards: int
    l1_bytes_max: int
    child: Child
    target: Target
    payloads: Payloads
    start_mb: float
    touch_s: float = 0.0
    touched_mb: float = 0.0
    hits: int = 0
    lookups: int = 0
    samples: list[Sample] = []


async def run_entities(options: EntitiesOptions, work_dir: Path | None, say: Callable[[str], None]) -> EntitiesResult:
    """Raises BenchError."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir)))
        plan = (
            (FEW, options.few, l1_setting(options.few, alone=True)),
            (MANY, options.many, l1_setting(options.many, alone=True)),
            (
                SPILL,
                options.many,
                f"l1.bytes_max={max(L1_BYTES_MIN, profile_bytes(options.many, alone=True) // options.spill)}",
            ),
        )
        arms = []
        for name, cards, l1 in plan:
            with pinned(server_core):
                arms.append(_start(name, cards, l1, work, options))
            stack.callback(arms[-1].child.stop)
            with pinned(client_core):
                await _touch(arms[-1])
            say(f"{name}: {cards:,} cards in {arms[-1].touch_s:.0f} s, {arms[-1].touched_mb:,.0f} MiB resident")
            arms[-1].child.pause()
        stack.enter_context(pinned(client_core))
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            first = number % len(arms)
            for arm in arms[first:] + arms[:first]:
                await _measure(arm, options)
        rows = [await _row(arm) for arm in arms]
    few, many, spill = rows
    p99s = [[float(sample.latency_us.p99) for sample in row.samples] for row in (many, few)]
    rates = [[sample.requests_per_s for sample in row.samples] for row in (spill, many)]
    return EntitiesResult(
        kind="bench entities",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        options=options,
        machine=machine(),
        server_core=server_core,
        client_core=client_core,
        rows=rows,
        p99_ratio=paired_ratio(*p99s),
        spill_ratio=paired_ratio(*rates),
        caveats=_caveats(options),
    )


def _start(name: str, cards: int, l1: str, work: Path, options: EntitiesOptions) -> _Arm:
    data_dir = work / name.replace(" ", "-")
    data_dir.mkdir()
    key = add_key(data_dir)
    child = start_weir(data_dir, work, (FLAGGED_SETTING, *options.settings, l1), name)
    target = Target.parse(child.url, key)
    draws = DRAWS
    while draws < min(cards, DRAWS_MAX):
        draws *= 2
    payloads = Payloads(target, cards, batch_rows=TOUCH_ROWS, draws=draws, alone=True)
    return _Arm(name, cards, int(l1.partition("=")[2]), child, target, payloads, child.memory_mb()[0])


async def _touch(arm: _Arm) -> None:
    """One event for each of the cards; a service whose levels cannot take them that fast is waited for."""
    client, started = Client(arm.target, DEADLINE_S), time.perf_counter()
    try:
        for start in range(0, arm.cards, TOUCH_ROWS):
            request = arm.payloads.each_card(start, min(start + TOUCH_ROWS, arm.cards))
            reply = await client.request(request)
            while (pause_s := pause_after(reply)) is not None and time.perf_counter() - started < TOUCH_DEADLINE_S:
                await asyncio.sleep(pause_s)
                reply = await client.request(request)
            if reply.status != 200 or b'"status":' in reply.body:
                raise BenchError(f"{arm.name} refused events: {reply.status} {reply.body[:400]!r}")
    except SendError as error:
        raise BenchError(f"{arm.name}: {error}") from error
    finally:
        client.close()
    arm.touch_s = time.perf_counter() - started
    await asyncio.sleep(SETTLE_S)
    arm.touched_mb = arm.child.memory_mb()[0]


async def _measure(arm: _Arm, options: EntitiesOptions) -> None:
    arm.child.resume()
    try:
        before = await _l1(arm)
        loop = ClosedLoop(arm.target, arm.payloads.one, options.connections)
        sample = await loop.run(options.warm_s, options.measure_s, arm.child)
        after = await _l1(arm)
    finally:
        if arm.child.alive():
            arm.child.pause()
    arm.samples = [*arm.samples, sample]
    arm.hits += after.hits - before.hits
    arm.lookups += after.lookups - before.lookups


async def _l1(arm: _Arm) -> TierCount:
    try:
        tiers = await read_tiers(arm.target, DEADLINE_S)
    except ReplayStopped as error:
        raise BenchError(f"{arm.name}: {error}") from error
    return next((tier for tier in tiers or [] if tier.name == "l1"), TierCount("l1"))


async def _row(arm: _Arm) -> EntitiesRow:
    arm.child.resume()
    client = Client(arm.target, DEADLINE_S)
    try:
        text = (await client.request(arm.target.encode("GET", "/metrics"))).body
    except SendError as error:
        raise BenchError(f"{arm.name}: {error}") from error
    finally:
        client.close()
    resting: dict[bytes, float] = {}
    for name, value in GAUGE.findall(text):
        resting[name] = resting.get(name, 0.0) + float(value)
    samples = arm.samples
    return EntitiesRow(
        arm=arm.name,
        cards=arm.cards,
        l1_bytes_max=arm.l1_bytes_max,
        profiles=int(resting.get(b"profiles", 0)),
        profile_mb=round(resting.get(b"bytes", 0.0) / 2**20, 1),
        start_mb=round(arm.start_mb, 1),
        touched_mb=round(arm.touched_mb, 1),
        end_mb=round(arm.child.memory_mb()[0], 1),
        limit_mb=limit_mb(int(resting.get(b"profiles", 0)), resting.get(b"bytes", 0.0)),
        touch_s=round(arm.touch_s, 2),
        requests_per_s=round(statistics.median(sample.requests_per_s for sample in samples), 1),
        p50_us=round(statistics.median(sample.latency_us.p50 for sample in samples), 1),
        p99_us=round(statistics.median(sample.latency_us.p99 for sample in samples), 1),
        server_cpu_us=round(statistics.median(sample.server_cpu_us_per_request for sample in samples), 1),
        hit_share=round(arm.hits / arm.lookups, 4) if arm.lookups else None,
        errors=sum(sample.errors for sample in samples),
        error_example=next((sample.error_example for sample in samples if sample.errors), ""),
        samples=samples,
    )


def _caveats(options: EntitiesOptions) -> list[str]:
    return [
        "Events name a card and one of 1,000 merchants: cards are the only entities that are many.",
        "Cards are drawn evenly: the worst case for an L1 that holds a part of them. Payments are not like that.",
        "What L1 does not hold is in RocksDB; its cache and the kernel's page cache hold all of that: no disk is read.",
        "Resident memory is of the server's process; it counts shared pages of libraries, the caches of RocksDB, filters and"
        " decisions in flight. The limit for the small L1 has only the profiles that rest in L1 in it.",
        "A closed loop: p99 is at full load. No Valkey, no Postgres, loopback.",
        f"Rounds of {options.measure_s:g} s.",
    ]
