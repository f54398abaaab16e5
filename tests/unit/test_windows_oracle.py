"""Windows and features against their definition: an oracle that keeps every event and knows no rings.

The oracle works in tile terms (tile = ts // width), as the docs define a window; a second one works in true time and bounds the
error. Streams are small and rings tiny, so that late events, repeats, gaps and wrap-around happen in nearly every example.
"""

import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from features import advance
from features.memory import MemoryEngine
from features.plan import DISTINCT, W_FIRST_SEEN, W_LAST_SEEN, W_LATE_DROPPED, W_LSN, KindPlan, Plan, compile_plan
from features.spec import Feature, Kind, Ring, Spec, duration_ms, load_spec, parse_spec
from features.transaction import CHANNELS, Transaction

EXAMPLES = settings(max_examples=50, deadline=None, derandomize=False, print_blob=True, suppress_health_check=list(HealthCheck))
SEED = os.environ.get("SEED")
BASE_MS = 1_750_000_000_000
GOLDEN_RATIO_64 = 0x9E3779B97F4A7C15

TINY = """
name = "tiny"
base_currency = "EUR"
[currencies]
EUR = 1_000_000
USD = 920_000
[[kind]]
name = "card"
id = "card_id"
remember = ["country", "device_id", "place"]
spike_over = 2.5
ring = [
  { name = "a", tile = "1s", keeps = ["count", "sum", "max", "squares"] },
  { name = "life", tile = "ever", keeps = ["sum", "count", "squares", "frauds"] },
  { name = "d", tile = "2s", keeps = ["spikes", "count", "frauds"] },
  { name = "b", tile = "3s", keeps = ["count", "distinct"], of = "merchant_id" },
  { name = "c", tile = "2s", keeps = ["frauds", "sum", "count"] },
  { name = "unread", tile = "1s", keeps = ["count", "max"] },
]
[[kind]]
name = "merchant"
id = "merchant_id"
ring = [
  { name = "a", tile = "1s", keeps = ["count", "frauds"] },
  { name = "b", tile = "2s", keeps = ["distinct", "squares", "max", "sum", "count"], of = "country" },
]
[[kind]]
name = "device"
id = "device_id"
remember = ["channel", "mcc"]
ring = [{ name = "a", tile = "5s", keeps = ["max", "count"] }]
[source.fields]
"""
TINY_FEATURES: Sequence[tuple[str, Mapping[str, object]]] = [
    ("value", {"of": "amount"}),
    ("value", {"of": "amount", "scale": 0.01, "log1p": True}),
    ("value", {"of": "mcc", "log1p": True}),
    ("value", {"of": "country"}),
    ("value", {"of": "ip"}),
    *((op, {}) for op in ("weekend", "hour", "night", "weekday")),
    *((op, {"kind": kind}) for op in ("since_last", "age", "present") for kind in ("card", "merchant", "device")),
    ("changed", {"kind": "card", "of": "country"}),
    ("changed", {"kind": "card", "of": "device_id"}),
    ("changed", {"kind": "device", "of": "channel"}),
    ("changed", {"kind": "device", "of": "mcc"}),
    ("speed_kmh", {"kind": "card"}),
    *(
        (op, {"kind": kind, "ring": ring, "window": window, "delay": delay})
        for kind, ring, ops, spans in (
            (
                "card",
                "a",
                ("count", "sum", "mean", "max", "std", "ratio", "zscore"),
                (("1s", "0s"), ("4s", "0s"), ("2s", "1s")),
            ),
            ("card", "life", ("count", "mean", "std", "ratio", "fraud_rate", "frauds"), (("ever", "0s"),)),
            ("card", "d", ("spikes", "spike_share", "frauds"), (("2s", "0s"), ("6s", "0s"), ("4s", "2s"))),
            ("card", "d", ("since_first_fraud", "since_last_fraud"), (("4s", "0s"), ("6s", "2s"))),
            ("merchant", "a", ("since_first_fraud", "since_last_fraud", "last_known", "frauds"), (("3s", "1s"), ("2s", "2s"))),
            ("card", "b", ("count", "distinct"), (("3s", "0s"), ("9s", "0s"), ("3s", "3s"))),
            ("card", "c", ("fraud_rate", "mean"), (("4s", "0s"), ("4s", "4s"))),
            ("merchant", "a", ("fraud_rate", "count"), (("2s", "0s"), ("1s", "3s"), ("3s", "1s"))),
            ("merchant", "b", ("max", "zscore", "distinct", "std", "ratio"), (("2s", "0s"), ("6s", "2s"))),
            ("device", "a", ("max",), (("5s", "0s"), ("10s", "0s"))),
        )
        for op in ops
        for window, delay in spans
    ),
]


