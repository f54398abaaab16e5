"""GET /v1/tiers: each tier, whether it is on, its state and what it holds."""

from aiohttp import web

from service.auth import Role
from service.codec import encode
from service.handlers.exchange import Front, Route, json_reply


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""

    async def get_tiers(request: web.Request) -> web.Response:
        return json_reply(encode({"tiers": front.engine.tiers()}))

    return [Route("GET", "/v1/tiers", "tiers", Role.ANALYST, get_tiers)]
