"""weir-go and `weir serve` are sent the same requests and answer the same: status, headers, fields, and the words of a problem.

What may differ is the LSN, the scorer's name, reasons in words (weir-go gives codes), the order of currencies, and the detail
of the requests in OWN_WORDS.
"""

import gzip
import http.client
import json
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Reply, Weir

Rivals = tuple["Weir", "Weir"]

pytestmark = pytest.mark.e2e

NDJSON = "application/x-ndjson"
NOW_MS = time.time_ns() // 1_000_000
DAY_MS = 86_400_000
HEADERS = ("content-type", "allow", "www-authenticate", "retry-after")
OWN_WORDS = {f"coding: {name}" for name in ("empty", "cut", "br", "bomb")}
PASSING = re.compile(r"\d{10,}|-?\d+ ms|(?<=knows )[A-Z, ]+")
N_MUTATED = 3_000


class Request(NamedTuple):
    name: str
    path: str
    body: bytes
    method: str = "POST"
    headers: dict[str, str] = {}  # noqa: RUF012  # nobody changes it


def tx(name: str, /, **changes: Any) -> bytes:
    """A full transaction with `changes`; ... takes a field away."""
    fields = {
        "event_id": name, "ts": NOW_MS, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1",
        "device_id": "d1", "ip": "203.0.113.7", "country": "DE", "mcc": 5411, "channel": "ecom", "lat": 52.5, "lon": 13.4,
    } | changes  # fmt: skip
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def label(**changes: Any) -> dict[str, Any]:
    fields = {"event_id": "new", "label": "fraud", "ts": NOW_MS} | changes
    return {name: value for name, value in fields.items() if value is not ...}


