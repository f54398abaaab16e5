"""Bad input over real HTTP: each is refused with a problem that names the field, changes nothing, and leaves the service up.

Above 400 lines: tables of what must be refused, and one service for all of them.
"""

import gzip
import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from service.auth import Role, add_key

pytestmark = pytest.mark.e2e

WEIR = str(Path(sys.executable).with_name("weir"))
NDJSON = "application/x-ndjson"
STATE = re.compile(rb"^weir_(?:journal_bytes|l1_profiles|l1_bytes|tx_total).*$", re.MULTILINE)
DAY_MS = 86_400_000
TODAY_MS = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS  # in names of tests: the same in every process that collects them
ENTRY = "/v1/lists/deny/card/c1"
ANALYST_CALLS = [("GET", "/v1/entities/card/c1"), ("GET", "/v1/tiers"), ("GET", ENTRY), ("PUT", ENTRY), ("DELETE", ENTRY)]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Service:
    """A real `weir serve` with one key per role."""

    def __init__(self, directory: Path) -> None:
        data_dir = directory / "data"
        self.keys = {role: add_key(data_dir, role, role.word) for role in Role}
        self.log = directory / "log"
        command = [WEIR, "serve", "--data-dir", str(data_dir), "--port", "0", "--set", "server.request_deadline_ms=500"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        ready = self.process.stdout.readline().decode()
        found = re.match(r"weir ready url=http://127\.0\.0\.1:(\d+) ", ready)
        assert found, self.log.read_text()
        self.port = int(found[1])

    def call(self, method: str, path: str, body: bytes | None = None, role: Role | None = Role.ADMIN, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if role is not None:
            sent["Authorization"] = f"Bearer {self.keys[role]}"
        try:
            connection.request(method, path, body, sent)
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def send(self, data: bytes) -> Reply:
        """Raw bytes out, the first reply in."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(data)
            reply = http.client.HTTPResponse(connection)
            reply.begin()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())

    def head(self, method: bytes, path: bytes, *lines: bytes) -> bytes:
        """The head of a raw request with the admin's key."""
        key = b"Authorization: Bearer " + self.keys[Role.ADMIN].encode()
        return b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"Host: x", key, *lines, b"", b""])

    def state(self) -> list[Any]:
        """What a refused request must leave as it was: journal, counters, windows, lists, decisions."""
        return [
            STATE.findall(self.call("GET", "/metrics").body),
            # L1's alone: what the levels below hold arrives there behind the reply, and is counted now and then.
            [tier["profiles"] for tier in self.call("GET", "/v1/tiers").json["tiers"] if tier["name"] == "l1"],
            [self.call("GET", path).json["windows"] for path in ("/v1/entities/card/c1", "/v1/entities/merchant/m1")],
            [self.call("GET", path).status for path in ("/v1/lists/deny/card/c1", "/v1/decisions/bad")],
        ]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _tx(**changes: Any) -> bytes:
    """A valid transaction of card c1 with `changes`; ... takes a field away."""
    tx = {"event_id": "bad", "ts": _now_ms(), "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"}
    return json.dumps({name: value for name, value in (tx | changes).items() if value is not ...}).encode()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("bad-input"))
    assert service.call("POST", "/v1/score", _tx(event_id="good")).status == 200
    yield service
    service.process.terminate()
    assert service.process.wait(20) == 0
    service.process.communicate()


@pytest.fixture
def unchanged(service: Service) -> Iterator[Service]:
    """The service; afterwards it must be up, and all state what it was before."""
    before = service.state()
    yield service
    assert service.process.poll() is None
    assert service.call("POST", "/v1/score?commit=false", _tx()).status == 200
    assert service.state() == before


