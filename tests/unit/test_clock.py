"""The clock: which event times are refused, at the limit and one past it."""

import pytest

from service.clock import Clock
from service.errors import InvalidEvent

NOW = 1_750_000_000_000


def make(mode: str) -> Clock:
    return Clock(mode, future_ms_max=60_000, past_ms_max=1_000_000, wall_ms=lambda: NOW)


def test_wall_clock_limits_are_inclusive() -> None:
    """Exactly at a limit is accepted, one millisecond past it is not, and the message names the limit."""
    clock = make("wall")
    clock.check(NOW + 60_000)
    clock.check(NOW - 1_000_000)
    with pytest.raises(InvalidEvent, match="future_ms_max = 60000"):
        clock.check(NOW + 60_001)
    with pytest.raises(InvalidEvent, match="past_ms_max = 1000000") as error:
        clock.check(NOW - 1_000_001)
    assert error.value.field == "ts"


def test_wall_clock_does_not_follow_events() -> None:
    """An accepted ts from the future does not move now."""
    clock = make("wall")
    clock.note(NOW + 50_000)
    assert clock.now_ms() == NOW


def test_stream_clock_is_the_newest_accepted_ts() -> None:
    """Now never goes back, nothing is too far ahead, the too-old limit counts from the newest."""
    clock = make("stream")
    clock.check(5)
    clock.check(NOW * 2)
    clock.note(NOW)
    clock.note(NOW - 500)
    assert clock.now_ms() == NOW
    clock.check(NOW - 1_000_000)
    with pytest.raises(InvalidEvent):
        clock.check(NOW - 1_000_001)
