"""Requests per second of the service with each scorer and of weir-go, beside a bare aiohttp handler and a null server.

All in one run, interleaved, medians of rounds; the arm that begins a round changes. One core for the servers, another for the
client. A server that is not being measured is paused, once its write-behind is level and what it wrote is on the disk: neither
its background work nor its dirty pages are in another's measurement, and no store seems to be gone when it goes on.
Stores (a Valkey and a Postgres for each Weir arm) run on the client's core. Every event is new; every arm gets the same stream
of them; the profiles of all cards are in L1 beforehand. Single events are sent by wrk where it is, batches by our own client.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from loadgen.bench.arms import (
    ARMS,
    NULL,
    SCORERS,
    WEIR_ARMS,
    WEIR_GO,
    by_sync,
    kind_of,
    missing_arm,
    settings_by_arm,
    start_arm,
    start_stores,
)
from loadgen.bench.children import BenchError, Child, add_key, pinned
from loadgen.bench.closed_loop import ClosedLoop, Sample
from loadgen.bench.file_system import file_system, is_memory, probe_sync
from loadgen.bench.http_caveats import IN_MEMORY, make_caveats
from loadgen.bench.http_result import Cell, HttpOptions, HttpResult, Process, busiest_single, make_cells, median
from loadgen.bench.http_wrk import WrkClient
from loadgen.bench.lag import until_idle
from loadgen.bench.payloads import Payloads
from loadgen.bench.steal import StealMeter
from loadgen.bench.touch import touch_cards
from loadgen.bench.wrk import wrk_version
from loadgen.sender import Target
from models.machine import machine

SETTLE_S = 60.0  # for write-behind; 10,000 cards take some seconds


class _Start(msgspec.Struct):
    """A server that has just become ready."""

    child: Child
    key: str
    memory_mb: float


class _Arm(msgspec.Struct):
    """The last start of an arm is the one that is measured."""

    starts: list[_Start]
    target: Target
    payloads: Payloads

    @property
    def child(self) -> Child:
        return self.starts[-1].child


async def run_http(options: HttpOptions, say: Callable[[str], None], work_dir: Path | None = None) -> HttpResult:
    """Start the servers, measure, stop them. Raises BenchError.

    Data directories are made below `work_dir`, by default where temporary files go.
    """
    names, skipped = _present(options, say)
    settings, unknown = settings_by_arm(names, options.settings)
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir)))
        fsync = probe_sync(work)
        say(f"data directories on {file_system(work)}, an fsync takes {fsync.p50_us:,.0f} µs")
        arms = _start(options, settings, work, (server_core, client_core), stack, say)
        stack.enter_context(pinned(client_core))
        wrk = WrkClient(work) if options.client == "wrk" else None
        for name, arm in arms.items():
            if kind_of(name) in WEIR_ARMS:
                await _touch(name, arm, options.cards, say)
        samples: dict[tuple[str, str, int], list[Sample]] = {}
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            first = number % len(names)
            for mode, connections in _plan(options):
                # What one arm leaves to the kernel (dirty pages, say) must not always meet the same next one.
                for name in names[first:] + names[:first]:
                    if mode == "batch" and name == NULL:
                        continue
                    sample = await _measure(name, arms[name], mode, connections, options, wrk, say)
                    samples.setdefault((name, mode, connections), []).append(sample)
        cells = make_cells(samples)
        return HttpResult(
            kind="bench http",
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            options=options,
            machine=machine(),
            client=wrk_version() if options.client == "wrk" else "own",
            server_core=server_core,
            client_core=client_core,
            file_system=file_system(work),
            fsync=fsync,
            cells=cells,
            processes=[_process(name, arm, cells, settings[name]) for name, arm in arms.items()],
            skipped=skipped,
            settings_not_in_weir_go=unknown,
            caveats=make_caveats(options, cells, skipped, unknown, pinned_apart=server_core is not None)
            + ([IN_MEMORY] if is_memory(work) else []),
        )


def _present(options: HttpOptions, say: Callable[[str], None]) -> tuple[list[str], dict[str, str]]:
    """The arms that can run here, in order, and why the others cannot."""
    reasons = {name: missing_arm(name) for name in ARMS if name in options.arms}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in skipped.items():
        say(f"{name} is left out: {reason}")
    names = by_sync([name for name in reasons if name not in skipped], options.syncs)
    if not names:
        raise BenchError("no arm is left to measure: " + "; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    return names, skipped


def _start(
    options: HttpOptions,
    settings: dict[str, tuple[str, ...]],
    work: Path,
    cores: tuple[int | None, int | None],
    stack: ExitStack,
    say: Callable[[str], None],
) -> dict[str, _Arm]:
    """Each server `starts` times, in turn, with an empty directory; the last ones stay, paused. Stores go to `cores[1]`."""
    server_core, client_core = cores
    starts: dict[str, list[_Start]] = {name: [] for name in settings}
    for number in range(options.starts):
        say(f"start {number + 1} of {options.starts}")
        for name, of_arm in starts.items():
            data_dir = work / f"{name}-{number}"
            data_dir.mkdir()
            key = add_key(data_dir) if kind_of(name) in WEIR_ARMS else "none"
            lender, lent = _lend_stores(name, data_dir, work, options, client_core)
            with pinned(server_core):
                child = start_arm(name, data_dir, work, (*settings[name], *lent))
            child.lend(lender)
            stack.callback(child.stop)
            child.stores.pin(client_core)
            of_arm.append(_Start(child, key, child.memory_mb()[0]))
            if number + 1 < options.starts:
                child.stop()
            else:
                child.pause()
    arms = {}
    for name, of_arm in starts.items():
        target = Target.parse(of_arm[-1].child.url, of_arm[-1].key)
        arms[name] = _Arm(of_arm, target, Payloads(target, options.cards, options.zipf, batch_rows=options.batch_rows))
    return arms


def _lend_stores(
    name: str, data_dir: Path, work: Path, options: HttpOptions, core: int | None
) -> tuple[Child | None, tuple[str, ...]]:
    """What a Weir arm is told about stores, and the process that they belong to if it is not the arm's own."""
    if not options.stores or kind_of(name) not in WEIR_ARMS:
        return None, ()
    if kind_of(name) != WEIR_GO:
        return None, ("embedded=true",)
    with pinned(core):
        lender = start_stores(name, data_dir.with_name(f"{data_dir.name}-stores"), work)
    return lender, lender.stores.settings()


