"""GET and PUT /v1/scorer: which engine scores, and changing it while transactions flow."""

from aiohttp import web

from service.auth import Role
from service.codec import decode_scorer_body, encode
from service.handlers.exchange import Front, Route, json_reply, read_body


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""
    engine, server = front.engine, front.settings.server

    async def get_scorer(request: web.Request) -> web.Response:
        return json_reply(encode(engine.scorers.describe()))

    async def put_scorer(request: web.Request) -> web.Response:
        change = decode_scorer_body(await read_body(request, server.body_bytes_max, server.request_deadline_ms))
        who = front.name_of(request)
        await engine.switch_scorer(change.scorer, change.reason, who)
        return json_reply(encode(engine.scorers.describe()))

    return [
        Route("GET", "/v1/scorer", "scorer", Role.ANALYST, get_scorer),
        Route("PUT", "/v1/scorer", "scorer", Role.ANALYST, put_scorer),
    ]
