"""Rates of keys: a second's worth at once, then no faster than the rate, whatever the size of a request."""

import random
from pathlib import Path

import pytest

from service.auth import KEY_FILE, KeyRing, Role, add_key, list_keys
from service.errors import KeyFileError, RateExceeded, Unauthorized
from service.pace import BURST_S, Pace


class Clock:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def taken(pace: Pace, now: float) -> bool:
    try:
        pace.take(now)
    except RateExceeded:
        return False
    return True


def test_pace_lets_a_seconds_worth_in_at_once_and_no_more() -> None:
    """At the limit, one past it, and again once the time of one event is over."""
    pace = Pace(10)
    assert [taken(pace, 5.0) for _ in range(11)] == [True] * 10 + [False]
    assert not taken(pace, 5.099)
    assert taken(pace, 5.101)
    assert not taken(pace, 5.101)


def test_pace_batch_larger_than_the_rate_is_paid_for_afterwards() -> None:
    """1,000 rows at 100 a second: let in, then nothing for nine seconds; the wait that is told is the wait that it takes."""
    pace = Pace(100)
    pace.take(0.0)
    pace.spend(999, 0.0)
    with pytest.raises(RateExceeded) as told:
        pace.take(0.0)
    assert told.value.headers() == {"Retry-After": "10"}
    assert pace.wait_s(0.0) == pytest.approx(9.01)
    assert not taken(pace, 9.0)
    assert taken(pace, 9.02)


def test_pace_over_a_long_time_holds_the_rate(rng: random.Random) -> None:
    """Whatever a client tries, no window of the time has more than its rate and one burst and one request beside it."""
    rate, now, events = 50.0, 0.0, 0
    pace = Pace(rate)
    largest = 0
    for _ in range(5_000):
        now += rng.expovariate(200)
        rows = rng.choice((1, 1, 1, 20, 300))
        if taken(pace, now):
            pace.spend(rows - 1, now)
            events += rows
            largest = max(largest, rows)
            assert events <= rate * (now + BURST_S) + largest
    assert events >= rate * now * 0.95, "and it is not held below its rate"


@pytest.fixture
def rng() -> random.Random:
    return random.Random(11)


def test_key_ring_unlimited_keys_never_meet_a_pace(tmp_path: Path) -> None:
    """Without a rate a key stands in the table that knows nothing of rates, and sends as it likes."""
    key = add_key(tmp_path, Role.INGEST, "a")
    ring = KeyRing(tmp_path / KEY_FILE, Clock())
    assert all(ring.admit(f"Bearer {key}") is Role.INGEST for _ in range(10_000))
    assert ring._limited == {}
    assert ring.allowance(f"Bearer {key}").wait_s() == 0


def test_key_ring_keys_rate_goes_before_its_roles(tmp_path: Path) -> None:
    """The role's rate counts for each key by itself; a key's own rate replaces it, 0 takes it away."""
    clock = Clock()
    rates = {"role": None, "own": 3.0, "free": 0.0}
    headers = {name: f"Bearer {add_key(tmp_path, Role.INGEST, name, rate=rate)}" for name, rate in rates.items()}
    analyst = f"Bearer {add_key(tmp_path, Role.ANALYST, 'analyst')}"
    ring = KeyRing(tmp_path / KEY_FILE, clock, rates={Role.INGEST: 5.0})

    def admitted(header: str) -> int:
        n = 0
        try:
            while n < 50:
                ring.admit(header)
                n += 1
        except RateExceeded:
            pass
        return n

    assert {name: admitted(header) for name, header in headers.items()} == {"role": 5, "own": 3, "free": 50}
    assert admitted(analyst) == 50
    assert admitted(headers["role"].replace("Bearer", "bearer")) == 0, "another spelling of the header is the same key"
    assert ring.role_of(headers["own"]) is Role.INGEST, "looking a key up costs it nothing"


def test_key_ring_new_key_does_not_free_a_limited_one(tmp_path: Path) -> None:
    """When the file is read again, a key stays as far ahead as it was; a removed one gets nothing but 401."""
    clock = Clock()
    header = f"Bearer {add_key(tmp_path, Role.INGEST, 'a', rate=2.0)}"
    ring = KeyRing(tmp_path / KEY_FILE, clock)
    for _ in range(2):
        ring.admit(header)
    add_key(tmp_path, Role.INGEST, "b")
    clock.now += 0.3
    with pytest.raises(RateExceeded):
        ring.admit(header)
    ring.allowance(header).spend(10)
    clock.now += 0.3
    with pytest.raises(RateExceeded):
        ring.admit(header)
    (tmp_path / KEY_FILE).unlink()
    clock.now += 0.3
    with pytest.raises(Unauthorized):
        ring.admit(header)


def test_add_key_rate_out_of_range_refused(tmp_path: Path) -> None:
    """A rate below 0 or beyond what any service takes is no rate."""
    for rate in (-1.0, 1e9):
        with pytest.raises(KeyFileError):
            add_key(tmp_path, Role.INGEST, "a", rate=rate)
    add_key(tmp_path, Role.INGEST, "a", rate=0.5)
    assert [entry.rate for entry in list_keys(tmp_path)] == [0.5]
