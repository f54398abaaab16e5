"""What journal and idempotency cost a single-event request: `weir serve` beside arms that lack them, in turns, by CPU time.

An arm without them is no setting of the service: service/price_arm.py, a launcher that nothing else starts, replaces the
journal's append and the index of decisions by nothing. CPU is read before the load and again when the server has done what the
load left behind (the keeper writes decisions to RocksDB seconds later), so that what is put off is charged to who caused it;
what an idle server takes in that last stretch is taken off. All arms get the same events; a server that is not measured is
paused.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from loadgen.bench.arms import SCORERS, best_arm, flush_interval_ms
from loadgen.bench.children import BenchError, Child, add_key, pinned, start_weir
from loadgen.bench.closed_loop import ClosedLoop
from loadgen.bench.file_system import file_system, is_memory
from loadgen.bench.payloads import Payloads
from loadgen.bench.price.result import (
    ARMS,
    CONTROL,
    L3,
    NEITHER,
    NO_INDEX,
    NO_JOURNAL,
    NO_LEDGER,
    SERVE,
    TIMED,
    PriceOptions,
    PriceResult,
    PriceSample,
    make_parts,
    make_prices,
)
from loadgen.bench.sizing import FLAGGED_SETTING
from loadgen.bench.touch import touch_cards
from loadgen.sender import Target
from models.machine import machine

SUMS_FILE = "price.json"  # of service.price_arm --timed
SUMS_DEADLINE_S = 10.0
SETTLE_MORE_S = 1.0  # after the keeper's turn has come, for its work: 50,000 decisions take 0.5 s
LAUNCHER = {
    CONTROL: (),
    NEITHER: ("--without", "journal,index"),
    NO_JOURNAL: ("--without", "journal"),
    NO_INDEX: ("--without", "index"),
    TIMED: ("--timed",),
    NO_LEDGER: ("--without", "ledger"),
}
EMBEDDED = (L3, NO_LEDGER)


class _Sums(msgspec.Struct):
    """What the arm `timed` has added up so far."""

    transactions: int = 0
    blocks: int = 0
    cpu_us: dict[str, float] = {}


class _Arm(msgspec.Struct):
    name: str
    child: Child
    data_dir: Path
    target: Target
    payloads: Payloads
    idle_share: float = 0.0


async def run_price(options: PriceOptions, work_dir: Path | None, say: Callable[[str], None]) -> PriceResult:
    """Start the servers, measure, stop them. Data directories are made in `work_dir` (None: where temporary files go).

    Raises BenchError.
    """
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir)))
        arms: list[_Arm] = []
        for name in ARMS:
            if name in options.arms:
                say(f"starting {name}")
                arms.append(_start(name, work, options, server_core))
                stack.callback(arms[-1].child.stop)
        stack.enter_context(pinned(client_core))
        for arm in arms:
            arm.child.resume()
            await touch_cards(arm.child, arm.target, arm.payloads, options.cards)
            await asyncio.sleep(options.settle_s)
            arm.idle_share = await _idle_share(arm.child, options.settle_s)
            arm.child.pause()
        samples: list[PriceSample] = []
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            first = number % len(arms)
            for connections in options.connections:
                for arm in arms[first:] + arms[:first]:
                    samples.append(await _measure(arm, connections, number, options))
        return PriceResult(
            kind="bench price",
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            options=options,
            machine=machine(),
            file_system=file_system(work),
            server_core=server_core,
            client_core=client_core,
            idle_cpu_share={arm.name: arm.idle_share for arm in arms},
            prices=make_prices(samples),
            parts=make_parts(samples),
            samples=samples,
            skipped={},
            caveats=_caveats(options, work, samples),
        )


def best_scorer() -> str:
    """The one that `weir serve` would take here."""
    return SCORERS[best_arm()]


def flush_interval_s(settings: Sequence[str]) -> float:
    """How long the keeper rests between two turns with these settings, s."""
    return flush_interval_ms(settings) / 1e3


def _start(name: str, work: Path, options: PriceOptions, core: int | None) -> _Arm:
    data_dir = work / name.replace(" ", "-").replace(",", "")
    data_dir.mkdir()
    key = add_key(data_dir)
    settings = [FLAGGED_SETTING, *options.settings, f"scorer={options.scorer}"]
    if name in EMBEDDED:
        settings.append("embedded=true")
    with pinned(core):
        if name in (SERVE, L3):
            child = start_weir(data_dir, work, settings, name)
        else:
            sets = [part for setting in (*settings, "server.port=0") for part in ("--set", setting)]
            argv = [sys.executable, "-m", "service.price_arm", *LAUNCHER[name], "--data-dir", str(data_dir), *sets]
            child = Child(name, argv, work)
    child.pause()
    target = Target.parse(child.url, key)
    return _Arm(name, child, data_dir, target, Payloads(target, options.cards))


async def _idle_share(child: Child, seconds: float) -> float:
    """CPU per second of a server that nobody asks anything."""
    before, start = child.cpu_s(), time.perf_counter()
    await asyncio.sleep(seconds)
    return round((child.cpu_s() - before) / (time.perf_counter() - start), 4)


async def _measure(arm: _Arm, connections: int, number: int, options: PriceOptions) -> PriceSample:
    child = arm.child
    child.resume()
    try:
        sums = await _read_sums(arm)
        cpu, threads, n_before = child.cpu_s(), child.threads_cpu_s(), arm.payloads.n_events
        load = await ClosedLoop(arm.target, arm.payloads.one, connections).run(0.0, options.measure_s, child)
        await asyncio.sleep(options.settle_s)
        idle_us = arm.idle_share * options.settle_s * 1e6
        cpu_us = (child.cpu_s() - cpu) * 1e6 - idle_us
        now = child.threads_cpu_s()
        n = arm.payloads.n_events - n_before
        timed = await _read_sums(arm)
    finally:
        if child.alive():
            child.pause()
    spent = {name: (seconds - threads.get(name, 0.0)) * 1e6 / n for name, seconds in now.items()}
    rocksdb = sum(us for name, us in spent.items() if name.startswith("rocksdb"))
    loop = spent["main"] - idle_us / n  # an idle server has nothing but timers of its loop
    n_timed, n_blocks = timed.transactions - sums.transactions, timed.blocks - sums.blocks
    return PriceSample(
        arm=arm.name,
        connections=connections,
        round=number,
        requests=n,
        requests_per_s=load.requests_per_s,
        p50_us=load.latency_us.p50,
        p99_us=load.latency_us.p99,
        cpu_us=round(cpu_us / n, 3),
        loop_us=round(loop, 3),
        rocksdb_us=round(rocksdb, 3),
        other_us=round(cpu_us / n - loop - rocksdb, 3),
        parts_us={part: round((us - sums.cpu_us.get(part, 0.0)) / n_timed, 3) for part, us in timed.cpu_us.items()},
        rows_per_block=round(n_timed / n_blocks, 2) if n_blocks else None,
        errors=load.errors,
        error_example=load.error_example,
    )


async def _read_sums(arm: _Arm) -> _Sums:
    """What the arm `timed` has added up, at this moment; nothing of the others."""
    if arm.name != TIMED:
        return _Sums()
    file = arm.data_dir / SUMS_FILE
    file.unlink(missing_ok=True)
    arm.child.signal(signal.SIGUSR1)
    for _ in range(int(SUMS_DEADLINE_S / 0.01)):
        if file.exists():
            return msgspec.json.decode(file.read_bytes(), type=_Sums)
        await asyncio.sleep(0.01)
    raise BenchError(f"{arm.name} wrote no sums within {SUMS_DEADLINE_S:.0f} s")


def _caveats(options: PriceOptions, work: Path, samples: list[PriceSample]) -> list[str]:
    caveats = [
        "The price is CPU time of the server's process. The kernel's own threads (they write pages back, and the file system's"
        " journal) are not in it, nor is waiting: latency by sync mode is what weir bench http --sync shows.",
        "What stays in the arms that lack them: event ids in flight, decisions as objects for the reply, LSNs.",
        "Parts are timed by the thread's CPU clock, less what reading it costs; they need not add up to the price, which also"
        " has what they do to everybody else: cache lines, garbage collection, threads taking turns.",
        f"{options.cards:,} cards, every event new, all profiles in L1, no labels, loopback, no TLS; all threads share a core.",
        "Memory: the index of decisions in flight and the Bloom filter are not priced here.",
    ]
    if is_memory(work):
        caveats.append("The data directories were in memory, where fsync does nothing: the price of durability is missing.")
    failed = [s for s in samples if s.errors]
    caveats += [f"{s.arm}, {s.connections}: {s.errors} errors, first {s.error_example}" for s in failed]
    return caveats
