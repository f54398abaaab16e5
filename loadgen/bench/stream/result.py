"""What `weir bench stream` is asked and what it writes with --json, and how its passes become medians."""

import statistics

import msgspec

from loadgen.bench.lag import LagPoint
from models.machine import Machine

ARMS = {  # arm -> scorer, mode of the client
    "go": ("go", "stream"),
    "onnx": ("onnx", "stream"),
    "go batch": ("go", "batch"),
    "onnx batch": ("onnx", "batch"),
}
LEDGER = "ledger"


class StreamOptions(msgspec.Struct, frozen=True):
    """`entities` cards, each with a device and an address; with `rate` an open loop for `minutes` instead of `events`."""

    events: int = 600_000
    entities: int = 100_000
    rounds: int = 5
    connections: int = 1
    chunk_rows: int = 1_024
    batch_rows: int = 1_024
    rate: float | None = None
    minutes: float = 5.0
    zipf: float = 0.0
    arms: tuple[str, ...] = ("go",)
    stores: bool = True
    settings: tuple[str, ...] = ()
    settle_s: float = 300.0


class StreamRun(msgspec.Struct):
    """One timed pass.

    CPU in µs per event: of the server, the client and the stores during the pass, and of server and stores until the ledger was
    level. `lag_end` entries were missing in the ledger at the end; `level_s` is None if it did not become level in time.
    """

    arm: str
    round: int
    events: int
    errors: int
    error_example: str
    checked: int
    seconds: float
    events_per_s: float
    server_cpu_us: float
    client_cpu_us: float
    stores_cpu_us: float
    server_level_cpu_us: float
    stores_level_cpu_us: float
    client_cpu_share: float
    chunk_p50_us: float
    chunk_p99_us: float
    late_s: float
    memory_mb: float
    memory_max_mb: float
    stores_mb: float
    journal_bytes: int
    lag_end: int | None
    level_s: float | None
    lag_slope_per_s: float | None
    lags: list[LagPoint]


class StreamArm(msgspec.Struct):
    """Medians over the passes of an arm, and the range of the rate."""

    arm: str
    events_per_s: float
    events_per_s_min: float
    events_per_s_max: float
    server_cpu_us: float
    client_cpu_us: float
    stores_cpu_us: float
    server_level_cpu_us: float
    chunk_p50_us: float
    chunk_p99_us: float
    memory_max_mb: float
    lag_end: float | None
    level_s: float | None
    lag_slope_per_s: float | None
    journal_bytes_per_event: float


class StreamResult(msgspec.Struct):
    """What --json writes."""

    kind: str
    created: str
    options: StreamOptions
    machine: Machine
    file_system: str
    arms: list[StreamArm]
    runs: list[StreamRun]
    skipped: dict[str, str]
    caveats: list[str]


def make_arms(runs: list[StreamRun]) -> list[StreamArm]:
    """One per arm, in the order of ARMS."""
    found = []
    for arm in ARMS:
        of_arm = [run for run in runs if run.arm == arm]
        if not of_arm:
            continue
        rates = [run.events_per_s for run in of_arm]
        found.append(
            StreamArm(
                arm=arm,
                events_per_s=_median(rates),
                events_per_s_min=min(rates),
                events_per_s_max=max(rates),
                server_cpu_us=_median([run.server_cpu_us for run in of_arm]),
                client_cpu_us=_median([run.client_cpu_us for run in of_arm]),
                stores_cpu_us=_median([run.stores_cpu_us for run in of_arm]),
                server_level_cpu_us=_median([run.server_level_cpu_us for run in of_arm]),
                chunk_p50_us=_median([run.chunk_p50_us for run in of_arm]),
                chunk_p99_us=_median([run.chunk_p99_us for run in of_arm]),
                memory_max_mb=max(run.memory_max_mb for run in of_arm),
                lag_end=_median_of_known([run.lag_end for run in of_arm]),
                level_s=_median_of_known([run.level_s for run in of_arm]),
                lag_slope_per_s=_median_of_known([run.lag_slope_per_s for run in of_arm]),
                journal_bytes_per_event=_median([run.journal_bytes / run.events for run in of_arm]),
            )
        )
    return found


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def _median_of_known(values: list[float | None] | list[int | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return _median(known) if known else None
