"""What every handler shares: the stops it calls, the routes it declares, reading a request, making a reply.

A handler is `async (request) -> Response`, raises WeirError, and neither logs nor measures: `router` wraps it once, at
registration. Handlers get their stops through a Front that they close over; a look-up in the app per request costs more.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from features.transaction import ID_LENGTH_MAX
from service.auth import KeyRing, Role
from service.bodies import Bodies
from service.console.sessions import COOKIE, CSRF_HEADER, Sessions
from service.errors import (
    PROBLEM_CONTENT_TYPE,
    BodyTooLarge,
    InvalidEvent,
    MalformedBody,
    NotFound,
    RequestTimeout,
    UnsupportedMedia,
    WeirError,
    problem,
)
from service.feed import Feed
from service.metrics import Metrics
from service.pace import Allowance
from service.score_calls import ScoreCalls
from service.settings import Settings
from service.tracing import Tracing

if TYPE_CHECKING:
    from service.engine import Engine

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REPLY_HEADERS: Final = "weir.reply_headers"  # in a request: what a reply that is prepared by its handler has to carry
_FLAGS: Final = {"1": True, "true": True, "0": False, "false": False}
_ENCODINGS: Final = ("gzip", "deflate", "identity")  # what aiohttp undoes without further packages


class Front(msgspec.Struct, frozen=True):
    """The stops that handlers call."""

    engine: "Engine"
    calls: ScoreCalls
    keys: KeyRing
    metrics: Metrics
    settings: Settings
    sessions: Sessions
    feed: Feed
    bodies: Bodies
    tracing: Tracing | None = None

    def role_of(self, request: web.Request) -> Role:
        """The role of the key, or of the session where no key is sent. Raises Unauthorized, Forbidden without a CSRF token."""
        headers = request.headers
        header = headers.get("Authorization")
        if header is None and "Cookie" in headers and COOKIE in request.cookies:
            return self.sessions.admit(request.cookies[COOKIE], request.method, headers.get(CSRF_HEADER))
        return self.keys.role_of(header)

    def admit(self, request: web.Request) -> Role:
        """`role_of` for a request that begins: it counts against the key's rate. Sessions have none. Raises RateExceeded."""
        header = request.headers.get("Authorization")
        return self.role_of(request) if header is None else self.keys.admit(header)

    def allowance(self, request: web.Request) -> Allowance:
        """What the rows of a request that was admitted count against."""
        return self.keys.allowance(request.headers.get("Authorization"))

    def name_of(self, request: web.Request) -> str:
        """The name of the key that `role_of` has let in, for the audit."""
        header = request.headers.get("Authorization")
        return self.sessions.holder(request.cookies.get(COOKIE)).name if header is None else self.keys.name_of(header)


class Route(msgspec.Struct, frozen=True):
    """One method of one path. `need` is the least role, None for open; `name` labels its metrics."""

    method: str
    path: str
    name: str
    need: Role | None
    handler: Handler


def json_reply(body: bytes, status: int = 200, content_type: str = "application/json") -> web.Response:
    """A reply of bytes that are encoded already."""
    return web.Response(body=body, status=status, headers={"Content-Type": content_type})


def problem_reply(error: WeirError, request_id: str | None = None) -> web.Response:
    """The problem+json reply of `error`."""
    headers = {"Content-Type": PROBLEM_CONTENT_TYPE, **error.headers()}
    return web.Response(body=problem(error, request_id), status=error.status, headers=headers)


async def read_body(request: web.Request, bytes_max: int, deadline_ms: int) -> bytes:
    """The body, decompressed; `deadline_ms` 0 waits for ever.

    Raises BodyTooLarge, before reading where the length is announced, UnsupportedMedia, RequestTimeout, MalformedBody.
    """
    check_encoding(request)
    announced = request.content_length
    if announced is not None and announced > bytes_max:
        raise _too_large(announced, bytes_max)
    try:
        if request.content.is_eof() or not deadline_ms:  # nearly always: it came with the head, and a timeout costs 2 µs
            body = await request.read()
        else:
            async with asyncio.timeout(deadline_ms / 1000):
                body = await request.read()
    except TimeoutError:
        limit = f"the body did not arrive within server.request_deadline_ms = {deadline_ms} ms"
        raise RequestTimeout(limit, "body") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(request.client_max_size, bytes_max) from None
    except (web.RequestPayloadError, ConnectionError):
        raise MalformedBody("the body is not what its Content-Encoding and length say", "body") from None
    if len(body) > bytes_max:
        raise _too_large(len(body), bytes_max)
    return body


def check_encoding(request: web.Request) -> None:
    """Raise UnsupportedMedia for a Content-Encoding that is not undone here."""
    encoding = request.headers.get("Content-Encoding")
    if encoding is not None and encoding.lower() not in _ENCODINGS:
        raise UnsupportedMedia(f"{encoding[:40]!r} is not read here; send {', '.join(_ENCODINGS)}", "Content-Encoding")


def read_flags(request: web.Request, **defaults: bool) -> dict[str, bool]:
    """The boolean query parameters named in `defaults`. A parameter that is not known is refused: `?comit=false` must
    not change state because of a typo. Raises InvalidEvent."""
    if not request.rel_url.raw_query_string:
        return defaults
    flags: dict[str, bool] = {}
    for name, value in request.query.items():
        if name not in defaults:
            known = ", ".join(defaults)
            raise InvalidEvent(f"there is no query parameter {name[:40]!r} here; there are {known}", f"?{name[:40]}")
        if value not in _FLAGS:
            raise InvalidEvent(f"{name} is {value[:40]!r}: expected true, false, 1 or 0", f"?{name}")
        if name in flags:
            raise InvalidEvent(f"{name} is given more than once", f"?{name}")
        flags[name] = _FLAGS[value]
    return defaults | flags


def read_entity(request: web.Request, front: Front) -> tuple[str, str]:
    """Kind and id of the entity that the path names. Raises NotFound for a kind that the spec lacks, InvalidEvent."""
    kind, entity_id = request.match_info["kind"], request.match_info["id"]
    kinds = [known.name for known in front.engine.plan.kinds]
    if kind not in kinds:
        raise NotFound(f"there is no kind of entity {kind[:40]!r}; there are {', '.join(kinds)}", "kind")
    if not (0 < len(entity_id) <= ID_LENGTH_MAX and entity_id.isprintable()):
        raise InvalidEvent(f"an id has 1 to {ID_LENGTH_MAX} printable characters, this has {len(entity_id)}", "id")
    return kind, entity_id


def _too_large(length: int, bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {length} bytes or more, at most {bytes_max} are read here", "body")
