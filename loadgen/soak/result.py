"""What `weir bench soak` is asked, and what it writes with --json."""

import msgspec

from loadgen.soak.book import Incident
from loadgen.soak.places import Life
from loadgen.soak.slope import Slope
from models.machine import Machine


class SoakOptions(msgspec.Struct, frozen=True):
    """`minutes` of load at `rate` transactions/s; `rest_s` between two faults; a restart each `life_s` or so."""

    minutes: float = 30.0
    rate: float = 150.0
    seed: int = 1
    cards: int = 1_000
    rest_s: float = 4.0
    life_s: float = 600.0
    slope_max: float = 20.0  # MiB an hour that count as growth
    settings: tuple[str, ...] = ()


class Done(msgspec.Struct):
    """A fault, when and how long, s."""

    name: str
    began_s: float
    seconds: float
    note: str


class Memory(msgspec.Struct):
    """The slopes of one life of the process, after its first `left_out_s`: MiB, open files and threads per hour."""

    life: Life
    left_out_s: float
    rss: Slope
    files: Slope
    threads: Slope
    verdict: str


class Latency(msgspec.Struct):
    """Of single requests, µs from when each was due."""

    n: int
    p50: int
    p99: int
    max: int


class Check(msgspec.Struct):
    """One comparison: what was compared, how many, and what did not fit (none: it held)."""

    name: str
    n: int
    problems: list[str]


class SoakResult(msgspec.Struct):
    """`ok` is what the exit code says: nothing unexplained, every check held, no growth."""

    kind: str
    created: str
    options: SoakOptions
    machine: Machine
    seconds: float
    counts: dict[str, int]
    faults: list[Done]
    incidents: dict[str, int]  # explained ones, by "kind, during fault"
    unexplained: list[Incident]
    violations: list[str]
    n_violations: int
    logged: dict[str, int]  # the service's own log, level error, by event
    checks: list[Check]
    memory: list[Memory]
    pooled: Slope
    verdict: str
    calm: Latency
    faulty: Latency
    ok: bool
    caveats: list[str]
