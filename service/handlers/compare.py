"""POST and GET /v1/compare, GET and DELETE /v1/compare/{id}: what each tier is worth, measured beside the running service."""

import asyncio

import msgspec
from aiohttp import web

from service.auth import Role
from service.codec import decode_compare_body, encode
from service.compare import Comparison, Comparisons
from service.handlers.exchange import Front, Route, json_reply, read_body

PATH = "/v1/compare"


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""
    engine, server = front.engine, front.settings.server

    def comparisons() -> Comparisons:
        assert engine.comparisons is not None
        return engine.comparisons

    async def start(request: web.Request) -> web.Response:
        asked = decode_compare_body(await read_body(request, server.body_bytes_max, server.request_deadline_ms))
        who = front.name_of(request)
        scorers, tiers = engine.scorers, engine.tier_switch.names()
        comparison = comparisons().begin(asked, engine.pipeline.scorer.name, scorers.model_directory, tiers, who)
        try:
            await asyncio.to_thread(engine.audit.note, who, "compare", id=comparison.id, request=asked)
        except OSError:  # nothing happens that the audit does not tell of
            await comparisons().cancel(comparison.id)
            raise
        return json_reply(encode(comparison), 202)

    async def list_all(request: web.Request) -> web.Response:
        return json_reply(encode({"comparisons": comparisons().all()}))

    async def get(request: web.Request) -> web.Response:
        comparison, result = await asyncio.to_thread(comparisons().get, request.match_info["id"])
        return json_reply(encode(_shown(comparison, result)))

    async def cancel(request: web.Request) -> web.Response:
        return json_reply(encode(await comparisons().cancel(request.match_info["id"])))

    return [
        Route("POST", PATH, "compare", Role.ANALYST, start),
        Route("GET", PATH, "compare", Role.ANALYST, list_all),
        Route("GET", PATH + "/{id}", "compare", Role.ANALYST, get),
        Route("DELETE", PATH + "/{id}", "compare", Role.ANALYST, cancel),
    ]


def _shown(comparison: Comparison, result: msgspec.Raw) -> dict[str, object]:
    fields = {field: getattr(comparison, field) for field in comparison.__struct_fields__}
    return fields | {"result": result}
