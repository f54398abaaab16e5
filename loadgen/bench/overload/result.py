"""What `weir bench overload` is asked and what it writes with --json."""

import msgspec

from loadgen.bench.overload.job import OverloadOutcome
from models.machine import Machine

RETRY_P99_US_MAX = 5_000
GOODPUT_MIN = 0.9  # of capacity


class OverloadOptions(msgspec.Struct, frozen=True):
    """Capacity is measured for `capacity_s`, then `factor` times as much is sent for `seconds`, `burst` in one write."""

    factor: float = 2.0
    seconds: float = 60.0
    capacity_s: float = 5.0
    connections: int = 64
    depth: int = 0
    burst: int = 4
    cards: int = 10_000
    scorer: str = "go"
    stores: bool = True
    settings: tuple[str, ...] = ()


class Memory(msgspec.Struct):
    """MiB resident of the server: before the load, the most in it, at its end and when the service had recovered."""

    before_mb: float
    most_mb: float
    end_mb: float
    after_mb: float


class OverloadResult(msgspec.Struct):
    """What --json writes.

    Capacities in requests per second: a closed loop with a request per connection, and one that keeps bursts under way; the
    larger one counts. `goodput` is what came back with 200 per second of the load; `goodput_share` of capacity. `recovery_s`:
    after the last request was sent, until single requests are as fast as before, None if they never were; `probe_us` their p50
    before and after.
    """

    kind: str
    created: str
    options: OverloadOptions
    machine: Machine
    server_core: int | None
    client_core: int | None
    capacity_closed: float
    capacity_bursts: float
    capacity: float
    rate: float
    sent_per_s: float
    goodput: float
    goodput_share: float
    refused: int
    refused_share: float
    refused_p99_us: int
    retry_after_share: float
    accepted_p50_us: int
    accepted_p99_us: int
    client_cpu_share: float
    outcome: OverloadOutcome
    memory: Memory
    memory_series_mb: list[float]
    recovery_s: float | None
    probe_before_us: float
    probe_after_us: float
    client_was_limit: bool
    caveats: list[str]
