"""What `weir bench entities` is asked and what it writes with --json, and how its samples become rows."""

import statistics

import msgspec

from loadgen.bench.closed_loop import Sample
from models.machine import Machine

ENTITY_BYTES_MAX = 200  # beside its profile, on average
BASE_MB_MAX = 150  # of everything else
P99_RATIO_MAX = 1.5
SPILL_RATIO_MIN = 0.5


class EntitiesOptions(msgspec.Struct, frozen=True):
    """`few` and `many` cards with all profiles in L1, and `many` with an L1 that holds one in `spill` of them."""

    few: int = 10_000
    many: int = 1_000_000
    spill: int = 10
    rounds: int = 5
    measure_s: float = 3.0
    warm_s: float = 1.0
    connections: int = 64
    settings: tuple[str, ...] = ()


class EntitiesRow(msgspec.Struct):
    """One service. MiB resident after all cards were seen and after the load; `limit_mb` is what that may be.

    `profiles` rest in L1, of `profile_mb` MiB; the limit is that, 200 bytes per entity and 150 MB. Rates, percentiles and CPU
    are medians over the rounds; `hit_share`: of the cards' look-ups in L1 during the load, None if it does not tell.
    """

    arm: str
    cards: int
    l1_bytes_max: int
    profiles: int
    profile_mb: float
    start_mb: float
    touched_mb: float
    end_mb: float
    limit_mb: float
    touch_s: float
    requests_per_s: float
    p50_us: float
    p99_us: float
    server_cpu_us: float
    hit_share: float | None
    errors: int
    error_example: str
    samples: list[Sample]


class EntitiesResult(msgspec.Struct):
    """What --json writes. `p99_ratio`: many to few; `spill_ratio`: requests per second with an L1 too small, to all in L1."""

    kind: str
    created: str
    options: EntitiesOptions
    machine: Machine
    server_core: int | None
    client_core: int | None
    rows: list[EntitiesRow]
    p99_ratio: float
    spill_ratio: float
    caveats: list[str]


def limit_mb(profiles: int, profile_bytes: float) -> float:
    """What may be resident with so many profiles of so many bytes together, MiB."""
    return round((profile_bytes + ENTITY_BYTES_MAX * profiles + BASE_MB_MAX * 1e6) / 2**20, 1)


def paired_ratio(of: list[float], to: list[float]) -> float:
    """Median of the ratios within a round; 0 where nothing can be said."""
    ratios = [a / b for a, b in zip(of, to, strict=True) if b]
    return round(statistics.median(ratios), 3) if ratios else 0.0
