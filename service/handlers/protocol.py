"""Requests that never reach a handler: not HTTP, a header too long, an encoding that cannot be read. Problems, too.

aiohttp answers these as text/plain that quotes the request, and logs a traceback with the line at fault, which may be a
body or an API key. Here the reply says what is wrong without quoting, and the log has one line with neither.
"""

import asyncio
from typing import Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError

from service.connections import Connections
from service.errors import CallerError, UnsupportedMedia, WeirError
from service.handlers.exchange import problem_reply
from service.settings import ServerSettings

WEEK_S: Final = 7 * 86_400.0
HALF_CLOSED_INTERVAL_S: Final = 0.02  # between two looks whether a half-closed connection has been answered

_log = structlog.get_logger("weir.http")


class HttpRunner(web.AppRunner):
    """An AppRunner whose connections answer what cannot be parsed with a problem, and do not wait for ever for a head."""

    def __init__(self, app: web.Application, server: ServerSettings, open_connections: Connections, **options: Any) -> None:
        # aiohttp has no "never": a week.
        super().__init__(app, keepalive_timeout=server.idle_deadline_ms / 1000 or WEEK_S, **options)
        self._head_deadline_s = server.head_deadline_ms / 1000
        self._open_connections = open_connections

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        ours = _Server(server.request_handler, request_factory=server.request_factory, **server._kwargs)
        ours.head_deadline_s = self._head_deadline_s
        ours.open_connections = self._open_connections
        return ours


class _Server(web.Server):
    head_deadline_s: float
    open_connections: Connections

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self.head_deadline_s, self.open_connections, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ("_counted", "_head_deadline_s", "_head_timer", "_open_connections")

    def __init__(self, server: _Server, head_deadline_s: float, open_connections: Connections, **options: Any) -> None:
        super().__init__(server, **options)
        self._open_connections = open_connections
        self._counted: asyncio.BaseTransport | None = None
        self._head_deadline_s = head_deadline_s
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio. One connection too many is answered there, and nothing of it is read."""
        if self._open_connections.admit(cast("asyncio.Transport", transport)):
            self._counted = transport
            super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """What is no request yet, and belongs to none, is part of a head."""
        if self._counted is None:
            return
        super().data_received(data)
        is_idle = self._waiter is None or not self._waiter.done()
        if data and is_idle and not self._messages and not self._request_in_progress:
            if self._head_timer is None and self._head_deadline_s:
                self._head_timer = self._loop.call_later(self._head_deadline_s, self._give_up)
        elif self._head_timer is not None:
            self._end_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio."""
        self._end_timer()
        if self._counted is not None:
            self._open_connections.leave(self._counted)
            self._counted = None
            super().connection_lost(exc)

    def _give_up(self) -> None:
        self._head_timer = None
        _log.warning("head did not arrive in time", seconds=self._head_deadline_s)
        self.force_close()

    def _end_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for it, aiohttp never says yes
        """A client that has said all it had to say still gets its replies; aiohttp and uvloop would close at once."""
        self._close_when_idle()
        return self.ssl_context is None  # TLS knows no half-closed connection

    def _close_when_idle(self) -> None:
        if self.transport is None:
            return
        if not self._messages and self._waiter is not None and not self._waiter.done():
            self.force_close()  # what is written already is sent
        else:
            self._loop.call_later(HALF_CLOSED_INTERVAL_S, self._close_when_idle)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The reply to a request that aiohttp could not hand to a handler; it closes the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of another reply is sent already")
        error = _as_error(exc, status)
        log = _log.warning if status < 500 else _log.error
        log("request not read", status=error.status, error=type(exc).__name__)
        reply = problem_reply(error)
        reply.force_close()
        return reply


def _as_error(exc: BaseException | None, status: int) -> WeirError:
    """Only the text before the first colon or line break: what follows quotes the request."""
    if not isinstance(exc, HttpProcessingError) or status >= 500:
        return WeirError("unexpected; the service's log has it")
    reason = exc.message.strip().partition("\n")[0].partition(":")[0].strip()
    if isinstance(exc, ContentEncodingError):
        return UnsupportedMedia(f"{reason}; send it as it is, or in gzip", "Content-Encoding")
    return CallerError(f"this is not a request that can be read: {reason}")
