"""What `weir bench stacks` is asked and what it writes with --json; how runs become the cells of the table."""

import statistics
from collections.abc import Sequence

import msgspec

from loadgen.bench.load.result import Run, percentile_table, pooled
from loadgen.recorder import percentile_curve
from models.machine import Machine

WEIR_ONNX, WEIR_GO, GO_SERVER = "weir onnx", "weir go", "weir-go"
WEIR_ARMS = {WEIR_ONNX: "Weir, onnx", WEIR_GO: "Weir, go", GO_SERVER: "weir-go"}
FIRST = (
    "fastapi-torch",
    "fastapi-onnx",
    "fastapi-onnx-tuned",
    "rust-candle",
    "go",
    "cpp",
    "fastapi-image",
    "fastapi-image-pool",
)  # the order of tables
CARD = "card"


class StacksOptions(msgspec.Struct, frozen=True):
    """What is measured, and for how long. `sweep`: rates of the open loop in terms of each stack's own closed-loop rate.

    `two_cores`: each with its best number of workers, too. `images`: the image workload, too.
    """

    stacks: tuple[str, ...] = ()
    rounds: int = 3
    measure_s: float = 2.0
    warm_s: float = 0.5
    users: int = 10
    rows: tuple[int, ...] = (1, 16, 64)
    sweep: tuple[float, ...] = (0.3, 0.6, 0.8, 1.0)
    deadline_s: float = 2.0
    cards: int = 10_000
    zipf: float = 0.0
    starts: int = 2
    memory_bytes: int = 2 << 30
    two_cores: bool = True
    images: bool = True


class Cell(msgspec.Struct):
    """One arm, workload, rows per request and number of cores: medians over the rounds. µs, ms of CPU, MiB of PSS.

    `percentiles` and `curve` are of all rounds together.
    """

    arm: str
    workload: str
    cores: int
    workers: int
    rows: int
    requests_per_s: float
    rows_per_s: float
    failures_per_s: float
    mean_us: float
    percentiles: dict[str, int]
    curve: list[tuple[float, int]]
    cpu_ms_per_request: float
    database_cpu_ms_per_request: float | None
    server_cpu_share: float
    pss_mb: float
    client_cpu_share: float
    rounds_per_s: list[float]
    error: str


class Sweep(msgspec.Struct):
    """One arm's open-loop runs, one core, one event per request. `knee_per_s`: see loadgen.bench.load.result.find_knee."""

    arm: str
    knee_per_s: float | None
    runs: list[Run]


class Process(msgspec.Struct):
    """One arm as a program. `first_answer_s`: from the start to the first correct answer, one per start; sizes in MB (10^6).

    `pss_mb`: the most of all its runs, one core.
    """

    arm: str
    title: str
    language: str
    first_answer_s: list[float]
    installed_mb: float | None
    build_s: float | None
    build_cpu_s: float | None
    pss_mb: float
    workers_best: int


class StacksResult(msgspec.Struct):
    """What --json writes. `skipped`: stacks that were left out, and why. `limits`: what held servers, by number of cores."""

    kind: str
    created: str
    command: str
    options: StacksOptions
    machine: Machine
    limits: dict[str, str]
    client_cores: list[int]
    cells: list[Cell]
    sweeps: list[Sweep]
    processes: list[Process]
    skipped: dict[str, str]
    took_s: float
    caveats: list[str]

    def cell(self, arm: str, workload: str = CARD, rows: int = 1, cores: int = 1) -> Cell | None:
        """The one that was measured so, or None."""
        for cell in self.cells:
            if (cell.arm, cell.workload, cell.rows, cell.cores) == (arm, workload, rows, cores):
                return cell
        return None

    def process(self, arm: str) -> Process | None:
        """The arm as a program, or None."""
        return next((process for process in self.processes if process.arm == arm), None)


def order_of(name: str) -> tuple[int, str]:
    """Where an arm stands in tables: those that were asked for first, then others by name, then Weir's."""
    if name in WEIR_ARMS:
        return len(FIRST) + 1 + list(WEIR_ARMS).index(name), ""
    return (FIRST.index(name), "") if name in FIRST else (len(FIRST), name)


def make_cell(arm: str, workload: str, cores: int, workers: int, runs: Sequence[Run]) -> Cell:
    """Medians over the rounds; percentiles and curve are of all rounds together."""
    latencies = pooled(runs)
    served = [run.server for run in runs if run.server is not None]
    database = [s.database_cpu_ms_per_request for s in served if s.database_cpu_ms_per_request is not None]
    errors = [error for run in runs for error in run.errors]
    return Cell(
        arm=arm,
        workload=workload,
        cores=cores,
        workers=workers,
        rows=runs[0].rows,
        requests_per_s=_median([run.requests_per_s for run in runs]),
        rows_per_s=_median([run.rows_per_s for run in runs]),
        failures_per_s=_median([run.failures_per_s for run in runs]),
        mean_us=_median([run.latency_us.mean for run in runs]),
        percentiles=percentile_table(latencies),
        curve=percentile_curve(latencies),
        cpu_ms_per_request=_median([s.cpu_ms_per_request for s in served], 5),
        database_cpu_ms_per_request=_median(database, 5) if database else None,
        server_cpu_share=_median([s.cpu_share for s in served]),
        pss_mb=max((s.pss_mb for s in served), default=0.0),
        client_cpu_share=_median([run.client_cpu_share for run in runs]),
        rounds_per_s=[run.requests_per_s for run in runs],
        error=f"{errors[0].kind} × {errors[0].count}: {errors[0].example}" if errors else "",
    )


def ratio(of: Cell, reference: Cell) -> float:
    """By how much `of` is faster: the median of the ratios of each round, so that a slow minute hits both sides."""
    pairs = [(a, b) for a, b in zip(of.rounds_per_s, reference.rounds_per_s, strict=False) if b > 0]
    return round(statistics.median(a / b for a, b in pairs), 3) if pairs else float("inf")


def _median(values: Sequence[float], digits: int = 3) -> float:
    return round(float(statistics.median(values)), digits) if values else 0.0
