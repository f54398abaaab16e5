"""Profiles as bytes: merging is a join of histories, and damaged or foreign bytes are refused."""

import os
import struct
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from features import profile
from features.memory import MemoryEngine
from features.plan import W_FIRST_LSN, W_LATE_DROPPED, compile_plan
from features.profile import UnknownProfileVersion, merge
from features.spec import load_spec, parse_spec
from features.transaction import Transaction

EXAMPLES = settings(
    max_examples=100, deadline=None, derandomize=False, print_blob=True, suppress_health_check=list(HealthCheck)
)
SPEC = parse_spec(
    """
name = "merge"
base_currency = "EUR"
currencies = { EUR = 1_000_000 }
kind = [{ name = "card", id = "card_id", remember = ["country", "place"], ring = [
  { name = "a", tile = "1s", keeps = ["count", "sum", "max", "squares"] },
  { name = "b", tile = "3s", keeps = ["distinct", "frauds", "count"], of = "merchant_id" },
] }]
feature = [
  { name = "f0", op = "std", kind = "card", ring = "a", window = "2s" },
  { name = "f1", op = "max", kind = "card", ring = "a", window = "5s", delay = "2s" },
  { name = "f2", op = "distinct", kind = "card", ring = "b", window = "6s" },
  { name = "f3", op = "fraud_rate", kind = "card", ring = "b", window = "3s", delay = "3s" },
]
source = { fields = {} }
""",
    "merge.toml",
)
PLAN = compile_plan(SPEC)
CARD = PLAN.kinds[0]
Event = tuple[int, Transaction]  # LSN and transaction


def seeded(test: Callable[..., None]) -> Callable[..., None]:
    """With SEED set, hypothesis draws from it."""
    return seed(int(os.environ["SEED"]))(EXAMPLES(test)) if os.environ.get("SEED") else EXAMPLES(test)


@st.composite
def events(draw: st.DrawFn, min_size: int = 1) -> list[Event]:
    """Events of one card, some late, no two of one time (of a tie the larger value is remembered, not the later)."""
    times = draw(st.lists(st.integers(0, 30_000), min_size=min_size, max_size=24, unique=True))
    if draw(st.booleans()):
        times.sort()
    out = []
    for lsn, ts in enumerate(times, 1):
        place = draw(st.sampled_from([None, (1.0, 2.0), (-5.0, 0.0)]))
        tx = Transaction(
            f"e{lsn}", 1_750_000_000_000 + ts, draw(st.sampled_from([0, 7, 2**32 + 1, 10**10])), "EUR", "c", f"m{lsn % 3}",
            country=draw(st.sampled_from([None, "DE", "FR"])),
            lat=place[0] if place else None, lon=place[1] if place else None,
        )  # fmt: skip
        out.append((lsn, tx))
    return out


def build(chosen: Sequence[Event], onto: bytes | None = None, frauds: Sequence[Event] = ()) -> bytes:
    """The profile of the card after `chosen`, begun from `onto`; `frauds` are labelled right after they come."""
    engine = MemoryEngine(PLAN)
    if onto is not None:
        engine.slabs[0].put(engine._slot(0, "c"), onto)
    for lsn, tx in chosen:
        engine.vectors([tx], first_lsn=lsn * 2)
        if (lsn, tx) in frauds:
            engine.label(tx, 1, lsn=lsn * 2 + 1)
    found = engine.profile("card", "c")
    assert found is not None
    return found


def words(packed: bytes, *but: int) -> list[int]:
    """The profile's words, those of `but` blanked."""
    return [0 if i in but else w for i, w in enumerate(struct.unpack(f"<{len(packed) // 8}q", packed))]


@seeded
@given(events(2), st.data())
def test_merge_two_interleaved_halves_equal_the_whole(history: list[Event], data: st.DataObject) -> None:
    """Every tile, window, remembered value and time is as if one profile had seen it all; only lateness counts may differ."""
    sides = data.draw(st.lists(st.booleans(), min_size=len(history), max_size=len(history)))
    sides[0], sides[-1] = True, False
    frauds = [e for e in history if data.draw(st.booleans())]
    left = build([e for e, s in zip(history, sides, strict=True) if s], frauds=frauds)
    right = build([e for e, s in zip(history, sides, strict=True) if not s], frauds=frauds)
    whole = build(history, frauds=frauds)
    assert words(merge(CARD, left, right), W_LATE_DROPPED) == words(whole, W_LATE_DROPPED)


@seeded
@given(events(), events(), events())
def test_merge_any_order_and_grouping_gives_the_same_bytes(a: list[Event], b: list[Event], c: list[Event]) -> None:
    """Merging is commutative and associative, to the byte."""
    x, y, z = build(a, frauds=a), build(b), build(c, frauds=c)
    assert merge(CARD, x, y) == merge(CARD, y, x)
    assert merge(CARD, merge(CARD, x, y), z) == merge(CARD, x, merge(CARD, y, z))


@seeded
@given(events(), events(), st.integers(0, 40_000), st.sampled_from([None, "DE", "US"]))
@example([(1, Transaction("e", 1_750_000_000_000, 1, "EUR", "c", "m", country="DE"))],
         [(1, Transaction("e", 1_750_000_000_001, 1, "EUR", "c", "m", country="FR"))], 2, None)  # fmt: skip
