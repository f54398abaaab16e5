"""GET /v1/decisions/{event_id}: what was decided about a transaction, and why.

With the `trace` of `?trace=1` (features, tier and age of every profile) if the live feed showed it: nothing else keeps those.
"""

from aiohttp import web

from service.auth import Role
from service.codec import encode
from service.handlers.exchange import Front, Route, json_reply


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""

    async def get_decision(request: web.Request) -> web.Response:
        stored = await front.engine.decision(request.match_info["event_id"])
        reply = stored.reply()
        trace = front.feed.trace_of(request.match_info["event_id"])
        return json_reply(encode(reply if trace is None else reply | {"trace": trace}))

    return [Route("GET", "/v1/decisions/{event_id}", "decisions", Role.INGEST, get_decision)]
