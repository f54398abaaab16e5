"""Plain heads of requests: those that the fast lane takes. Plain is a POST of one transaction without query, with a length and
nothing that has to be negotiated.

A head is parsed (httptools) only when it is met for the first time: a client sends the same head again and again, so its bytes
are looked up in a table of plain ones.
"""

import re
from typing import Final

import httptools
import msgspec

from service.codec import JSON, form_of
from service.correlation import REQUEST_ID, TRACEPARENT, TRACESTATE, clean_request_id

HEADS_MAX: Final = 4_096  # that are remembered
HEAD_END: Final = b"\r\n\r\n"
# What RFC 9112 calls a header field, without anything that parsers disagree about.
_PLAIN_HEAD: Final = re.compile(
    rb"POST /v1/score HTTP/1\.1(?:\r\n[A-Za-z0-9-]+: ?[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)+\r\n\r\n"
)
_START: Final = b"POST /v1/score HTTP/1.1\r\n"
_PLAIN_SO_FAR: Final = re.compile(
    re.escape(_START)
    + rb"(?:[A-Za-z0-9-]+:[\x20-\x7e]*\r\n)*"
    + rb"(?:[A-Za-z0-9-]*|[A-Za-z0-9-]+:[\x20-\x7e]*\r?|\r)"  # a line that is not all there
)
_KNOWN_ONCE: Final = frozenset({b"host", b"content-length", b"content-type", b"authorization", b"connection"})
_NOT_PLAIN: Final = frozenset(
    {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"proxy-connection", b"te", b"trailer", b"cookie"}
)
FIELDS_MAX: Final = 64  # of a plain head
# Lines that differ from request to request, and say nothing of how it is read.
_CORRELATION: Final = re.compile(
    rb"\r\n(x-request-id|traceparent|tracestate): ?([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)(?=\r\n)", re.IGNORECASE
)
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,8}")


class PlainHead(msgspec.Struct, frozen=True, gc=False):
    """A plain head: its bytes, the bytes of the whole request, the form of the body, the Authorization header; what tells this
    request from others.
    """

    text: bytes
    size: int
    form: int
    authorization: str | None
    request_id: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None


NO_HEAD: Final = PlainHead(b"", -1, JSON, None)


class PlainHeads:
    """Those that were met. body_bytes_max: a request that announces more is not plain."""

    def __init__(self, body_bytes_max: int) -> None:
        self._known: dict[bytes, PlainHead] = {}
        self._body_bytes_max = body_bytes_max

    def __len__(self) -> int:
        return len(self._known)

    def find(self, text: bytes) -> PlainHead | None:
        """The plain head that these bytes are, or None.

        What is new in every request, its id and its place in a trace, is cut out before the rest is looked up.
        """
        known = self._known.get(text)
        if known is not None:
            return known
        lines = _CORRELATION.findall(text)
        if not lines:
            return self._learn(text)
        rest = _CORRELATION.sub(b"", text)
        told = {name.lower().decode(): value.decode() for name, value in lines}
        head = self._known.get(rest) or self._learn(rest)
        if head is None or len(told) < len(lines):  # twice the same: not for us to judge
            return None
        request_id = clean_request_id(told.get(REQUEST_ID.lower()))
        size = len(text) + head.size - len(head.text)
        return PlainHead(text, size, head.form, head.authorization, request_id, told.get(TRACEPARENT), told.get(TRACESTATE))

    def _learn(self, text: bytes) -> PlainHead | None:
        head = _parse(text)
        if head is None or head.size - len(text) > self._body_bytes_max:
            return None
        if len(self._known) >= HEADS_MAX:
            self._known.clear()
        self._known[text] = head
        return head


def may_become_plain(data: bytes, at: int) -> bool:
    """Whether what has come of a head may be the beginning of a plain one."""
    return _START.startswith(data[at : at + len(_START)]) and (
        len(data) - at <= len(_START) or _PLAIN_SO_FAR.fullmatch(data, at) is not None
    )


class _Fields:
    """What httptools tells of a head."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))


def _parse(text: bytes) -> PlainHead | None:
    """The plain head that these bytes are, or None."""
    if _PLAIN_HEAD.fullmatch(text) is None:
        return None
    told = _Fields()
    try:
        parser = httptools.HttpRequestParser(told)
        parser.feed_data(text)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    names = [name for name, _ in told.fields]
    fields = dict(told.fields)
    if len(names) > FIELDS_MAX or any(names.count(name) > 1 for name in _KNOWN_ONCE) or not _NOT_PLAIN.isdisjoint(names):
        return None
    length = fields.get(b"content-length", b"")
    if (
        b"host" not in fields
        or _LENGTH.fullmatch(length) is None
        or fields.get(b"connection", b"keep-alive").lower() != b"keep-alive"
    ):
        return None
    content_type = fields.get(b"content-type", b"").decode().partition(";")[0].strip().lower()
    authorization = fields.get(b"authorization")
    return PlainHead(
        text, len(text) + int(length), form_of(content_type), None if authorization is None else authorization.decode()
    )