def test_merge_commutes_with_later_advances(a: list[Event], b: list[Event], ts: int, country: str | None) -> None:
    """Advancing before or after a merge is the same to the byte; for a late event, all but the count of late ones."""
    e = Transaction("e", 1_750_000_000_000 + ts, 12, "EUR", "c", "m9", country=country)
    x, y = build(a), build(b)
    newest = max(tx.ts for _, tx in a + b)
    if any(tx.ts == e.ts for _, tx in a + b):
        return
    late = (W_LATE_DROPPED,) if e.ts < newest else ()
    after = build([(100, e)], onto=merge(CARD, x, y))
    assert words(after, *late) == words(merge(CARD, build([(100, e)], onto=x), y), *late)
    assert words(after, *late) == words(merge(CARD, x, build([(100, e)], onto=y)), *late)


def test_merge_result_has_reached_the_later_lsn_so_a_retry_is_seen() -> None:
    """The merged LSN is not below the partial's first one: the rule "stored LSN < first LSN" forbids merging it again."""
    history = [(i, Transaction(f"e{i}", 1_750_000_000_000 + i, 5, "EUR", "c", "m")) for i in range(1, 9)]
    stored, partial = build(history[:4]), build(history[4:])
    first = words(partial)[W_FIRST_LSN]
    assert profile.lsn_of(stored) < first
    merged = merge(CARD, stored, partial)
    assert profile.lsn_of(merged) == profile.lsn_of(partial) >= first
    assert words(merged)[W_FIRST_LSN] == words(stored)[W_FIRST_LSN]


def test_merge_partial_with_whole_is_whole() -> None:
    """Only two partial profiles make a partial one, whichever comes first."""
    history = [(i, Transaction(f"e{i}", 1_750_000_000_000 + i // 2, 5, "EUR", "c", "m")) for i in range(1, 9)]
    whole, partial = build(history[:4]), build(history[4:], onto=b"\0\0\1" + bytes(CARD.size - 3))
    assert profile.is_partial(partial)
    for left, right, expected in ((whole, partial, False), (partial, whole, False), (partial, partial, True)):
        assert profile.is_partial(merge(CARD, left, right)) is expected


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda p: p[:-1], "bytes, not"),
        (lambda p: p + b"\0", "bytes, not"),
        (lambda p: b"", "bytes, not 0"),
        (lambda p: bytes(len(p)), "version 0"),
        (lambda p: b"\x02" + p[1:], "version 2"),
        (lambda p: p[:1] + b"\x01" + p[2:], "kind 1"),
        (lambda p: p[:8] + b"\xff" + p[9:] if p[8] != 255 else p[:8] + b"\0" + p[9:], "layout"),
    ],
)
def test_check_foreign_or_damaged_bytes_are_refused(damage: object, named: str) -> None:
    """Another length, version, kind or layout raises UnknownProfileVersion, in check, merge and describe."""
    good = build([(1, Transaction("e", 1_750_000_000_000, 5, "EUR", "c", "m"))])
    bad = damage(good)  # type: ignore[operator]  # a lambda of the table above
    profile.check(CARD, good)
    for act in (
        lambda: profile.check(CARD, bad),
        lambda: merge(CARD, good, bad),
        lambda: merge(CARD, bad, good),
        lambda: profile.describe(CARD, bad),
    ):
        with pytest.raises(UnknownProfileVersion, match=named):
            act()


def test_describe_shows_windows_by_name() -> None:
    """Counts, sums and distinct bits stand under ring:window, a delayed window with its delay."""
    history = [(i, Transaction(f"e{i}", 1_750_000_000_000 + i, 5, "EUR", "c", f"m{i}")) for i in range(1, 4)]
    shown = profile.describe(CARD, build(history, frauds=history[:1]))
    assert shown["lsn"] == 6
    assert shown["first_seen"] == 1_750_000_000_001
    assert shown["last_seen"] == 1_750_000_000_003
    assert shown["late_dropped"] == 0
    windows = shown["windows"]
    assert isinstance(windows, dict)
    assert windows["a:2s"] == {"count": 3, "sum": 15, "max": 5}
    assert windows["a:5s-2s"] == {"count": 0, "sum": 0, "max": 0}
    assert set(windows) == {"a:2s", "a:5s-2s", "b:6s", "b:3s-3s"}


@pytest.mark.parametrize("spec_name", ["cards", "handbook"])
def test_check_every_engine_profile_is_accepted_by_its_own_kind_only(spec_name: str) -> None:
    """A profile of one kind never passes for another kind of the plan."""
    plan = compile_plan(load_spec(spec_name))
    engine = MemoryEngine(plan)
    engine.vectors([Transaction("e", 1_750_000_000_000, 5, "EUR", "x", "x", device_id="x", ip="x")])
    packed = {kind.name: engine.profile(kind.name, "x") or b"" for kind in plan.kinds}
    for kind in plan.kinds:
        profile.check(kind, packed[kind.name])
        for other in plan.kinds:
            if other is not kind:
                with pytest.raises(UnknownProfileVersion):
                    profile.check(other, packed[kind.name])
