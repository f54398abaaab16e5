"""One client of `weir replay --mode stream`: its rows through one endless stream, made again where it broke off.

Invariants: rows are written and answered in order; at most WINDOW_ROWS are under way; `send` returns when every row that it was
given is answered, refused or lost, so labels can be posted after it. A stream that was lost is begun anew with the rows that
had no reply: the service knows event ids. The stream stays open between calls of `send`.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from loadgen.line_stream import LineStream
from loadgen.sender import (
    ATTEMPTS_MAX,
    BACKOFF_S,
    ConnectionLost,
    DeadlinePassed,
    Reply,
    SendError,
    Target,
    Unreachable,
    pause_after,
)

WINDOW_ROWS = 4_096


class Exchange:
    """What a stream's client does with what comes back; all are called on the event loop."""

    def __init__(
        self,
        answered: Callable[[int, bytes, int], None],
        refused: Callable[[Sequence[int], Reply], None],
        lost: Callable[[int, SendError], None],
        retried: Callable[[], None],
    ) -> None:
        self.answered = answered  # row, line, latency in µs
        self.refused = refused
        self.lost = lost
        self.retried = retried


class StreamClient:
    """`line` gives a row's body, `due` (seconds of perf_counter) the time that its latency counts from, else its write."""

    def __init__(
        self,
        target: Target,
        path: str,
        deadline_s: float,
        line: Callable[[int], bytes],
        exchange: Exchange,
        stop: asyncio.Event,
    ) -> None:
        self.connects = 0
        self._target, self._path, self._deadline_s = target, path, deadline_s
        self._line = line
        self._exchange = exchange
        self._stop = stop
        self._stream: LineStream | None = None
        self._under_way: deque[tuple[int, float]] = deque()  # row, when its latency began
        self._changed = asyncio.Event()
        self._end: tuple[Reply | None, SendError | None] | None = None
        self._failures = 0

    async def connect(self) -> LineStream:
        """Begin a stream. Raises Unreachable."""
        self._end = None
        self._stream = stream = await LineStream.connect(self._target, self._path, self._replied, self._ended)
        self.connects += 1
        return stream

    async def send(self, job: Sequence[Sequence[int]], wait: Callable[[Sequence[int]], Awaitable[float | None]]) -> None:
        """Each group of rows when `wait` returns: the time its latency counts from, None for now."""
        for rows in job:
            began = await wait(rows)
            if self._stop.is_set():
                break
            while len(self._under_way) + len(rows) > max(WINDOW_ROWS, len(rows)):
                await self._progress()
            began = time.perf_counter() if began is None else began
            self._under_way.extend((row, began) for row in rows)
            await self._write(rows)
        while self._under_way:
            await self._progress()

    async def close(self) -> None:
        """End the request properly and wait for the end of the reply, not for long."""
        if self._stream is None or self._end is not None:
            return
        self._changed.clear()
        self._stream.end()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), min(self._deadline_s, 1.0))
        self._stream.close()

    async def _write(self, rows: Sequence[int]) -> None:
        if self._stream is None or self._end is not None:
            await self._mend()  # writes all that are under way
        else:
            self._stream.write(b"".join([self._line(row) + b"\n" for row in rows]))

    async def _progress(self) -> None:
        """Wait until a reply comes, or see to it that one can."""
        if self._stream is None or self._end is not None:
            await self._mend()
            return
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), self._deadline_s)
        except TimeoutError:
            self._stream.abandon(DeadlinePassed(f"no reply within {self._deadline_s:g} s"))

    async def _mend(self) -> None:
        """Begin the stream anew with the rows that are under way, or give them up."""
        reply, error = self._end or (None, None)
        self._end, self._stream = None, None
        self._failures += 1
        final = self._failures >= ATTEMPTS_MAX or self._stop.is_set()
        pause_s = BACKOFF_S * 2 ** (self._failures - 1)
        if reply is not None:
            wanted_s = pause_after(reply)
            if final or wanted_s is None:
                self._give_up(lambda rows: self._exchange.refused(rows, reply))
                return
            pause_s = wanted_s
        elif error is None:
            error = ConnectionLost("the server ended the stream before it had answered")
        if error is not None and (final or not isinstance(error, Unreachable | ConnectionLost)):
            failed = error
            self._give_up(lambda rows: self._exchange.lost(len(rows), failed))
            return
        self._exchange.retried()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), pause_s)
        try:
            stream = await self.connect()
        except Unreachable as unreachable:
            self._end = (None, unreachable)
            return
        if self._under_way:
            stream.write(b"".join([self._line(row) + b"\n" for row, _ in self._under_way]))

    def _give_up(self, tell: Callable[[list[int]], None]) -> None:
        rows = [row for row, _ in self._under_way]
        self._under_way.clear()
        self._failures = 0
        if rows:
            tell(rows)

    def _replied(self, line: bytes) -> None:
        if not self._under_way:
            return
        row, began = self._under_way.popleft()
        self._failures = 0
        self._changed.set()
        self._exchange.answered(row, line, int((time.perf_counter() - began) * 1e6))

    def _ended(self, reply: Reply | None, error: SendError | None) -> None:
        self._end = (reply, error)
        self._changed.set()
