"""GET, PUT, DELETE /v1/lists/{deny|allow}/{kind}/{id}: the exact lists. A change is journaled before it is answered."""

from typing import Final

from aiohttp import web

from service.auth import Role
from service.codec import decode_list_body, encode
from service.errors import InvalidEvent, NotFound
from service.handlers.exchange import Front, Route, json_reply, read_body, read_entity
from service.lists import LIST_NAMES

_PATH: Final = "/v1/lists/{list}/{kind}/{id}"


def routes(front: Front) -> list[Route]:
    """The routes of this resource."""
    engine, server = front.engine, front.settings.server

    async def get_entry(request: web.Request) -> web.Response:
        return json_reply(encode(_entry(front, *_target(request, front))))

    async def put_entry(request: web.Request) -> web.Response:
        target = _target(request, front)
        change = decode_list_body(await read_body(request, server.body_bytes_max, server.request_deadline_ms))
        now_ms = engine.now_ms()
        if change.expires is not None and change.expires <= now_ms:
            raise InvalidEvent(f"expires: {change.expires} is not after now, {now_ms}", "expires")
        await engine.put_list(*target, change.reason, change.expires)
        return json_reply(encode(_shown(*target, change.reason, change.expires)))

    async def delete_entry(request: web.Request) -> web.Response:
        target = _target(request, front)
        _entry(front, *target)
        await engine.delete_list(*target)
        return web.Response(status=204)

    return [
        Route("GET", _PATH, "lists", Role.ANALYST, get_entry),
        Route("PUT", _PATH, "lists", Role.ANALYST, put_entry),
        Route("DELETE", _PATH, "lists", Role.ANALYST, delete_entry),
    ]


def _target(request: web.Request, front: Front) -> tuple[str, str, str]:
    name = request.match_info["list"]
    if name not in LIST_NAMES:
        raise NotFound(f"there is no list {name[:40]!r}; there are {', '.join(LIST_NAMES)}", "list")
    return (name, *read_entity(request, front))


def _entry(front: Front, name: str, kind: str, entity_id: str) -> dict[str, object]:
    entry = front.engine.lists.get(name, kind, entity_id, front.engine.now_ms())
    if entry is None:
        raise NotFound(f"this {kind} is not on the {name} list", "id")
    return _shown(name, kind, entity_id, entry.reason, entry.expires)


def _shown(name: str, kind: str, entity_id: str, reason: str, expires: int | None) -> dict[str, object]:
    return {"list": name, "kind": kind, "id": entity_id, "reason": reason, "expires": expires}
