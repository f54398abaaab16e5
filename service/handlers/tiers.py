"""GET /v1/tiers, PUT /v1/tiers/{name}: each tier, whether it is on, its state and what it holds; turning it off and on."""

from aiohttp import web

from service.auth import Role
from service.codec import decode_tier_body, encode
from service.handlers.exchange import Front, Route, json_reply, read_body


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""
    engine, server = front.engine, front.settings.server

    async def get_tiers(request: web.Request) -> web.Response:
        await engine.sizes.refresh()
        return json_reply(encode(_shown()))

    async def put_tier(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        change = decode_tier_body(await read_body(request, server.body_bytes_max, server.request_deadline_ms))
        who = front.name_of(request)
        await engine.switch_tier(name, change.enabled, change.reason, who)
        return json_reply(encode(next(tier for tier in engine.tiers() if tier["name"] == name)))

    def _shown() -> dict[str, object]:
        return {"tiers": engine.tiers(), "consumers": engine.consumers(), "warnings": engine.warnings()}

    return [
        Route("GET", "/v1/tiers", "tiers", Role.ANALYST, get_tiers),
        Route("PUT", "/v1/tiers/{name}", "tiers", Role.ANALYST, put_tier),
    ]
