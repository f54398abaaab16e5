"""POST /v1/labels: what past transactions turned out to be. All labels of a request are well-formed, or none is taken."""

from aiohttp import web

from service.auth import Role
from service.codec import decode_labels, encode_labels
from service.handlers.exchange import Front, Route, json_reply, read_body, read_flags


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""
    server = front.settings.server

    async def label(request: web.Request) -> web.Response:
        read_flags(request)
        with front.bodies.hold(request, server.batch_body_bytes_max):
            body = await read_body(request, server.batch_body_bytes_max, server.request_deadline_ms)
            labels = decode_labels(body, server.batch_rows_max)
            front.allowance(request).spend(len(labels) - 1)
            return json_reply(encode_labels(await front.engine.label(labels)))

    return [Route("POST", "/v1/labels", "labels", Role.INGEST, label)]