def bad_fields() -> Iterator[Request]:
    values: dict[str, list[Any]] = {
        "event_id": [..., None, "", 1, True, [], {}, "x" * 129, "a\nb", "a\0b", "a\u2028b", "\x7f", "\u200b", "💳" * 129],
        "ts": [..., None, "now", 1.5, 1.0, True, -1, NOW_MS // 1000, NOW_MS + DAY_MS, NOW_MS - 2000 * DAY_MS, 2**62, 10**30],
        "amount": [..., None, "12", 12.0, 1.5, 1e3, True, -1, 10**10 + 1, 2**63, 2**64, 10**400, [], {"a": 1}],
        "currency": [..., None, "", "XXX", "eur", 978, "E" * 5000, "E\nR"],
        "card_id": [..., None, "", 1, "x" * 129, "a\tb", "\u202e", "\ue000", "\U000e0001"],
        "merchant_id": [..., None, "", 1, "x" * 129, "\x1f"],
        "device_id": ["", 1, "x" * 129, "\r"],
        "ip": ["", 1, "x" * 129, "\0", False],
        "country": ["", "de", "DEU", "D", "ÄÖ", "DE\n", 1, "D1"],
        "mcc": [-1, 10_000, "5411", 1.0, 2**70],
        "channel": ["", "ECOM", "phone", 1],
        "lat": [91, -90.5, "1", [1], ..., None, True, 1e400],
        "lon": [181, -180.5, "1", ..., None, -1e-400],
    }  # fmt: skip
    for field, wrong in values.items():
        for value in wrong:
            yield Request(
                f"{field}={'missing' if value is ... else repr(value)[:30]}",
                "/v1/score?commit=false",
                tx("bad", **{field: value}),
            )


def bad_bodies() -> Iterator[Request]:
    valid = tx("bad")
    for name, body in {
        "unknown field": tx("bad", amont=1),
        "unknown field, null": tx("bad", amont=None),
        "unknown field, dangerous name": tx("bad", **{"a\nb": 1}),
        "unknown field, long name": tx("bad", **{"a" * 300: 1}),
        "two wrong fields": tx("bad", amount=-1, currency=1, zzz=1),
        "a field twice": valid.replace(b'"amount": 1299', b'"amount": -5, "amount": 1299'),
        "a field twice, last wrong": valid.replace(b'"amount": 1299', b'"amount": 1299, "amount": -5'),
        "a field is deep": tx("bad", card_id=1).replace(b": 1,", b": " + b"[" * 100_000 + b",", 1),
        "amount NaN": tx("bad", amount=float("nan")),
        "lat Infinity": tx("bad", lat=float("inf")),
        "lone surrogate": tx("bad", card_id="\ud800"),
        "raw surrogate": valid.replace(b'"c1"', b'"\xed\xa0\x80"'),
        "value not UTF-8": valid.replace(b'"c1"', b'"\xff"'),
        "name not UTF-8": valid.replace(b'"card_id"', b'"card\xff"'),
        "raw newline": valid.replace(b'"c1"', b'"c\n1"'),
        "leading zero": valid.replace(b"1299", b"01299"),
        "plus": valid.replace(b"1299", b"+1299"),
        "hexadecimal": valid.replace(b"1299", b"0x12"),
        "minus zero": valid.replace(b"1299", b"-0"),
        "no value": valid.replace(b"1299", b""),
        "trailing comma": valid.replace(b"}", b",}"),
        "single quotes": valid.replace(b'"', b"'"),
        "comment": b"/* x */" + valid,
        "bad escape": valid.replace(b'"c1"', b'"\\x41"'),
        "cut": valid[:-1],
        "empty": b"",
        "blank": b" \n ",
        "trailing": valid + b"x",
        "two": valid + valid,
        "text": b"amount=1&currency=EUR",
        "UTF-16": valid.decode().encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + valid,
        "array": b"[" + valid + b"]",
        "null": b"null",
        "string": b'"t-1"',
        "number": b"1",
        "no fields": b"{}",
        "deep array": b"[" * 100_000,
        "deep array, closed": b"[" * 100_000 + b"]" * 100_000,
        "deep object": b'{"a":' * 100_000,
        "10 MB": tx("bad", card_id="x" * 10_000_000),
        "one byte too long": valid + b" " * (2**20 + 1 - len(valid)),
    }.items():
        yield Request(name, "/v1/score?commit=false", body)


def keys_and_paths() -> Iterator[Request]:
    valid = tx("bad")
    for value in ("", "Bearer", "Bearer ", "Basic YTpi", "Bearer nonsense", "Bearer a b", "Bearer " + "x" * 7000, "bearer x"):
        for path in ("/v1/score", "/v1/score/batch", "/v1/labels"):
            yield Request(f"key {value[:16]!r} {path}", path, valid, headers={"Authorization": value})
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in ("/v1/score", "/v1/score/batch", "/v1/labels"):
            yield Request(f"{method} {path}", path, valid, method)
    yield Request("no key, 10 MB", "/v1/score", b" " * 10_000_000, headers={"Authorization": ""})
    yield Request("no path, 10 MB", "/v1/nothing", b" " * 10_000_000)
    yield Request("no key, wrong method", "/v1/score", valid, "PUT", {"Authorization": ""})
    for method in ("POST", "DELETE", "HEAD", "GET"):
        for path in ("/livez", "/readyz"):
            yield Request(f"{method} {path}", path, b"", method)
    for path in (
        "/",
        "/v1",
        "/v1/nothing",
        "/v1/score/",
        "/v1/score/batch/",
        "//",
        "/v1//score",
        "/v1/scor%65",
        "/V1/score",
        "/v1/./score",
    ):
        yield Request(f"path {path}", path, valid)
        yield Request(f"path {path} without a key", path, valid, "GET", {"Authorization": ""})
    for query in (
        "commit=maybe", "commit=", "commit", "commit=FALSE", "comit=false", "commit=false&commit=true", "explain=2",
        "trace=yes", "commit=%ff", "&commit=false&", "commit=false;explain=1", "commit=%66alse", "%63ommit=false",
        "commit=false&x=" + "y" * 100, "?commit=false", "commit=+false",
    ):  # fmt: skip
        for path, body in (("/v1/score", tx("dry")), ("/v1/score/batch", b"[" + tx("dry") + b"]"), ("/v1/labels", b"[]")):
            yield Request(f"{path}?{query[:40]}", f"{path}?{query}", body)


def codings() -> Iterator[Request]:
    valid, path = tx("dry"), "/v1/score?commit=false"
    for name, body, encoding in (
        ("gzip", gzip.compress(valid), "gzip"),
        ("GZIP", gzip.compress(valid), "GZIP"),
        ("two members", gzip.compress(valid) + gzip.compress(b" "), "gzip"),
        ("identity", valid, "identity"),
        ("no gzip", valid, "gzip"),
        ("empty", b"", "gzip"),
        ("cut", gzip.compress(valid)[:-30], "gzip"),
        ("wrong sum", gzip.compress(valid)[:-8] + bytes(8), "gzip"),
        ("rubbish after it", gzip.compress(valid) + b"rubbish", "gzip"),
        ("deflate is gzip", gzip.compress(valid), "deflate"),
        ("br", gzip.compress(valid), "br"),
        ("two codings", gzip.compress(valid), "gzip, gzip"),
        ("unknown", valid, "rot13"),
        ("bomb", gzip.compress(b" " * 50_000_000, 1), "gzip"),
    ):
        yield Request(f"coding: {name}", path, body, headers={"Content-Encoding": encoding})
    for kind in (  # none that both refuse: weir-go reads no MessagePack, and so names fewer types
        "text/plain",
        "TEXT/PLAIN",
        "application/problem+json",
        "nonsense",
        "application/json; charset=x",
        ";",
    ):
        yield Request(f"type {kind}", "/v1/score/batch?commit=false", b"[" + valid + b"]", headers={"Content-Type": kind})
        yield Request(f"type {kind}, one", path, valid, headers={"Content-Type": kind})


def batches() -> Iterator[Request]:
    path = "/v1/score/batch"
    mixed = [
        tx("b0"), tx("b1", amount=-1), b"7", b"null", tx("b4").replace(b"c1", b"\xff"), b"{}", tx("b6"), tx("b0"),
        tx("b6", amount=1), tx("x" * 129), tx("b7\nb8"), b'{"event_id": 7}', b'{"event_id": "x", "event_id": "y"}', tx("b0"),
    ]  # fmt: skip
    for query in ("?commit=false&explain=1", "?explain=1", "?explain=1", ""):
        yield Request(f"mixed array {query}", path + query, b"[" + b",".join(mixed) + b"]")
        yield Request(f"mixed lines {query}", path + query, b"\n".join(mixed), headers={"Content-Type": NDJSON})
    lines = [tx("n0"), b"", b'{"event_id": "n1", "ts"', b"\xff", b" ", b"[" * 100_000, b"\t", tx("n4"), b""]
    yield Request("lines", path, b"\r\n".join(lines), headers={"Content-Type": NDJSON})
    yield Request("lines by their looks", path, b"\n ".join([tx("n5"), tx("n6")]))
    yield Request("one line", path, b"  " + tx("n7"))
    yield Request("array as lines", path, b"[" + tx("n8") + b"]", headers={"Content-Type": NDJSON})
    for name, body, kind in (
        ("none", b"[]", "application/json"),
        ("no lines", b"\n", NDJSON),
        ("empty lines", b"", NDJSON),
        ("empty", b"", "application/json"),
        ("cut", b"[{},{", "application/json"),
        ("no comma", b"[{}{}]", "application/json"),
        ("trailing comma", b"[{},]", "application/json"),
        ("leading comma", b"[,{}]", "application/json"),
        ("trailing", b"[] x", "application/json"),
        ("deep", b"[" * 100_000 + b"]" * 100_000, "application/json"),
        ("nested", b'[[1,{"a":[]}],"]",{"a":"}"},true]', "application/json"),
        ("string", b'"x"', "application/json"),
        ("10,001 rows", b"[" + b",".join([b"{}"] * 10_001) + b"]", "application/json"),
        ("10,001 lines", b"{}\n" * 10_001, NDJSON),
        ("10,000 rows", b"[" + b",".join([b"{}"] * 10_000) + b"]", "application/json"),
        ("8 MiB and 2", b"[" + b" " * (8 * 2**20) + b"]", "application/json"),
    ):
        yield Request(f"batch: {name}", path, body, headers={"Content-Type": kind})


def labels() -> Iterator[Request]:
    wrong: list[Any] = [
        label(label="maybe"), label(label=1), label(label=...), label(ts=NOW_MS // 1000), label(ts="now"), label(ts=-1),
        label(ts=2**63), label(ts=...), label(event_id=""), label(event_id="x" * 129), label(event_id="a\nb"),
        label(amount=1), label(event_id=...), 1, None, [], label(ts=NOW_MS + 2 * DAY_MS),
    ]  # fmt: skip
    for number, one in enumerate(wrong):
        yield Request(f"wrong label {number}", "/v1/labels", json.dumps([label(), one]).encode())
    for body in (b"", b"{}", b"[", b"[]", b"null", b"[" + b",".join([b"{}"] * 10_001) + b"]", b"{}\n{}"):
        yield Request(f"labels {body[:9]!r}", "/v1/labels", body)
    for word in ("legit", "fraud", "fraud", "legit", "fraud"):
        yield Request(f"{word}", "/v1/labels", json.dumps([label(label=word), label(event_id="never")]).encode())
    several = [label(label=word) for word in ("fraud", "legit", "legit", "fraud")]
    yield Request("several of one event", "/v1/labels", json.dumps(several).encode())


def good() -> Iterator[Request]:
    valid = tx("new")
    for query in ("?commit=false", "?commit=0&explain=1", "", "?explain=1", "?explain=true&commit=1", "?commit=false"):
        yield Request(f"new{query}", f"/v1/score{query}", valid)
    yield Request("another body", "/v1/score", tx("new", amount=1))
    yield Request("another body, dry", "/v1/score?commit=false", tx("new", amount=1))
    yield Request("other order of fields", "/v1/score", json.dumps(dict(reversed(json.loads(valid).items()))).encode())
    short = {"device_id": ..., "ip": ..., "country": ..., "mcc": ..., "channel": ..., "lat": ..., "lon": ...}
    yield Request("short", "/v1/score?explain=1", tx("short", **short))
    yield Request("short, nulls", "/v1/score?explain=1", tx("short", **dict.fromkeys(short)))
    for name in (
        "x" * 128,
        "💳" * 128,
        "💳👍🏽",
        "a b",
        "a/b?c#d%25",
        "../..",
        '"',
        "\\",
        "'; --",
        "é",
        "e\u0301",
        "\u00ad",
        "<&>",
    ):
        yield Request(f"id {name[:12]}", "/v1/score?explain=1", tx(name, card_id=name, device_id=name))
    limits: list[dict[str, Any]] = [
        {"amount": 10**10}, {"amount": 0}, {"ts": NOW_MS + 50_000}, {"lat": -90, "lon": 180}, {"lat": -0.0, "lon": 0},
        {"lat": 1e-300, "lon": 1}, {"mcc": 0}, {"mcc": 9999}, {"currency": "JPY"}, {"currency": "USD"}, {"channel": "pos"},
    ]  # fmt: skip
    for number, changes in enumerate(limits):
        yield Request(f"limit {number}", "/v1/score?explain=1", tx(f"limit-{number}", **changes))
    yield Request("exactly 1 MiB", "/v1/score", valid + b" " * (2**20 - len(valid)))


def comparable(request: Request, reply: "Reply") -> Any:
    """What has to be equal."""
    kind = reply.headers.get("content-type", "")
    if kind == NDJSON:
        content: Any = [json.loads(line) for line in reply.body.splitlines()]
    else:
        content = json.loads(reply.body) if reply.body else None
    _strip(content, request.name in OWN_WORDS)
    return reply.status, {name: reply.headers.get(name) for name in HEADERS}, content


def _strip(content: Any, own_words: bool) -> None:
    if isinstance(content, list):
        for item in content:
            _strip(item, own_words)
    if not isinstance(content, dict):
        return
    for item in content.values():
        _strip(item, own_words)
    content.pop("scorer", None)
    if isinstance(content.get("reasons"), list):
        content["reasons"] = [reason for reason in content["reasons"] if " " not in reason]
    if content.get("lsn"):
        content["lsn"] = "given"
    if isinstance(content.get("score"), float):
        content["score"] = round(content["score"], 6)
    if "detail" in content:
        content["detail"] = "..." if own_words else PASSING.sub("...", content["detail"])


def differences(rivals: Rivals, requests: Iterator[Request]) -> list[str]:
    python, go = rivals
    found, n = [], 0
    for request in requests:
        sent = request.method, request.path, request.body
        ours, theirs = (comparable(request, weir.call(*sent, request.headers)) for weir in (python, go))
        n += 1
        if ours != theirs:
            found.append(f"{request.name}:\n  python {str(ours)[:900]}\n  go     {str(theirs)[:900]}")
    assert n > 10
    return found


@pytest.mark.parametrize("requests", [good, bad_fields, bad_bodies, keys_and_paths, codings, batches, labels])
def test_same_request_same_reply(rivals: Rivals, requests: Callable[[], Iterator[Request]]) -> None:
    """Both servers, sent the same requests in the same order, give the same replies."""
    found = differences(rivals, requests())
    assert not found, f"{len(found)} differ:\n" + "\n".join(found)


def test_mutated_rows_same_replies(rivals: Rivals, rng: random.Random) -> None:
    """Thousands of transactions with a few bytes changed are taken or refused alike, row by row, for the same reason."""
    pieces = [
        b"",
        b" ",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b",",
        b":",
        b"null",
        b"-",
        b"1e3",
        b"0",
        b"\\u0000",
        b"\xc3\xa9",
        b"\xff",
        b"true",
    ]
    rows = []
    for number in range(N_MUTATED):
        row = bytearray(tx(f"mutated-{number}"))
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(row))
            row[place : place + rng.choice((0, 1, 1, 2, 8))] = rng.choice(pieces)
        rows.append(bytes(row))
    body = b"\n".join(rows)
    request = Request("mutated", "/v1/score/batch?explain=1", body, headers={"Content-Type": NDJSON})
    (_, _, ours), (_, _, theirs) = (
        comparable(request, weir.call("POST", request.path, body, request.headers)) for weir in rivals
    )
    assert len(ours) == len(theirs) == N_MUTATED
    different = [f"{row!r}:\n  {a}\n  {b}" for row, a, b in zip(rows, ours, theirs, strict=True) if a != b]
    assert not different, f"{len(different)} differ:\n" + "\n".join(different[:20])


def test_trace_is_refused(rivals: Rivals) -> None:
    """weir-go has no traces, and says so instead of leaving them out."""
    _, go = rivals
    for path, body in (("/v1/score", tx("bad")), ("/v1/score/batch", b"[" + tx("bad") + b"]")):
        reply = go.call("POST", f"{path}?trace=1", body)
        assert (reply.status, reply.json["field"]) == (422, "?trace")
        assert go.call("POST", f"{path}?trace=0&commit=false", body).status == 200


def head(weir: "Weir", *lines: bytes) -> bytes:
    """The head of a raw request with the key."""
    return b"\r\n".join(
        [b"POST /v1/score HTTP/1.1", b"Host: x", b"Authorization: Bearer " + weir.key.encode(), *lines, b"", b""]
    )


def connect(weir: "Weir") -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(weir.url.rpartition(":")[2])), timeout=20)


