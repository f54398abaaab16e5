"""GET /v1/decisions/{event_id}: what was decided about a transaction, and why."""

from aiohttp import web

from service.auth import Role
from service.codec import encode
from service.handlers.exchange import Front, Route, json_reply


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""

    async def get_decision(request: web.Request) -> web.Response:
        stored = await front.engine.decision(request.match_info["event_id"])
        return json_reply(encode(stored.reply()))

    return [Route("GET", "/v1/decisions/{event_id}", "decisions", Role.INGEST, get_decision)]
