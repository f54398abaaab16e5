"""POST /v1/score, /v1/score/batch and /v1/score/stream as aiohttp serves them; the rest is in service/score_calls.py."""

import asyncio
import functools

import structlog
from aiohttp import HttpVersion11, web

from service.auth import Role
from service.codec import encode_decision, form_of, stream_form
from service.decide import Decision
from service.errors import WeirError
from service.handlers.exchange import REPLY_HEADERS, Front, Route, check_encoding, json_reply, read_body, read_flags
from service.score_calls import TYPES, Flags
from service.score_stream import ScoreStream
from service.ticket import Answer
from service.tracing import current

_log = structlog.get_logger("weir.http")


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""
    calls, server = front.calls, front.settings.server
    bytes_max, deadline_ms = server.body_bytes_max, server.request_deadline_ms

    async def score(request: web.Request) -> web.Response:
        body = await read_body(request, bytes_max, deadline_ms)
        form = form_of(request.content_type)
        if request.rel_url.raw_query_string:
            return json_reply(await calls.one(body, form, score_flags(request)), content_type=TYPES[form])
        future: asyncio.Future[bytes | Decision] = asyncio.get_running_loop().create_future()
        calls.offer(body, form, functools.partial(_resolve, future), current())
        answer = await future
        return json_reply(answer if isinstance(answer, bytes) else encode_decision(answer, form=form), content_type=TYPES[form])

    async def score_batch(request: web.Request) -> web.Response:
        flags = score_flags(request)
        with front.bodies.hold(request, server.batch_body_bytes_max):
            body = await read_body(request, server.batch_body_bytes_max, deadline_ms)
            reply, content_type = await calls.batch(body, request.content_type.lower(), flags, front.allowance(request))
        return json_reply(reply, content_type=content_type)

    async def score_stream(request: web.Request) -> web.StreamResponse:
        flags, form = score_flags(request), stream_form(request.content_type.lower())
        check_encoding(request)
        response = web.StreamResponse(headers={"Content-Type": TYPES[form], **request.get(REPLY_HEADERS, {})})
        if request.version >= HttpVersion11:
            response.enable_chunked_encoding()
        await response.prepare(request)  # now: a client may wait for the head before it sends the first row
        try:
            stream = ScoreStream(calls, form, flags, bytes_max, front.allowance(request), lambda: front.role_of(request))
            await stream.run(request.content.readany, response.write)
            await response.write_eof()
        except (ConnectionError, web.RequestPayloadError) as error:  # the client has gone; what it sent is scored
            _log.info("stream broke off", error=type(error).__name__)
            response.force_close()
        return response

    return [
        Route("POST", "/v1/score/stream", "score_stream", Role.INGEST, score_stream),
        Route("POST", "/v1/score", "score", Role.INGEST, score),
        Route("POST", "/v1/score/batch", "score_batch", Role.INGEST, score_batch),
    ]


def score_flags(request: web.Request) -> Flags:
    """The flags of a scoring route. Raises InvalidEvent."""
    return Flags(**read_flags(request, commit=True, explain=False, trace=False))


def _resolve(future: "asyncio.Future[bytes | Decision]", answer: Answer) -> None:
    if future.done():  # the client hung up; what was journaled stays journaled
        return
    if isinstance(answer, WeirError):
        future.set_exception(answer)
    else:
        future.set_result(answer)