def next_reply(connection: socket.socket) -> tuple[int, bytes]:
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    return reply.status, reply.read()


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: abc",),
        (b"Content-Length: -5",),
        (b"Content-Length: 10", b"Content-Length: 20"),
        (b"X: " + b"y" * 40_000,),
        (b"No colon",),
    ],
)
def test_malformed_head_is_refused_without_quoting_it(rivals: Rivals, lines: tuple[bytes, ...]) -> None:
    """What HTTP itself forbids is refused by both; weir-go answers in plain text, and with 431 for a head that is too long."""
    for weir in rivals:
        with connect(weir) as connection:
            connection.sendall(head(weir, *lines) + tx("bad"))
            status, body = next_reply(connection)
        assert status == 400 or (status == 431 and len(lines[0]) > 10_000)
        assert b"yyyy" not in body
        assert b"c1" not in body


def test_body_that_never_ends_is_given_up_and_hangs_nobody_up(rivals: Rivals) -> None:
    """A client that announces more than it sends gets 408 after server.request_deadline_ms; others are served meanwhile."""
    for weir in rivals:
        started = time.monotonic()
        with connect(weir) as connection:
            connection.sendall(head(weir, b"Content-Length: 5000") + tx("bad"))
            assert weir.call("GET", "/livez").status == 200
            assert time.monotonic() - started < 0.4
            status, body = next_reply(connection)
        assert (status, json.loads(body)["field"]) == (408, "body")
        assert 0.4 < time.monotonic() - started < 5


