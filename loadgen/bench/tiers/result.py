"""What `weir bench tiers` is asked, and what it writes with --json: one entry per configuration and distance."""

import msgspec

from loadgen.result import TierUse
from models.machine import Machine


class TiersOptions(msgspec.Struct, frozen=True):
    """`source`: a Parquet file read through `spec`, or None for a generated stream. `clients` send the measured run.

    `stores`: each run has a Valkey and a Postgres.
    """

    source: str | None = None
    spec: str = "cards"
    events: int = 20_000
    seed: int = 1
    configs: tuple[str, ...] = ()
    delays_ms: tuple[float, ...] = (0.0,)
    scorer: str = "go"
    stores: bool = True
    rounds: int = 3
    clients: int = 8
    batch_rows: int = 256
    examples_max: int = 10
    settings: tuple[str, ...] = ()


class Measured(msgspec.Struct):
    """One measured run over a fresh state: single requests. µs; CPU is of the whole service process."""

    p50_us: int
    p90_us: int
    p99_us: int
    p99_9_us: int
    max_us: int
    mean_us: float
    requests_per_s: float
    cpu_us_per_request: float
    failed: int


class FeatureChange(msgspec.Struct):
    """A feature that differed. `kind`: the entity whose profile it is of; then the tiers that gave that profile."""

    name: str
    all_on: float | None
    here: float | None
    kind: str | None
    tier_all_on: str | None
    tier_here: str | None


class Example(msgspec.Struct):
    """A transaction that was decided otherwise, or scored otherwise, than with everything on."""

    event_id: str
    ts: int
    amount: int
    score_all_on: float
    score_here: float
    outcome_all_on: str
    outcome_here: str
    degraded: list[str]
    features: list[FeatureChange]
    profiles: dict[str, list[str]]  # kind -> the tier with everything on, the tier here


class Changes(msgspec.Struct):
    """Against the reference. `outcomes`: "approve → review" -> how often. `features`, `tiers`: of all changed scores.

    `tiers`: "card: redis" -> how many changed scores had a differing feature of a profile that came from there.
    """

    compared: int
    scores_changed: int
    decisions_changed: int
    degraded: int
    largest_score_change: float
    outcomes: dict[str, int]
    features: dict[str, int]
    tiers: dict[str, int]
    examples: list[Example]


class ArmResult(msgspec.Struct):
    """One configuration. Medians over the rounds; `tiers` is what each tier was asked in the last measured run."""

    name: str
    off: list[str]
    scorer: str
    delay_ms: float
    is_reference: bool
    measured: Measured
    rounds: list[Measured]
    tiers: list[TierUse]
    curve: list[tuple[float, int]]
    changes: Changes | None


class Distance(msgspec.Struct):
    """A round trip that was asked for, ms, and what a PING of Redis took, ms (median)."""

    delay_ms: float
    measured_ms: float | None


class TiersResult(msgspec.Struct):
    """The reference is the first arm: everything on, L3 at the smallest distance."""

    kind: str
    created: str
    options: TiersOptions
    machine: Machine
    n_events: int
    n_cards: int
    distances: list[Distance]
    arms: list[ArmResult]
    caveats: list[str]
