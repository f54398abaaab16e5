"""/v2: the Open Inference Protocol, with the binary tensor extension, over every served model (docs/guides/inference.md).

Its clients look for an `error` member in a reply that failed, so problems under /v2 have one beside their own members
(`with_error`). Models are loaded at the start; loading over HTTP is refused.
"""

import asyncio
import importlib.metadata
from time import perf_counter
from typing import Final

import msgspec
from aiohttp import web

from service.auth import Role
from service.codec import encode
from service.errors import BodyTooLarge, MalformedBody, NotPossible, NotReady, RequestTimeout, UnsupportedMedia, WeirError
from service.handlers.exchange import Front, Handler, Route, json_reply, read_body
from service.infer_codec import HEADER_LENGTH
from service.inference import Inference, Lane, Reply, configuration, metadata

ROOT: Final = "/v2"
NOT_HERE: Final = (
    "there is nothing at this path; counts and times of models are in /metrics, docs/guides/inference.md lists the paths"
)
_EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "model_repository")
_ENCODINGS: Final = ("gzip", "deflate", "identity")  # what aiohttp undoes without further packages
_MODEL: Final = f"{ROOT}/models/{{name}}"
_VERSION: Final = f"{_MODEL}/versions/{{version}}"


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""
    return [*_server_routes(front), *_model_routes(front), *_infer_routes(front)]


def _server_routes(front: Front) -> list[Route]:
    server = front.settings.server
    described = encode({"name": "weir", "version": importlib.metadata.version("weir"), "extensions": _EXTENSIONS})

    async def live(request: web.Request) -> web.Response:
        return json_reply(b'{"live":true}')

    async def ready(request: web.Request) -> web.Response:
        is_ready, reason = front.engine.ready
        if not is_ready:
            raise NotReady(reason)
        return json_reply(b'{"ready":true}')

    async def get_server(request: web.Request) -> web.Response:
        return json_reply(described)

    async def get_index(request: web.Request) -> web.Response:
        await read_body(request, server.body_bytes_max, server.request_deadline_ms)
        return json_reply(encode(_inference(front).index()))

    async def refuse_loading(request: web.Request) -> web.Response:
        raise NotPossible("models are loaded at the start; change inference.models_dir and start the service again", "name")

    return [
        Route("GET", f"{ROOT}/health/live", "infer_health", None, live),
        Route("GET", f"{ROOT}/health/ready", "infer_health", None, ready),
        Route("GET", ROOT, "infer_metadata", Role.INGEST, get_server),
        Route("POST", f"{ROOT}/repository/index", "infer_metadata", Role.INGEST, get_index),
        Route("POST", f"{ROOT}/repository/models/{{name}}/load", "infer_metadata", Role.INGEST, refuse_loading),
        Route("POST", f"{ROOT}/repository/models/{{name}}/unload", "infer_metadata", Role.INGEST, refuse_loading),
    ]


def _model_routes(front: Front) -> list[Route]:
    async def get_model(request: web.Request) -> web.Response:
        inference, lane = _find(front, request)
        model = await inference.opened(lane)
        return json_reply(encode(metadata(model, inference.lanes[model.name])))

    async def get_ready(request: web.Request) -> web.Response:
        inference, lane = _find(front, request)
        await inference.opened(lane)
        return json_reply(encode({"name": lane.source.name, "ready": True}))

    async def get_configuration(request: web.Request) -> web.Response:
        inference, lane = _find(front, request)
        return json_reply(encode(configuration(await inference.opened(lane))))

    found: list[Route] = []
    for path in (_MODEL, _VERSION):
        found += [
            Route("GET", path, "infer_metadata", Role.INGEST, get_model),
            Route("GET", f"{path}/ready", "infer_metadata", Role.INGEST, get_ready),
            Route("GET", f"{path}/config", "infer_metadata", Role.INGEST, get_configuration),
        ]
    return found


def _infer_routes(front: Front) -> list[Route]:
    limits, counts, seconds = front.settings.inference, front.metrics.infer, front.metrics.infer_seconds

    async def infer(request: web.Request) -> web.Response:
        inference, lane = _find(front, request)
        started, name, result = perf_counter(), lane.source.name, "failed"
        try:
            reply = await _infer(inference, lane, request)
            result = "ok"
        except WeirError as error:
            result = error.code
            raise
        finally:
            counts[name, result] += 1
            seconds[name,].observe(perf_counter() - started)
        return _reply(reply)

    async def _infer(inference: Inference, lane: Lane, request: web.Request) -> Reply:
        place = inference.enter(lane, None if _is_encoded(request) else request.content_length)
        try:
            body = await _read(request, limits.body_bytes_max, limits.deadline_ms)
            return await inference.infer(place, lane, body, request.headers.get(HEADER_LENGTH))
        finally:
            place.leave()

    return [Route("POST", f"{path}/infer", "infer", Role.INGEST, infer) for path in (_MODEL, _VERSION)]


def with_error(handler: Handler) -> Handler:
    """`handler`, whose problems get the member `error` that clients of the protocol show."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = await handler(request)
        if response.status >= 400 and isinstance(response, web.Response) and isinstance(response.body, bytes):
            members = msgspec.json.decode(response.body)
            response.body = encode(members | {"error": members["detail"]})
        return response

    return handle


def _inference(front: Front) -> Inference:
    inference = front.engine.inference
    assert inference is not None, "set before the engine takes requests"
    return inference


def _find(front: Front, request: web.Request) -> tuple[Inference, Lane]:
    inference = _inference(front)
    return inference, inference.find(request.match_info["name"], request.match_info.get("version"))


def _is_encoded(request: web.Request) -> bool:
    return request.headers.get("Content-Encoding", "identity").lower() != "identity"


async def _read(request: web.Request, bytes_max: int, deadline_ms: int) -> bytearray:
    """The body, decompressed, in pieces of 64 KiB: `request.read` would undo a whole body in one step of the event loop.

    Raises UnsupportedMedia, BodyTooLarge, RequestTimeout, MalformedBody.
    """
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in _ENCODINGS:
        raise UnsupportedMedia(f"{encoding[:40]!r} is not read here; send {', '.join(_ENCODINGS)}", "Content-Encoding")
    body = bytearray()
    try:
        async with asyncio.timeout(deadline_ms / 1000):
            length = request.content_length or 0
            if length <= bytes_max:
                async for piece in request.content.iter_any():
                    body += piece
                    length = max(length, len(body))
                    if length > bytes_max:
                        break
    except TimeoutError:
        limit = f"the body did not arrive within inference.deadline_ms = {deadline_ms} ms"
        raise RequestTimeout(limit, "body") from None
    except (web.RequestPayloadError, ConnectionError):
        raise MalformedBody("the body is not what its Content-Encoding and length say", "body") from None
    if length > bytes_max:
        limit = f"at most inference.body_bytes_max = {bytes_max} are read here"
        raise BodyTooLarge(f"the body has {length} bytes or more, {limit}", "body")
    return body


def _reply(reply: Reply) -> web.Response:
    if reply.json_bytes is None:
        return json_reply(reply.body)
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(reply.json_bytes)}
    return web.Response(body=reply.body, headers=headers)
