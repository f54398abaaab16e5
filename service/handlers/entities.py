"""GET /v1/entities/{kind}/{id}: the windows of an entity and which tiers hold it."""

from aiohttp import web

from service.auth import Role
from service.codec import encode
from service.handlers.exchange import Front, Route, json_reply, read_entity


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""

    async def get_entity(request: web.Request) -> web.Response:
        kind, entity_id = read_entity(request, front)
        return json_reply(encode(await front.engine.entity(kind, entity_id)))

    return [Route("GET", "/v1/entities/{kind}/{id}", "entities", Role.ANALYST, get_entity)]
