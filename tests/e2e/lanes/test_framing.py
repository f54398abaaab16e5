"""Where a request ends, through both lanes: lengths, chunks, pipelines, pieces, and attempts to smuggle one in another."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.lanes.conftest import End, Lanes

pytestmark = pytest.mark.e2e

TX = b'{"event_id":"frame-1","ts":1750000000000,"amount":1299,"currency":"EUR","card_id":"c1","merchant_id":"m1"}'
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {admin}\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(TX)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ONE_CHUNK = b"%x\r\n%s\r\n" % (len(TX), TX)
SCORE = HEAD + LENGTH + b"\r\n" + TX
IN_CHUNKS = HEAD + CHUNKED + b"\r\n" + ONE_CHUNK + b"0\r\n\r\n"
BATCH = (
    SCORE.replace(LENGTH, b"Content-Length: %d\r\n" % (len(TX) + 2))
    .replace(TX, b"[" + TX + b"]")
    .replace(b"score", b"score/batch")
)
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
SMUGGLED = b"DELETE /v1/lists/deny/card/c1 HTTP/1.1\r\nHost: x\r\n\r\n"
MIB = 1 << 20
Row = tuple[bytes | Sequence[bytes | float], Sequence[int] | None, "End"]


def with_length(value: bytes, *more: bytes, body: bytes = TX) -> bytes:
    """A transaction whose Content-Length says `value`; `more`: further header lines."""
    lines = b"".join(line + b"\r\n" for line in more)
    return HEAD + b"Content-Length: " + value + b"\r\n" + lines + b"\r\n" + body


def in_chunks(body: bytes, coding: bytes = CHUNKED) -> bytes:
    """A request whose chunks are `body`, to the byte."""
    return HEAD + coding + b"\r\n" + body


RIGHT = b"%d" % len(TX)
LENGTHS: dict[str, Row] = {
    "exact": (SCORE, [200], "open"),
    "leading zeros": (with_length(b"000" + RIGHT), [200], "open"),
    "space before": (with_length(b"   " + RIGHT), [200], "open"),
    "space after": (with_length(RIGHT + b" "), [200], "open"),
    "plus": (with_length(b"+" + RIGHT), [400], "closed"),
    "minus": (with_length(b"-" + RIGHT), [400], "closed"),
    "hexadecimal": (with_length(b"0x10"), [400], "closed"),
    "exponent": (with_length(b"1e2"), [400], "closed"),
    "point": (with_length(RIGHT + b".0"), [400], "closed"),
    "underscore": (with_length(b"1_0"), [400], "closed"),
    "other digits": (with_length("١٠".encode()), [400], "closed"),
    "empty": (with_length(b""), [400], "closed"),
    "word": (with_length(b"long"), [400], "closed"),
    "list, equal": (with_length(RIGHT + b", " + RIGHT), [400], "closed"),
    "list, different": (with_length(RIGHT + b", 5"), [400], "closed"),
    "inner space": (with_length(b"1 0"), [400], "closed"),
    "twice, equal": (with_length(RIGHT, b"Content-Length: " + RIGHT), [400], "closed"),
    "twice, different": (with_length(RIGHT, b"Content-Length: 5"), [400], "closed"),
    "twice, shorter first": (with_length(b"5", b"Content-Length: " + RIGHT), [400], "closed"),
    "2**63": (with_length(b"%d" % 2**63), [413], "any"),
    "2**64": (with_length(b"%d" % 2**64), [400], "closed"),
    "2**64 + the right one": (with_length(b"%d" % (2**64 + len(TX))), [400], "closed"),
    "1000 digits": (with_length(b"1" * 1000), [400], "closed"),
    "none, no body": (HEAD + b"\r\n", [400], "open"),
    "0": (with_length(b"0", body=b""), [400], "open"),
    "longer than the body": (with_length(b"%d" % (len(TX) + 1000)), [408], "any"),
    "limit": (with_length(b"%d" % MIB, body=TX + b" " * (MIB - len(TX))), [200], "open"),
    "one above the limit, sent": (with_length(b"%d" % (MIB + 1), body=TX + b" " * (MIB + 1 - len(TX))), [413], "open"),
    "one above the limit, not sent": (with_length(b"%d" % (MIB + 1), body=b""), [413], "any"),
    "far above the limit, not sent": (with_length(b"%d" % 10**12, body=b""), [413], "any"),
    "above the limit, close": (with_length(b"%d" % 10**9, b"Connection: close", body=b""), [413], "any"),
    "above the limit, no key": (with_length(b"%d" % 10**9, body=b"").replace(b"{admin}", b"x"), [401], "any"),
    "batch above its limit": (with_length(b"%d" % (8 * MIB + 1), body=b"").replace(b"score", b"score/batch"), [413], "any"),
    "GET with a body": (SCORE.replace(b"POST", b"GET"), [405], "open"),
    "GET health with a body": (LIVEZ[:-2] + b"Content-Length: 5\r\n\r\nhello", [200], "open"),
    "line ends before": (b"\r\n\r\n" + SCORE, [200], "open"),
    "line feeds before": (b"\n\n" + SCORE, [200], "open"),
    "space before the method": (b" " + SCORE, [400], "closed"),
    "line end after": (SCORE + b"\r\n", [200], "open"),
    "line ends between": (SCORE + b"\r\n\r\n" + SCORE, [200, 200], "open"),
    "rubbish after, in a piece of its own": ([SCORE, 0.05, b"rubbish\r\n\r\n"], [200, 400], "closed"),
}

CHUNKS: dict[str, Row] = {
    "one": (IN_CHUNKS, [200], "open"),
    "byte by byte": (in_chunks(b"".join(b"1\r\n%c\r\n" % byte for byte in TX) + b"0\r\n\r\n"), [200], "open"),
    "upper-case size": (in_chunks(b"%X\r\n%s\r\n0\r\n\r\n" % (len(TX), TX)), [200], "open"),
    "leading zeros": (in_chunks(b"0000" + ONE_CHUNK + b"000\r\n\r\n"), [200], "open"),
    "many leading zeros": (in_chunks(b"0" * 100 + ONE_CHUNK + b"0\r\n\r\n"), [200], "open"),
    "extension": (in_chunks(ONE_CHUNK.replace(b"\r\n", b";a=b\r\n", 1) + b"0;c\r\n\r\n"), [200], "open"),
    "extension in quotes": (in_chunks(ONE_CHUNK.replace(b"\r\n", b';a="b;c"\r\n', 1) + b"0\r\n\r\n"), [200], "open"),
    "extension of a line feed": (in_chunks(ONE_CHUNK.replace(b"\r\n", b";a\nb\r\n", 1) + b"0\r\n\r\n"), [400], "closed"),
    "extension, long": (in_chunks(ONE_CHUNK.replace(b"\r\n", b";" + b"a" * 20_000 + b"\r\n", 1) + b"0\r\n\r\n"), [200], "open"),
    "trailer": (in_chunks(ONE_CHUNK + b"0\r\nX-Sum: 1\r\n\r\n"), [200], "open"),
    "trailers": (in_chunks(ONE_CHUNK + b"0\r\nX-Sum: 1\r\nY: 2\r\n\r\n"), [200], "open"),
    "trailer of a length": (in_chunks(ONE_CHUNK + b"0\r\nContent-Length: 5\r\n\r\n"), [400], "closed"),
    "trailer without a colon": (in_chunks(ONE_CHUNK + b"0\r\nX\r\n\r\n"), [400], "closed"),
    "trailer, long": (in_chunks(ONE_CHUNK + b"0\r\nX: " + b"y" * 20_000 + b"\r\n\r\n"), [400], "closed"),
    "empty": (in_chunks(b"0\r\n\r\n"), [400], "open"),
    "size not hexadecimal": (in_chunks(b"xyz\r\n" + TX + b"\r\n0\r\n\r\n"), [400], "closed"),
    "size 0x10": (in_chunks(b"0x10\r\n" + TX + b"\r\n0\r\n\r\n"), [400], "closed"),
    "size negative": (in_chunks(b"-1\r\n" + TX + b"\r\n0\r\n\r\n"), [400], "closed"),
    "size plus": (in_chunks(b"+" + ONE_CHUNK + b"0\r\n\r\n"), [400], "closed"),
    "size empty": (in_chunks(b"\r\n" + TX + b"\r\n0\r\n\r\n"), [400], "closed"),
    "size above 2**64": (in_chunks(b"1" + b"0" * 16 + b"\r\n" + TX + b"\r\n0\r\n\r\n"), [400], "closed"),
    "space before size": (in_chunks(b" " + ONE_CHUNK + b"0\r\n\r\n"), [400], "closed"),
    "space after size": (in_chunks(ONE_CHUNK.replace(b"\r\n", b" \r\n", 1) + b"0\r\n\r\n"), [400], "closed"),
    "size ends with LF": (in_chunks(ONE_CHUNK.replace(b"\r\n", b"\n", 1) + b"0\r\n\r\n"), [400], "closed"),
    "size too small": (in_chunks(b"3\r\n" + TX + b"\r\n0\r\n\r\n"), [400], "closed"),
    "size too large": (in_chunks(b"%x\r\n%s\r\n0\r\n\r\n" % (len(TX) + 1, TX)), [400], "closed"),
    "no line end after data": (in_chunks(ONE_CHUNK[:-2] + b"0\r\n\r\n"), [400], "closed"),
    "no last chunk": (in_chunks(ONE_CHUNK), [408], "any"),
    "no last line end": (in_chunks(ONE_CHUNK + b"0\r\n"), [408], "any"),
    "half a chunk": (in_chunks(ONE_CHUNK[:40]), [408], "any"),
    "above the limit": (in_chunks(b"%x\r\n%s\r\n" % (MIB, b" " * MIB) * 3 + b"0\r\n\r\n"), [413], "open"),
    "at the limit": (
        in_chunks(ONE_CHUNK + b"%x\r\n%s\r\n" % (MIB - len(TX), b" " * (MIB - len(TX))) + b"0\r\n\r\n"),
        [200],
        "open",
    ),
    "in HTTP/1.0": (IN_CHUNKS.replace(b"HTTP/1.1", b"HTTP/1.0", 1), [200], "closed"),
    "GET": (IN_CHUNKS.replace(b"POST", b"GET"), [405], "open"),
    "pipelined": (IN_CHUNKS * 3, [200, 200, 200], "open"),
    "pipelined with lengths": (IN_CHUNKS + SCORE + IN_CHUNKS, [200, 200, 200], "open"),
    "pipelined with another route": (IN_CHUNKS + LIVEZ + IN_CHUNKS, [200, 200, 200], "open"),
}


def _codings() -> Iterator[tuple[str, bytes, Sequence[int]]]:
    """Transfer-Encoding lines, in front of a chunked body."""
    yield "upper case", b"Transfer-Encoding: CHUNKED\r\n", [200]
    yield "spaces", b"Transfer-Encoding:   chunked  \r\n", [200]
    yield "twice", CHUNKED * 2, [400]
    yield "chunked, chunked", b"Transfer-Encoding: chunked, chunked\r\n", [400]
    yield "chunked, identity", b"Transfer-Encoding: chunked, identity\r\n", [400]
    yield "identity, chunked", b"Transfer-Encoding: identity, chunked\r\n", [200]
    yield "gzip, chunked", b"Transfer-Encoding: gzip, chunked\r\n", [200]
    yield "identity", b"Transfer-Encoding: identity\r\n", [400]
    yield "gzip", b"Transfer-Encoding: gzip\r\n", [400]
    yield "xchunked", b"Transfer-Encoding: xchunked\r\n", [400]
    yield "chunkedx", b"Transfer-Encoding: chunkedx\r\n", [400]
    yield "quotes", b'Transfer-Encoding: "chunked"\r\n', [400]
    yield "parameter", b"Transfer-Encoding: chunked;q=1\r\n", [400]
    yield "comma first", b"Transfer-Encoding: , chunked\r\n", [200]
    yield "comma last", b"Transfer-Encoding: chunked,\r\n", [400]
    yield "empty", b"Transfer-Encoding:\r\n", [400]
    yield "vertical tab", b"Transfer-Encoding:\x0bchunked\r\n", [400]
    yield "NUL", b"Transfer-Encoding: chunked\0\r\n", [400]
    yield "folded", b"Transfer-Encoding:\r\n chunked\r\n", [400]
    yield "space before colon", b"Transfer-Encoding : chunked\r\n", [400]
    yield "underscore", b"Transfer_Encoding: chunked\r\n", [400]
    yield "then another", CHUNKED + b"Transfer-Encoding: x\r\n", [400]
    yield "another, then", b"Transfer-Encoding: x\r\n" + CHUNKED, [400]
    yield "with a length after", CHUNKED + LENGTH, [400]
    yield "with a length before", LENGTH + CHUNKED, [400]
    yield "with a length of 0", b"Content-Length: 0\r\n" + CHUNKED, [400]
    yield "upper case, with a length", b"TRANSFER-ENCODING: Chunked\r\n" + LENGTH, [400]
    yield "identity, with a length", b"Transfer-Encoding: identity\r\n" + LENGTH, [400]
    yield "xchunked, with a length", b"Transfer-Encoding: xchunked\r\n" + LENGTH, [400]
    yield "folded, with a length", LENGTH + b"X: 1\r\n Transfer-Encoding: chunked\r\n", [400]


NOISE: dict[str, tuple[bytes, list[int]]] = {  # and the statuses of what came before it
    "none, with a body": (HEAD + b"\r\n" + TX, [400]),
    "0, with a body": (with_length(b"0"), [400]),
    "shorter than the body": (with_length(b"%d" % (len(TX) - 1)), [400]),
    "much shorter than the body": (with_length(b"3"), [400]),
    "rubbish after": (SCORE + b"rubbish\r\n\r\n", [200]),
    "a bad request after two good ones": (SCORE * 2 + with_length(b"x"), [200, 200]),
    "a bad request after another route": (LIVEZ + with_length(b"x"), [200]),
    "a TLS hello after a good request": (SCORE + b"\x16\x03\x01\x02\x00\x01\r\n\r\n", [200]),
    "close, then a request": (with_length(RIGHT, b"Connection: close") + SCORE, [200]),
    "close on another route, then a request": (LIVEZ[:-2] + b"Connection: close\r\n\r\n" + SCORE, [200]),
    "HTTP/1.0, then a request": (SCORE.replace(b"/1.1", b"/1.0") + SCORE, [200]),
}

SMUGGLING: dict[str, Row] = {
    "CL.TE": (HEAD + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED, [400], "closed"),
    "TE.CL": (HEAD + CHUNKED + b"Content-Length: 4\r\n\r\n" + ONE_CHUNK + b"0\r\n\r\n" + SMUGGLED, [400], "closed"),
    "TE.TE": (HEAD + CHUNKED + b"Transfer-Encoding: cow\r\n\r\n" + ONE_CHUNK + b"0\r\n\r\n" + SMUGGLED, [400], "closed"),
    "CL.CL": (HEAD + LENGTH + b"Content-Length: 0\r\n\r\n" + TX + SMUGGLED, [400], "closed"),
    "hidden by LF": (HEAD[:-2] + b"\nContent-Length: 0\n\r\n" + SMUGGLED, [400], "closed"),
    "hidden by CR": (HEAD + b"X: y\rContent-Length: 0\r\n" + LENGTH + b"\r\n" + TX, [400], "closed"),
    "length in the query": (HEAD.replace(b"score", b"score?\r\nContent-Length: 0", 1) + b"\r\n", [400], "closed"),
    "body that is a request": (with_length(b"%d" % len(SMUGGLED), body=SMUGGLED), [400], "open"),
    "body, then a request": (SCORE + SMUGGLED, [200, 401], "open"),
    "GET that hides a request in its body": (
        LIVEZ[:-2] + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        [200],
        "open",
    ),
    "last chunk with a body": (in_chunks(ONE_CHUNK + b"0;x=y\r\n\r\n" + SMUGGLED), [200, 401], "open"),
    "chunk size with a line end": (in_chunks(b"6a\r\n;\r\n" + ONE_CHUNK + b"0\r\n\r\n"), [400], "closed"),
}

UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
AFTER: dict[str, Row] = {  # what follows a request that changes how its connection is read
    "upgrade, then requests": (HEAD + UPGRADE + LENGTH + b"\r\n" + TX + SCORE + LIVEZ, [200, 200, 200], "open"),
    "upgrade, then requests in pieces": (
        [HEAD + UPGRADE + LENGTH + b"\r\n" + TX, 0.05, SCORE, 0.05, LIVEZ],
        [200, 200, 200],
        "open",
    ),
    "upgrade without a body, then requests": (LIVEZ[:-2] + UPGRADE + b"\r\n" + SCORE + LIVEZ, [200, 200, 200], "open"),
    "upgrade, then noise": ([LIVEZ[:-2] + UPGRADE + b"\r\n", 0.05, b"hello\r\n\r\n"], [200, 400], "closed"),
    "CONNECT, then requests": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n" + SCORE + LIVEZ, [404, 200, 200], "open"),
    "CONNECT, then noise": ([b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 0.05, b"hello\r\n\r\n"], [404, 400], "closed"),
    "close, then a request in a piece": ([with_length(RIGHT, b"Connection: close"), 0.05, SCORE], [200], "closed"),
    "refused, then a request": (with_length(b"2", body=b"{}") + SCORE, [422, 200], "open"),
    "no gzip, then a request": (with_length(RIGHT, b"Content-Encoding: gzip") + SCORE, None, "any"),
    "too large and sent, then a request": (with_length(b"%d" % (MIB + 1), body=b" " * (MIB + 1)) + SCORE, [413, 200], "any"),
    "too large in chunks, then a request": (
        in_chunks(b"%x\r\n%s\r\n" % (MIB, b" " * MIB) * 2 + b"0\r\n\r\n") + SCORE,
        [413, 200],
        "any",
    ),
    "no key and a body, then a request": (SCORE.replace(b"{admin}", b"x") + SCORE, [401, 200], "open"),
    "unknown path and a body, then a request": (SCORE.replace(b"score", b"scare", 1) + SCORE, [404, 200], "open"),
    "GET with a body, then a request": (SCORE.replace(b"POST", b"GET") + SCORE, [405, 200], "open"),
    "HEAD, then a request": ([LIVEZ.replace(b"GET", b"HEAD"), SCORE], [200, 200], "open"),
}

EXPECTATIONS: dict[str, Row] = {
    "body at once": (with_length(RIGHT, b"Expect: 100-continue"), [100, 200], "open"),
    "body later": ([with_length(RIGHT, b"Expect: 100-continue", body=b""), 0.1, TX], [100, 200], "open"),
    "upper case": (with_length(RIGHT, b"EXPECT: 100-CONTINUE"), [100, 200], "open"),
    "other": (with_length(RIGHT, b"Expect: 200-ok"), [200], "open"),
    "empty": (with_length(RIGHT, b"Expect:"), [200], "open"),
    "parameter": (with_length(RIGHT, b"Expect: 100-continue; a=b"), [200], "open"),
    "twice": (with_length(RIGHT, b"Expect: 100-continue", b"Expect: 100-continue"), [100, 200], "open"),
    "HTTP/1.0": (with_length(RIGHT, b"Expect: 100-continue").replace(b"/1.1", b"/1.0", 1), [200], "closed"),
    "no body": (with_length(b"0", b"Expect: 100-continue", body=b""), [100, 400], "open"),
    "GET": (LIVEZ[:-2] + b"Expect: 100-continue\r\n\r\n", [100, 200], "open"),
    "no key": (with_length(RIGHT, b"Expect: 100-continue").replace(b"{admin}", b"x"), [100, 401], "open"),
    "too long": (with_length(b"%d" % 10**9, b"Expect: 100-continue", body=b""), [100, 413], "any"),
    "chunked": (HEAD + CHUNKED + b"Expect: 100-continue\r\n\r\n" + ONE_CHUNK + b"0\r\n\r\n", [100, 200], "open"),
    "never sent": (with_length(RIGHT, b"Expect: 100-continue", body=b""), [100, 408], "any"),
    "batch": (BATCH.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"), [100, 200], "open"),
    "pipelined": (with_length(RIGHT, b"Expect: 100-continue") * 2, [100, 200, 100, 200], "open"),
}


def _rows(table: dict[str, Row]) -> list[object]:
    return [pytest.param(*row, id=name) for name, row in table.items()]


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(LENGTHS))
def test_lengths_are_read_alike(lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End") -> None:
    """A body ends at the same byte in both lanes, or the request is refused in both."""
    lanes.check(sent, statuses, end)


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(CHUNKS))
def test_chunks_are_read_alike(lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End") -> None:
    """Sizes, extensions, trailers, and chunks that are none."""
    lanes.check(sent, statuses, end)


@pytest.mark.parametrize(
    ("coding", "statuses"), [pytest.param(coding, statuses, id=name) for name, coding, statuses in _codings()]
)
def test_transfer_codings_are_read_alike(lanes: "Lanes", coding: bytes, statuses: Sequence[int]) -> None:
    """Every way to write, misspell or hide `chunked`."""
    lanes.check(in_chunks(ONE_CHUNK + b"0\r\n\r\n", coding), statuses)


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(SMUGGLING))
def test_no_request_is_smuggled(lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End") -> None:
    """What one lane would take for a body is never a request to the other."""
    lanes.check(sent, statuses, end)


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(AFTER))
def test_what_follows_is_read_alike(lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End") -> None:
    """After an upgrade that is not granted, a close, a refusal: the next bytes are a request to both lanes, or to none."""
    lanes.check(sent, statuses, end)


@pytest.mark.parametrize(("sent", "statuses", "end"), _rows(EXPECTATIONS))
def test_expectations_are_met_alike(lanes: "Lanes", sent: bytes, statuses: Sequence[int] | None, end: "End") -> None:
    """`Expect: 100-continue` is answered before the body; other expectations are not heard."""
    lanes.check(sent, statuses, end)


def fresh(number: "itertools.count[int]") -> bytes:
    """A transaction that was not sent before."""
    body = TX.replace(b"frame-1", b"pipe-%d" % next(number))
    return with_length(b"%d" % len(body), body=body)


NUMBERS = itertools.count(1)
ROUTES: dict[str, Callable[[], bytes]] = {
    "score": lambda: fresh(NUMBERS),
    "chunked": lambda: IN_CHUNKS,
    "dry": lambda: SCORE.replace(b"score", b"score?commit=false", 1),
    "livez": lambda: LIVEZ,
    "decision": lambda: b"GET /v1/decisions/frame-1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {admin}\r\n\r\n",
    "list": lambda: (
        b"PUT /v1/lists/deny/card/c9 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {admin}\r\n"
        b'Content-Length: 14\r\n\r\n{"reason":"x"}'
    ),
    "unknown": lambda: b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
    "refused": lambda: with_length(b"2", body=b"{}"),
    "denied": lambda: SCORE.replace(b"{admin}", b"nobody"),
}
STATUS = {"unknown": 404, "refused": 422, "denied": 401}


@pytest.mark.parametrize("n_requests", [2, 3, 10, 50])
@pytest.mark.parametrize("in_one_piece", [True, False], ids=["one piece", "pieces"])
@pytest.mark.parametrize(
    "routes",
    [
        ["score"],
        ["refused", "score", "denied"],
        ["score", "livez"],
        ["livez", "score"],
        ["score", "score", "score", "decision", "chunked", "list", "dry", "unknown"],
        ["chunked", "list", "score", "refused", "livez"],
    ],
    ids="-".join,
)
def test_pipelined_requests_are_answered_in_order(
    lanes: "Lanes", routes: list[str], in_one_piece: bool, n_requests: int
) -> None:
    """2 to 50 requests before the first reply is read, of one lane or of both: all are answered, in order, with equal LSNs."""
    names = list(itertools.islice(itertools.cycle(routes), n_requests))
    pieces = [ROUTES[name]() for name in names]
    lanes.check([b"".join(pieces)] if in_one_piece else pieces, [STATUS.get(name, 200) for name in names], "open")


@pytest.mark.parametrize("bad", [b"hello\r\n\r\n", HEAD + b"Content-Length: x\r\n\r\n"], ids=["noise", "bad length"])
@pytest.mark.parametrize("routes", [["score"], ["livez"], ["score", "livez", "score"]], ids="-".join)
def test_pipeline_before_noise_is_answered(lanes: "Lanes", routes: list[str], bad: bytes) -> None:
    """What came before the noise is answered before it, whichever lane has the connection by then."""
    lanes.check([*(ROUTES[name]() for name in routes), 0.05, bad], [*(200 for _ in routes), 400], "closed")


@pytest.mark.parametrize(("sent", "statuses"), [pytest.param(*row, id=name) for name, row in NOISE.items()])
def test_noise_in_the_piece_of_a_request_is_refused(lanes: "Lanes", sent: bytes, statuses: list[int]) -> None:
    """Noise closes the connection. What came before it in the same piece is answered first, or, as aiohttp does, not at all:
    then it has not happened. Nothing after it is ever taken for a request."""
    lanes.check(SCORE, [200])  # known to both: one that answers it counts nothing that the other does not
    for outcome in lanes.both(lambda lane: lane.run([sent], len(statuses))):
        assert outcome.statuses in (statuses, [*statuses, 400], [400]), str(outcome)
        assert outcome.end == "closed", str(outcome)
    lanes.both(lambda lane: lane.assert_well())


@pytest.fixture(scope="module")
def patient_lanes(keep_lanes: Callable[..., "Lanes"]) -> "Lanes":
    """Two that wait for a body as long as a busy machine takes to send it in pieces."""
    lanes = keep_lanes("server.request_deadline_ms=60000")
    for request in (SCORE, BATCH):  # known from now on: every reply says so
        lanes.check(request, [200])
    return lanes


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(SCORE, id="score"),
        pytest.param(IN_CHUNKS, id="chunked"),
        pytest.param(SCORE.replace(b"score", b"score?commit=false&explain=1"), id="query"),
        pytest.param(with_length(RIGHT, b"Connection: close"), id="close"),
        pytest.param(BATCH, id="batch"),
        pytest.param(LIVEZ, id="livez"),
        pytest.param(with_length(b"5", body=b"hello"), id="refused"),
        pytest.param(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" + SCORE, id="hand-over"),
    ],
)
def test_request_split_at_every_byte_is_answered_alike(patient_lanes: "Lanes", request_: bytes) -> None:
    """A request that comes in two pieces, wherever it is cut, has the reply of one that comes in one."""
    lanes = patient_lanes
    n_replies = request_.count(b" HTTP/1.1\r\n")
    whole = lanes.check(request_, None, n_replies=n_replies)
    filled = lanes.fast.fill_in(request_)
    for cut in range(1, len(filled)):
        halves = lanes.compare([filled[:cut], filled[cut:]], n_replies)
        assert halves == whole, f"cut after {filled[max(cut - 20, 0) : cut]!r}:\n{halves}\nwhole:\n{whole}"


@pytest.mark.parametrize("request_", [SCORE, IN_CHUNKS, LIVEZ + SCORE], ids=["score", "chunked", "hand-over"])
def test_request_byte_by_byte_is_answered_alike(patient_lanes: "Lanes", request_: bytes) -> None:
    """Every byte for itself."""
    lanes = patient_lanes
    filled = lanes.fast.fill_in(request_)
    n_replies = request_.count(b" HTTP/1.1\r\n")
    lanes.check([bytes([byte]) for byte in filled], [200] * n_replies, "open")
