"""GET, DELETE /v1/entities/{kind}/{id}: the windows of an entity and which tiers hold it; forgetting it.

An erasure counts at once; 200 says that the id is gone everywhere, 202 that the work goes on, and in what.
"""

from typing import Final

from aiohttp import web

from service.auth import Role
from service.codec import encode
from service.handlers.exchange import Front, Route, json_reply, read_entity

ERASURE_WAIT_S: Final = 10.0  # for what can be done at once
_PATH: Final = "/v1/entities/{kind}/{id}"


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""

    async def get_entity(request: web.Request) -> web.Response:
        kind, entity_id = read_entity(request, front)
        return json_reply(encode(await front.engine.entity(kind, entity_id)))

    async def delete_entity(request: web.Request) -> web.Response:
        kind, entity_id = read_entity(request, front)
        who = front.name_of(request)
        front.feed.forget()
        result = await front.engine.erase(kind, entity_id, who, ERASURE_WAIT_S)
        return json_reply(encode(result), 202 if result["left"] else 200)

    return [
        Route("GET", _PATH, "entities", Role.ANALYST, get_entity),
        Route("DELETE", _PATH, "entities", Role.ANALYST, delete_entity),
    ]
