"""The live feed: percentiles, look-ups by tier, what a slow listener loses, and that it rests while nobody looks."""

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.errors import Overloaded
from service.feed import QUEUED_MAX, Feed, Listener, latency, lookups
from service.metrics import LATENCY_BOUNDS, Histogram, Metrics
from service.settings import ConsoleSettings


def _histogram(*seconds: float) -> Histogram:
    histogram = Histogram(LATENCY_BOUNDS)
    for value in seconds:
        histogram.observe(value)
    return histogram


def test_percentiles_of_nothing_are_none() -> None:
    """No call between two states: no percentile, not zero."""
    old = _histogram(0.001, 0.002)
    assert latency(old, old) == {"n": 0, "p50": None, "p90": None, "p99": None, "p999": None}


def test_percentiles_are_of_what_came_in_between() -> None:
    """Slow calls of before do not count."""
    before = _histogram(*[1.0] * 50)
    now = _histogram(*[1.0] * 50, *[0.0002] * 100)
    found = latency(before, now)
    assert found["n"] == 100
    assert found["p50"] == pytest.approx(0.175)
    assert found["p999"] is not None
    assert found["p999"] <= 0.25


def test_percentiles_stay_within_the_bound_of_their_value() -> None:
    """Each is off by at most the width of the bound in which the true value lies."""
    chance = random.Random(5)
    values = sorted(chance.lognormvariate(-7, 1) for _ in range(5_000))
    found = latency(_histogram(), _histogram(*values))
    edges = (0.0, *LATENCY_BOUNDS)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        true = values[int(share * len(values)) - 1]
        upper = next(edge for edge in edges if edge >= true)
        lower = edges[edges.index(upper) - 1]
        told = found[name]
        assert told is not None
        assert lower * 1e3 - 1e-4 <= told <= upper * 1e3 + 1e-4


def test_value_beyond_the_last_bound_is_told_as_the_last_bound() -> None:
    """An endless last bound has no middle."""
    assert latency(_histogram(), _histogram(9.0))["p99"] == 2500.0


def test_lookups_are_differences_and_a_new_tier_counts_from_zero() -> None:
    """By tier: asked and answered."""
    shown = lookups({"l1": (10, 8)}, {"l1": (15, 12), "l2": (3, 1)})
    assert shown == {"l1": {"asked": 5, "answered": 4}, "l2": {"asked": 3, "answered": 1}}


def test_slow_listener_loses_the_oldest_and_hears_how_many() -> None:
    """Its queue never grows beyond the limit; the end always gets through."""
    listener = Listener()
    for number in range(QUEUED_MAX + 3):
        listener.put(b"%d" % number)
    listener.put(None)
    assert listener.n_lost == 4
    left = [listener.queue.get_nowait() for _ in range(listener.queue.qsize())]
    assert left == [*(b"%d" % number for number in range(4, QUEUED_MAX + 3)), None]


async def test_nothing_works_while_nobody_listens() -> None:
    """The first listener sets the pipeline's onlooker and a task going, the last one takes both away; a closed feed is full."""
    pipeline = SimpleNamespace(onlooker=None)
    engine = cast(Any, SimpleNamespace(pipeline=pipeline, plan=None, clock=None))
    feed = Feed(engine, Metrics(), ConsoleSettings(feed_clients_max=2))
    tasks = asyncio.all_tasks()
    first, second = feed.join(), feed.join()
    assert pipeline.onlooker is not None
    assert len(asyncio.all_tasks() - tasks) == 1
    with pytest.raises(Overloaded):
        feed.join()
    feed.leave(first)
    assert pipeline.onlooker is not None
    feed.leave(second)
    feed.leave(second)
    await asyncio.sleep(0)
    assert pipeline.onlooker is None
    assert asyncio.all_tasks() == tasks
    third = feed.join()
    feed.close()
    assert third.queue.get_nowait() is None
    assert pipeline.onlooker is None
    with pytest.raises(Overloaded):
        feed.join()
    await asyncio.sleep(0)
