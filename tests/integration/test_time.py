"""Time: late, very late, too old and future events with both clocks, and a wall clock that steps back."""

import asyncio
import functools
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from features.plan import Plan
from features.transaction import Transaction
from service.app import start_engine
from service.errors import Conflict, InvalidEvent
from service.gauges import watch_engine
from service.metrics import Metrics

if TYPE_CHECKING:
    from tests.integration.conftest import Running

Start = Callable[..., Any]

NOW = 1_800_000_000_000  # ms; what the wall clock of these tests shows at first
MINUTE = 60_000
HOUR, DAY = 60 * MINUTE, 1_440 * MINUTE
FUTURE_MAX, PAST_MAX = 60_000, 3_283_200_000  # ms; the defaults: the longest ring of `cards` has 38 days
STEPS = [NOW + offset for offset in (0, -HOUR, 5 * HOUR, -3 * DAY, HOUR, -DAY, 30 * HOUR)]  # of a clock that is not kept well
LATE_DROPPED = re.compile(r'^weir_late_dropped_total\{ring="(\w+)"\} (\S+)$', re.MULTILINE)


class WallClock:
    """What the service takes for the system's time."""

    def __init__(self) -> None:
        self.ms = NOW

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """The clock of every engine that is started in the test."""
    clock = WallClock()
    monkeypatch.setattr(f"{start_engine.__module__}._wall_ms", clock)
    return clock


@pytest.fixture
def start_wall(start: Start) -> Start:
    """`start` with the wall clock, which is the service's default but not that of these tests."""
    return functools.partial(start, "time.clock=wall")


def tx(event_id: str, ts: int, entity: str = "1", **more: Any) -> Transaction:
    ids = {"card_id": f"c{entity}", "merchant_id": f"m{entity}", "device_id": f"d{entity}", "ip": f"192.0.2.{entity}"}
    return msgspec.convert({"event_id": event_id, "ts": ts, "amount": 100, "currency": "EUR"} | ids | more, Transaction)


def late_dropped(running: "Running") -> dict[str, int]:
    """By ring, as /metrics shows it; rings that dropped nothing are left out."""
    metrics = Metrics()
    watch_engine(metrics, running.engine)
    found = {ring: int(float(count)) for ring, count in LATE_DROPPED.findall(metrics.render().decode())}
    assert set(found) == {ring.name for kind in running.plan.kinds for ring in kind.rings}, "every ring has its series"
    return {ring: count for ring, count in found.items() if count}