def _assert_problem(reply: Reply, status: int, field: str | None) -> None:
    assert (reply.status, reply.headers["content-type"]) == (status, "application/problem+json"), reply
    problem = reply.json
    assert problem["status"] == status
    assert problem["type"].startswith("urn:weir:problem:")
    assert problem["title"]
    assert problem.get("field") == field, problem
    assert field is None or field[0].isupper() or field == "body" or field.strip("?") in problem["detail"], problem
    assert "\n" not in problem["detail"]
    assert "Traceback" not in reply.body.decode()


def _score_cases() -> Iterator[tuple[str, bytes, int, str]]:
    now = TODAY_MS
    fields: dict[str, list[Any]] = {
        "event_id": [..., None, "", 1, True, [], {}, "x" * 129, "a\nb", "a\0b", "a\u2028b", "\x7f", "\u200b"],
        "ts": [..., None, "now", 1.5, True, -1, now // 1000, now + DAY_MS, now - 2000 * DAY_MS, 2**62, 2**63, 10**30],
        "amount": [..., None, "12", 12.0, 1.5, True, -1, 10**10 + 1, 2**63, 2**64, 10**400, [], {"a": 1}],
        "currency": [..., None, "", "XXX", "eur", 978, "E" * 5000, "E\nR"],
        "card_id": [..., None, "", 1, "x" * 129, "💳" * 129, "a\tb", "\u202e"],
        "merchant_id": [..., None, "", 1, "x" * 129, "\x1f"],
        "device_id": ["", 1, "x" * 129, "\r"],
        "ip": ["", 1, "x" * 129, "\0"],
        "country": ["", "de", "DEU", "D", "ÄÖ", "DE\n", 1],
        "mcc": [-1, 10_000, "5411", 1.0],
        "channel": ["", "ECOM", "phone", 1],
        "lat": [91, -90.5, "1", [1]],
        "lon": [181, -180.5, "1"],
    }
    for field, values in fields.items():
        place = {"lat": 1.0, "lon": 1.0} if field in ("lat", "lon") else {}
        for value in values:
            shown = "missing" if value is ... else repr(value)
            yield f"{field}={shown[:30]}".encode("ascii", "replace").decode(), _tx(**(place | {field: value})), 422, field
    yield "lat alone", _tx(lat=1.0), 422, "lon"
    yield "lon alone", _tx(lon=1.0), 422, "lat"
    yield "unknown field", _tx(amont=1), 422, "amont"
    yield "unknown field, dangerous name", _tx(**{"a\nb": 1}), 422, "a?b"
    yield "a field is deep", _tx(card_id=1).replace(b": 1,", b": " + b"[" * 100_000 + b",", 1), 422, "card_id"
    yield "amount NaN", _tx(amount=float("nan")), 400, "amount"
    yield "lat Infinity", _tx(lat=float("inf"), lon=1.0), 400, "lat"
    yield "lone surrogate", _tx(card_id="\ud800"), 400, "card_id"
    yield "raw surrogate", _tx().replace(b'"c1"', b'"\xed\xa0\x80"'), 400, "card_id"
    yield "value not UTF-8", _tx().replace(b'"c1"', b'"\xff"'), 400, "card_id"
    yield "name not UTF-8", _tx().replace(b'"card_id"', b'"card\xff"'), 400, "card?"
    yield "raw newline", _tx().replace(b'"c1"', b'"c\n1"'), 400, "card_id"
    for name, body in {
        "empty": b"",
        "blank": b" \n ",
        "trailing": _tx() + b"x",
        "text": b"amount=1&currency=EUR",
        "UTF-16": _tx().decode().encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + _tx(),
        "array": b"[" + _tx() + b"]",
        "null": b"null",
        "string": b'"t-1"',
        "deep array": b"[" * 100_000,
        "deep array, closed": b"[" * 100_000 + b"]" * 100_000,
    }.items():
        yield name, body, 400, "body"
    yield "deep object", b'{"a":' * 100_000, 422, "a"
    yield "10 MB", _tx(card_id="x" * 10_000_000), 413, "body"
    yield "one byte too long", _tx() + b" " * (2**20 + 1 - len(_tx())), 413, "body"


@pytest.mark.parametrize(("body", "status", "field"), [pytest.param(*case, id=name) for name, *case in _score_cases()])
def test_score_bad_body_is_refused(unchanged: Service, body: bytes, status: int, field: str) -> None:
    """A transaction that must not be scored is answered with the field that is wrong."""
    _assert_problem(unchanged.call("POST", "/v1/score", body), status, field)


@pytest.mark.parametrize("card", ["x" * 128, "💳" * 128, "💳👍🏽", "a b", "a/b?c#d%25", "../..", '"', "'; --"])
def test_score_odd_but_valid_ids_are_taken(service: Service, card: str) -> None:
    """Whatever prints, up to 128 characters of it, is an id."""
    reply = service.call("POST", "/v1/score?commit=false", _tx(event_id=card, card_id=card))
    assert (reply.status, reply.json["event_id"]) == (200, card)


def test_score_values_at_the_limits_are_taken(service: Service) -> None:
    """The largest amount, an amount of 0 and a ts just inside the future limit are valid; so is a body of exactly 1 MiB."""
    for changes in ({"amount": 10**10}, {"amount": 0}, {"ts": _now_ms() + 50_000}, {"lat": -90, "lon": 180}):
        assert service.call("POST", "/v1/score?commit=false", _tx(**changes)).status == 200
    body = _tx()
    assert service.call("POST", "/v1/score?commit=false", body + b" " * (2**20 - len(body))).status == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("commit=maybe", "?commit"),
        ("commit=", "?commit"),
        ("commit", "?commit"),
        ("commit=FALSE", "?commit"),
        ("comit=false", "?comit"),
        ("commit=false&commit=true", "?commit"),
        ("explain=2", "?explain"),
        ("trace=yes", "?trace"),
        ("commit=%ff", "?commit"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/score", "/v1/score/batch"])
def test_bad_query_flag_is_refused(unchanged: Service, path: str, query: str, field: str) -> None:
    """A flag that is misspelt, given twice or neither true nor false changes nothing: what was meant is not known."""
    body = _tx() if path == "/v1/score" else b"[" + _tx() + b"]"
    _assert_problem(unchanged.call("POST", f"{path}?{query}", body), 422, field)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer nonsense", "Bearer a b", "Bearer \xff\xfe", "Bearer " + "x" * 7000],
)
def test_malformed_or_unknown_key_is_refused(unchanged: Service, header: str) -> None:
    """Whatever is no known key gets 401, and the reply never repeats what was sent."""
    reply = unchanged.call("POST", "/v1/score", _tx(), None, Authorization=header)
    _assert_problem(reply, 401, "Authorization")
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert b"nonsense" not in reply.body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/score"),
        ("POST", "/v1/score/batch"),
        ("POST", "/v1/labels"),
        ("GET", "/v1/decisions/good"),
        *ANALYST_CALLS,
    ],
)
def test_no_key_is_refused_everywhere(unchanged: Service, method: str, path: str) -> None:
    """Closed by default: without a key nothing is read or done."""
    _assert_problem(unchanged.call(method, path, _tx(), None), 401, "Authorization")


