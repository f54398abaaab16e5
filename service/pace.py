"""How fast a key may send: so many events a second, and a second's worth at once. Two numbers for each limited key.

A request that is let in may put the key ahead of its rate, with a batch as large as the service takes; what comes next waits
until the rate has caught up (429 with Retry-After; a stream is not read meanwhile). So no batch is too large for a small rate,
and over any longer time the rate holds. The generic cell rate algorithm: one time is kept, no timer runs. 0.1 µs a request.
"""

import math
from collections.abc import Callable
from typing import Final

from service.errors import RateExceeded

BURST_S: Final = 1.0  # s of its rate that a key may send at once
_ROUNDING_S: Final = 1e-6  # so that it is not one event more or less by how a sum of floats is rounded


class Pace:
    """The pace of one key. `rate_max`: events a second, above 0. `now`: monotonic s."""

    __slots__ = ("_ahead_s", "_due", "_step_s", "rate_max")

    def __init__(self, rate_max: float) -> None:
        self.rate_max = rate_max
        self._step_s = 1.0 / rate_max
        self._ahead_s = max(BURST_S - self._step_s, 0.0) + _ROUNDING_S  # how far ahead the next event is still let in
        self._due = 0.0  # when everything that was sent would have come at the rate

    def take(self, now: float) -> None:
        """One event, if the key is not ahead. Raises RateExceeded."""
        due = self._due
        if due - now > self._ahead_s:
            wait_s = max(math.ceil(due - now - self._ahead_s), 1)
            limit = f"this key may send {self.rate_max:g} events a second and has sent more"
            raise RateExceeded(
                f"{limit}; slow down, or raise its rate (weir keys add --rate, or the setting rate.ROLE)", wait_s
            )
        self._due = (due if due > now else now) + self._step_s

    def spend(self, n: int, now: float) -> None:
        """`n` more events of a request that was let in."""
        self._due = max(self._due, now) + n * self._step_s

    def wait_s(self, now: float) -> float:
        """How long a stream has to wait before its next events."""
        return max(self._due - now - self._ahead_s, 0.0)


class Allowance:
    """What the rows of one request count against: its key's pace, if it has one."""

    __slots__ = ("_monotonic", "_pace")

    def __init__(self, pace: Pace | None, monotonic: Callable[[], float]) -> None:
        self._pace = pace
        self._monotonic = monotonic

    def spend(self, n: int) -> None:
        """`n` events beside the one that the request itself counts as."""
        if self._pace is not None and n > 0:
            self._pace.spend(n, self._monotonic())

    def wait_s(self) -> float:
        """How long a stream has to wait before its next events; 0 nearly always."""
        return 0.0 if self._pace is None else self._pace.wait_s(self._monotonic())
