"""Says which field of a request body is wrong, and why, in the caller's words. Paid only on the failing path.

The field is given in the caller's path: `amount`, `[3].label` in an array, `body` if it is the body as a whole. A body
that is no JSON at all is searched for the culprit with a parser that forgives, up to 64 KiB.
"""

import json
import math
import re
from typing import Any, Final

import msgspec

from service.errors import InvalidEvent, MalformedBody, WeirError

# What msgspec raises on input: RecursionError at about 1000 levels of nesting.
DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_SEARCHED_BYTES_MAX = 64 * 1024  # bytes; json.loads takes about 1 ms for it, and it runs on the event loop
_SHOWN_LENGTH_MAX = 40  # characters of an offending value or name in a message

# " - at `$[3].amount`" ends most of msgspec's messages; a field that is missing or too much is named inside.
_AT = re.compile(r" - at `(?P<path>\$[^`]*)`\Z")
_NAMED = re.compile(r"\AObject (?:missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL)


def refusal(error: Exception, body: bytes) -> WeirError:
    """The error that tells the caller which field of `body` made msgspec raise `error`, one of DECODE_ERRORS."""
    if not isinstance(error, msgspec.ValidationError):
        return _broken(error, body)
    message = str(error)
    at = _AT.search(message)
    path = at["path"][1:] if at else ""
    limit = message[: at.start()] if at else message
    named = _NAMED.match(limit)
    if named:
        field = f"{path}.{_shown_text(named['name'])}".lstrip(".")
        problem = "is missing" if "missing" in limit else "is not a field that is known here"
        return InvalidEvent(f"{field} {problem}", field)
    limit = limit[:1].lower() + limit[1:].replace("`", "")
    if not path:
        return MalformedBody(f"the body as a whole: {limit}", "body")
    field = path.lstrip(".")
    return InvalidEvent(f"{field} is {_shown_value(body, path)}: {limit}", field)


def packed_refusal(error: Exception, body: bytes) -> WeirError:
    """`refusal` for a body in MessagePack: the same words where the same is wrong."""
    try:
        as_json = msgspec.json.encode(msgspec.msgpack.decode(body))
    except (*DECODE_ERRORS, ValueError, TypeError):  # the latter two: what has no JSON, such as a key that is a map
        as_json = b"null"
    if isinstance(error, msgspec.ValidationError):
        return refusal(error, as_json)
    if not body:
        return MalformedBody("the body is empty", "body")
    return MalformedBody(f"body: this is no MessagePack: {error}", "body")


def _broken(error: Exception, body: bytes) -> MalformedBody:
    """For bytes that are no JSON: the field is found with a parser that forgives, if the body is not large."""
    if isinstance(error, UnicodeDecodeError):
        reason = "not UTF-8"
    elif isinstance(error, RecursionError):
        reason = "JSON is nested too deeply"
    else:
        reason = str(error)
    if not body.strip():
        return MalformedBody("the body is empty", "body")
    if len(body) <= _SEARCHED_BYTES_MAX:
        try:
            value = json.loads(body.decode("utf-8", "surrogateescape"), strict=False)
        except (ValueError, RecursionError):
            pass
        else:
            path = _find_bad(value, "")
            if path:
                return MalformedBody(f"{path}: {reason}", path)
    return MalformedBody(f"body: {reason}", "body")


def _find_bad(value: Any, path: str) -> str:
    """Path of the first value or key that stdlib json takes and JSON does not: raw control bytes, not UTF-8, NaN."""
    if isinstance(value, dict):
        pairs = [(f"{path}.{_shown_text(key)}".lstrip("."), key, member) for key, member in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{path}[{place}]", "", member) for place, member in enumerate(value)]
    else:
        bad = isinstance(value, float) and not math.isfinite(value)
        return path if bad or (isinstance(value, str) and _is_bad(value)) else ""
    for inner, key, member in pairs:
        found = inner if _is_bad(key) else _find_bad(member, inner)
        if found:
            return found
    return ""


def _is_bad(text: str) -> bool:
    return any(char < " " or "\ud800" <= char <= "\udfff" for char in text)


def _shown_value(body: bytes, path: str) -> str:
    """The offending value as JSON, shortened."""
    try:
        value = msgspec.json.decode(body)
        for place, name in re.findall(r"\[(\d+)\]|\.([^.\[]+)", path):
            value = value[int(place)] if place else value[name]
        text = msgspec.json.encode(value).decode()
    except (*DECODE_ERRORS, LookupError, TypeError, ValueError):
        return "not acceptable"
    return text if len(text) <= _SHOWN_LENGTH_MAX else text[: _SHOWN_LENGTH_MAX - 3] + "..."


def _shown_text(name: str) -> str:
    """A field name that the caller made up, safe to send back: printable and short."""
    printable = "".join(char if char.isprintable() else "?" for char in name[:_SHOWN_LENGTH_MAX])
    return printable or "(empty)"
