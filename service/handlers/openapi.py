"""GET /openapi.json: the calls of this service. Open, as the health routes are: it holds nothing that the sources do not."""

import asyncio
import functools

from aiohttp import web

from service.handlers.exchange import Front, Route, json_reply
from service.openapi import encoded


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""
    # Made once, when somebody asks, and not on the event loop: 8 ms.
    body = functools.lru_cache(1)(lambda: asyncio.ensure_future(asyncio.to_thread(encoded, front.engine.plan)))

    async def get_document(request: web.Request) -> web.Response:
        return json_reply(await asyncio.shield(body()))

    return [Route("GET", "/openapi.json", "openapi", None, get_document)]
