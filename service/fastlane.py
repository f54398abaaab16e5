"""The fast lane: a protocol on uvloop for POST /v1/score, in front of aiohttp on the same connections.

aiohttp alone costs about 45 µs a request. Here only requests with plain heads are taken (service/plain_head.py). At anything
else, malformed or not, the connection goes over to aiohttp for good, from the first byte of that request on, once all earlier
replies are written: what is not plain is never judged here, so that there is one judge. Batches and streams go there too:
aiohttp's share of a batch is lost in it (docs/adr/0019-fast-lane.md).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, cast

import structlog
from aiohttp.http import SERVER_SOFTWARE

from service.auth import KeyRing, Role, log_refusal, require
from service.codec import MSGPACK, encode_decision
from service.connections import Connections
from service.correlation import REQUEST_ID, TRACEPARENT
from service.errors import PROBLEM_CONTENT_TYPE, Overloaded, RequestTimeout, WeirError, problem
from service.metrics import Metrics
from service.plain_head import HEAD_END, NO_HEAD, PlainHead, PlainHeads, may_become_plain
from service.score_calls import TYPES, ScoreCalls
from service.settings import Settings
from service.ticket import Answer
from service.tracing import Trace, Tracing

HEAD_BYTES_MAX: Final = 4_096  # a longer head is not plain; aiohttp's own limits lie above
# A longer body is not plain: aiohttp looks at the key before it reads one, here it is read first. A transaction has 300 bytes.
BODY_BYTES_MAX: Final = 16 * 1024
PENDING_MAX: Final = 256  # requests of one connection under way; what comes after waits in the socket
BUFFER_BYTES_MAX: Final = 256 * 1024  # unread bytes of one connection while replies are pending
SWEEP_INTERVAL_S: Final = 1.0
OVERLOADED_S: Final = 0.05  # for which the words of a 429 are good

_SCORED: Final = "score", 200
_OVERLOADED: Final = "score", Overloaded.status
_OK: Final = {form: b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % name.encode() for form, name in TYPES.items()}

log = structlog.get_logger("weir.http")


class _Exchange:
    """A request under way, and its reply once there is one."""

    __slots__ = ("body", "connection", "form", "n", "reply", "request_id", "started", "trace")

    def __init__(self, connection: "_Connection", head: PlainHead, body: bytes, started: float) -> None:
        self.connection = connection
        self.n = 1
        self.body = body
        self.form = head.form
        self.request_id = head.request_id
        self.trace: Trace | None = None
        self.started = started
        self.reply: bytes | None = None

    def go_on(self) -> None:
        """To the pipeline."""
        lane, body = self.connection.lane, self.body
        self.body = b""
        try:
            lane.calls.offer(body, self.form, self.answered, self.trace)
        except WeirError as error:
            if isinstance(error, Overloaded):
                lane.turnstile.close(error)
            self.refuse(error)
            self.connection.flush()

    def answered(self, answer: Answer) -> None:
        """The pipeline's answer."""
        connection = self.connection
        if isinstance(answer, WeirError):
            self.refuse(answer)
        else:
            body = answer if isinstance(answer, bytes) else encode_decision(answer, form=MSGPACK)
            more = b"" if self.trace is None and self.request_id is None else self.headers(200)
            self.reply = connection.lane.reply(body, self.form, self.started, more)
        connection.flush()

    def refuse(self, error: WeirError) -> None:
        """The reply is a problem."""
        more = b"" if self.trace is None and self.request_id is None else self.headers(error.status)
        self.reply = self.connection.lane.refusal(error, self.started, more, self.request_id)

    def headers(self, status: int) -> bytes:
        """Header lines by which the client finds the request again; its trace ends."""
        lines = b"" if self.request_id is None else b"%b: %b\r\n" % (REQUEST_ID.encode(), self.request_id.encode())
        tracing = self.connection.lane.tracing
        if self.trace is not None and tracing is not None:
            lines += b"%b: %b\r\n" % (TRACEPARENT.encode(), tracing.end(self.trace, status).encode())
        return lines


class _Refused:
    """`n` requests in a row that were refused for lack of room, behind others that are under way."""

    __slots__ = ("n", "reply")

    def __init__(self, n: int, reply: bytes) -> None:
        self.n = n
        self.reply: bytes | None = reply


