"""Feature vectors from hand-made raw input: every operator's formula and its edges."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest

from features.memory import MemoryEngine
from features.plan import (
    COLUMNS,
    FIXED_WORDS,
    OBS_FIRST_SEEN,
    OBS_FIXED,
    OBS_NEW,
    OBS_PRESENT,
    OBS_PREVIOUS_SEEN,
    Plan,
    compile_plan,
)
from features.spec import load_spec, parse_spec
from features.transaction import Transaction
from features.vector import VectorBuilder

BENCH = Path(__file__).parents[1] / "bench" / "bench_features.py"
T0 = 1_750_000_000_000
HEAD = """
name = "one"
base_currency = "EUR"
currencies = { EUR = 1_000_000 }
kind = [{ name = "card", id = "card_id", remember = ["place", "country"], ring = [
  { name = "r", tile = "1h", keeps = ["count", "sum", "max", "squares", "distinct"], of = "merchant_id" },
] }]
source = { fields = {} }
"""
WINDOW = 'kind = "card", ring = "r", window = "3h"'


def plan_of(*features: str) -> Plan:
    """A plan with the given features, each an inline table without its name."""
    rows = ", ".join(f'{{ name = "f{i}", {f} }}' for i, f in enumerate(features))
    return compile_plan(parse_spec(f"feature = [{rows}]\n{HEAD}", "one.toml"))


def pay(seconds: float = 0, amount: int = 100, **more: object) -> Transaction:
    """A payment of card c, `seconds` after T0."""
    body = {"currency": "EUR", "card_id": "c", "merchant_id": "m"} | more
    return Transaction("e", T0 + int(seconds * 1000), amount, **body)  # type: ignore[arg-type]  # a table of fields


def column(feature: str, *txs: Transaction) -> list[float]:
    """The value of one feature for each of `txs`, in order."""
    return [float(v) for v in MemoryEngine(plan_of(feature)).vectors(txs)[:, 0]]


@pytest.mark.parametrize(
    ("ts", "hour", "weekday", "night", "weekend"),
    [
        (T0, 15, 6, 0, 1),  # Sunday 2025-06-15 15:06:40
        (1_749_945_600_000 + 86_400_000 - 1, 23, 6, 0, 1), (1_749_945_600_000 + 86_400_000, 0, 0, 1, 0),
        (1_749_945_600_000 + 7 * 3_600_000 - 1, 6, 6, 1, 1), (1_749_945_600_000 + 7 * 3_600_000, 7, 6, 0, 1),
        (1_749_945_600_000 - 1, 23, 5, 0, 1), (1_749_945_600_000 - 86_400_001, 23, 4, 0, 0),
    ],
)  # fmt: skip
def test_clock_at_its_borders(ts: int, hour: int, weekday: int, night: int, weekend: int) -> None:
    """Hour, weekday (Monday 0), night (to 06:59:59) and weekend are those of UTC, to the millisecond."""
    plan = plan_of('op = "hour"', 'op = "weekday"', 'op = "night"', 'op = "weekend"')
    vector = MemoryEngine(plan).vectors([Transaction("e", ts, 1, "EUR", "c", "m")])
    assert vector.tolist() == [[hour, weekday, night, weekend]]


def test_window_moments_of_three_amounts() -> None:
    """Mean, std, ratio, zscore, max, sum and count of 100, 300, 800 are what a statistics book gives."""
    ops = ("count", "sum", "mean", "max", "std", "ratio", "zscore")
    plan = plan_of(*(f'op = "{op}", {WINDOW}' for op in ops))
    last = MemoryEngine(plan).vectors([pay(0, 100), pay(1, 300), pay(2, 800)])[2]
    std = math.sqrt((100**2 + 300**2 + 800**2) / 3 - 400**2)
    assert last.tolist() == pytest.approx([3, 1200, 400, 800, std, 2, 400 / std], rel=1e-7)


@pytest.mark.parametrize("amount", [0, 1, 10**10])
def test_window_moments_of_equal_amounts_are_finite(amount: int) -> None:
    """No spread and no amount at all give a zscore of zero, and a ratio of one or zero."""
    assert column(f'op = "zscore", {WINDOW}', pay(0, amount), pay(1, amount), pay(2, amount)) == [0, 0, 0]
    assert column(f'op = "ratio", {WINDOW}', pay(0, amount), pay(1, amount)) == [float(amount > 0)] * 2


@pytest.mark.parametrize("amounts", [(5, 6), (99_999_99, 100_000_00), (1, 100_000_00)])
def test_zscore_up_to_a_hundred_thousand_euros_keeps_three_digits(amounts: tuple[int, int]) -> None:
    """Of two amounts the larger is one deviation above the mean, however close they are."""
    assert column(f'op = "zscore", {WINDOW}', *(pay(i, a) for i, a in enumerate(amounts)))[1] == pytest.approx(1, rel=1e-3)


def test_distinct_estimates_within_linear_counting_error() -> None:
    """Few merchants are estimated within one, forty within a quarter, a thousand saturate at 64 ln 128."""
    got = column(f'op = "distinct", {WINDOW}', *(pay(i / 1000, merchant_id=f"m{i}") for i in range(1000)))
    assert got[0] == pytest.approx(1, abs=0.02)
    assert got[4] == pytest.approx(5, abs=1)
    assert got[39] == pytest.approx(40, rel=0.25)
    assert got[-1] == pytest.approx(64 * math.log(128))


def test_since_last_and_age_of_new_old_and_late_events() -> None:
    """-1 for the first, seconds after that, 0 for a late one; age counts from the earliest event known."""
    txs = (pay(10), pay(12.5), pay(12.5), pay(4), pay(20))
    assert column('op = "since_last", kind = "card"', *txs) == [-1, 2.5, 0, 0, 7.5]
    assert column('op = "age", kind = "card"', *txs) == [0, 2.5, 2.5, 0, 16]


def test_changed_needs_both_values() -> None:
    """Absent is never a change, and the last value given is remembered over events that give none."""
    txs = [pay(i, country=c) for i, c in enumerate([None, "DE", None, "DE", "AA", "AA"])]
    assert column('op = "changed", kind = "card", of = "country"', *txs) == [0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("start", "end", "km"),
    [
        ((52.52, 13.405), (48.8566, 2.3522), 877.46), ((0.0, 179.5), (0.0, -179.5), 111.195),
        ((0.0, 0.0), (0.0, 180.0), 20015.12), ((90.0, 0.0), (-90.0, 77.0), 20015.12),
        ((90.0, 0.0), (90.0, 180.0), 0), ((-90.0, -180.0), (-90.0, -180.0), 0),
    ],
)  # fmt: skip
def test_speed_between_two_places(start: tuple[float, float], end: tuple[float, float], km: float) -> None:
    """Great-circle kilometres over two hours, across the date line and the poles too."""
    txs = (pay(0, lat=start[0], lon=start[1]), pay(7200, lat=end[0], lon=end[1]))
    assert column('op = "speed_kmh", kind = "card"', *txs) == [0, pytest.approx(km / 2, rel=2e-4, abs=1e-3)]


def test_speed_counts_from_the_last_known_place_and_at_least_a_minute() -> None:
    """An event without a place gives 0 and does not reset the clock of the last place."""
    txs = (pay(0, lat=0.0, lon=0.0), pay(1800), pay(3600, lat=0.0, lon=1.0), pay(3600, lat=0.0, lon=2.0))
    assert column('op = "speed_kmh", kind = "card"', *txs) == pytest.approx([0, 0, 111.195, 111.195 * 60], rel=1e-4)


def test_log1p_and_scale_leave_absent_values_negative() -> None:
    """Scale multiplies first; log1p takes what is not negative and leaves the -1 of an absent value."""
    txs = (pay(0, amount=0), pay(1, amount=250, mcc=5411))
    assert column('op = "value", of = "amount", scale = 0.01, log1p = true', *txs) == pytest.approx([0, math.log1p(2.5)])
    assert column('op = "value", of = "mcc", log1p = true', *txs) == pytest.approx([-1, math.log1p(5411)])
    assert column('op = "value", of = "mcc", scale = 0.001', *txs) == pytest.approx([-0.001, 5.411])


def test_build_absent_entities_give_zeros() -> None:
    """With no device and no address each of their eight features is zero, age and since_last included."""
    plan = compile_plan(load_spec("cards"))
    vector = dict(zip(plan.feature_names, MemoryEngine(plan).vectors([pay()])[0].tolist(), strict=True))
    absent = {name: value for name, value in vector.items() if name.startswith(("device_", "ip_"))}
    assert len(absent) == 8
    assert not any(absent.values())


def test_build_huge_integers_stay_finite_and_exact() -> None:
    """Times near 2^62 and full 64-bit words go through integer arithmetic where a float64 would round."""
    plan = plan_of('op = "since_last", kind = "card"', f'op = "distinct", {WINDOW}', 'op = "hour"')
    kind = plan.kinds[0]
    raw = np.zeros((1, plan.n_raw), dtype=np.int64)
    raw[0, COLUMNS.index("ts")] = 2**62
    raw[0, kind.raw_start + np.array([OBS_PRESENT, OBS_NEW, OBS_FIRST_SEEN, OBS_PREVIOUS_SEEN])] = (1, 0, 5, 2**62 - 1001)
    bitmap = next(w.word for w in kind.rings[0].windows if w.code == 6)
    raw[0, kind.raw_start + OBS_FIXED + bitmap - FIXED_WORDS] = -1
    since, distinct, hour = VectorBuilder(plan).build(raw)[0].tolist()
    assert since == pytest.approx(1.001, rel=1e-7)
    assert distinct == pytest.approx(64 * math.log(128))
    assert hour == 2**62 // 3_600_000 % 24


@pytest.mark.parametrize("n_rows", [0, 1, 3])
def test_build_shape_and_memory_are_what_the_model_takes(n_rows: int) -> None:
    """float32, C-contiguous, one row each, no rows included."""
    plan = compile_plan(load_spec("cards"))
    vectors = VectorBuilder(plan).build(np.zeros((n_rows, plan.n_raw), dtype=np.int64))
    assert vectors.shape == (n_rows, 40)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous


def test_bench_features_small_size_has_one_checksum_per_stream() -> None:
    """The benchmark runs, and what it computes does not depend on the batch size."""
    results = runpy.run_path(str(BENCH))["run"](64, (1, 8, 32))
    assert len(results) == 12
    for start in range(0, 12, 3):
        assert len({r["checksum"] for r in results[start : start + 3]}) == 1
    assert all(r["total_us"] > 0 for r in results)