@pytest.mark.parametrize(("method", "path"), ANALYST_CALLS)
def test_ingest_key_is_refused_where_analysts_go(unchanged: Service, method: str, path: str) -> None:
    """The key of a payment system cannot look at entities or change lists; an analyst's can."""
    body = b'{"reason": "x"}' if method == "PUT" else None
    _assert_problem(unchanged.call(method, path, body, Role.INGEST), 403, "Authorization")
    if method == "GET":
        assert unchanged.call(method, path, None, Role.ANALYST).status in (200, 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_wrong_method_is_405_with_allow(unchanged: Service, method: str) -> None:
    """The reply says which method the path has."""
    reply = unchanged.call(method, "/v1/score", _tx())
    _assert_problem(reply, 405, None)
    assert reply.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/", 404, None),
        ("/v1/nothing", 404, None),
        ("/v1/score/", 404, None),
        ("//", 404, None),
        ("/v1/decisions/none", 404, "event_id"),
        ("/v1/decisions/%00", 404, "event_id"),
        ("/v1/decisions/%ff", 404, "event_id"),
        ("/v1/decisions/%ed%a0%80", 404, "event_id"),
        ("/v1/decisions/" + "x" * 1000, 404, "event_id"),
        ("/v1/entities/planet/x", 404, "kind"),
        ("/v1/entities/card/none", 404, "id"),
        ("/v1/entities/card/%0a", 422, "id"),
        ("/v1/entities/card/" + "x" * 129, 422, "id"),
        ("/v1/lists/grey/card/c1", 404, "list"),
        ("/v1/lists/deny/planet/c1", 404, "kind"),
        ("/v1/lists/deny/card/%00", 422, "id"),
    ],
)
def test_bad_path_is_refused(unchanged: Service, path: str, status: int, field: str | None) -> None:
    """Unknown paths, kinds, lists and ids are told apart."""
    reply = unchanged.call("GET", path)
    assert (reply.status, reply.json.get("field")) == (status, field)
    assert reply.headers["content-type"] == "application/problem+json"