def expected_drops(plan: Plan, txs: Sequence[Transaction]) -> dict[str, int]:
    """Event by event: a ring has the tile of the newest event of its entity, and `tiles - 1` before it."""
    newest: dict[tuple[int, str], int] = {}
    drops: Counter[str] = Counter()
    for one in txs:
        for kind in plan.kinds:
            entity = getattr(one, kind.id_field)
            if entity is None:
                continue
            last = newest[kind.number, entity] = max(newest.get((kind.number, entity), one.ts), one.ts)
            drops.update(r.name for r in kind.rings if last // r.tile_ms - one.ts // r.tile_ms >= r.tiles)
    return dict(drops)


@pytest.mark.parametrize("clock", ["wall", "stream"])
async def test_late_events_are_dropped_by_the_rings_that_are_past_them(start: Start, wall: WallClock, clock: str) -> None:
    """A ring that has the tile counts a late event, another one says in /metrics that it did not; nothing is refused."""
    running: Running = await start(f"time.clock={clock}")
    await running.send([tx("new", NOW)])
    assert late_dropped(running) == {}
    expected: Counter[str] = Counter()
    for event_id, age, rings in (
        ("a little", 20 * MINUTE, []),
        ("2 hours", 2 * HOUR, ["card_minutes", "merchant_minutes", "ip_minutes"]),
        ("25 days", 25 * DAY, ["card_minutes", "card_hours", "card_week", "merchant_minutes", "merchant_hours",
                               "device_hours", "device_week", "ip_minutes", "ip_hours"]),
        ("36 days", 36 * DAY, ["card_minutes", "card_hours", "card_week", "card_month", "merchant_minutes",
                               "merchant_hours", "device_hours", "device_week", "ip_minutes", "ip_hours"]),
    ):  # fmt: skip
        await running.send([tx(event_id, NOW - age)])
        expected.update(rings)
        assert late_dropped(running) == expected, event_id
    await running.assert_true()


async def test_events_older_than_every_ring_are_kept_if_allowed(start_wall: Start, wall: WallClock) -> None:
    """With a longer time.past_ms_max an event that no ring has a tile for is journaled, answered, and dropped by each ring."""
    running: Running = await start_wall(f"time.past_ms_max={100 * DAY}")
    await running.send([tx("new", NOW), tx("ancient", NOW - 100 * DAY)])
    rings = [ring.name for kind in running.plan.kinds for ring in kind.rings]
    assert late_dropped(running) == dict.fromkeys(rings, 1)
    truth = await running.assert_true()
    assert set(truth.lsns) == {"new", "ancient"}


async def test_a_disordered_stream_drops_what_the_rule_says(
    start_wall: Start, wall: WallClock, stream: list[Transaction], rng: random.Random
) -> None:
    """Generated events, a third of them late by a minute to two months: each ring's count is the rule's, event by event."""
    running: Running = await start_wall(f"time.past_ms_max={1_000 * DAY}")
    disordered = sorted(stream, key=lambda one: one.ts + (rng.random() < 0.3) * 10 ** rng.uniform(4.8, 9.7))
    await running.send(disordered)
    expected = expected_drops(running.plan, disordered)
    assert sum(expected.values()) > 100
    assert late_dropped(running) == expected
    await running.assert_true()
    print(f"{len(disordered)} events, dropped by ring: {expected}")  # noqa: T201  # shown by -s


@pytest.mark.parametrize(("clock", "is_too_far"), [("wall", True), ("stream", False)])
async def test_what_is_out_of_time_is_refused_and_changes_nothing(
    start: Start, wall: WallClock, clock: str, is_too_far: bool
) -> None:
    """The limits are inclusive, the refusal names ts, and neither the journal nor a profile nor an event_id remembers it."""
    running: Running = await start(f"time.clock={clock}")
    await running.send([tx("now", NOW), tx("oldest", NOW - PAST_MAX, "2")])
    last_lsn, profiles = running.engine.journal.last_lsn, await running.profiles(running.truth().profiles)
    refused = [tx("too old", NOW - PAST_MAX - 1)]
    if is_too_far:
        await running.send([tx("newest", NOW + FUTURE_MAX, "3")])
        last_lsn = running.engine.journal.last_lsn
        refused.append(tx("too far", NOW + FUTURE_MAX + 1))
    mixed = [*refused, tx("in between", NOW, "4"), *refused]
    for answer, sent in zip(await running.submit_many(mixed), mixed, strict=True):
        if sent in refused:
            assert isinstance(answer, InvalidEvent)
            assert (answer.status, answer.field) == (422, "ts")
    assert running.engine.journal.last_lsn == last_lsn + 1
    assert await running.profiles(profiles) == profiles
    await running.send([msgspec.structs.replace(one, ts=NOW) for one in refused])  # the same ids, with a time that will do
    if not is_too_far:
        await running.send([tx("a day ahead", NOW + DAY, "5")])  # is now what time it is
        (answer,) = await running.submit_many([tx("oldest once", NOW - PAST_MAX, "2")])
        assert isinstance(answer, InvalidEvent)
    await running.assert_true()


async def test_repeated_events_are_recognised_while_the_clock_steps(start_wall: Start, wall: WallClock) -> None:
    """Forward by less than the window, back by days, forward again, over a restart: never scored twice, never lost."""
    window = "idempotency.window_hours=48"
    running: Running = await start_wall(window)
    first: dict[str, int] = {}
    for step, wall.ms in enumerate(STEPS):
        if step == 4:
            await running.stop()
            running = await start_wall(window)
        txs = [tx(f"{step}-{n}", wall.ms, str(n)) for n in range(1, 20)]
        first |= {answer.event_id: answer.lsn for answer in await running.send(txs)}
        earlier = [tx(f"{s}-{n}", ts, str(n)) for s, ts in enumerate(STEPS[: step + 1]) for n in range(1, 20)]
        again = await running.send(earlier)
        assert all(answer.replayed for answer in again)
        assert {answer.event_id: answer.lsn for answer in again} == first
        (answer,) = await running.submit_many([msgspec.structs.replace(earlier[0], amount=1)])
        assert isinstance(answer, Conflict)
    lsns = list(first.values())
    assert lsns == sorted(lsns), "LSNs rise, whatever the clock says"
    truth = await running.assert_true()
    assert truth.lsns == first


async def test_checks_follow_the_wall_clock_back(start_wall: Start, wall: WallClock) -> None:
    """After a step back what was just now lies ahead and is refused; once the clock is there again it is taken."""
    running: Running = await start_wall()
    await running.send([tx("before", NOW)])
    wall.ms = NOW - HOUR
    (answer,) = await running.submit_many([tx("ahead", NOW)])
    assert isinstance(answer, InvalidEvent)
    assert "ahead" in str(answer)
    await running.send([tx("late", NOW - HOUR)])
    assert (await running.send([tx("before", NOW)]))[0].replayed, "a repetition is not judged by the clock"
    wall.ms = NOW
    await running.send([tx("ahead", NOW)])
    await running.assert_true()


async def test_list_entries_expire_by_the_wall_clock_and_stay_consistent_when_it_steps_back(
    start_wall: Start, wall: WallClock
) -> None:
    """Denied until it expires; a step back brings nothing back that was seen to expire, and forgets nothing that had not."""
    running: Running = await start_wall()
    await running.engine.put_list("deny", "card", "c1", "stolen", NOW + HOUR)
    await running.engine.put_list("deny", "card", "c2", "stolen", NOW + 2 * DAY)
    outcomes = []
    for step, offset in enumerate((0, HOUR, -DAY, DAY)):
        wall.ms = NOW + offset
        if step == 3:
            await running.stop()
            running = await start_wall()
        answers = await running.send([tx(f"{step}-{n}", wall.ms, n) for n in ("1", "2", "3")])
        outcomes.append([answer.outcome == "decline" for answer in answers])
    assert outcomes == [[True, True, False], [False, True, False], [False, True, False], [False, True, False]]


async def test_start_with_a_clock_that_is_a_year_behind(start_wall: Start, wall: WallClock) -> None:
    """Epochs rise from what the directory has seen, not from the date; the journal goes on, positions too."""
    running: Running = await start_wall()
    await running.send([tx(f"a{n}", NOW, str(n)) for n in range(1, 50)])
    await running.stop()
    wall.ms = NOW - 365 * DAY
    running = await start_wall()
    late = await running.send([tx(f"b{n}", wall.ms, str(n)) for n in range(1, 50)])
    truth = await running.assert_true()
    assert min(answer.lsn for answer in late) > max(lsn for event_id, lsn in truth.lsns.items() if event_id[0] == "a")
    async with asyncio.timeout(10):
        while await running.level("l2").tier.read_position() < running.engine.journal.last_lsn:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.01)
