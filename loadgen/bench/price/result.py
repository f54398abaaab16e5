"""What `weir bench price` is asked and what it writes with --json, and how samples become prices."""

import statistics
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from models.machine import Machine

SERVE = "weir serve"
CONTROL = "control"  # the launcher of the arms below with nothing taken out: how far two equal arms lie apart
NEITHER = "no journal, no index"
NO_JOURNAL = "no journal"
NO_INDEX = "no index"
TIMED = "timed"
L3 = "with L3 and ledger"
NO_LEDGER = "with L3, no ledger feed"
ARMS = (SERVE, CONTROL, NEITHER, NO_JOURNAL, NO_INDEX, TIMED, L3, NO_LEDGER)
DEFAULT_ARMS = (SERVE, CONTROL, NEITHER, TIMED)
OF = {
    CONTROL: SERVE,
    NEITHER: SERVE,
    NO_JOURNAL: SERVE,
    NO_INDEX: SERVE,
    NO_LEDGER: L3,
}  # what each arm is compared with
SHARE_MAX = 0.15  # goal: journal and idempotency, of the CPU time of a request


class PriceOptions(msgspec.Struct, frozen=True):
    """What is measured, and for how long. `settle_s`: after the load, for the background work that the load has caused."""

    rounds: int = 10
    measure_s: float = 4.0
    settle_s: float = 6.0
    connections: tuple[int, ...] = (1, 10, 64)
    cards: int = 10_000
    scorer: str = "onnx"
    settings: tuple[str, ...] = ()
    arms: tuple[str, ...] = DEFAULT_ARMS


class PriceSample(msgspec.Struct):
    """One arm under load once. CPU of the server, all threads, from the first request until the work it caused is done.

    By thread: the event loop, RocksDB's own, the rest (fsync, reads, the Go core). `parts_us`: of the arm `timed`, by part.
    """

    arm: str
    connections: int
    round: int
    requests: int
    requests_per_s: float
    p50_us: float
    p99_us: float
    cpu_us: float
    loop_us: float
    rocksdb_us: float
    other_us: float
    parts_us: dict[str, float]
    rows_per_block: float | None
    errors: int
    error_example: str


class Price(msgspec.Struct):
    """What is gone with an arm's missing parts: µs of CPU per request, and share of the whole arm's, paired by round.

    What RocksDB's threads take is spread over all requests of the arm: a compaction comes after a dozen flushes, when is
    chance, and a median would leave it out.
    """

    arm: str
    of: str
    connections: int
    pairs: int
    cpu_us: float  # of the whole arm, the median
    without_us: float
    price_us: float
    price_us_quartiles: tuple[float, float]
    price_us_range: tuple[float, float]
    share: float
    share_quartiles: tuple[float, float]
    loop_us: float
    rocksdb_us: float
    other_us: float


class Part(msgspec.Struct):
    """CPU of one part, µs per request: median, least and most of the rounds. `share`: of a request to `weir serve`."""

    part: str
    connections: int
    us: float
    us_min: float
    us_max: float
    share: float | None


class PriceResult(msgspec.Struct):
    """What --json writes."""

    kind: str
    created: str
    options: PriceOptions
    machine: Machine
    file_system: str
    server_core: int | None
    client_core: int | None
    idle_cpu_share: dict[str, float]
    prices: list[Price]
    parts: list[Part]
    samples: list[PriceSample]
    skipped: dict[str, str]
    caveats: list[str]


def make_prices(samples: Sequence[PriceSample]) -> list[Price]:
    """Every arm against the one that it lacks something of; samples of one round and number of connections are a pair."""
    samples = _spread_rocksdb(samples)
    by_place = {(s.arm, s.connections, s.round): s for s in samples}
    prices = []
    for arm, of in OF.items():
        for connections in sorted({s.connections for s in samples}):
            pairs = [
                (whole, s)
                for s in samples
                if (s.arm, s.connections) == (arm, connections)
                and (whole := by_place.get((of, connections, s.round))) is not None
            ]
            if pairs:
                prices.append(_price(arm, of, connections, pairs))
    return prices


def _spread_rocksdb(samples: Sequence[PriceSample]) -> list[PriceSample]:
    """The samples, each with what RocksDB's threads took per request of its arm in all of them."""
    requests: dict[str, int] = defaultdict(int)
    rocksdb: dict[str, float] = defaultdict(float)
    for s in samples:
        requests[s.arm] += s.requests
        rocksdb[s.arm] += s.rocksdb_us * s.requests
    spread = []
    for s in samples:
        us = rocksdb[s.arm] / requests[s.arm]
        spread.append(msgspec.structs.replace(s, cpu_us=s.cpu_us - s.rocksdb_us + us, rocksdb_us=us))
    return spread


def _price(arm: str, of: str, connections: int, pairs: list[tuple[PriceSample, PriceSample]]) -> Price:
    gaps = [whole.cpu_us - less.cpu_us for whole, less in pairs]
    shares = [gap / whole.cpu_us for gap, (whole, _) in zip(gaps, pairs, strict=True)]

    def by_thread(field: str) -> float:
        gap: float = statistics.median(getattr(whole, field) - getattr(less, field) for whole, less in pairs)
        return round(gap, 2)

    return Price(
        arm=arm,
        of=of,
        connections=connections,
        pairs=len(pairs),
        cpu_us=round(statistics.median(whole.cpu_us for whole, _ in pairs), 2),
        without_us=round(statistics.median(less.cpu_us for _, less in pairs), 2),
        price_us=round(statistics.median(gaps), 2),
        price_us_quartiles=quartiles(gaps, 2),
        price_us_range=(round(min(gaps), 2), round(max(gaps), 2)),
        share=round(statistics.median(shares), 4),
        share_quartiles=quartiles(shares, 4),
        loop_us=by_thread("loop_us"),
        rocksdb_us=by_thread("rocksdb_us"),
        other_us=by_thread("other_us"),
    )


def make_parts(samples: Sequence[PriceSample]) -> list[Part]:
    """The parts of the arm `timed`, dearest first, by number of connections."""
    parts = []
    for connections in sorted({s.connections for s in samples}):
        timed = [s for s in samples if s.arm == TIMED and s.connections == connections]
        whole = [s.cpu_us for s in samples if s.arm == SERVE and s.connections == connections]
        for part in sorted({part for s in timed for part in s.parts_us}):
            us = [s.parts_us.get(part, 0.0) for s in timed]
            middle = statistics.median(us)
            share = round(middle / statistics.median(whole), 4) if whole else None
            parts.append(Part(part, connections, round(middle, 2), round(min(us), 2), round(max(us), 2), share))
    return sorted(parts, key=lambda part: (part.connections, -part.us))


def quartiles(values: Sequence[float], digits: int) -> tuple[float, float]:
    """The first and the third; of a single value, that value."""
    if len(values) < 2:
        return round(values[0], digits), round(values[0], digits)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return round(first, digits), round(third, digits)
