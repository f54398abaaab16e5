"""GET /v1/audit: who changed what and why, newest first."""

import asyncio
from typing import Final

from aiohttp import web

from service.auth import Role
from service.codec import encode
from service.errors import InvalidEvent
from service.handlers.exchange import Front, Route, json_reply

_ENTRIES: Final = 100
_ENTRIES_MAX: Final = 1_000


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""

    async def get_audit(request: web.Request) -> web.Response:
        limit = _limit(request)
        return json_reply(encode({"entries": await asyncio.to_thread(front.engine.audit.newest, limit)}))

    return [Route("GET", "/v1/audit", "audit", Role.ANALYST, get_audit)]


def _limit(request: web.Request) -> int:
    for name in request.query:
        if name != "limit":
            raise InvalidEvent(f"there is no query parameter {name[:40]!r} here; there is limit", f"?{name[:40]}")
    text = request.query.get("limit", str(_ENTRIES))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _ENTRIES_MAX):
        raise InvalidEvent(f"limit is {text[:40]!r}: expected 1 to {_ENTRIES_MAX}", "?limit")
    return int(text)
