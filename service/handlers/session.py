"""POST, GET, DELETE /v1/session: signing in to the console with an API key, who is signed in, signing out.

The reply to POST sets the cookie (HttpOnly, SameSite=Strict, Secure under TLS) and holds the CSRF token that changes carry in
X-CSRF-Token. The body has to be declared as JSON, which no form of another site can do.
"""

from typing import Annotated, Final

import msgspec
import structlog
from aiohttp import web
from msgspec import Meta

from service.codec import encode
from service.console.sessions import COOKIE, CSRF_HEADER
from service.console.throttle import Throttle
from service.errors import Forbidden, Unauthorized, UnsupportedMedia
from service.handlers.exchange import Front, Route, json_reply, read_body
from service.refusals import DECODE_ERRORS, refusal

BODY_BYTES_MAX: Final = 4096
_PATH: Final = "/v1/session"

_log = structlog.get_logger("weir.http")


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/session."""

    key: Annotated[str, Meta(min_length=1, max_length=256)]


_decode = msgspec.json.Decoder(SignIn).decode


def routes(front: Front) -> list[Route]:
    """The routes of this resource; none if the console is off."""
    settings, sessions = front.settings, front.sessions
    throttle = Throttle(settings.console.login_failures_max)

    async def sign_in(request: web.Request) -> web.Response:
        throttle.check(request.remote)
        if request.content_type != "application/json":
            raise UnsupportedMedia("send the key as application/json", "Content-Type")
        body = await read_body(request, BODY_BYTES_MAX, settings.server.request_deadline_ms)
        key = _key_of(body)
        try:
            token, holder = sessions.open(key)
        except (Unauthorized, Forbidden) as error:
            throttle.failed(request.remote)
            _log.warning("sign-in refused", address=request.remote, status=error.status)
            if isinstance(error, Forbidden):
                raise Forbidden(f"{error.detail} (the console is for analysts and admins)", "key") from None
            raise Unauthorized("the API key is not known here", "key") from None
        _log.info("signed in", who=holder.name, address=request.remote)
        reply = _private(json_reply(encode(holder)))
        reply.set_cookie(COOKIE, token, httponly=True, samesite="Strict", secure=request.secure, path="/")
        return reply

    async def get_session(request: web.Request) -> web.Response:
        return _private(json_reply(encode(sessions.holder(request.cookies.get(COOKIE)))))

    async def sign_out(request: web.Request) -> web.Response:
        token = request.cookies.get(COOKIE)
        sessions.admit(token, request.method, request.headers.get(CSRF_HEADER))
        _log.info("signed out", who=sessions.holder(token).name)
        sessions.close(token)
        reply = _private(web.Response(status=204))
        reply.del_cookie(COOKIE, path="/", httponly=True, samesite="Strict", secure=request.secure)
        return reply

    if not settings.console.enabled:
        return []
    return [
        Route("POST", _PATH, "session", None, sign_in),
        Route("GET", _PATH, "session", None, get_session),
        Route("DELETE", _PATH, "session", None, sign_out),
    ]


def _key_of(body: bytes) -> str:
    try:
        return _decode(body).key
    except DECODE_ERRORS as error:
        told = refusal(error, body)
        # refusal() quotes the value that is wrong: here that may be a key.
        if told.field == "key":
            told.detail = "key: expected text of 1 to 256 characters"
        raise told from None


def _private(reply: web.Response) -> web.Response:
    reply.headers["Cache-Control"] = "no-store"
    return reply
