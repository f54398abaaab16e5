"""Requests that never reach a handler: not HTTP, a header too long, an encoding that cannot be read. Problems, too.

aiohttp answers these as text/plain that quotes the request, and logs a traceback with the line at fault, which may be a
body or an API key. Here the reply says what is wrong without quoting, and the log has one line with neither.
"""

from typing import Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError

from service.errors import CallerError, UnsupportedMedia, WeirError
from service.handlers.exchange import problem_reply

HALF_CLOSED_INTERVAL_S: Final = 0.02  # between two looks whether a half-closed connection has been answered

_log = structlog.get_logger("weir.http")


class HttpRunner(web.AppRunner):
    """An AppRunner whose connections answer what cannot be parsed with a problem."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(server.request_handler, request_factory=server.request_factory, **server._kwargs)


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

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
