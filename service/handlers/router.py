"""The web application: every route, who may call it, and how each failure becomes a problem+json reply.

There is no aiohttp middleware: handlers are wrapped once, at registration, and wrong methods and unknown paths are
routes of their own. A middleware costs every request a few µs, the wrapper 1 µs with key check and metrics.
"""

import secrets
import traceback
from time import perf_counter
from typing import TYPE_CHECKING

import structlog
from aiohttp import HttpVersion11, web

from service.auth import KeyRing, log_refusal, require
from service.bodies import Bodies
from service.console.sessions import Sessions
from service.correlation import REQUEST_ID, TRACEPARENT, TRACESTATE, clean_request_id, loggable
from service.errors import (
    DiskFull,
    MethodNotAllowed,
    NotFound,
    WeirError,
)
from service.feed import Feed
from service.handlers import (
    audit,
    compare,
    console,
    decisions,
    entities,
    events,
    health,
    inference,
    labels,
    lists,
    models,
    openapi,
    score,
    scorer,
    session,
    tiers,
)
from service.handlers.exchange import REPLY_HEADERS, Front, Handler, Route, problem_reply
from service.journal_format import NO_SPACE
from service.metrics import Metrics
from service.score_calls import ScoreCalls
from service.settings import Settings
from service.tracing import CURRENT, Tracing

if TYPE_CHECKING:
    from service.engine import Engine

REFUSED = (401, 403)  # for the key; each such call is logged

_log = structlog.get_logger("weir.http")


def build_web_app(
    engine: "Engine", keys: KeyRing, metrics: Metrics, settings: Settings, tracing: Tracing | None = None
) -> web.Application:
    """The aiohttp application of the service. It owns no tasks and closes nothing."""
    feed = Feed(engine, metrics, settings.console)
    sessions = Sessions(keys, settings.console)
    server = settings.server
    bodies = Bodies(server.bodies_bytes_max)
    front = Front(engine, ScoreCalls(engine, metrics, server), keys, metrics, settings, sessions, feed, bodies, tracing)
    # aiohttp's own limit only bounds what is read at all; each route has its own (exchange.read_body).
    app = web.Application(client_max_size=max(server.body_bytes_max, server.batch_body_bytes_max) + 1)
    app.on_shutdown.append(lambda _: _end(feed))
    allowed: dict[str, set[str]] = {}
    for module in (
        score, labels, decisions, entities, lists, tiers, scorer, models, audit, compare, events, session, console,
        health, inference, openapi,
    ):  # fmt: skip
        for route in module.routes(front):
            handler = _wrap(route, front)
            app.router.add_route(route.method, route.path, handler, expect_handler=_expect)
            allowed.setdefault(route.path, set()).add(route.method)
            if route.method == "GET":
                app.router.add_route("HEAD", route.path, handler, expect_handler=_expect)
                allowed[route.path].add("HEAD")
    for path, methods in allowed.items():
        app.router.add_route("*", path, _wrap(_refuse_method(path, methods), front), expect_handler=_expect)
    for unknown in (_refuse_path(f"{inference.ROOT}/{{unknown:.*}}", inference.NOT_HERE), _refuse_path()):
        app.router.add_route("*", unknown.path, _wrap(unknown, front), expect_handler=_expect)
    return app


async def _end(feed: Feed) -> None:
    feed.close()


async def _expect(request: web.Request) -> None:
    """`Expect: 100-continue` is answered, another expectation ignored: aiohttp's own 417 is no problem+json."""
    if request.headers["Expect"].lower() == "100-continue" and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the reply has not begun


def _refuse_method(path: str, methods: set[str]) -> Route:
    allowed = tuple(sorted(methods))

    async def refuse(request: web.Request) -> web.Response:
        raise MethodNotAllowed(f"{request.method} is not possible here; {', '.join(allowed)} is", allowed)

    return Route("*", path, "refused", None, refuse)


def _refuse_path(path: str = "/{unknown:.*}", text: str = "there is nothing at this path") -> Route:
    async def refuse(request: web.Request) -> web.Response:
        raise NotFound(text)

    return Route("*", path, "refused", None, refuse)


def _wrap(route: Route, front: Front) -> Handler:
    """`route.handler` with key check, metrics and replies for its failures. Nothing but health is served before the start."""
    name, need, handler, tracing = route.name, route.need, route.handler, front.tracing
    admit, requests, check_started = front.admit, front.metrics.requests, front.engine.check_started
    observe = front.metrics.request_seconds[name,].observe

    async def handle(request: web.Request) -> web.StreamResponse:
        started, headers, trace = perf_counter(), request.headers, None
        request_id = clean_request_id(headers.get(REQUEST_ID))
        if request_id is not None:
            request[REPLY_HEADERS] = {REQUEST_ID: request_id}
            structlog.contextvars.bind_contextvars(request_id=loggable(request_id))
        try:
            if need is not None:
                require(admit(request), need)
                check_started()
                if tracing is not None:  # not before: nobody without a key makes traces
                    parent, state = headers.get(TRACEPARENT), headers.get(TRACESTATE)
                    trace = tracing.begin(parent, state, request.method, route.path, request_id, started)
                    CURRENT.set(trace)
            response = await handler(request)
        except WeirError as error:
            if need is not None and error.status in REFUSED:
                header = headers.get("Authorization")
                log_refusal(error, front.keys, header, f"{request.method} {route.path}", request.remote)
            front.metrics.refused[error.code,] += 1
            response = problem_reply(error, request_id)
        except OSError as error:
            response = _full(error, request_id) if error.errno in NO_SPACE else _unexpected(error, name, request_id)
        except Exception as error:  # the last stop before the socket: whatever it is, the caller gets a problem
            response = _unexpected(error, name, request_id)
        requests[name, response.status] += 1
        observe(perf_counter() - started)
        if request_id is not None or trace is not None:
            _correlate(response, request_id, None if tracing is None or trace is None else tracing.end(trace, response.status))
        return response

    return inference.with_error(handle) if route.path.startswith(inference.ROOT) else handle


def _correlate(response: web.StreamResponse, request_id: str | None, traceparent: str | None) -> None:
    """Headers by which the client finds the request again; what the connection's next request must not inherit is let go."""
    if request_id is not None:
        structlog.contextvars.unbind_contextvars("request_id")
    if traceparent is not None:
        CURRENT.set(None)
    if response.prepared:  # a stream: its head is sent
        return
    if request_id is not None:
        response.headers[REQUEST_ID] = request_id
    if traceparent is not None:
        response.headers[TRACEPARENT] = traceparent


def _full(error: OSError, request_id: str | None) -> web.Response:
    _log.error("disk full", file=error.filename, error=error.strerror)
    return problem_reply(DiskFull("the disk of the data directory is full; make room and repeat the request"), request_id)


def _unexpected(error: Exception, route: str, request_id: str | None) -> web.Response:
    """A 500 that names its request id. Frames and type are logged, not the message: it may hold ids or a body."""
    request_id = request_id or secrets.token_hex(8)
    frames = traceback.format_tb(error.__traceback__)
    _log.error("request failed", request_id=loggable(request_id), route=route, error=type(error).__name__, frames=frames)
    return problem_reply(WeirError("unexpected; the service's log has it under this request_id"), request_id)