def test_ten_megabytes_in_chunks_are_cut_off(rivals: Rivals) -> None:
    """A body of unannounced length is read up to the limit."""
    chunks = b"".join(b"%x\r\n%s\r\n" % (2**20, b" " * 2**20) for _ in range(10)) + b"0\r\n\r\n"
    for weir in rivals:
        with connect(weir) as connection:
            connection.sendall(head(weir, b"Transfer-Encoding: chunked") + chunks)
            status, body = next_reply(connection)
        assert (status, json.loads(body)["field"]) == (413, "body")


def test_pipelined_requests_are_answered_in_order(rivals: Rivals) -> None:
    """One connection carries many requests that are sent without waiting, also after a refusal."""
    bodies = [tx(f"pipe-{n}", amount=-1 if n == 2 else 100) for n in range(6)]
    for weir in rivals:
        with connect(weir) as connection:
            connection.sendall(b"".join(head(weir, b"Content-Length: %d" % len(body)) + body for body in bodies))
            stream = connection.makefile("rb")
            answers = []
            for _ in bodies:
                status, length = int(stream.readline().split()[1]), 0
                while line := stream.readline().strip():
                    length = int(line[15:]) if line.lower().startswith(b"content-length:") else length
                answers.append((status, json.loads(stream.read(length)).get("event_id")))
            stream.close()
        assert answers == [(422, None) if n == 2 else (200, f"pipe-{n}") for n in range(6)]


def test_metrics_have_no_ids_and_the_log_no_secrets(rivals: Rivals) -> None:
    """After all of the above nothing of a request is in the log, and no id in the metrics."""
    _, go = rivals
    secret = b"card-4111-1111"
    with connect(go) as connection:
        connection.sendall(head(go, b"Content-Length: 500") + tx("bad", card_id=secret.decode()))
    go.call("POST", "/v1/score", tx("bad", card_id=secret.decode()), {"Content-Encoding": "gzip"})
    assert go.call("POST", "/v1/score", tx("secret", card_id=secret.decode())).status == 200
    metrics = go.call("GET", "/metrics", headers={"Authorization": ""})
    assert metrics.status == 200
    assert secret not in metrics.body
    for word in (secret.decode(), go.key, "goroutine", "panic"):
        assert word not in go.log()