async def _touch(name: str, arm: _Arm, n_cards: int, say: Callable[[str], None]) -> None:
    arm.child.resume()
    try:
        await touch_cards(arm.child, arm.target, arm.payloads, n_cards)
        await _settle(name, arm, say)
    finally:
        if arm.child.alive():
            arm.child.pause()


def _plan(options: HttpOptions) -> list[tuple[str, int]]:
    return [("http", n) for n in options.connections] + [("batch", n) for n in options.batch_connections]


async def _settle(name: str, arm: _Arm, say: Callable[[str], None]) -> None:
    """Before it is paused."""
    if kind_of(name) in SCORERS and not await until_idle(arm.target, SETTLE_S):
        say(f"{name}: write-behind was not level after {SETTLE_S:.0f} s; the next round of this arm has the rest of it")
    await asyncio.to_thread(os.sync)


async def _measure(
    name: str, arm: _Arm, mode: str, connections: int, options: HttpOptions, wrk: WrkClient | None, say: Callable[[str], None]
) -> Sample:
    make, rows = (arm.payloads.one, 1) if mode == "http" else (arm.payloads.batch, options.batch_rows)
    arm.child.resume()
    try:
        steal = StealMeter()
        if wrk is not None and mode == "http":
            await ClosedLoop(arm.target, make, connections).run(0.0, options.warm_s, arm.child)
            sample = await wrk.measure(arm.child, arm.target, arm.payloads, connections, options.measure_s)
        else:
            sample = await ClosedLoop(arm.target, make, connections, rows).run(options.warm_s, options.measure_s, arm.child)
        sample.stolen_share = steal.share()
        await _settle(name, arm, say)
        return sample
    finally:
        if arm.child.alive():
            arm.child.pause()


def _process(name: str, arm: _Arm, cells: list[Cell], settings: tuple[str, ...]) -> Process:
    ready = [start.child.ready_s for start in arm.starts]
    memory_end, memory_max = arm.child.memory_mb()
    busiest = busiest_single(cells, name)
    return Process(
        arm=name,
        ready_s=median(ready),
        starts_s=[round(seconds, 3) for seconds in ready],
        memory_start_mb=round(median([start.memory_mb for start in arm.starts]), 1),
        memory_end_mb=round(memory_end, 1),
        memory_max_mb=round(memory_max, 1),
        events=arm.payloads.n_events,
        connections=busiest.connections,
        cpu_us_per_request=busiest.server_cpu_us_per_request,
        settings=settings,
    )
