"""What "now" is, and which event times are refused for it. It never decides what a window counts."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from features.transaction import TS_MAX
from service.errors import InvalidEvent


class Clock:
    """`wall`: now is the system's time in ms. `stream`: now is the newest accepted ts, and nothing is too far ahead."""

    def __init__(self, mode: str, future_ms_max: int, past_ms_max: int, wall_ms: Callable[[], int]) -> None:
        self._is_stream = mode == "stream"
        self._future_ms_max = future_ms_max
        self._past_ms_max = past_ms_max
        self._wall_ms = wall_ms
        self._newest = 0
        self.n_refused = {"old": 0, "future": 0}  # events, by what was wrong with their time

    def now_ms(self) -> int:
        """Milliseconds UTC."""
        return self._newest if self._is_stream else self._wall_ms()

    def note(self, ts: int) -> None:
        """An event of this time was accepted."""
        if ts > self._newest:
            self._newest = ts

    def bounds(self) -> tuple[int, int]:
        """The earliest and the latest time, ms, that are not refused."""
        now = self.now_ms()
        return now - self._past_ms_max, TS_MAX if self._is_stream else now + self._future_ms_max

    def takes(self, earliest: int, latest: int) -> bool:
        """Whether no time between these is refused."""
        first, last = self.bounds()
        return earliest >= first and latest <= last

    def refused(self, ts: npt.NDArray[np.int64]) -> dict[int, InvalidEvent]:
        """Why these times are refused, by place; empty if none is."""
        now = self.now_ms()
        bad = now - ts > self._past_ms_max
        self.n_refused["old"] += int(np.count_nonzero(bad))
        if not self._is_stream:
            is_ahead = ts - now > self._future_ms_max
            self.n_refused["future"] += int(np.count_nonzero(is_ahead))
            bad |= is_ahead
        found: dict[int, InvalidEvent] = {}
        for place in np.flatnonzero(bad).tolist():
            try:
                self.check(int(ts[place]))
            except InvalidEvent as error:
                found[place] = error
        return found

    def check(self, ts: int) -> None:
        """Raise InvalidEvent for a ts that is too far from now."""
        now = self.now_ms()
        if now - ts > self._past_ms_max:
            limit = f"more than time.past_ms_max = {self._past_ms_max} ms before now, {now}"
            raise InvalidEvent(f"ts: {ts} is {now - ts} ms old, {limit}", "ts")
        if not self._is_stream and ts - now > self._future_ms_max:
            limit = f"more than time.future_ms_max = {self._future_ms_max} ms after now, {now}; is it in milliseconds?"
            raise InvalidEvent(f"ts: {ts} lies {ts - now} ms ahead, {limit}", "ts")
