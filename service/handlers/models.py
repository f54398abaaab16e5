"""GET /v1/models, PUT /v1/models/{champion|challenger}, DELETE /v1/models/challenger: which models there are, which are in
use, how they do."""

from aiohttp import web

from service.auth import Role
from service.codec import ModelBody, decode_model_body, encode
from service.handlers.exchange import Front, Handler, Route, json_reply, read_body, read_flags


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""
    engine, server = front.engine, front.settings.server

    async def get_models(request: web.Request) -> web.Response:
        read_flags(request)
        return json_reply(encode(await engine.models.describe()))

    def put_model(role: str) -> Handler:
        async def put(request: web.Request) -> web.Response:
            read_flags(request)
            change = decode_model_body(await read_body(request, server.body_bytes_max, server.request_deadline_ms), role)
            return await _changed(request, change, role)

        return put

    async def delete_challenger(request: web.Request) -> web.Response:
        read_flags(request)
        return await _changed(request, ModelBody("stopped", None), "challenger")

    async def _changed(request: web.Request, change: ModelBody, role: str) -> web.Response:
        await engine.choose_model(change, role, front.name_of(request))
        shown = await engine.models.describe()
        return json_reply(encode({name: shown[name] for name in ("champion", "previous", "challenger")}))

    return [
        Route("GET", "/v1/models", "models", Role.ANALYST, get_models),
        Route("PUT", "/v1/models/champion", "models", Role.ANALYST, put_model("champion")),
        Route("PUT", "/v1/models/challenger", "models", Role.ANALYST, put_model("challenger")),
        Route("DELETE", "/v1/models/challenger", "models", Role.ANALYST, delete_challenger),
    ]