def _label(**changes: Any) -> dict[str, Any]:
    label = {"event_id": "good", "label": "fraud", "ts": TODAY_MS} | changes
    return {name: value for name, value in label.items() if value is not ...}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (_label(label="maybe"), "label"),
        (_label(label=1), "label"),
        (_label(label=...), "label"),
        (_label(ts=TODAY_MS // 1000), "ts"),
        (_label(ts="now"), "ts"),
        (_label(ts=-1), "ts"),
        (_label(ts=2**63), "ts"),
        (_label(event_id=""), "event_id"),
        (_label(event_id="x" * 129), "event_id"),
        (_label(event_id="a\nb"), "event_id"),
        (_label(event_id=...), "event_id"),
        (_label(amount=1), "amount"),
        (1, ""),
    ],
)
def test_wrong_label_refuses_all_labels_of_the_request(unchanged: Service, wrong: Any, field: str) -> None:
    """One wrong label names its place, and the right one before it is not applied either."""
    reply = unchanged.call("POST", "/v1/labels", json.dumps([_label(), wrong]).encode())
    assert (reply.status, reply.json["field"]) == (422, f"[1].{field}".rstrip("."))
    assert unchanged.call("GET", "/v1/decisions/good").json["label"] is None


def test_label_of_unknown_event_is_told_and_changes_nothing(unchanged: Service) -> None:
    """A label for an event that was never scored is no error of the request, and has no effect."""
    reply = unchanged.call("POST", "/v1/labels", json.dumps([_label(event_id="never")]).encode())
    assert reply.status == 200
    assert reply.json == {"labels": [{"event_id": "never", "status": "unknown_event", "lsn": None}], "applied": 0}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, "body"),
        (b"[]", 400, "body"),
        (b"{}", 422, "reason"),
        (b'{"reason": ""}', 422, "reason"),
        (b'{"reason": 1}', 422, "reason"),
        (b'{"reason": "a\\nb"}', 422, "reason"),
        (json.dumps({"reason": "x" * 257}).encode(), 422, "reason"),
        (b'{"reason": "x", "until": 1}', 422, "until"),
        (b'{"reason": "x", "expires": "tomorrow"}', 422, "expires"),
        (b'{"reason": "x", "expires": -1}', 422, "expires"),
        (json.dumps({"reason": "x", "expires": TODAY_MS // 1000}).encode(), 422, "expires"),
        (json.dumps({"reason": "x", "expires": TODAY_MS - 1}).encode(), 422, "expires"),
    ],
)
def test_bad_list_entry_is_refused(unchanged: Service, body: bytes, status: int, field: str) -> None:
    """An entry needs a reason, and an expiry that still lies ahead."""
    _assert_problem(unchanged.call("PUT", "/v1/lists/deny/card/c1", body), status, field)


def test_batch_errors_stand_in_their_places(unchanged: Service) -> None:
    """A row that cannot be scored is answered in its place, with its event_id; the others are scored."""
    rows = [_tx(event_id="b0"), _tx(event_id="b1", amount=-1), b"7", b"null", _tx(event_id="b4").replace(b"c1", b"\xff"), b"{}"]
    reply = unchanged.call("POST", "/v1/score/batch?commit=false", b"[" + b",".join([*rows, _tx(event_id="b6")]) + b"]")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert [row.get("event_id") for row in reply.json] == ["b0", "b1", None, None, None, None, "b6"]
    errors = [row.get("error", {}) for row in reply.json]
    assert [error.get("status") for error in errors] == [None, 422, 400, 400, 400, 422, None]
    assert [error.get("field") for error in errors] == [None, "amount", "body", "body", "card_id", "event_id", None]


def test_ndjson_bad_line_in_the_middle_stands_in_its_place(unchanged: Service) -> None:
    """A broken line breaks only itself; blank lines are no rows."""
    lines = [_tx(event_id="n0"), b"", b'{"event_id": "n1", "ts"', b"\xff", b" ", b"[" * 100_000, _tx(event_id="n4"), b""]
    reply = unchanged.call("POST", "/v1/score/batch?commit=false", b"\r\n".join(lines), Content_Type=NDJSON)
    assert (reply.status, reply.headers["content-type"]) == (200, NDJSON)
    rows = [json.loads(line) for line in reply.body.splitlines()]
    assert [row.get("error", {}).get("status") for row in rows] == [None, 400, 400, 400, None]
    assert [rows[0]["event_id"], rows[4]["event_id"]] == ["n0", "n4"]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "field"),
    [
        (b"", "application/json", 400, "body"),
        (b"[{},{", "application/json", 400, "body"),
        (b"[" * 100_000 + b"]" * 100_000, "application/json", 400, "body"),
        (b'"x"', "application/json", 400, "body"),
        (b"[]", "application/xml", 415, "Content-Type"),
        (b"[" + b",".join([b"{}"] * 10_001) + b"]", "application/json", 413, "body"),
        (b"{}\n" * 10_001, NDJSON, 413, "body"),
        (b"[" + b" " * (8 * 2**20) + b"]", "application/json", 413, "body"),
    ],
    ids=["empty", "cut", "deep", "string", "xml", "10001 rows", "10001 lines", "8 MiB and 2"],
)
def test_batch_bad_as_a_whole_is_refused(unchanged: Service, body: bytes, content_type: str, status: int, field: str) -> None:
    """A batch that cannot be taken apart, or is too large, is one problem."""
    _assert_problem(unchanged.call("POST", "/v1/score/batch", body, Content_Type=content_type), status, field)


