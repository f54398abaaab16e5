"""Requests per second beside a bare aiohttp handler and a null server, all in one run, interleaved, medians of rounds.

One core for the servers, another for the client; a server that is not being measured is paused, so its background work
(write-behind) is charged to its own measurements. Every event is new; the profiles of all cards are in L1 beforehand.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from loadgen.bench.children import BenchError, Child, add_key, pinned, script, start_weir
from loadgen.bench.closed_loop import ClosedLoop, Sample
from loadgen.bench.payloads import Payloads
from loadgen.sender import Client, SendError, Target
from models.machine import Machine, machine

ARMS = ("null", "bare aiohttp", "weir")
TOUCH_ROWS = 256  # cards per batch when the profiles are made


class HttpOptions(msgspec.Struct, frozen=True):
    """What is measured, and for how long."""

    rounds: int = 5
    measure_s: float = 2.0
    warm_s: float = 0.5
    connections: tuple[int, ...] = (1, 10, 64)
    batch_connections: tuple[int, ...] = (1, 4)
    batch_rows: int = 256
    cards: int = 10_000
    zipf: float = 0.0
    settings: tuple[str, ...] = ()


class Cell(msgspec.Struct):
    """One arm, mode and number of connections: medians over the rounds, and the range of the rate."""

    arm: str
    mode: str
    connections: int
    requests_per_s: float
    requests_per_s_min: float
    requests_per_s_max: float
    rows_per_s: float
    p50_us: float
    p99_us: float
    p99_9_us: float
    server_cpu_us_per_request: float
    server_cpu_share: float
    client_cpu_share: float
    ratio_to_bare: float | None
    errors: int
    error_example: str
    samples: list[Sample]


class HttpResult(msgspec.Struct):
    """What --json writes."""

    kind: str
    created: str
    options: HttpOptions
    machine: Machine
    server_core: int | None
    client_core: int | None
    weir_ready_s: float
    cells: list[Cell]
    caveats: list[str]


class _Arm(msgspec.Struct):
    child: Child
    target: Target
    payloads: Payloads


async def run_http(options: HttpOptions, say: Callable[[str], None]) -> HttpResult:
    """Start the three servers, measure, stop them. Raises BenchError."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-")))
        arms = _start(options, work, server_core, stack)
        stack.enter_context(pinned(client_core))
        await _touch(arms["weir"], options.cards)
        for arm in arms.values():
            arm.child.pause()
        samples: dict[tuple[str, str, int], list[Sample]] = {}
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            for mode, connections in _plan(options):
                for name, arm in arms.items():
                    if mode == "batch" and name == "null":
                        continue
                    sample = await _measure(arm, mode, connections, options)
                    samples.setdefault((name, mode, connections), []).append(sample)
        cells = _cells(samples)
        return HttpResult(
            kind="bench http",
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            options=options,
            machine=machine(),
            server_core=server_core,
            client_core=client_core,
            weir_ready_s=round(arms["weir"].child.ready_s, 3),
            cells=cells,
            caveats=_caveats(options, cells, pinned_apart=server_core is not None),
        )


def _start(options: HttpOptions, work: Path, core: int | None, stack: ExitStack) -> dict[str, _Arm]:
    data_dir = work / "data"
    data_dir.mkdir()
    key = add_key(data_dir)
    arms = {}
    for name in ARMS:
        with pinned(core):
            if name == "weir":
                child = start_weir(data_dir, work, options.settings)
            else:
                child = Child(name, script("null_server" if name == "null" else "bare_aiohttp"), work)
        stack.callback(child.stop)
        target = Target.parse(child.url, key)
        arms[name] = _Arm(child, target, Payloads(target, options.cards, options.zipf, batch_rows=options.batch_rows))
    return arms


async def _touch(arm: _Arm, n_cards: int) -> None:
    """Give every card (and its device and address) a profile."""
    client = Client(arm.target, 60.0)
    try:
        for start in range(0, n_cards, TOUCH_ROWS):
            reply = await client.request(arm.payloads.each_card(start, min(start + TOUCH_ROWS, n_cards)))
            if reply.status != 200 or b'"status":' in reply.body:
                raise BenchError(f"weir refused the first events: {reply.status} {reply.body[:400]!r}")
    except SendError as error:
        raise BenchError(f"weir: {error}") from error
    finally:
        client.close()


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


def _cells(samples: dict[tuple[str, str, int], list[Sample]]) -> list[Cell]:
    cells = []
    for (arm, mode, connections), of_cell in samples.items():
        rates = [sample.requests_per_s for sample in of_cell]
        bare = samples.get(("bare aiohttp", mode, connections))
        # Paired by round: a slow minute of the machine hits both sides of a ratio.
        ratios = [s.requests_per_s / b.requests_per_s for s, b in zip(of_cell, bare or [], strict=False)]
        cells.append(
            Cell(
                arm=arm,
                mode=mode,
                connections=connections,
                requests_per_s=statistics.median(rates),
                requests_per_s_min=min(rates),
                requests_per_s_max=max(rates),
                rows_per_s=_median([s.rows_per_s for s in of_cell]),
                p50_us=_median([s.latency_us.p50 for s in of_cell]),
                p99_us=_median([s.latency_us.p99 for s in of_cell]),
                p99_9_us=_median([s.latency_us.p99_9 for s in of_cell]),
                server_cpu_us_per_request=_median([s.server_cpu_us_per_request for s in of_cell]),
                server_cpu_share=_median([s.server_cpu_share for s in of_cell]),
                client_cpu_share=_median([s.client_cpu_share for s in of_cell]),
                ratio_to_bare=round(statistics.median(ratios), 3) if ratios else None,
                errors=sum(s.errors for s in of_cell),
                error_example=next((s.error_example for s in of_cell if s.error_example), ""),
                samples=of_cell,
            )
        )
    return sorted(cells, key=lambda c: (c.mode != "http", c.connections, ARMS.index(c.arm)))


def _median(values: list[float] | list[int]) -> float:
    return round(float(statistics.median(values)), 3)


def _caveats(options: HttpOptions, cells: list[Cell], *, pinned_apart: bool) -> list[str]:
    draw = f"Zipf with exponent {options.zipf:g}" if options.zipf else "uniform"
    caveats = [
        "All threads of a server share one core; on more cores the service's background work would run beside it.",
        f"{options.cards:,} cards, drawn {draw}; every profile is in L1, no L3, no fraud labels, loopback, no TLS.",
        "A closed loop: it shows capacity, and latency at full load, not latency at a given arrival rate.",
        "The bare handler checks no key, keeps no state, writes no journal: it is a ceiling, not a rival.",
    ]
    if not pinned_apart:
        caveats.append("Only one core was usable: client and server took turns on it; compare nothing but ratios.")
    if any(cell.arm != "null" and cell.client_cpu_share > 0.9 for cell in cells):
        caveats.append("In some rows the client used over 90 % of its core: the server may have had more to give.")
    return caveats
