"""What a body holds, through both lanes: transactions good and bad, batches, streams, MessagePack, compression."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

if TYPE_CHECKING:
    from tests.e2e.lanes.conftest import Lanes

pytestmark = pytest.mark.e2e

TS = 1_750_000_000_000
MIB = 1 << 20
NDJSON = b"Content-Type: application/x-ndjson"
MSGPACK = b"Content-Type: application/msgpack"


def tx(**changes: Any) -> dict[str, Any]:
    """A valid transaction with `changes`; ... takes a field away."""
    fields = {"event_id": "body-1", "ts": TS, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"}
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def encoded(**changes: Any) -> bytes:
    """The same as JSON."""
    return json.dumps(tx(**changes)).encode()


def post(path: bytes, body: bytes, *lines: bytes) -> bytes:
    """A request with the body and its right length."""
    head = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Authorization: Bearer {admin}", *lines]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", body])


TX = encoded()
FULL = tx(device_id="d1", ip="203.0.113.7", country="DE", mcc=5411, channel="ecom", lat=52.5, lon=13.4)
ODD: dict[str, list[Any]] = {  # more than is refused: what both lanes must see alike
    "event_id": [..., None, "", 1, True, [], {}, "x" * 128, "x" * 129, "a\nb", "a\0b", "ä", "💳" * 128, "\u200b", "a/b?c#d"],
    "ts": [..., None, "now", 1.5, True, -1, 0, TS // 1000, TS + 1, TS + 5.0, 2**62, 2**63, 10**30],
    "amount": [..., None, "12", 12.0, 1.5, True, -1, -0.0, 0, 10**10, 10**10 + 1, 2**63, 2**64, 10**400, [], {"a": 1}],
    "currency": [..., None, "", "XXX", "eur", 978, "USD", "E" * 5000],
    "card_id": [..., None, "", 1, "x" * 129, "a\tb", "\u202e", "'; --"],
    "merchant_id": [..., None, "", 1, "x" * 129],
    "device_id": [None, "", 1, "d1"],
    "ip": [None, "", 1, "::1", "not an address"],
    "country": [None, "", "de", "DEU", "DE"],
    "mcc": [None, -1, 0, 9999, 10_000, "5411", 1.0],
    "channel": [None, "", "ECOM", "phone", "pos", "ecom"],
    "lat": [None, 91, -90.5, "1", 1, 90],
    "lon": [None, 181, -180.5, "1", 1, 180],
    "amont": [1],
    "a\nb": [1],
}


def _odd() -> Iterator[tuple[str, bytes]]:
    """Names and bodies of one transaction each, all refused or dry."""
    for field, values in ODD.items():
        place = {"lat": 1.0, "lon": 1.0} if field in ("lat", "lon") else {}
        for value in values:
            shown = "missing" if value is ... else ascii(value)[:30]
            yield f"{field}={shown}", encoded(**(place | {field: value}))
    yield "lat alone", encoded(lat=1.0)
    yield "amount NaN", encoded(amount=float("nan"))
    yield "lat Infinity", encoded(lat=float("inf"), lon=1.0)
    yield "amount 1e3", TX.replace(b"1299", b"1e3")
    yield "amount 01", TX.replace(b"1299", b"01")
    yield "amount +1", TX.replace(b"1299", b"+1")
    yield "amount -0", TX.replace(b"1299", b"-0")
    yield "deep field", encoded(card_id=1).replace(b": 1,", b": " + b"[" * 100_000 + b",", 1)
    yield "duplicate key", TX[:-1] + b', "amount": 5}'
    yield "duplicate key, the last is bad", TX[:-1] + b', "amount": "5"}'
    yield "escaped name", TX.replace(b"amount", b"\\u0061mount")
    yield "escaped value", TX.replace(b'"c1"', b'"\\u00631"')
    yield "bad escape", TX.replace(b'"c1"', b'"\\x"')
    yield "cut escape", TX.replace(b'"c1"', b'"\\u00"')
    yield "lone surrogate", encoded(card_id="\ud800")
    yield "raw surrogate", TX.replace(b'"c1"', b'"\xed\xa0\x80"')
    yield "overlong UTF-8", TX.replace(b'"c1"', b'"\xc0\xaf"')
    yield "value not UTF-8", TX.replace(b'"c1"', b'"\xff"')
    yield "name not UTF-8", TX.replace(b'"card_id"', b'"card\xff"')
    yield "raw newline", TX.replace(b'"c1"', b'"c\n1"')
    yield "NUL within", TX.replace(b'"c1"', b'"c\x001"')
    yield "NUL after", TX + b"\0"
    yield "blanks around", b" \r\n\t" + TX + b" \r\n\t"
    yield "pretty", json.dumps(tx(), indent=2).encode()
    yield "all fields", json.dumps(FULL).encode()
    yield "empty", b""
    yield "blank", b" \n "
    yield "trailing", TX + b"x"
    yield "two", TX + TX
    yield "trailing comma", TX[:-1] + b",}"
    yield "single quotes", TX.replace(b'"', b"'")
    yield "comment", b"/* x */" + TX
    yield "form", b"amount=1&currency=EUR"
    yield "UTF-16", TX.decode().encode("utf-16")
    yield "byte order mark", b"\xef\xbb\xbf" + TX
    yield "array", b"[" + TX + b"]"
    yield "empty array", b"[]"
    yield "null", b"null"
    yield "number", b"12"
    yield "string", b'"t-1"'
    yield "empty object", b"{}"
    yield "open object", b"{"
    yield "deep array", b"[" * 100_000
    yield "deep object", b'{"a":' * 100_000
    yield "binary", bytes(range(256))
    yield "MessagePack", msgspec.msgpack.encode(tx())


ROWS = [tx(event_id=f"row-{n}", card_id=f"c{n % 3}") for n in range(5)]
MIXED = [
    tx(event_id="mix-1"),
    {},
    tx(event_id="mix-2", amount=-1),
    12,
    None,
    [],
    "x",
    tx(event_id="mix-1"),
    tx(event_id="mix-1", amount=1),
]


def _lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _batches() -> Iterator[tuple[str, bytes, tuple[bytes, ...]]]:
    """Names, bodies and header lines of many transactions each."""
    array = json.dumps(ROWS).encode()
    yield "array", array, ()
    yield "array, again", array, ()
    yield "array as JSON", array, (b"Content-Type: application/json",)
    yield "array as JSON with a charset", array, (b"Content-Type: application/json; charset=utf-8",)
    yield "array as vendor JSON", array, (b"Content-Type: application/vnd.x+json",)
    yield "array as text", array, (b"Content-Type: text/plain",)
    yield "array as XML", array, (b"Content-Type: application/xml",)
    yield "array as nothing", array, (b"Content-Type:",)
    yield "array as NDJSON", array, (NDJSON,)
    yield "type twice", array, (b"Content-Type: application/json", NDJSON)
    yield "type in upper case", array, (b"CONTENT-TYPE: APPLICATION/JSON",)
    yield "type that is no type", array, (b"Content-Type: ;;;",)
    yield "type of high bytes", array, (b"Content-Type: \xff/\xfe",)
    yield "mixed array", json.dumps(MIXED).encode(), ()
    yield "empty array", b"[]", ()
    yield "blank array", b" [ ] ", ()
    yield "array cut", array[:-1], ()
    yield "array trailing", array + b"x", ()
    yield "array trailing comma", array[:-1] + b",]", ()
    yield "array of a bad row", b"[" + TX + b",{,}]", ()
    yield "array of bad UTF-8", b"[" + TX.replace(b"c1", b"\xff") + b"," + TX + b"]", ()
    yield "array of arrays", b"[[" + TX + b"]]", ()
    yield "object", TX, ()
    yield "null", b"null", ()
    yield "empty", b"", ()
    yield "rows at the limit", b"[" + b",".join([b"{}"] * 10_000) + b"]", ()
    yield "rows above the limit", b"[" + b",".join([b"{}"] * 10_001) + b"]", ()
    yield "lines", _lines(ROWS), (NDJSON,)
    yield "lines untold", _lines(ROWS), ()
    yield "lines without the last end", _lines(ROWS)[:-1], (NDJSON,)
    yield "lines with CR", _lines(ROWS).replace(b"\n", b"\r\n"), (NDJSON,)
    yield "lines with blank ones", b"\n\n" + _lines(ROWS).replace(b"\n", b"\n \n"), (NDJSON,)
    yield "mixed lines", _lines(MIXED), (NDJSON,)
    yield "line that is no JSON", _lines(ROWS[:2]) + b"nonsense\n" + _lines(ROWS[2:]), (NDJSON,)
    yield "line cut", _lines(ROWS)[:-20], (NDJSON,)
    yield "line of bad UTF-8", _lines(ROWS[:1]) + b"\xff\n", (NDJSON,)
    yield "line with NUL", _lines(ROWS[:1]) + b"\0\n", (NDJSON,)
    yield "no lines", b"", (NDJSON,)
    yield "blank lines", b"\n\n\n", (NDJSON,)
    yield "MessagePack", msgspec.msgpack.encode(ROWS), (MSGPACK,)
    yield "MessagePack, mixed", msgspec.msgpack.encode(MIXED), (MSGPACK,)
    yield "MessagePack, cut", msgspec.msgpack.encode(ROWS)[:-3], (MSGPACK,)
    yield "MessagePack, trailing", msgspec.msgpack.encode(ROWS) + b"\0", (MSGPACK,)
    yield "MessagePack, not", array, (MSGPACK,)
    yield "MessagePack, deep", b"\x91" * 100_000, (MSGPACK,)
    yield "MessagePack, announces 2**32 rows", b"\xdd\xff\xff\xff\xff", (MSGPACK,)
    yield "MessagePack, empty", b"", (MSGPACK,)
    yield "MessagePack, empty array", b"\x90", (MSGPACK,)


def _packed() -> Iterator[tuple[str, bytes, tuple[bytes, ...]]]:
    """Names, bodies and header lines of one transaction each, in MessagePack."""
    whole = msgspec.msgpack.encode(tx())
    yield "valid", whole, (MSGPACK,)
    yield "all fields", msgspec.msgpack.encode(FULL), (MSGPACK,)
    yield "x-msgpack", whole, (b"Content-Type: application/x-msgpack",)
    yield "upper case", whole, (b"Content-Type: APPLICATION/MSGPACK",)
    yield "parameter", whole, (b"Content-Type: application/msgpack; v=1",)
    yield "accepted", whole, (MSGPACK, b"Accept: application/msgpack")
    yield "JSON, MessagePack accepted", TX, (b"Accept: application/msgpack",)
    yield "JSON that says it is", TX, (MSGPACK,)
    yield "JSON as JSON", TX, (b"Content-Type: application/json",)
    yield "JSON as XML", TX, (b"Content-Type: application/xml",)
    yield "cut", whole[:-1], (MSGPACK,)
    yield "trailing", whole + b"\0", (MSGPACK,)
    yield "empty", b"", (MSGPACK,)
    yield "array", msgspec.msgpack.encode([tx()]), (MSGPACK,)
    yield "float amount", msgspec.msgpack.encode(tx(amount=1.0)), (MSGPACK,)
    yield "huge amount", msgspec.msgpack.encode(tx(amount=2**63)), (MSGPACK,)
    yield "bytes for text", msgspec.msgpack.encode(tx(card_id=b"c1")), (MSGPACK,)
    yield "not UTF-8", whole.replace(b"c1", b"\xff\xfe"), (MSGPACK,)
    yield "number for a name", msgspec.msgpack.encode({1: 2}), (MSGPACK,)
    yield "extension", msgspec.msgpack.encode(tx(card_id=msgspec.msgpack.Ext(5, b"x"))), (MSGPACK,)
    yield "unknown field", msgspec.msgpack.encode(tx(amont=1)), (MSGPACK,)
    yield "reserved byte", b"\xc1", (MSGPACK,)


def _compressed() -> Iterator[tuple[str, bytes, bytes, int]]:
    """Names, bodies, Content-Encodings and the status."""
    zipped, deflated = gzip.compress(TX), zlib.compress(TX)
    yield "gzip", zipped, b"gzip", 200
    yield "gzip, upper case", zipped, b"GZIP", 200
    yield "deflate", deflated, b"deflate", 200
    yield "deflate, raw", deflated[2:-4], b"deflate", 200
    yield "identity", TX, b"identity", 200
    yield "empty name", TX, b"", 415
    yield "not gzip", TX, b"gzip", 400
    yield "not deflate", TX, b"deflate", 400
    yield "deflate as gzip", deflated, b"gzip", 400
    yield "gzip as deflate", zipped, b"deflate", 400
    yield "gzip cut", zipped[:-30], b"gzip", 400
    yield "gzip of a bad sum", zipped[:-8] + b"\0\0\0\0" + zipped[-4:], b"gzip", 400
    yield "gzip with more after it", zipped + b"more", b"gzip", 400
    yield "gzip of nothing", gzip.compress(b""), b"gzip", 400
    yield "gzip, no bytes", b"", b"gzip", 400
    yield "gzip twice", gzip.compress(zipped), b"gzip", 400
    yield "gzip twice, told", gzip.compress(zipped), b"gzip, gzip", 415
    yield "bomb of 50 MB", gzip.compress(b" " * 50_000_000, 1), b"gzip", 413
    yield "bomb, deflate", zlib.compress(b" " * 50_000_000, 1), b"deflate", 413
    yield "one above the limit", gzip.compress(TX + b" " * (MIB + 1 - len(TX))), b"gzip", 413
    yield "at the limit", gzip.compress(TX + b" " * (MIB - len(TX))), b"gzip", 200
    yield "br", zipped, b"br", 415
    yield "zstd", zipped, b"zstd", 415
    yield "unknown", TX, b"rot13", 415
    yield "high bytes", TX, b"\xff", 415


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in _odd()])
def test_transactions_are_judged_alike(lanes: "Lanes", body: bytes) -> None:
    """What is scored by one lane is scored by the other, to the same bytes; what is refused is refused in the same words."""
    lanes.check(post(b"/v1/score?commit=false&explain=1", body), None, "open")


def test_transactions_in_a_row_move_both_alike(lanes: "Lanes") -> None:
    """A hundred transactions of a few cards, on one connection: scores and LSNs stay equal."""
    rows = [
        json.dumps(tx(event_id=f"walk-{n}", card_id=f"c{n % 7}", ts=TS + n * 60_000, amount=n * 100)).encode()
        for n in range(100)
    ]
    lanes.check([b"".join(post(b"/v1/score", row) for row in rows)], [200] * 100, "open")


def test_repeated_and_conflicting_events_are_answered_alike(lanes: "Lanes") -> None:
    """The same event again is replayed, another body under its id refused, in whichever lane it comes."""
    first, again, other = (
        encoded(event_id="twice"),
        json.dumps(tx(event_id="twice"), indent=1).encode(),
        encoded(event_id="twice", amount=1),
    )
    outcome = lanes.check([post(b"/v1/score", body) for body in (first, again, other, first)], [200, 200, 409, 200], "open")
    assert [json.loads(reply.body).get("replayed") for reply in outcome.replies] == [False, True, None, True]


@pytest.mark.parametrize(("body", "lines"), [pytest.param(body, lines, id=name) for name, body, lines in _batches()])
@pytest.mark.parametrize("query", [b"", b"?commit=false", b"?explain=1", b"?commit=0&trace=1", b"?x=1"])
def test_batches_are_judged_alike(lanes: "Lanes", query: bytes, body: bytes, lines: tuple[bytes, ...]) -> None:
    """Arrays, lines and MessagePack, good and bad rows, in order and in place."""
    lanes.check(post(b"/v1/score/batch" + query, body, *lines), None, "any")


@pytest.mark.parametrize(("body", "lines"), [pytest.param(body, lines, id=name) for name, body, lines in _packed()])
def test_messagepack_is_judged_alike(lanes: "Lanes", body: bytes, lines: tuple[bytes, ...]) -> None:
    """One transaction in MessagePack, and what claims to be one."""
    lanes.check(post(b"/v1/score?commit=false", body, *lines), None, "open")


@pytest.mark.parametrize(("body", "encoding", "status"), [pytest.param(*row, id=name) for name, *row in _compressed()])
@pytest.mark.parametrize("path", [b"/v1/score?commit=false", b"/v1/score/batch?commit=false"], ids=["score", "batch"])
def test_encodings_are_undone_alike(lanes: "Lanes", path: bytes, body: bytes, encoding: bytes, status: int) -> None:
    """gzip and deflate are read, bombs and what is neither are refused."""
    statuses = [status] if b"batch" not in path else None
    lanes.check(post(path, body, b"Content-Encoding: " + encoding), statuses)


@pytest.mark.parametrize(
    "chunks",
    [
        [_lines(ROWS)],
        [_lines(ROWS[:1]), _lines(ROWS[1:])],
        [_lines(ROWS)[:50], _lines(ROWS)[50:]],
        [_lines(ROWS)[:-1]],
        [_lines(ROWS)[:-9]],
        [_lines(MIXED)],
        [b"\n", b"nonsense\n", _lines(ROWS)],
        [b"x" * 100_000],
        [],
    ],
    ids=["one chunk", "by line", "cut line", "no last end", "partial line", "mixed", "nonsense", "endless line", "nothing"],
)
@pytest.mark.parametrize("lines", [(NDJSON,), (), (b"Content-Type: text/csv",)], ids=["NDJSON", "untold", "CSV"])
def test_streams_are_answered_alike(lanes: "Lanes", lines: tuple[bytes, ...], chunks: list[bytes]) -> None:
    """Lines in chunks of a request that ends: each is answered in order, a bad one in its place."""
    head = [b"POST /v1/score/stream HTTP/1.1", b"Host: x", b"Authorization: Bearer {admin}", *lines]
    coded = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    lanes.check([b"\r\n".join([*head, b"Transfer-Encoding: chunked", b"", b""]), *coded, b"0\r\n\r\n"], None, "any")