def test_batch_of_none_and_of_ten_thousand_are_answered(unchanged: Service) -> None:
    """No rows are answered with no rows; 10,000 is the most that one batch takes."""
    assert unchanged.call("POST", "/v1/score/batch", b"[]").json == []
    assert unchanged.call("POST", "/v1/score/batch", b"\n", Content_Type=NDJSON).body == b""
    reply = unchanged.call("POST", "/v1/score/batch", b"[" + b",".join([b"{}"] * 10_000) + b"]")
    assert (reply.status, len(reply.json)) == (200, 10_000)


@pytest.mark.parametrize(
    ("body", "encoding", "status", "field"),
    [
        (gzip.compress(_tx()), "gzip", 200, None),
        (_tx(), "identity", 200, None),
        (_tx(), "gzip", 400, "body"),
        (gzip.compress(_tx())[:-30], "gzip", 400, "body"),
        (gzip.compress(_tx()), "deflate", 400, "body"),
        (gzip.compress(_tx()), "br", 415, "Content-Encoding"),
        (gzip.compress(_tx()), "zstd", 415, "Content-Encoding"),
        (_tx(), "rot13", 415, "Content-Encoding"),
        (gzip.compress(b" " * 50_000_000, 1), "gzip", 413, "body"),
    ],
    ids=["gzip", "identity", "no gzip", "cut", "no deflate", "br", "zstd", "unknown", "bomb"],
)
def test_content_encoding_is_undone_or_refused(
    unchanged: Service, body: bytes, encoding: str, status: int, field: str | None
) -> None:
    """gzip is read; what is not what it says, what we cannot read and what would blow up is refused."""
    reply = unchanged.call("POST", "/v1/score?commit=false", body, Content_Encoding=encoding)
    if status == 200:
        assert reply.status == 200
    else:
        _assert_problem(reply, status, field)


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: abc",),
        (b"Content-Length: -5",),
        (b"Content-Length: 10", b"Content-Length: 20"),
        (b"Content-Length: 10", b"Transfer-Encoding: chunked"),
        (b"X: " + b"y" * 20_000,),
        (b"No colon",),
    ],
)
def test_malformed_head_is_a_problem(unchanged: Service, lines: tuple[bytes, ...]) -> None:
    """What HTTP itself forbids is a problem too, and does not quote the request."""
    reply = unchanged.send(unchanged.head(b"POST", b"/v1/score", *lines) + _tx())
    _assert_problem(reply, 400, None)
    assert b"yyyy" not in reply.body
    assert b"c1" not in reply.body


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"hello\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"]
)
def test_what_is_not_http_is_a_problem(unchanged: Service, data: bytes) -> None:
    """A TLS hello, plain text, invented methods and raw bytes in a path are answered."""
    _assert_problem(unchanged.send(data), 400, None)