def tiny_spec() -> Spec:
    """Rings of 1 to 5 tiles, every operator, every field, delayed and not."""
    rows = [TINY.strip()]
    for number, (op, extra) in enumerate(TINY_FEATURES):
        rows.append(f'[[feature]]\nname = "f{number}"\nop = "{op}"')
        for key, value in extra.items():
            rows.append(f"{key} = {str(value).lower() if isinstance(value, bool | float) else repr(value)}")
    return parse_spec("\n".join(rows), "tiny.toml")


SPECS = {
    "tiny": tiny_spec(),
    "cards": load_spec("cards"),
    "handbook": load_spec("handbook"),
    "handbook40": load_spec("handbook40"),
}
PLANS = {name: compile_plan(spec) for name, spec in SPECS.items()}


def code_of(tx: Transaction, name: str) -> int:
    """A field as a number, -1 for absent; from the documentation of the columns, not from their code."""
    value = getattr(tx, name)
    if value is None:
        return -1
    if name == "country":
        return (ord(value[0]) - ord("A")) * 26 + ord(value[1]) - ord("A")
    if name == "channel":
        return CHANNELS.index(value)
    return int(value) if name == "mcc" else zlib.crc32(value.encode())


def base_amount(tx: Transaction, spec: Spec) -> int:
    """The amount in the spec's currency, half up."""
    return math.floor((tx.amount * spec.currencies[tx.currency] * 2 + 1_000_000) / 2_000_000)


@dataclass
class History:
    """Everything that one entity saw, in order of arrival."""

    seen: list[Transaction] = field(default_factory=list)
    kept: dict[str, list[Transaction]] = field(default_factory=dict)  # by ring: the events that it had a tile for
    spikes: set[str] = field(default_factory=set)  # event ids of those whose amounts were spikes when they came
    frauds: dict[str, list[int]] = field(default_factory=dict)  # by ring: a ts for each fraud that stands
    late_dropped: int = 0
    lsn: int = 0

    @property
    def newest(self) -> int:
        return max(tx.ts for tx in self.seen)

    def last_given(self, names: Sequence[str], before: int) -> Transaction | None:
        """Of the first `before` events, the one of the latest time (of equal ones the last) that gives all `names`."""
        given = [tx for tx in self.seen[:before] if all(getattr(tx, n) is not None for n in names)]
        return max(reversed(given), key=lambda tx: tx.ts, default=None)


@dataclass
class Seen:
    """What a window holds: the transactions of its tiles that the ring still has, and their frauds."""

    txs: list[Transaction]
    fraud_times: list[int]

    @property
    def frauds(self) -> int:
        return len(self.fraud_times)