class _Connection(asyncio.Protocol):
    """One connection until it goes over to aiohttp."""

    __slots__ = (
        "_buffer", "_head", "_is_eager", "_is_ending", "_is_full", "_is_leaving", "_is_paused", "active_at", "lane",
        "n_pending", "pending", "transport",
    )  # fmt: skip

    def __init__(self, lane: "FastLane") -> None:
        self.lane = lane
        self.transport: asyncio.Transport | None = None
        self.active_at = time.perf_counter()  # when a request began or ended last
        self.pending: deque[_Exchange | _Refused] = deque()
        self.n_pending = 0  # requests that these are
        self._head = NO_HEAD  # of the last request
        self._buffer = b""
        self._is_eager = False  # the client has sent requests without waiting for replies
        self._is_full = False  # the client does not read
        self._is_paused = False
        self._is_leaving = False  # for aiohttp, once nothing is pending
        self._is_ending = False  # closed once nothing is pending

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        if self.lane.open_connections.admit(cast("asyncio.Transport", transport)):
            self.transport = cast("asyncio.Transport", transport)
            self.lane.connections.add(self)
        else:
            self._is_ending = True  # it is closed already

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio. What is under way is scored all the same."""
        self.lane.open_connections.leave(self.transport)
        self.transport = None
        self.lane.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        head, now = self._head, time.perf_counter()
        if (
            len(data) == head.size
            and data.startswith(head.text)
            and not (self._buffer or self.pending or self._is_leaving or self._is_ending)
        ):  # the usual case: one request, whole, with the head of the one before
            self.active_at = now
            self._begin(data, 0, len(head.text), now)
        else:
            self._take_apart(data, now)

    def _take_apart(self, data: bytes, now: float) -> None:
        """What has come, behind what waits, to requests."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        elif not self.pending:
            self.active_at = now
        if self._is_leaving or self._is_ending:
            self._keep(data)
            return
        heads, at = self.lane.heads, 0
        while at < len(data):
            end = data.find(HEAD_END, at, at + HEAD_BYTES_MAX)
            if end < 0:
                if len(data) - at >= HEAD_BYTES_MAX or not may_become_plain(data, at):
                    self._leave(data[at:])
                else:
                    self._keep(data[at:])
                return
            end += len(HEAD_END)
            text = data[at:end]
            head = heads.find(text)
            if head is None:
                self._leave(data[at:])
                return
            if len(data) - at < head.size or self.n_pending >= PENDING_MAX:
                self._keep(data[at:])
                return
            self._head = head
            at = self._begin(data, at, end, now)

    def eof_received(self) -> bool:
        """See asyncio. Replies that are under way are still written; part of a request is nobody's."""
        self._is_ending = not self._is_leaving
        self.flush()
        is_plain = self.transport is not None and self.transport.get_extra_info("sslcontext") is None
        return is_plain and bool(self.pending)  # TLS knows no half-closed connection

    def pause_writing(self) -> None:
        """See asyncio: the client does not read its replies, so no more of its requests are read."""
        self._is_full = True
        self._pause()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._is_full = False
        self._go_on()

    def flush(self) -> None:
        """Write the replies that are next in order."""
        pending, transport = self.pending, self.transport
        while pending:
            reply = pending[0].reply
            if reply is None:
                return
            self.n_pending -= pending.popleft().n
            if transport is not None:
                transport.write(reply)  # uvloop writes what came in one turn of the loop together
        if transport is None:
            return
        self.active_at = self.lane.now
        if self._is_leaving:
            self._hand_over()
        elif self._is_ending:
            transport.close()
        elif self._is_paused or self._buffer:
            self._go_on()

    def end(self) -> None:
        """Take no more requests; close once what is under way is answered."""
        self._is_ending = True
        self._pause()
        self.flush()

    def sweep(self, now: float) -> None:
        """End it if its client keeps it open for nothing."""
        age, server = now - self.active_at, self.lane.server
        if self.pending or self._is_leaving or self.transport is None:
            return
        if not self._buffer:
            if age * 1e3 > server.idle_deadline_ms > 0:
                self.transport.close()
        elif HEAD_END in self._buffer:
            if age * 1e3 > server.request_deadline_ms > 0:
                limit = f"the body did not arrive within server.request_deadline_ms = {server.request_deadline_ms} ms"
                self._refuse(RequestTimeout(limit, "body"))
        elif age * 1e3 > server.head_deadline_ms > 0:
            limit = f"the head did not arrive within server.head_deadline_ms = {server.head_deadline_ms} ms"
            self._refuse(RequestTimeout(limit, "head"))

    def _begin(self, data: bytes, at: int, end: int, now: float) -> int:
        """Take the request that begins at `at`, its body at `end`; where there is no room, all of the same head behind it too.
        Where the next one begins.
        """
        head, lane = self._head, self.lane
        next_at = at + head.size
        try:
            lane.check(head.authorization)
        except WeirError as error:
            if self.transport is not None:
                call, remote = "POST /v1/score", _remote(self.transport)
                log_refusal(error, lane.keys, head.authorization, call, remote, head.request_id)
            exchange = self._add(head, b"", now)
            exchange.refuse(error)
            self.flush()
            return next_at
        if self.pending or next_at < len(data):
            self._is_eager = True
        has_room = lane.turnstile.has_room(now, is_eager=self._is_eager)
        if not has_room and lane.tracing is None and head.request_id is None:
            return self._refuse_alike(data, next_at, now)
        exchange = self._add(head, data[end:next_at], now)
        if lane.tracing is not None:  # not before: nobody without a key makes traces
            exchange.trace = lane.tracing.begin(
                head.traceparent, head.tracestate, "POST", "/v1/score", head.request_id, exchange.started
            )
        if has_room:
            lane.turnstile.take(exchange)
        else:
            exchange.refuse(lane.turnstile.refusal())
            self.flush()
        return next_at

    def _add(self, head: PlainHead, body: bytes, now: float) -> _Exchange:
        exchange = _Exchange(self, head, body, now)
        self.pending.append(exchange)
        self.n_pending += 1
        return exchange

    def _refuse_alike(self, data: bytes, at: int, now: float) -> int:
        """Refuse the request that ends at `at` for lack of room, and whole ones with the same head behind it, in one write.
        Where the first one begins that was not looked at.
        """
        head, lane, n = self._head, self.lane, 1
        text, size = head.text, head.size
        n_max = PENDING_MAX - self.n_pending if self.pending else len(data)
        while n < n_max and len(data) - at >= size and data.startswith(text, at) and lane.admits(head.authorization):
            at += size
            n += 1
        reply = lane.overloaded(n, now)
        if not self.pending:
            self.active_at = now
            if self.transport is not None:
                self.transport.write(reply)
        elif isinstance(last := self.pending[-1], _Refused):
            assert last.reply is not None
            last.reply += reply
            last.n += n
            self.n_pending += n
        else:
            self.pending.append(_Refused(n, reply))
            self.n_pending += n
        return at

    def _refuse(self, error: WeirError) -> None:
        assert self.transport is not None
        self._buffer = b""
        self.transport.write(self.lane.refusal(error, time.perf_counter(), b"Connection: close\r\n"))
        self.transport.close()

    def _keep(self, data: bytes) -> None:
        """For later: the rest of a request, or requests that have to wait."""
        self._buffer = data
        if self.pending and (len(data) > BUFFER_BYTES_MAX or self.n_pending >= PENDING_MAX or self._is_leaving):
            self._pause()

    def _go_on(self) -> None:
        """Read again, if nothing speaks against it."""
        if self._is_paused and not (self._is_full or self._is_leaving or self._is_ending or self.transport is None):
            self._is_paused = False
            self.transport.resume_reading()
        if len(self._buffer) > 0 and not self.pending:
            data, self._buffer = self._buffer, b""
            self.data_received(data)

    def _pause(self) -> None:
        if not self._is_paused and self.transport is not None:
            self._is_paused = True
            self.transport.pause_reading()

    def _leave(self, data: bytes) -> None:
        """The connection is aiohttp's from here on, or once the pending replies are written."""
        self._buffer, self._is_leaving = data, True
        if self.pending:
            self._pause()
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        transport, data = self.transport, self._buffer
        assert transport is not None
        self.lane.connections.discard(self)
        self.transport, self._buffer = None, b""
        other = self.lane.other()
        transport.set_protocol(other)
        other.connection_made(transport)
        if self._is_paused:
            transport.resume_reading()
        if data:
            other.data_received(data)


