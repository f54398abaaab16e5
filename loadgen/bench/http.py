"""Requests per second of the service with each scorer and of weir-go, beside a bare aiohttp handler and a null server.

All in one run, interleaved, medians of rounds; the arm that begins a round changes. One core for the servers, another for the
client; a server that is not being measured is paused, so its background work (write-behind) is charged to its own measurements.
Every event is new; every arm gets the same stream of them; the profiles of all cards are in L1 beforehand.
"""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from loadgen.bench.arms import (
    ARMS,
    BARE,
    FLUSH_SETTING,
    NULL,
    SCORERS,
    WEIR_ARMS,
    WEIR_GO,
    by_sync,
    flush_interval_ms,
    kind_of,
    missing_arm,
    order_of,
    settings_by_arm,
    start_arm,
)
from loadgen.bench.children import BenchError, Child, add_key, pinned
from loadgen.bench.closed_loop import ClosedLoop, Sample
from loadgen.bench.file_system import file_system, is_memory, probe_sync
from loadgen.bench.http_result import Cell, HttpOptions, HttpResult, Process, busiest_single, make_cells, median
from loadgen.bench.payloads import Payloads
from loadgen.bench.touch import touch_cards
from loadgen.sender import Target
from models.machine import machine

SHARE_MIN = 0.8  # of a core; at most connections a closed loop fills the server's or the client's, if nobody else is on it
IN_MEMORY = "The data directories were in memory, where fsync does nothing: sync modes differ in nothing here."


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
        arms = _start(options, settings, work, server_core, stack, say)
        stack.enter_context(pinned(client_core))
        for name, arm in arms.items():
            if kind_of(name) in WEIR_ARMS:
                await _touch(arm, options.cards)
        samples: dict[tuple[str, str, int], list[Sample]] = {}
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            first = number % len(names)
            for mode, connections in _plan(options):
                # What one arm leaves to the kernel (dirty pages, say) must not always meet the same next one.
                for name in names[first:] + names[:first]:
                    if mode == "batch" and name == NULL:
                        continue
                    sample = await _measure(arms[name], mode, connections, options)
                    samples.setdefault((name, mode, connections), []).append(sample)
        cells = make_cells(samples)
        return HttpResult(
            kind="bench http",
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            options=options,
            machine=machine(),
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
    core: int | None,
    stack: ExitStack,
    say: Callable[[str], None],
) -> dict[str, _Arm]:
    """Each server `starts` times, in turn, with an empty directory; the last ones stay, paused."""
    starts: dict[str, list[_Start]] = {name: [] for name in settings}
    for number in range(options.starts):
        say(f"start {number + 1} of {options.starts}")
        for name, of_arm in starts.items():
            data_dir = work / f"{name}-{number}"
            data_dir.mkdir()
            key = add_key(data_dir) if kind_of(name) in WEIR_ARMS else "none"
            with pinned(core):
                child = start_arm(name, data_dir, work, settings[name])
            stack.callback(child.stop)
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


async def _touch(arm: _Arm, n_cards: int) -> None:
    arm.child.resume()
    try:
        await touch_cards(arm.child, arm.target, arm.payloads, n_cards)
    finally:
        if arm.child.alive():
            arm.child.pause()


def _plan(options: HttpOptions) -> list[tuple[str, int]]:
    return [("http", n) for n in options.connections] + [("batch", n) for n in options.batch_connections]


async def _measure(arm: _Arm, mode: str, connections: int, options: HttpOptions) -> Sample:
    make, rows = (arm.payloads.one, 1) if mode == "http" else (arm.payloads.batch, options.batch_rows)
    arm.child.resume()
    try:
        return await ClosedLoop(arm.target, make, connections, rows).run(options.warm_s, options.measure_s, arm.child)
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


def make_caveats(
    options: HttpOptions, cells: list[Cell], skipped: dict[str, str], unknown: list[str], *, pinned_apart: bool
) -> list[str]:
    """What the numbers of this run do not show."""
    draw = f"Zipf with exponent {options.zipf:g}" if options.zipf else "uniform"
    measured = {cell.arm for cell in cells}
    kinds = {kind_of(name) for name in measured}
    caveats = [
        "All threads of a server share one core; on more cores the service's background work would run beside it.",
        f"{options.cards:,} cards, drawn {draw}; every profile is in L1, no L3, no fraud labels, loopback, no TLS.",
        "A closed loop: it shows capacity, and latency at full load, not latency at a given arrival rate.",
        "Every server answered as much as it could: memory after the run is after as many events as its row says.",
        "Resident memory counts shared pages of libraries and mapped files too.",
    ]
    if BARE in measured:
        caveats.append("The bare handler checks no key, keeps no state, writes no journal: it is a ceiling, not a rival.")
    if WEIR_GO in kinds:
        caveats.append("weir-go has no traces, lists, switches of tiers or console; these requests ask for none of them.")
    flush_ms = flush_interval_ms(options.settings)
    if kinds & {*SCORERS} and options.measure_s * 1e3 < flush_ms:
        caveats.append(
            f"Measurements are shorter than {FLUSH_SETTING} ({flush_ms:,}): the service writes decisions to RocksDB mostly"
            " between them. A longer --seconds has that in."
        )
    if options.syncs:
        caveats.append(
            "A virtual disk may say that it has written before it has; fsync is then cheaper than on a disk of your own."
        )
    if unknown:
        caveats.append(f"weir-go ran without {', '.join(unknown)}: it does not know the setting.")
    caveats += [f"{name} was left out: {reason}." for name, reason in skipped.items()]
    if not pinned_apart:
        caveats.append("Only one core was usable: client and server took turns on it; compare nothing but ratios.")
    crowded = [name for name in measured if name != NULL and _is_crowded(busiest_single(cells, name))]
    if crowded:
        names = ", ".join(sorted(crowded, key=order_of))
        caveats.append(
            f"Neither server nor client had its core to itself ({names}): other processes ran; do not compare rates."
        )
    if any(cell.arm != NULL and cell.client_cpu_share > 0.9 for cell in cells):
        caveats.append("In some rows the client used over 90 % of its core: the server may have had more to give.")
    return caveats


def _is_crowded(cell: Cell) -> bool:
    return max(cell.server_cpu_share, cell.client_cpu_share) < SHARE_MIN
