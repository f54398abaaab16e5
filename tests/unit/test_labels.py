"""Labels: what a fraud mark changes, when it changes nothing, and where it ends."""

import struct

import numpy as np
import pytest

from features.advance_one import label_one
from features.memory import MemoryEngine
from features.plan import W_LATE_DROPPED, W_LSN, compile_plan
from features.slab import Slab
from features.spec import parse_spec
from features.transaction import Transaction

T0 = 1_750_000_000_000
PLAN = compile_plan(
    parse_spec(
        """
name = "labels"
base_currency = "EUR"
currencies = { EUR = 1_000_000 }
kind = [
  { name = "card", id = "card_id", ring = [{ name = "c", tile = "1s", keeps = ["count"] }] },
  { name = "merchant", id = "merchant_id", ring = [
    { name = "m", tile = "1s", keeps = ["count", "frauds"] },
    { name = "n", tile = "10s", keeps = ["frauds", "count"] },
  ] },
]
feature = [
  { name = "now", op = "fraud_rate", kind = "merchant", ring = "m", window = "3s" },
  { name = "then", op = "fraud_rate", kind = "merchant", ring = "m", window = "2s", delay = "2s" },
  { name = "long", op = "fraud_rate", kind = "merchant", ring = "n", window = "20s" },
]
source = { fields = {} }
""",
        "labels.toml",
    )
)


def pay(n: int, seconds: float) -> Transaction:
    """The n-th payment, `seconds` after T0."""
    return Transaction(f"e{n}", T0 + int(seconds * 1000), 5, "EUR", "c", "m")


def rates(engine: MemoryEngine, n: int, seconds: float) -> list[float]:
    """The three fraud rates that one more payment sees, rounded."""
    return [round(v, 3) for v in engine.vectors([pay(n, seconds)])[0].tolist()]


def words(engine: MemoryEngine, kind: str = "merchant") -> list[int]:
    """The header of the merchant (or card)."""
    packed = engine.profile(kind, "m" if kind == "merchant" else "c")
    assert packed is not None
    return list(struct.unpack_from("<16q", packed))


def test_label_in_the_open_tile_counts_at_once() -> None:
    """A fraud of this very tile stands in undelayed windows and not yet in delayed ones."""
    engine = MemoryEngine(PLAN)
    engine.vectors([pay(1, 0)])
    engine.label(pay(1, 0), 1)
    assert rates(engine, 2, 0.5) == [0.5, 0.0, 0.5]


def test_label_in_a_closed_tile_reaches_the_delayed_window() -> None:
    """A fraud counts in the tile of its transaction, not of its arrival."""
    engine = MemoryEngine(PLAN)
    engine.vectors([pay(1, 0), pay(2, 2)])
    engine.label(pay(1, 0), 1)
    assert rates(engine, 3, 3) == [0.0, 1.0, pytest.approx(0.333)]


def test_label_taken_back_restores_the_counts() -> None:
    """+1 then -1 leaves all but the LSN as it was."""
    engine = MemoryEngine(PLAN)
    engine.vectors([pay(1, 0), pay(2, 2)])
    before = words(engine)
    engine.label(pay(1, 0), 1)
    engine.label(pay(1, 0), -1)
    after = words(engine)
    assert after[W_LSN] == before[W_LSN] + 2
    after[W_LSN] = before[W_LSN]
    assert after == before


@pytest.mark.parametrize("seconds", [0, 2])
def test_label_taken_back_without_a_fraud_stays_at_zero(seconds: float) -> None:
    """-1 never goes below zero, in an open and in a closed tile."""
    engine = MemoryEngine(PLAN)
    engine.vectors([pay(1, 0), pay(2, seconds)])
    engine.label(pay(1, 0), -1)
    assert rates(engine, 3, seconds) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("seconds", "dropped"), [(4.9, 0), (5, 1)])
def test_label_older_than_the_ring_is_counted_as_dropped(seconds: float, dropped: int) -> None:
    """At the ring's last tile (of 5) a label still counts; one tile older it is late_dropped, in that ring only."""
    engine = MemoryEngine(PLAN)
    engine.vectors([pay(1, 0), pay(2, seconds)])
    engine.label(pay(1, 0), 1)
    assert words(engine)[W_LATE_DROPPED] == dropped
    assert engine.slabs[1].late_dropped.tolist() == [dropped, 0]
    assert rates(engine, 3, seconds)[2] > 0


def test_label_newer_than_the_profile_is_counted_as_dropped() -> None:
    """A label for a tile that the profile has not reached is dropped in that ring; the wider ring takes it."""
    engine = MemoryEngine(PLAN)
    engine.vectors([pay(1, 0)])
    engine.label(pay(2, 1), 1)
    assert words(engine)[W_LATE_DROPPED] == 1
    assert rates(engine, 3, 1) == [0.0, 0.0, 0.5]


def test_label_of_a_known_lsn_changes_nothing() -> None:
    """The LSN guard holds for labels, below and at the profile's LSN; one above passes."""
    engine = MemoryEngine(PLAN)
    engine.vectors([pay(1, 0)], first_lsn=7)
    slab, before = engine.slabs[1], engine.profile("merchant", "m")
    assert not label_one(slab, 0, T0, 1, 6)
    assert not label_one(slab, 0, T0, 1, 7)
    assert engine.profile("merchant", "m") == before
    assert label_one(slab, 0, T0, 1, 8)
    assert engine.profile("merchant", "m") != before


def test_label_of_an_empty_slot_or_unknown_entity_changes_nothing() -> None:
    """A label never begins a profile."""
    slab = Slab(PLAN.kinds[1], 1)
    assert not label_one(slab, 0, T0, 1, 5)
    assert not np.any(slab.rows)
    engine = MemoryEngine(PLAN)
    engine.label(pay(1, 0), 1)
    assert engine.profile("merchant", "m") is None


def test_label_leaves_kinds_without_frauds_alone() -> None:
    """A card profile that keeps no frauds does not even take the label's LSN."""
    engine = MemoryEngine(PLAN)
    engine.vectors([pay(1, 0)])
    before = words(engine, "card")
    engine.label(pay(1, 0), 1)
    assert words(engine, "card") == before
    assert not PLAN.kinds[0].keeps_frauds
    assert PLAN.kinds[1].keeps_frauds
