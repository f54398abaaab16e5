"""POST /v1/score and /v1/score/batch: transactions in, decisions out.

`?commit=false` scores without changing any state, `?explain=1` adds reason codes, `?trace=1` says where each profile
came from. A batch answers 200 if its body can be taken apart; what is wrong with a row is said in its place.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from features.transaction import Transaction
from service.auth import Role
from service.codec import NDJSON, decode_batch, decode_transaction, encode_batch, encode_decision, split_batch
from service.errors import WeirError
from service.handlers.exchange import Front, Route, json_reply, read_body, read_flags

if TYPE_CHECKING:
    from service.decide import Decision

_SLICE_ROWS: Final = 1024  # rows decoded or encoded between two turns of the event loop: about 2 ms


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""
    submit = front.engine.submit
    server = front.settings.server
    bytes_max, deadline_ms = server.body_bytes_max, server.request_deadline_ms

    async def score(request: web.Request) -> web.Response:
        body = await read_body(request, bytes_max, deadline_ms)
        if not request.rel_url.raw_query_string:
            return json_reply(encode_decision(await submit(decode_transaction(body))))
        flags = read_flags(request, commit=True, explain=False, trace=False)
        decision = await submit(decode_transaction(body), commit=flags["commit"], trace=flags["trace"])
        return json_reply(encode_decision(decision, flags["explain"]))

    async def score_batch(request: web.Request) -> web.Response:
        return await _score_batch(request, front)

    return [
        Route("POST", "/v1/score", "score", Role.INGEST, score),
        Route("POST", "/v1/score/batch", "score_batch", Role.INGEST, score_batch),
    ]


async def _score_batch(request: web.Request, front: Front) -> web.Response:
    flags = read_flags(request, commit=True, explain=False, trace=False)
    server = front.settings.server
    body = await read_body(request, server.batch_body_bytes_max, server.request_deadline_ms)
    rows, ndjson = split_batch(body, request.content_type.lower(), server.batch_rows_max)
    items: list[Transaction | WeirError] = []
    for start in range(0, len(rows), _SLICE_ROWS):
        if start:
            await asyncio.sleep(0)
        items += decode_batch(rows[start : start + _SLICE_ROWS])
    results: list[Decision | WeirError] = []
    if items:
        results = await front.engine.submit_many(items, commit=flags["commit"], trace=flags["trace"])
    for result in results:
        if isinstance(result, WeirError):
            front.metrics.refused[result.code,] += 1
    parts: list[bytes] = []
    for start in range(0, len(rows), _SLICE_ROWS):
        if start:
            await asyncio.sleep(0)
        stop = start + _SLICE_ROWS
        parts.append(encode_batch(rows[start:stop], results[start:stop], ndjson, flags["explain"]))
    if ndjson:
        return json_reply(b"".join(parts), content_type=NDJSON)
    return json_reply(b"[" + b",".join(part[1:-1] for part in parts) + b"]")
