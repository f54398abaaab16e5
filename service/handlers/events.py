"""GET /v1/events: the live feed as server-sent events (`stats` once an interval, `decisions` where there are any).

A stream ends when its key or session does, and when the service stops; `lost` says how many messages a slow client missed.
"""

import asyncio
from typing import Final

from aiohttp import web

from service.auth import Role
from service.errors import WeirError
from service.handlers.exchange import REPLY_HEADERS, Front, Route

WRITE_DEADLINE_S: Final = 20.0  # for a client that does not read
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # reverse proxies: pass it on as it comes
}


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""

    async def follow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={**_HEADERS, **request.get(REPLY_HEADERS, {})})
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        listener = front.feed.join()
        try:
            await response.prepare(request)
            await response.write(b"retry: 2000\n\n")
            n_lost = 0
            while (message := await listener.queue.get()) is not None:
                try:
                    front.role_of(request)
                except WeirError:  # revoked, expired or signed out meanwhile
                    await response.write(b"event: end\ndata: {}\n\n")
                    break
                if listener.n_lost > n_lost:
                    message += b'event: lost\ndata: {"messages": %d}\n\n' % (listener.n_lost - n_lost)
                    n_lost = listener.n_lost
                async with asyncio.timeout(WRITE_DEADLINE_S):
                    await response.write(message)
            await response.write_eof()
        except (ConnectionError, TimeoutError):  # it has gone, or hangs
            response.force_close()
        finally:
            front.feed.leave(listener)
        return response

    return [Route("GET", "/v1/events", "events", Role.ANALYST, follow)]
