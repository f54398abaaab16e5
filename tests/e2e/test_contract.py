"""The HTTP contract to the letter, against one real service: replies, flags, batches, lists, keys, connections, stop."""

import contextlib
import http.client
import json
import re
import signal
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
PROBLEM = "application/problem+json"
REPLY_FIELDS = {"event_id", "score", "outcome", "model", "scorer", "lsn", "replayed", "degraded"}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Service:
    """A real `weir serve` over a data directory that outlives it, and an admin's key."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"
        self.log = directory / "log"
        self.key = add_key(self.data_dir, Role.ADMIN, "admin")
        self.ready = ""
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [WEIR, "serve", "--data-dir", str(self.data_dir), "--port", "0"]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        found = re.match(r"weir ready url=http://127\.0\.0\.1:(\d+) ", self.ready)
        assert found, self.log.read_text()
        self.port = int(found[1])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and the rest of stdout."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=20)
        return self.process.returncode, rest

    def call(self, method: str, path: str, body: Any = None, key: str | None = "", **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["Authorization"] = f"Bearer {key or self.key}"
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, content, sent)
            return _read(connection.getresponse())
        finally:
            connection.close()

    def score(self, tx: dict[str, Any], query: str = "") -> Any:
        reply = self.call("POST", f"/v1/score{query}", tx)
        assert reply.status == 200, reply
        return reply.json

    def journal_bytes(self) -> bytes:
        found = re.search(rb"^weir_journal_bytes (.*)$", self.call("GET", "/metrics").body, re.MULTILINE)
        assert found
        return found[1]


def _read(reply: http.client.HTTPResponse) -> Reply:
    return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _tx(name: str, **changes: Any) -> dict[str, Any]:
    """A full transaction whose event, card and merchant are called after the test."""
    return {
        "event_id": f"e-{name}", "ts": _now_ms(), "amount": 1299, "currency": "EUR", "card_id": f"c-{name}",
        "merchant_id": f"m-{name}", "device_id": f"d-{name}", "ip": "203.0.113.7", "country": "DE", "mcc": 5411,
        "channel": "ecom", "lat": 52.5, "lon": 13.4,
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("contract"))
    yield service
    if service.process.poll() is None:
        assert service.stop()[0] == 0
    assert "Traceback" not in service.log.read_text()


def test_ready_line_is_the_only_line_on_stdout(service: Service) -> None:
    """A script can wait for the first line and take the URL from it."""
    url = f"http://127.0.0.1:{service.port}"
    assert service.ready == f"weir ready url={url} console={url}/console\n"


def test_score_reply_has_exactly_the_fields_of_the_contract(service: Service) -> None:
    """Every field is there with its type, optional ones only on request."""
    reply = service.call("POST", "/v1/score", _tx("fields"))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    decision = reply.json
    assert decision.keys() == REPLY_FIELDS
    assert decision["event_id"] == "e-fields"
    assert isinstance(decision["score"], float)
    assert 0 <= decision["score"] <= 1
    assert decision["outcome"] in ("approve", "review", "decline")
    assert re.fullmatch(r"\S+@[0-9a-f]{12}", decision["model"])
    assert (decision["scorer"] in ("go", "onnx"), decision["replayed"], decision["degraded"]) == (True, False, [])
    assert decision["lsn"] >> 48 >= 1


def test_score_without_optional_fields_works(service: Service) -> None:
    """Everything after merchant_id may be absent, or null."""
    names = ("event_id", "ts", "amount", "currency", "card_id", "merchant_id")
    short = {name: value for name, value in _tx("short").items() if name in names}
    nulls = _tx("short") | {name: None for name in _tx("short") if name not in names} | {"ts": short["ts"]}
    first = service.score(short)
    assert service.score(nulls) == first | {"replayed": True}, "null means absent: the same transaction"


def test_explain_and_trace_add_their_fields(service: Service) -> None:
    """?explain=1 adds reason codes; ?trace=1 says where each profile came from and what each stop took."""
    decision = service.score(_tx("trace"), "?explain=1&trace=1")
    assert decision.keys() == REPLY_FIELDS | {"reasons", "trace"}
    assert isinstance(decision["reasons"], list)
    trace = decision["trace"]
    assert trace["profiles"].keys() == {"card", "merchant", "device", "ip"}
    assert {"lookup", "score", "decide", "journal"} <= trace["us"].keys()
    assert all(value >= 0 for value in trace["us"].values())
    assert len(trace["features"]) == 40
    again = service.score(_tx("trace", event_id="e-trace-2"), "?trace=true")
    profiles = again["trace"]["profiles"].values()
    assert [profile["tier"] for profile in profiles] == ["l1"] * 4
    assert all(0 <= profile["age_ms"] < 60_000 for profile in profiles)
    assert "reasons" not in again


def test_dry_run_changes_nothing_and_gives_the_score_of_the_commit(service: Service) -> None:
    """?commit=false answers what the commit would, with LSN 0; journal, windows and decisions stay as they were."""
    service.score(_tx("dry", event_id="e-dry-0"))
    tx = _tx("dry", amount=999_900)
    path = "/v1/entities/card/c-dry"
    size, windows = service.journal_bytes(), service.call("GET", path).json["windows"]
    dry = service.score(tx, "?commit=false&explain=1")
    assert dry["lsn"] == 0
    service.call("POST", "/v1/score/batch?commit=false", [tx, _tx("dry-new")])
    assert service.journal_bytes() == size
    assert service.call("GET", path).json["windows"] == windows
    assert service.call("GET", "/v1/entities/card/c-dry-new").status == 404
    assert service.call("GET", "/v1/decisions/e-dry").status == 404
    committed = service.score(tx, "?explain=1")
    assert committed["lsn"] > 0
    assert committed == dry | {"lsn": committed["lsn"]}
    assert service.journal_bytes() != size
    assert service.call("GET", path).json["windows"] != windows


def test_same_event_again_is_replayed_and_not_counted_twice(service: Service) -> None:
    """The same event_id and body get the stored decision; another body gets 409 and changes nothing."""
    tx = _tx("again")
    first = service.score(tx)
    assert service.score(dict(reversed(tx.items()))) == first | {"replayed": True}, "the order of fields means nothing"
    reply = service.call("POST", "/v1/score", tx | {"amount": 1})
    assert (reply.status, reply.headers["content-type"], reply.json["field"]) == (409, PROBLEM, "event_id")
    assert service.call("GET", "/v1/entities/card/c-again").json["windows"]["card_minutes:1h"] == {"count": 1, "sum": 1299}


@pytest.mark.parametrize("ndjson", [False, True])
def test_batch_replies_in_order_with_errors_in_place(service: Service, ndjson: bool) -> None:
    """New, repeated, conflicting and invalid rows are each answered where they stand, in the form they were sent in."""
    name = f"batch-{ndjson}"
    first, second = _tx(name, event_id=f"{name}-1"), _tx(name, event_id=f"{name}-2")
    rows = [first, second, first, second | {"amount": 5}, first | {"event_id": ""}, _tx(name, event_id=f"{name}-3")]
    body = b"\n".join(json.dumps(row).encode() for row in rows) if ndjson else json.dumps(rows).encode()
    reply = service.call("POST", "/v1/score/batch", body, Content_Type=NDJSON if ndjson else "application/json")
    assert reply.headers["content-type"] == (NDJSON if ndjson else "application/json")
    answers = [json.loads(line) for line in reply.body.splitlines()] if ndjson else reply.json
    assert [answer.get("error", {}).get("status", 200) for answer in answers] == [200, 200, 200, 409, 422, 200]
    assert [answers[i]["event_id"] for i in (0, 1, 2, 3, 5)] == [rows[i]["event_id"] for i in (0, 1, 2, 3, 5)]
    assert answers[2] == answers[0] | {"replayed": True}
    assert answers[0].keys() == REPLY_FIELDS
    assert answers[0]["lsn"] < answers[1]["lsn"] < answers[5]["lsn"]
    assert service.call("GET", f"/v1/entities/card/c-{name}").json["windows"]["card_minutes:1h"]["count"] == 3


def test_decision_and_entity_show_what_was_scored(service: Service) -> None:
    """A decision holds its transaction word for word; an entity its windows and the LSN that each tier has."""
    tx = _tx("shown")
    decision = service.score(tx, "?explain=1")
    shown = service.call("GET", "/v1/decisions/e-shown").json
    assert shown["transaction"] == tx
    assert shown["label"] is None
    assert {name: shown[name] for name in ("score", "outcome", "model", "scorer", "lsn", "reasons", "degraded")} == {
        name: decision[name] for name in ("score", "outcome", "model", "scorer", "lsn", "reasons", "degraded")
    }
    entity = service.call("GET", "/v1/entities/merchant/m-shown").json
    assert (entity["kind"], entity["id"], entity["lsn"]) == ("merchant", "m-shown", decision["lsn"])
    assert entity["first_seen"] == entity["last_seen"] == tx["ts"]
    assert entity["tiers"]["l1"] == decision["lsn"]
    assert {"l1", "l2"} <= entity["tiers"].keys()


def test_label_is_applied_once_and_another_one_replaces_it(service: Service) -> None:
    """The same label again is unchanged; a decision shows the last one."""
    service.score(_tx("label"))
    statuses = []
    for word in ("fraud", "fraud", "legit"):
        label = {"event_id": "e-label", "label": word, "ts": _now_ms()}
        reply = service.call("POST", "/v1/labels", [label])
        assert reply.headers["content-type"] == "application/json"
        statuses.append((reply.json["labels"][0]["status"], reply.json["applied"]))
        assert service.call("GET", "/v1/decisions/e-label").json["label"] == word
    assert statuses == [("applied", 1), ("unchanged", 0), ("applied", 1)]


def test_deny_list_declines_allow_list_approves_and_expiry_ends_both(service: Service) -> None:
    """A listed entity decides the outcome, deny before allow, until its entry expires or is deleted."""
    outcomes: list[tuple[str, list[str]]] = []

    def score() -> None:
        decision = service.score(_tx("list", event_id=f"e-list-{len(outcomes)}"), "?explain=1")
        outcomes.append((decision["outcome"], decision["reasons"]))

    deny, allow = "/v1/lists/deny/merchant/m-list", "/v1/lists/allow/card/c-list"
    entry = {"reason": "stolen", "expires": _now_ms() + 1500}
    assert service.call("PUT", allow, {"reason": "vip"}).json["expires"] is None
    score()
    reply = service.call("PUT", deny, entry)
    assert (reply.status, reply.json) == (200, {"list": "deny", "kind": "merchant", "id": "m-list", **entry})
    assert service.call("GET", deny).json == reply.json
    score()
    time.sleep(max(0, entry["expires"] - _now_ms()) / 1000 + 0.05)  # type: ignore[operator]  # ms, an int
    score()
    assert service.call("GET", deny).status == 404
    assert (service.call("DELETE", allow).status, service.call("DELETE", allow).status) == (204, 404)
    score()
    assert outcomes[:3] == [
        ("approve", ["ALLOW_LIST_CARD"]),
        ("decline", ["DENY_LIST_MERCHANT"]),
        ("approve", ["ALLOW_LIST_CARD"]),
    ]
    assert not any("LIST" in reason for reason in outcomes[3][1])


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("/livez", "application/json"), ("/readyz", "application/json"), ("/metrics", "text/plain; version=1.0.0; charset=utf-8")],
)
def test_health_is_open_and_answers_head(service: Service, path: str, content_type: str) -> None:
    """Orchestrators need no key; HEAD is GET without a body."""
    for method in ("GET", "HEAD"):
        reply = service.call(method, path, key=None)
        assert (reply.status, reply.headers["content-type"], bool(reply.body)) == (200, content_type, method == "GET")
    assert service.call("GET", "/metrics", key=None).body.count(b"e-fields") == 0, "no ids in metrics"


def test_scorer_is_switched_while_running(service: Service) -> None:
    """PUT /v1/scorer takes effect with the next transaction; the engines give the same score."""
    shown = service.call("GET", "/v1/scorer").json
    usable = [name for name, missing in shown["missing"].items() if missing is None]
    assert shown["scorer"] in usable
    assert set(shown["missing"]) == {"go", "onnx"}
    dry = _tx("switch")
    scores = set()
    for name in [*usable, *usable]:
        reply = service.call("PUT", "/v1/scorer", {"scorer": name, "reason": "comparing"})
        assert (reply.status, reply.json["scorer"]) == (200, name)
        decision = service.score(dry, "?commit=false")
        assert decision["scorer"] == name
        scores.add(round(decision["score"], 6))
    assert len(scores) == 1
    for name in set(shown["missing"]) - set(usable):
        refused = service.call("PUT", "/v1/scorer", {"scorer": name, "reason": "comparing"})
        assert (refused.status, refused.json["field"]) == (409, "scorer")
    told = [entry for entry in service.call("GET", "/v1/audit").json["entries"] if entry["action"] == "scorer"]
    assert len(told) == (2 * len(usable) - 1 if len(usable) > 1 else 0), "what was on already is no change"
    assert all((entry["who"], entry["reason"]) == ("admin", "comparing") for entry in told)


def test_scorer_outlives_a_restart(service: Service) -> None:
    """What was last asked for scores after a restart, whatever the settings say; a file that is broken refuses the start."""
    name = service.call("GET", "/v1/scorer").json["scorer"]
    assert service.call("PUT", "/v1/scorer", {"scorer": "onnx", "reason": "restart"}).status == 200
    service.stop()
    service.start()
    assert service.call("GET", "/v1/scorer").json["scorer"] == "onnx"
    assert service.call("PUT", "/v1/scorer", {"scorer": name, "reason": "restart"}).status == 200
    service.stop()
    file = service.data_dir / "scorer.json"
    good = file.read_bytes()
    file.write_text('{"scorer": "rust"}')
    command = [WEIR, "serve", "--data-dir", str(service.data_dir), "--port", "0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "scorer.json: not readable" in refused.stderr
    assert "remove it to go back to the settings" in refused.stderr
    file.write_bytes(good)
    service.start()
    assert service.call("GET", "/v1/scorer").json["scorer"] == name


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ("go", 400, "body"),
        ({}, 422, "scorer"),
        ({"scorer": "rust"}, 422, "scorer"),
        ({"scorer": None}, 422, "scorer"),
        ({"scorer": "onnx"}, 422, "reason"),
        ({"scorer": "onnx", "reason": None}, 422, "reason"),
        ({"scorer": "onnx", "reason": ""}, 422, "reason"),
        ({"scorer": "onnx", "reason": "a\0"}, 422, "reason"),
        ({"scorer": "onnx", "why": "x"}, 422, "why"),
    ],
)
def test_bad_scorer_change_is_refused(service: Service, body: object, status: int, field: str) -> None:
    """Only the engines that there are, with a printable reason; nothing changes."""
    before = service.call("GET", "/v1/scorer").json
    refused = service.call("PUT", "/v1/scorer", body)
    assert (refused.status, refused.json["field"]) == (status, field)
    assert service.call("GET", "/v1/scorer").json == before


def test_key_added_while_running_works_at_once(service: Service) -> None:
    """`weir keys add` prints the key alone, and the next request with it is let in."""
    command = [WEIR, "keys", "add", "--role", "ingest", "--name", "pos", "--data-dir", str(service.data_dir)]
    added = subprocess.run(command, capture_output=True, text=True, check=True)
    key = added.stdout.removesuffix("\n")
    assert re.fullmatch(r"weir_ingest_[\w-]{43}", key)
    assert service.call("POST", "/v1/score", _tx("key"), key).status == 200
    assert service.call("GET", "/v1/tiers", key=key).status == 403
    assert service.call("PUT", "/v1/scorer", {"scorer": "onnx"}, key).status == 403


def test_connection_is_kept_and_pipelined_requests_are_answered_in_order(service: Service) -> None:
    """One connection carries many requests, also when they are sent without waiting, and also after a refusal."""
    rows = [_tx("pipe", event_id=f"pipe-{n}", amount=-1 if n == 2 else 100) for n in range(6)]
    bodies = [json.dumps(row).encode() for row in rows]
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\nContent-Length: ".encode()
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(b"".join(head + b"%d\r\n\r\n" % len(body) + body for body in bodies))
        stream = connection.makefile("rb")
        answers = [_next_reply(stream) for _ in rows]
        stream.close()
    assert [status for status, _ in answers] == [200, 200, 422, 200, 200, 200]
    assert [body["event_id"] for status, body in answers if status == 200] == [f"pipe-{n}" for n in (0, 1, 3, 4, 5)]
    lsns = [body["lsn"] for status, body in answers if status == 200]
    assert lsns == sorted(lsns)


def _next_reply(stream: Any) -> tuple[int, Any]:
    status = int(stream.readline().split()[1])
    length = 0
    while line := stream.readline().strip():
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    return status, json.loads(stream.read(length))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_lists_decisions_and_windows_outlive_a_stop(service: Service, number: signal.Signals) -> None:
    """Whatever ends the service: what it acknowledged is there after the next start, and counts."""
    name = f"stop-{number.name}"
    tx = _tx(name)
    decision = service.score(tx)
    path = f"/v1/lists/deny/card/c-{name}"
    entry = service.call("PUT", path, {"reason": "stolen"}).json
    gone = f"/v1/lists/deny/device/d-{name}"
    service.call("PUT", gone, {"reason": "oops"})
    assert service.call("DELETE", gone).status == 204
    windows = service.call("GET", f"/v1/entities/card/c-{name}").json["windows"]
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        if number == signal.SIGTERM:  # an idle client, and one that never finishes, do not hold up the stop
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            half = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            half.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % service.key.encode())
            half.sendall(b"Content-Length: 9\r\n\r\n")
        code, rest = service.stop(number)
    assert time.monotonic() - started < 6
    assert (code, rest) == (-9 if number == signal.SIGKILL else 0, "")
    service.start()
    assert service.score(tx) == decision | {"replayed": True}
    assert service.call("GET", path).json == entry
    assert service.call("GET", gone).status == 404
    assert service.call("GET", f"/v1/entities/card/c-{name}").json["windows"] == windows
    after = service.score(_tx(name, event_id=f"{name}-2"), "?explain=1")
    assert (after["outcome"], after["reasons"]) == ("decline", ["DENY_LIST_CARD"])
    assert after["lsn"] > decision["lsn"]