class FastLane:
    """Makes the connections' protocols. `other` makes aiohttp's; `check_started` raises until recovery is done."""

    def __init__(
        self, calls: ScoreCalls, keys: KeyRing, metrics: Metrics, settings: Settings,
        check_started: Callable[[], None], other: Callable[[], asyncio.Protocol], open_connections: Connections,
        tracing: Tracing | None = None,
    ) -> None:  # fmt: skip
        server = settings.server
        self.calls = calls
        self.turnstile = calls.turnstile(settings.queue)
        self.open_connections = open_connections
        self.tracing = tracing
        self.other = other
        self.connections: set[_Connection] = set()
        self.heads = PlainHeads(min(server.body_bytes_max, BODY_BYTES_MAX))
        self.keys = keys
        self._admit = keys.admit
        self._check_started = check_started
        self.now = time.perf_counter()  # as of the last reply
        self._requests = metrics.requests
        self._refused = metrics.refused
        self._seconds = metrics.request_seconds["score",]
        self.server = server
        self._rest = b""
        self._rest_until = 0.0  # by perf_counter
        self._overloaded, self._overloaded_until = b"", 0.0
        self._sweeping: asyncio.Task[None] | None = None

    def __call__(self) -> asyncio.Protocol:
        """A protocol for a new connection."""
        return _Connection(self)

    def start(self) -> None:
        """Begin to end connections that are kept open for nothing."""
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    async def stop(self, deadline_s: float) -> None:
        """Answer what is under way and close every connection, within the deadline."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        for connection in list(self.connections):
            connection.end()
        stop_at = time.perf_counter() + deadline_s
        while self.connections and time.perf_counter() < stop_at:  # noqa: ASYNC110  # once, at the stop
            await asyncio.sleep(0.005)
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def check(self, authorization: str | None) -> None:
        """Raise WeirError unless a transaction may be scored."""
        require(self._admit(authorization), Role.INGEST)
        self._check_started()

    def admits(self, authorization: str | None) -> bool:
        """Whether one more event may be sent with a key that was checked a moment ago; it is counted against its rate."""
        try:
            self._admit(authorization)
        except WeirError:
            return False
        return True

    def reply(self, body: bytes, form: int, started: float, more: bytes = b"") -> bytes:
        """A 200 as aiohttp would write it. more: header lines."""
        self.now = now = time.perf_counter()
        self._requests[_SCORED] += 1
        self._seconds.observe(now - started)
        rest = self._rest if now < self._rest_until else self._end_of_head()
        return b"%b%bContent-Length: %d%b%b" % (_OK[form], more, len(body), rest, body)

    def refusal(self, error: WeirError, started: float, more: bytes = b"", request_id: str | None = None) -> bytes:
        """A problem as aiohttp would write it. more: header lines."""
        self._refused[error.code,] += 1
        self._requests["score", error.status] += 1
        self.now = now = time.perf_counter()
        self._seconds.observe(now - started)
        return self._problem(error, more, request_id)

    def overloaded(self, n: int, started: float) -> bytes:
        """What `n` requests in a row are answered for which the turnstile has no room; tens of thousands a second."""
        self._refused[Overloaded.code,] += n
        self._requests[_OVERLOADED] += n
        self._seconds.observe(0.0, n)
        if started >= self._overloaded_until:  # words that are a little old do
            self.now = started
            self._overloaded, self._overloaded_until = self._problem(self.turnstile.refusal()), started + OVERLOADED_S
        return self._overloaded * n

    def _problem(self, error: WeirError, more: bytes = b"", request_id: str | None = None) -> bytes:
        headers = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in error.headers().items())
        body = problem(error, request_id)
        rest = self._rest if self.now < self._rest_until else self._end_of_head()
        return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\n%b%bContent-Length: %d%b%b" % (
            error.status, HTTPStatus(error.status).phrase.encode(), PROBLEM_CONTENT_TYPE.encode(), headers, more,
            len(body), rest, body,
        )  # fmt: skip

    def _end_of_head(self) -> bytes:
        """What stands after the length, good until the next second begins."""
        now = time.time()
        self._rest_until = time.perf_counter() + 1 - now % 1
        self._rest = b"\r\nDate: %b\r\nServer: %b\r\n\r\n" % (formatdate(now, usegmt=True).encode(), SERVER_SOFTWARE.encode())
        return self._rest

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now = time.perf_counter()
            for connection in list(self.connections):
                connection.sweep(now)


def _remote(transport: asyncio.Transport) -> str | None:
    """The client's address, as aiohttp names it; None over a UNIX socket."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else None
