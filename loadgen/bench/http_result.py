"""What `weir bench http` is asked and what it writes with --json, and how samples become medians."""

import statistics
from typing import Literal

import msgspec

from loadgen.bench.arms import ARMS, BARE, FASTAPI, GO_JSON, order_of
from loadgen.bench.closed_loop import Sample
from loadgen.bench.file_system import SyncProbe
from models.machine import Machine


class HttpOptions(msgspec.Struct, frozen=True):
    """What is measured, and for how long. `starts`: how often each server is started; the last of them is measured.

    With `syncs` every arm that has a journal is measured once per mode, and named "arm, mode". `client` sends the single
    events; batches always come from our own. `stores`: every Weir arm has a Valkey and a Postgres of its own.
    """

    rounds: int = 5
    measure_s: float = 2.0
    warm_s: float = 0.5
    connections: tuple[int, ...] = (1, 10, 64)
    batch_connections: tuple[int, ...] = (1, 4)
    batch_rows: int = 256
    cards: int = 10_000
    zipf: float = 0.0
    settings: tuple[str, ...] = ()
    arms: tuple[str, ...] = ARMS
    starts: int = 3
    syncs: tuple[str, ...] = ()
    client: Literal["wrk", "own"] = "own"
    stores: bool = False


REFERENCES = (GO_JSON, BARE, FASTAPI)  # what rates are given in terms of


class Cell(msgspec.Struct):
    """One arm, mode and number of connections: medians over the rounds, and the range of the rate.

    `ratios`: the rate in terms of each of REFERENCES that was measured, medians of ratios within a round.
    """

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
    stolen_share: float
    ratio_to_bare: float | None
    ratios: dict[str, float]
    errors: int
    error_example: str
    samples: list[Sample]


class Process(msgspec.Struct):
    """One server as a process. Seconds and MiB at the start are medians of `starts_s`, each with an empty directory.

    `memory_end_mb` and `memory_max_mb` after all rounds and `events` transactions; CPU per single request, at most connections.
    `settings`: each "key=value" that it was started with.
    """

    arm: str
    ready_s: float
    starts_s: list[float]
    memory_start_mb: float
    memory_end_mb: float
    memory_max_mb: float
    events: int
    connections: int
    cpu_us_per_request: float
    settings: tuple[str, ...]


class HttpResult(msgspec.Struct):
    """What --json writes. `skipped`: arms that were left out, and why; `settings_not_in_weir_go` reached `weir serve` only.

    `client` with its version; `file_system` holds the data directories; `fsync` is what one costs there, alone.
    """

    kind: str
    created: str
    options: HttpOptions
    machine: Machine
    client: str
    server_core: int | None
    client_core: int | None
    file_system: str
    fsync: SyncProbe
    cells: list[Cell]
    processes: list[Process]
    skipped: dict[str, str]
    settings_not_in_weir_go: list[str]
    caveats: list[str]


def make_cells(samples: dict[tuple[str, str, int], list[Sample]]) -> list[Cell]:
    """Medians over the rounds of every (arm, mode, connections), singles first, arms in their order."""
    cells = []
    for (arm, mode, connections), of_cell in samples.items():
        rates = [sample.requests_per_s for sample in of_cell]
        references = {name: samples.get((name, mode, connections), []) for name in REFERENCES}
        ratios = {name: ratio for name, found in references.items() if (ratio := _ratio(of_cell, found)) is not None}
        cells.append(
            Cell(
                arm=arm,
                mode=mode,
                connections=connections,
                requests_per_s=statistics.median(rates),
                requests_per_s_min=min(rates),
                requests_per_s_max=max(rates),
                rows_per_s=median([s.rows_per_s for s in of_cell]),
                p50_us=median([s.latency_us.p50 for s in of_cell]),
                p99_us=median([s.latency_us.p99 for s in of_cell]),
                p99_9_us=median([s.latency_us.p99_9 for s in of_cell]),
                server_cpu_us_per_request=median([s.server_cpu_us_per_request for s in of_cell]),
                server_cpu_share=median([s.server_cpu_share for s in of_cell]),
                client_cpu_share=median([s.client_cpu_share for s in of_cell]),
                stolen_share=median([s.stolen_share for s in of_cell]),
                ratio_to_bare=ratios.get(BARE),
                ratios=ratios,
                errors=sum(s.errors for s in of_cell),
                error_example=next((s.error_example for s in of_cell if s.error_example), ""),
                samples=of_cell,
            )
        )
    return sorted(cells, key=lambda c: (c.mode != "http", c.connections, order_of(c.arm)))


def _ratio(of_cell: list[Sample], reference: list[Sample]) -> float | None:
    """Paired by round: a slow minute of the machine hits both sides. A stalled one may have let none through."""
    pairs = zip(of_cell, reference, strict=False)
    ratios = [s.requests_per_s / r.requests_per_s for s, r in pairs if r.requests_per_s]
    return round(statistics.median(ratios), 3) if ratios else None


def busiest_single(cells: list[Cell], arm: str) -> Cell:
    """The arm's cell of single events with the most connections."""
    return max((c for c in cells if c.arm == arm and c.mode == "http"), key=lambda c: c.connections)


def median(values: list[float] | list[int]) -> float:
    """To three digits after the point."""
    return round(float(statistics.median(values)), 3)