class Oracle:
    """The definition of every window and feature, event by event."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.histories: dict[tuple[str, str], History] = {}

    def n_tiles(self, ring: Ring) -> int:
        """As many as the farthest window of the ring reaches back."""
        width, reach = duration_ms(ring.tile), 1
        for f in self.spec.features:
            if f.ring == ring.name and f.window is not None and self.ring_of(f) is ring:
                delay = duration_ms(f.delay) // width
                reach = max(reach, duration_ms(f.window) // width + (delay + 1 if delay else 0))
        return reach

    def ring_of(self, feature: Feature) -> Ring:
        kind = self.kind_of(feature)
        return next(r for r in kind.ring if r.name == feature.ring)

    def kind_of(self, feature: Feature) -> Kind:
        return next(k for k in self.spec.kinds if k.name == feature.kind)

    def has_tile(self, history: History, ring: Ring, ts: int) -> bool:
        width = duration_ms(ring.tile)
        return 0 <= history.newest // width - ts // width < self.n_tiles(ring)

    def advance(self, tx: Transaction, lsn: int) -> list[float]:
        """Apply one transaction; the exact features of it, nan where only an estimate is claimed."""
        for kind in self.spec.kinds:
            entity = getattr(tx, kind.id)
            if entity is None:
                continue
            history = self.histories.setdefault((kind.name, entity), History())
            if kind.spike_over is not None and history.seen:
                mean = sum(base_amount(t, self.spec) for t in history.seen) // len(history.seen)
                if base_amount(tx, self.spec) > kind.spike_over * mean:
                    history.spikes.add(tx.event_id)
            history.seen.append(tx)
            history.lsn = lsn
            for ring in kind.ring:
                if self.has_tile(history, ring, tx.ts):
                    history.kept.setdefault(ring.name, []).append(tx)
                else:
                    history.late_dropped += 1
        return [self.feature(f, tx) for f in self.spec.features]

    def label(self, tx: Transaction, delta: int, lsn: int) -> None:
        for kind in self.spec.kinds:
            history = self.histories.get((kind.name, getattr(tx, kind.id) or ""))
            rings = [r for r in kind.ring if "frauds" in r.keeps]
            if history is None or not rings:
                continue
            history.lsn = lsn
            for ring in rings:
                frauds = history.frauds.setdefault(ring.name, [])
                same_tile = [ts for ts in frauds if ts // duration_ms(ring.tile) == tx.ts // duration_ms(ring.tile)]
                if not self.has_tile(history, ring, tx.ts):
                    history.late_dropped += 1
                elif delta > 0:
                    frauds.append(tx.ts)
                elif same_tile:
                    frauds.remove(same_tile[0])

    def window(self, history: History, ring: Ring, skip: int, tiles: int, at: int) -> Seen:
        """The tiles of age skip to skip + tiles - 1 as seen from time `at`, as far as the ring still has them."""
        width = duration_ms(ring.tile)

        def inside(ts: int) -> bool:
            return skip <= at // width - ts // width < skip + tiles and self.has_tile(history, ring, ts)

        txs = [tx for tx in history.kept.get(ring.name, []) if inside(tx.ts)]
        return Seen(txs, [ts for ts in history.frauds.get(ring.name, []) if inside(ts)])

    def bitmap(self, ring: Ring, txs: Iterable[Transaction]) -> int:
        """64 bits: one for each value's hash."""
        codes = {code_of(tx, ring.of or "") for tx in txs} - {-1}
        return sum({1 << (code * GOLDEN_RATIO_64 % 2**64 // 2**58) for code in codes})

    def feature(self, f: Feature, tx: Transaction) -> float:
        value = self.raw_feature(f, tx) * f.scale
        return math.log1p(value) if f.log1p and value >= 0 else value

    def raw_feature(self, f: Feature, tx: Transaction) -> float:
        if f.kind is not None:
            return self.entity_feature(f, tx)
        if f.op == "value":
            return base_amount(tx, self.spec) if f.of == "amount" else code_of(tx, f.of or "")
        hour, weekday = tx.ts // 3_600_000 % 24, (tx.ts // 86_400_000 + 3) % 7
        return {"hour": hour, "weekday": weekday, "night": float(hour < 7), "weekend": float(weekday in (5, 6))}[f.op]

    def entity_feature(self, f: Feature, tx: Transaction) -> float:
        history = self.histories.get((f.kind or "", getattr(tx, self.kind_of(f).id) or ""))
        if history is None or getattr(tx, self.kind_of(f).id) is None:
            return 0.0
        before = len(history.seen) - 1
        if f.op == "present":
            return 1.0
        if f.op == "age":
            return (tx.ts - min(t.ts for t in history.seen)) / 1000
        if f.op == "since_last":
            return max(tx.ts - max(t.ts for t in history.seen[:-1]), 0) / 1000 if before else -1.0
        if f.op == "changed":
            last = history.last_given([f.of or ""], before)
            now = getattr(tx, f.of or "")
            return float(last is not None and now is not None and now != getattr(last, f.of or ""))
        if f.op == "speed_kmh":
            return speed(history.last_given(["lat", "lon"], before), tx)
        return self.window_feature(f, tx, history)

    def window_feature(self, f: Feature, tx: Transaction, history: History) -> float:
        ring = self.ring_of(f)
        width = duration_ms(ring.tile)
        delay, tiles = duration_ms(f.delay) // width, duration_ms(f.window or "") // width
        seen = self.window(history, ring, delay + 1 if delay else 0, tiles, tx.ts)
        if f.op == "distinct":
            free = 64 - self.bitmap(ring, seen.txs).bit_count()
            return -64 * math.log(max(free, 0.5) / 64)
        tiles_of_frauds = [ts // width for ts in seen.fraud_times]
        spikes = sum(t.event_id in history.spikes for t in seen.txs)
        amounts, amount = [base_amount(t, self.spec) for t in seen.txs], base_amount(tx, self.spec)
        mean = sum(amounts) / len(amounts) if amounts else 0.0
        n = max(len(amounts), 1)
        variance = (n * sum(a * a for a in amounts) - sum(amounts) ** 2) / n**2
        answers: dict[str, float] = {
            "count": len(amounts), "sum": sum(amounts), "mean": mean, "max": max(amounts, default=0),
            "std": math.sqrt(variance), "ratio": amount / mean if mean else 0.0,
            "zscore": (amount - mean) / math.sqrt(variance) if variance else 0.0,
            "fraud_rate": seen.frauds / len(amounts) if amounts else 0.0, "frauds": seen.frauds, "spikes": spikes,
            "spike_share": spikes / len(amounts) if amounts else 0.0,
            "since_first_fraud": (tx.ts - min(tiles_of_frauds) * width) / 1000 if tiles_of_frauds else -1.0,
            "since_last_fraud": (tx.ts - max(tiles_of_frauds) * width) / 1000 if tiles_of_frauds else -1.0,
            "last_known": float(bool(seen.txs) and max(t.ts // width for t in seen.txs) == max(tiles_of_frauds, default=-1)),
        }  # fmt: skip
        return answers[f.op]


def speed(last: Transaction | None, tx: Transaction) -> float:
    """km/h on a sphere, by the law of cosines of vectors."""
    if last is None or tx.lat is None or tx.lon is None or last.lat is None or last.lon is None:
        return 0.0
    points = []
    for lat, lon in ((last.lat, last.lon), (tx.lat, tx.lon)):
        phi, lam = math.radians(round(lat * 1e6) / 1e6), math.radians(round(lon * 1e6) / 1e6)
        points.append((math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)))
    km = 2 * 6371.0088 * math.asin(min(math.dist(*points) / 2, 1.0))
    return km / (max(tx.ts - last.ts, 60_000) / 3_600_000)


Step = tuple[str, Any]


@st.composite
def histories(draw: st.DrawFn, scale_ms: int) -> tuple[list[Step], list[int]]:
    """("tx", transaction) and ("label", (number of an earlier transaction, delta)), and sizes of batches."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, 0, 1, 300, 999, 1000, 1500, 2500, 6000, 13000, 40000, -1, -900, -2100, -4000, -9000]),
                st.integers(0, 3), st.integers(0, 2), st.sampled_from([None, 0, 1]),
                st.sampled_from([0, 1, 2, 1299, 5000, 2**32, 10**10]), st.sampled_from(["EUR", "USD"]),
                st.sampled_from([None, "DE", "FR", "AA", "ZZ"]), st.sampled_from([None, 0, 5411, 9999]),
                st.sampled_from([None, *CHANNELS]), st.sampled_from([None, (0.0, 0.0), (-90.0, 180.0), (52.5, 13.4)]),
                st.sampled_from([None, None, None, (0, 1), (1, 1), (2, -1), (5, 1)]),
            ),
            min_size=1, max_size=45,
        )
    )  # fmt: skip
    steps: list[Step] = []
    ts = BASE_MS + draw(st.integers(0, 10_000)) * scale_ms // 1000
    for n, (dt, card, merchant, device, amount, currency, country, mcc, channel, place, label) in enumerate(rows):
        ts += dt * scale_ms // 1000
        lat, lon = place or (None, None)
        tx = Transaction(
            f"e{n}", ts, amount, currency if scale_ms == 1000 else "EUR", f"c{card}", f"m{merchant}",
            device_id=None if device is None else f"d{device}", ip=None if mcc is None else f"i{mcc}",
            country=country, mcc=mcc, channel=channel, lat=lat, lon=lon,
        )  # fmt: skip
        steps.append(("tx", tx))
        if label is not None:
            steps.append(("label", (max(n - label[0], 0), label[1])))
    return steps, draw(st.lists(st.integers(1, 50), min_size=1, max_size=8))


def run_engine(plan: Plan, steps: Sequence[Step], sizes: Sequence[int]) -> tuple[MemoryEngine, np.ndarray]:
    """Feed `steps` to a fresh engine in batches of `sizes` (in turn); a label ends a batch, as in the journal."""
    engine, vectors = MemoryEngine(plan), []
    txs = [what for how, what in steps if how == "tx"]
    batch: list[Transaction] = []
    turn = 0
    for how, what in [*steps, ("end", None)]:
        if batch and (how != "tx" or len(batch) == sizes[turn % len(sizes)]):
            vectors.append(engine.vectors(batch))
            batch, turn = [], turn + 1
        if how == "tx":
            batch.append(what)
        elif how == "label":
            engine.label(txs[what[0]], what[1])
    return engine, np.concatenate(vectors)


def check_profile(oracle: Oracle, kind: KindPlan, history: History, profile: bytes) -> None:
    """Every word that has a meaning, as of the entity's newest event."""
    words = np.frombuffer(profile, dtype="<i8")
    first = min(tx.ts for tx in history.seen)
    expected = (history.lsn, first, history.newest, history.late_dropped)
    assert tuple(words[[W_LSN, W_FIRST_SEEN, W_LAST_SEEN, W_LATE_DROPPED]]) == expected
    rings = next(k for k in oracle.spec.kinds if k.name == kind.name).ring
    for ring, planned in zip(rings, kind.rings, strict=True):
        for window in planned.windows:
            seen = oracle.window(history, ring, window.skip, window.tiles, history.newest)
            amounts = [base_amount(tx, oracle.spec) for tx in seen.txs]
            squares = [a * a for a in amounts]
            by_code = [
                len(amounts), seen.frauds, sum(amounts), max(amounts, default=0),
                sum(s >> 32 for s in squares), sum(s & 0xFFFFFFFF for s in squares),
                oracle.bitmap(ring, seen.txs) if ring.of else 0, sum(tx.event_id in history.spikes for tx in seen.txs),
                *edges(seen, window.field.code, planned.tile_ms),
            ]  # fmt: skip
            value = int(words[window.word])
            assert (value % 2**64 if window.code == DISTINCT else value) == by_code[window.code], (ring.name, window)


def edges(seen: Seen, field_code: int, tile_ms: int) -> tuple[int, int]:
    """1 + the start of the oldest and of the newest tile with an event (code 0) or a fraud; 0 for none."""
    tiles = {ts // tile_ms for ts in (seen.fraud_times if field_code else [tx.ts for tx in seen.txs])}
    return (min(tiles) * tile_ms + 1, max(tiles) * tile_ms + 1) if tiles else (0, 0)


def check_vector(spec: Spec, expected: Sequence[float], vector: np.ndarray, largest: float) -> None:
    for f, want, got in zip(spec.features, expected, vector.tolist(), strict=True):
        if f.op == "zscore":
            continue  # its error has no bound where amounts are nearly equal: test_vector.py
        # E[x²] - E[x]² cancels: its error is a few ulp of the larger term, and its root half of that.
        slack = 1e-7 * largest if f.op == "std" and not f.log1p else 1e-7
        assert got == pytest.approx(want, rel=3e-7, abs=slack if f.op != "std" else max(slack, 1e-6)), f


@pytest.mark.parametrize(
    ("name", "scale_ms"),
    [("tiny", 1000), ("cards", 600_000), ("cards", 43_200_000), ("handbook", 10_800_000), ("handbook40", 3_600_000)],
)
def test_windows_any_history_equal_their_definition(name: str, scale_ms: int) -> None:
    """Whatever the stream and however it is cut into batches, profiles and vectors are what an event list gives."""
    spec, plan = SPECS[name], PLANS[name]

    @EXAMPLES
    @given(histories(scale_ms), st.sampled_from([0, 3, advance.ONE_BY_ONE_ROWS]))
    def check(drawn: tuple[list[Step], list[int]], one_by_one_rows: int) -> None:
        steps, sizes = drawn
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(advance, "ONE_BY_ONE_ROWS", one_by_one_rows)  # 0: everything in vectorised waves
            engine, vectors = run_engine(plan, steps, sizes)
        oracle, row = Oracle(spec), 0
        txs = [what for how, what in steps if how == "tx"]
        for lsn, (how, what) in enumerate(steps, 1):
            if how == "label":
                oracle.label(txs[what[0]], what[1], lsn)
                continue
            largest = max(base_amount(tx, spec) for tx in txs)
            check_vector(spec, oracle.advance(what, lsn), vectors[row], largest)
            row += 1
        for (kind_name, entity), history in oracle.histories.items():
            profile = engine.profile(kind_name, entity)
            assert profile is not None
            check_profile(oracle, next(k for k in plan.kinds if k.name == kind_name), history, profile)

    (seed(int(SEED))(check) if SEED else check)()


@pytest.mark.parametrize("name", ["cards", "handbook"])
def test_windows_true_time_error_is_within_the_unaligned_tiles(name: str) -> None:
    """A count or sum over (t - delay - window, t - delay] differs at most by what the tiles at its unaligned ends hold."""
    spec, plan = SPECS[name], PLANS[name]
    rng = np.random.default_rng(int(SEED or 4117))
    ts = BASE_MS + np.cumsum(rng.choice([60_000, 600_000, 7_200_000, 40_000_000], 700, p=[0.4, 0.4, 0.15, 0.05]))
    txs = [
        Transaction(f"e{i}", int(t), int(rng.integers(1, 10**6)), "EUR", f"c{i % 2}", f"m{i % 3 % 2}", device_id="d", ip="i")
        for i, t in enumerate(ts)
    ]
    vectors = MemoryEngine(plan).vectors(txs).astype(np.float64)
    checked = 0
    for number, f in enumerate(spec.features):
        if f.op not in ("count", "sum") or f.window is None:
            continue
        kind, ring = next((k, r) for k in spec.kinds for r in k.ring if k.name == f.kind and r.name == f.ring)
        width, window, delay = duration_ms(ring.tile), duration_ms(f.window), duration_ms(f.delay)
        got = np.expm1(vectors[:, number]) if f.log1p else vectors[:, number]
        for row, tx in enumerate(txs):
            past = [t for t in txs[: row + 1] if getattr(t, kind.id) == getattr(tx, kind.id)]
            worth = [(t.ts, t.amount if f.op == "sum" else 1) for t in past]
            high, low = tx.ts - delay, tx.ts - delay - window
            true = sum(w for t, w in worth if low < t <= high)
            oldest = sum(w for t, w in worth if t // width == low // width)
            newest = sum(w for t, w in worth if delay and t // width == high // width)
            noise = 1e-5 * max(true, 1)
            # Undelayed: only the oldest tile may lack. Delayed: it may be too much, and the newest one may lack.
            assert -(oldest if delay else 0) - noise <= true - got[row] <= (newest if delay else oldest) + noise, (f, row)
            checked += 1
    assert checked
