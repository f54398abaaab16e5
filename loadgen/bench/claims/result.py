"""What `weir bench claims` is asked, the evidence that it gathers, and what it writes with --json."""

from typing import Literal

import msgspec

from loadgen.bench.scorers.result import EntityMemory
from models.machine import Machine

Verdict = Literal["holds", "holds partly", "does not hold", "cannot be tested here"]


class ClaimsOptions(msgspec.Struct, frozen=True):
    """`l1_shares` of the entities' bytes, `distances_ms` of round trip to L3. `stacks_json`: a result that is only read."""

    stacks_json: str | None = None
    cards: int = 10_000
    l1_shares: tuple[float, ...] = (0.01, 0.1, 1.0)
    distances_ms: tuple[float, ...] = (0.0, 0.5, 2.0)
    measure_s: float = 3.0
    users: int = 10
    copies: int = 4
    repeats: int = 5
    calls: int = 5_000
    memory_entities: int = 20_000


class PathCost(msgspec.Struct):
    """ns of CPU per request, medians: what it costs to read one and to write the answer, and a run of the model for comparison.

    `objects_ns`: JSON to dict to a validated Pydantic object, then an object to dict to JSON. `typed_ns`: msgspec straight into
    a struct and out of one. `columns_ns`: the Go core from bytes to columns, one request or 64 at a time, and a format.
    """

    objects_ns: float | None
    typed_ns: float
    columns_ns: float | None
    columns_of_64_ns: float | None
    inference_ns: float


class ProfileCost(msgspec.Struct):
    """Advancing the four profiles of an event and its 40 features: µs, as Python objects and in the slab (Go core, numpy)."""

    objects_us: float
    slab_go_us: float | None
    slab_numpy_us: float
    memory: list[EntityMemory]

    def bytes_of(self, holder: str) -> float:
        """Bytes per entity."""
        return float(next(m.bytes_per_entity for m in self.memory if m.holder == holder))


class Workers(msgspec.Struct):
    """One image model: runs per second by one thread, by two in one process and by two processes; MiB of PSS by copies.

    Rates are the best of up to three: what else runs on the machine only takes away. What two do is None on one core. Two
    processes have no lock in common: they say what the machine had to give.
    """

    one_thread_per_s: float
    two_threads_per_s: float | None
    two_processes_per_s: float | None
    n: int
    one_process_mb: float
    threads_mb: float
    processes_mb: float


class TierLatency(msgspec.Struct):
    """Reads of one tier below L1 during a run, µs: the upper bound of the cell of a histogram that the quantile lies in."""

    name: str
    lookups: int
    hits: int
    reads: int
    p50_us: float | None
    p99_us: float | None


class Tiered(msgspec.Struct):
    """`weir serve` with so much of L1, with or without L2, L3 at a distance: closed loop, single events. µs, MiB."""

    l1_share: float
    has_l2: bool
    distance_ms: float
    round_trip_ms: float | None
    requests_per_s: float
    p50_us: int
    p99_us: int
    failures: int
    cpu_us_per_request: float
    stores_cpu_us_per_request: float
    pss_mb: float
    l1_hit_ratio: float | None
    tiers: list[TierLatency]


class Line(msgspec.Struct):
    """One claim. `figure` is ours in words, `rule` how the verdict follows from it, `needed` what a test would take."""

    group: str
    claim: str
    measured: str
    figure: str
    value: float | None
    rule: str
    verdict: Verdict
    needed: str = ""


class Evidence(msgspec.Struct):
    """What was measured beside the stacks. None: it could not be, and `missing` says why, by the field's name."""

    paths: PathCost | None = None
    profiles: ProfileCost | None = None
    workers: Workers | None = None
    tiered: list[Tiered] = []
    providers: list[str] = []
    missing: dict[str, str] = {}


class ClaimsResult(msgspec.Struct):
    """What --json writes. `stacks_created`, `stacks_commit`: of the result of `weir bench stacks` that lines rest on.

    `missing`: inputs that are not there, each with its reason or with what measures it.
    """

    kind: str
    created: str
    command: str
    options: ClaimsOptions
    machine: Machine
    stacks_created: str
    stacks_commit: str | None
    evidence: Evidence
    missing: list[str]
    lines: list[Line]
    caveats: list[str]
