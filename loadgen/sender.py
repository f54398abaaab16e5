"""A small keep-alive HTTP/1.1 client: one connection, one request in flight, nothing that a measurement does not need.

Why our own: aiohttp's client costs about 100 µs of CPU a request; with client and server on a core each, that client
would be the bottleneck at 64 connections. `Wire` is the bare connection with callbacks (the benchmarks drive it
directly, about 10 µs a request); `Client` adds futures, a deadline and reconnecting (the replay).
Replies need a Content-Length or chunked framing; a body that ends with the connection counts as lost.
"""

import asyncio
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec

CONNECT_DEADLINE_S = 5.0  # s; on loopback or in one data centre, later is never
ATTEMPTS_MAX = 6  # sends of one request: the pauses between them add up to 3.1 s when the server does not answer
BACKOFF_S = 0.1  # s; first pause after a lost connection, doubled each time
RETRY_AFTER_S_MAX = 5.0  # s; a server that asks for more is overloaded for longer than a replay should wait
RETRY_AFTER_DEFAULT_S = 0.1  # s; waited on a 429 that names no time, or one that is not a number


class SendError(Exception):
    """The request got no reply. `word` is a short name to count by."""

    word = "send error"


class BadUrl(SendError):
    """The URL is not one this client can talk to."""

    word = "bad url"


class Unreachable(SendError):
    """No connection could be made."""

    word = "unreachable"


class ConnectionLost(SendError):
    """The connection closed, or spoke no HTTP, before the reply was complete."""

    word = "connection lost"


class DeadlinePassed(SendError):
    """No complete reply within the deadline; the connection has been dropped."""

    word = "deadline passed"


class Reply(msgspec.Struct, gc=False):
    """A complete reply. `retry_after_s` is None unless the server sent Retry-After."""

    status: int
    body: bytes
    retry_after_s: float | None = None


class Target(msgspec.Struct, frozen=True):
    """Where requests go, and with which key."""

    host: str
    port: int
    base_path: str
    key: str

    @classmethod
    def parse(cls, url: str, key: str) -> "Target":
        """Split `url` (http only). Raises BadUrl with the reason."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port or 80
        except ValueError as error:
            raise BadUrl(f"{url!r} is not a URL: {error}") from error
        if parts.scheme != "http":
            raise BadUrl(f"{url!r}: the load generator speaks plain http only, not {parts.scheme}")
        if not parts.hostname:
            raise BadUrl(f"{url!r} names no host; expected something like http://127.0.0.1:8080")
        if not all("!" <= character <= "~" for character in key):
            raise BadUrl("the key holds spaces or characters that cannot stand in an HTTP header")
        return cls(parts.hostname, port, parts.path.rstrip("/"), key)

    def head(self, method: str, path: str) -> bytes:
        """The request's head up to the number of Content-Length; `encode` and the benchmarks' templates finish it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return (
            f"{method} {self.base_path}{path} HTTP/1.1\r\nHost: {host}:{self.port}\r\n{key}"
            "Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: "
        ).encode("ascii")

    def encode(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A whole request, ready for the wire."""
        return b"%s%d\r\n\r\n%s" % (self.head(method, path), len(body), body)


class Wire(asyncio.Protocol):
    """One connection. Set `on_reply` and `on_lost`, then `send` whole requests, one at a time.

    Invariant: each `send` is followed by exactly one of `on_reply(reply)` and `on_lost(error)`. With `on_part` set, the body of
    a reply with status 200 goes there as it comes; `send_more` adds to a request whose body is sent in chunks.
    """

    def __init__(self) -> None:
        self.on_reply: Callable[[Reply], None] = _ignore
        self.on_lost: Callable[[SendError], None] = _ignore
        self.on_part: Callable[[bytes], None] | None = None
        self.open = False
        self._waiting = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._retry_after_s: float | None = None

    @classmethod
    async def connect(cls, target: Target) -> "Wire":
        """Raises Unreachable."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                _, wire = await loop.create_connection(cls, target.host, target.port)
        except (OSError, TimeoutError) as error:
            reason = str(error) or f"no connection within {CONNECT_DEADLINE_S:.0f} s"
            raise Unreachable(f"cannot reach {target.host}:{target.port}: {reason}") from error
        return wire

    def send(self, request: bytes) -> None:
        assert not self._waiting, "one request at a time"
        self._waiting = True
        if self._transport is None or not self.open:
            self._lose(ConnectionLost("the connection is closed"))
            return
        self._transport.write(request)

    def send_more(self, data: bytes) -> None:
        """Go on with the request that was sent last; nothing happens if it has ended."""
        if self._transport is not None and self.open and self._waiting:
            self._transport.write(data)

    def abandon(self, error: SendError) -> None:
        """Drop the connection; a waiting request ends with `error`."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()
        self._lose(error)

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the methods but not the base class
        self.open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.abandon(ConnectionLost(f"the reply is not HTTP/1.1: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._lose(ConnectionLost(str(exc) if exc else "the server closed the connection before it replied"))

    # httptools

    def on_message_begin(self) -> None:
        self._body = b""
        self._retry_after_s = None

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 11 and name.lower() == b"retry-after":
            try:
                self._retry_after_s = max(0.0, float(value))
            except ValueError:  # an HTTP date is allowed; our own service sends seconds
                self._retry_after_s = RETRY_AFTER_DEFAULT_S

    def on_body(self, body: bytes) -> None:
        if self.on_part is not None and self._parser.get_status_code() == 200:
            self.on_part(body)
            return
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or not self._waiting:  # 100 Continue and the like; or a reply nobody asked for
            return
        if not self._parser.should_keep_alive():
            self.close()
        self._waiting = False
        self.on_reply(Reply(status, self._body, self._retry_after_s))

    def _lose(self, error: SendError) -> None:
        if self._waiting:
            self._waiting = False
            self.on_lost(error)


class Client:
    """One connection that is made when needed and made again after a loss. One request at a time."""

    def __init__(self, target: Target, deadline_s: float) -> None:
        self._target = target
        self._deadline_s = deadline_s
        self._wire: Wire | None = None
        self.connects = 0

    async def connect(self) -> Wire:
        """The open connection, made now if there is none. Raises Unreachable."""
        if self._wire is None or not self._wire.open:
            self._wire = await Wire.connect(self._target)
            self.connects += 1
        return self._wire

    async def request(self, payload: bytes) -> Reply:
        """Send one encoded request (`Target.encode`). Raises a SendError; it never sends twice."""
        wire = await self.connect()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()

        def replied(reply: Reply) -> None:
            if not future.done():
                future.set_result(reply)

        def lost(error: SendError) -> None:
            if not future.done():
                future.set_exception(error)

        wire.on_reply, wire.on_lost = replied, lost
        deadline = DeadlinePassed(f"no reply within {self._deadline_s:g} s")
        timer = loop.call_later(self._deadline_s, wire.abandon, deadline)
        try:
            wire.send(payload)
            return await future
        except asyncio.CancelledError:
            wire.abandon(ConnectionLost("cancelled"))
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()


def pause_after(reply: Reply) -> float | None:
    """Seconds to wait before the same again: after a 429, or a 503 that says when. None: it would not help."""
    if reply.status != 429 and (reply.status != 503 or reply.retry_after_s is None):
        return None
    return min(RETRY_AFTER_DEFAULT_S if reply.retry_after_s is None else reply.retry_after_s, RETRY_AFTER_S_MAX)


def _ignore(_: object) -> None:
    """Nobody listens yet."""
