"""What `weir bench toggles` is asked, and what it writes with --json."""

import msgspec

from loadgen.recorder import LatencySummary
from models.machine import Machine


class TogglesOptions(msgspec.Struct, frozen=True):
    """`windows` times a quiet window and one with toggles, `seconds` each, in turn, at `rate` requests a second."""

    toggles: int = 100
    windows: int = 10
    seconds: float = 4.0
    rate: float = 300.0
    clients: int = 16
    settings: tuple[str, ...] = ()


class Toggled(msgspec.Struct):
    """What was switched how often, and how long the PUT took, ms; p99 and most of the requests due meanwhile, µs."""

    name: str
    n: int
    p50_ms: float
    max_ms: float
    request_p99_us: int
    request_max_us: int


class TogglesResult(msgspec.Struct):
    """Latencies of single requests, from the time at which each was due. `p99_ratio`: with toggles over without."""

    kind: str
    created: str
    options: TogglesOptions
    machine: Machine
    quiet: LatencySummary
    toggling: LatencySummary
    p99_ratio: float
    pairs: list[tuple[int, int]]  # p99 of each quiet window and of the one after it, µs
    degraded: int
    failed: int
    toggled: list[Toggled]
    caveats: list[str]