def test_body_that_never_ends_is_given_up(unchanged: Service) -> None:
    """A client that announces more than it sends gets 408 after server.request_deadline_ms; others are served meanwhile."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", unchanged.port), timeout=20) as connection:
        connection.sendall(unchanged.head(b"POST", b"/v1/score", b"Content-Length: 5000") + _tx())
        assert unchanged.call("GET", "/livez").status == 200
        assert time.monotonic() - start < 0.4
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        _assert_problem(Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()), 408, "body")
    assert 0.4 < time.monotonic() - start < 5


def test_ten_megabytes_in_chunks_are_cut_off(unchanged: Service) -> None:
    """A body of unannounced length is read up to the limit, not to its end."""
    chunks = b"".join(b"%x\r\n%s\r\n" % (2**20, b" " * 2**20) for _ in range(10)) + b"0\r\n\r\n"
    reply = unchanged.send(unchanged.head(b"POST", b"/v1/score", b"Transfer-Encoding: chunked") + chunks)
    _assert_problem(reply, 413, "body")


def test_log_of_bad_input_is_json_without_secrets(service: Service) -> None:
    """Bad input and hang-ups leave no traceback, no key and no id in the log, which stays one JSON object a line."""
    secret = b"card-4111-1111"
    head = service.head(b"POST", b"/v1/score", b"Content-Length: 500")
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(head + _tx(card_id=secret.decode()))
    service.send(service.head(b"POST", b"/v1/score", b"Content-Length: 3") + _tx(card_id=secret.decode()))
    service.call("POST", "/v1/score", _tx(card_id=secret.decode()), Content_Encoding="gzip")
    assert service.call("GET", "/livez").status == 200
    log = service.log.read_bytes()
    assert b"request not read" in log
    assert b"Traceback" not in log
    assert secret not in log
    assert not any(key.encode() in log for key in service.keys.values())
    for line in log.splitlines():
        assert json.loads(line)["level"] != "critical"
    assert b"ConnectionResetError" not in log, "a client that hangs up is no error of ours"
