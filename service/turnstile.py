"""The turnstile of the fast lane: how many transactions go on in one turn of the event loop, and how many may wait for theirs.

A turn is short (TURN_S), however much waits: what comes meanwhile is read, and refused if need be, a moment later. What waits
is bounded by time, its number times what a row took of late, by queue.wait_ms_max: CPU time of the loop's thread, for how long
the machine kept others busy says nothing of a row. Whoever waits for replies is held back by them. An eager client, one that
sends on regardless, is not, and its refusals stand behind the replies to what it sent before: of its requests only
queue.eager_wait_ms_max may wait, unless it is a burst. Where that much waits for BURST_S on end it is an overload, until for
CALM_S none had to be refused. (As Facebook's "controlled delay": Ben Maurer, Fail at Scale, ACM Queue 13/8, 2015. A queue that
is never empty serves nobody and delays everybody.) See docs/adr/0045-overload.md.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from service.errors import Overloaded
from service.settings import QueueSettings

TURN_S: Final = 0.001  # of scoring in one turn; docs/results/front.md
BURST_S: Final = 0.1  # what keeps the queue long for less is no overload
CALM_S: Final = 0.1  # without a refusal, then it is over
SHARE_MIN: Final = 16  # rows of a turn; fewer and the fixed cost of a batch, 0.1 ms, is most of it
SAMPLE_ROWS_MIN: Final = 16  # of a turn that tells what a row takes
ROW_S: Final = 20e-6  # what it is taken to be before the first one
ROW_S_BOUNDS: Final = 2e-6, 2e-3
TURN_S_BOUNDS: Final = 0.2e-3, 50e-3  # of a whole turn, with reading and writing
WEIGHT: Final = 1 / 8  # of the newest turn in the averages
JUMP_MAX: Final = 2.0  # times the average that one turn may count as: other tasks of the loop come in between


class Passenger(Protocol):
    """What waits: a request of one transaction."""

    def go_on(self) -> None:
        """Its turn has come. Never raises."""


class Scoring(Protocol):
    """What the turnstile sees of the scoring behind it."""

    n_held: int

    @property
    def n_waiting(self) -> int:
        """Transactions without an answer, those that are held here among them."""

    @property
    def n_rows(self) -> int:
        """Transactions that were ever scored."""


class Turnstile:
    """Ask `has_room` before each `take`. Used on the event loop's thread alone. `cpu`: CPU time of that thread, s."""

    def __init__(
        self, scoring: Scoring, queue: QueueSettings, clock: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.thread_time, call_soon: Callable[[Callable[[], object]], object] | None = None,
    ) -> None:  # fmt: skip
        self._scoring = scoring
        self._queue = queue
        self._clock = clock
        self._cpu = cpu
        self._call_soon = call_soon or asyncio.get_running_loop().call_soon
        self._held: deque[Passenger] = deque()
        self._n_ahead = 0  # held, or gone on in this turn
        self._n_gone = 0  # in this turn
        self._is_due = False
        self._closed: Overloaded | None = None  # what scoring said when it had no room, until the end of this turn
        self._row_s, self._turn_s = ROW_S, TURN_S
        self._began = self._ended = 0.0  # by cpu
        self._n_rows = 0
        self._long_since = float("inf")
        self._strict_until = float("-inf")
        self._share = self._room = self._room_max = 0
        self._measure()

    @property
    def is_strict(self) -> bool:
        """Whether this is an overload."""
        return self._clock() < self._strict_until

    def has_room(self, now: float, *, is_eager: bool) -> bool:
        """Whether one more may be taken at `now`, by the clock. `is_eager`: of a client that does not wait for replies."""
        return (self._n_ahead < self._room and self._closed is None) or self._may_wait(now, is_eager)

    def take(self, passenger: Passenger) -> None:
        """Have it go on, in this turn or in a later one."""
        self._n_ahead += 1
        if self._n_gone < self._share and not self._held:
            self._go(passenger)
        else:
            self._held.append(passenger)
            self._scoring.n_held += 1

    def close(self, error: Overloaded) -> None:
        """What went on was refused for lack of room: nobody else is taken before the end of this turn."""
        self._closed = error

    def refusal(self) -> Overloaded:
        """Why there was no room."""
        if self._closed is not None:
            return self._closed
        queue, n_waiting = self._queue, self._scoring.n_waiting
        if n_waiting >= queue.events_max:
            return Overloaded(f"the queue holds {n_waiting} of queue.events_max = {queue.events_max} transactions")
        wait_ms = self._n_ahead / self._share * self._turn_s * 1e3
        if self.is_strict and self._n_ahead < self._room_max:
            limit = f"queue.eager_wait_ms_max = {queue.eager_wait_ms_max:g}"
        else:
            limit = f"queue.wait_ms_max = {queue.wait_ms_max:g}"
        return Overloaded(f"the queue holds {n_waiting} transactions, about {wait_ms:.1f} ms of work, at {limit}")

    def _may_wait(self, now: float, is_eager: bool) -> bool:
        if self._closed is not None or self._scoring.n_waiting >= self._queue.events_max or self._n_ahead >= self._room_max:
            return False
        if not is_eager:
            return True
        if now >= self._strict_until:
            if self._long_since > now:
                self._long_since = now
            if now - self._long_since <= BURST_S:
                return True
        self._strict_until = now + CALM_S
        return False

    def _go(self, passenger: Passenger) -> None:
        self._n_gone += 1
        if self._is_due:
            passenger.go_on()
            return
        self._is_due = True
        self._call_soon(self._begin)
        passenger.go_on()  # this calls the turn of the scoring, which so lies between the two
        self._call_soon(self._end)

    def _begin(self) -> None:
        self._began, self._n_rows = self._cpu(), self._scoring.n_rows

    def _end(self) -> None:
        """The turn is over; begin the next one if somebody waits."""
        now, n_rows = self._cpu(), self._scoring.n_rows - self._n_rows
        if n_rows >= SAMPLE_ROWS_MIN:
            self._row_s = _average(self._row_s, (now - self._began) / n_rows, ROW_S_BOUNDS)
        if self._n_gone >= self._share:  # with nothing but work since the last one
            self._turn_s = _average(self._turn_s, now - self._ended, TURN_S_BOUNDS)
        self._ended = now
        self._measure()
        self._closed, self._is_due = None, False
        self._n_gone, self._n_ahead = 0, len(self._held)
        if self._n_ahead < self._room:
            self._long_since = float("inf")
        for _ in range(min(self._share, self._n_ahead)):
            self._scoring.n_held -= 1
            self._go(self._held.popleft())

    def _measure(self) -> None:
        """How many go on in a turn, and how many may wait."""
        self._share = max(SHARE_MIN, int(TURN_S / self._row_s))
        per_ms = self._share / self._turn_s / 1e3
        self._room = max(self._share, int(per_ms * self._queue.eager_wait_ms_max))
        self._room_max = max(self._room, int(per_ms * self._queue.wait_ms_max))


def _average(average: float, newest: float, bounds: tuple[float, float]) -> float:
    newest = min(max(newest, average / JUMP_MAX), average * JUMP_MAX)
    return min(max(average + (newest - average) * WEIGHT, bounds[0]), bounds[1])
