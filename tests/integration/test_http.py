"""HTTP handlers: how failures become problems, who gets in, what is passed on to the engine.

The engine is a double here, because these tests are about the replies to its errors; the real engine is tested end to end.
"""

import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import ClientSession, web

from features.transaction import Transaction
from service import errors
from service.auth import KEY_FILE, KeyRing, Role, add_key
from service.codec import JSON, Label, LabelReply, decode_transaction, encode_decision
from service.decide import Decision
from service.handlers.router import build_web_app
from service.lists import ListEntry
from service.metrics import Metrics
from service.settings import ServerSettings, Settings
from service.ticket import DECISIONS, REASONS, REPLIES, TRACES, Answer

TX = {"event_id": "t-1", "ts": 1750000000000, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"}
BODY = json.dumps(TX).encode()


class EngineDouble:
    """Answers every transaction with `approve`, or raises `error`; remembers what it was asked."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.plan = SimpleNamespace(kinds=[SimpleNamespace(name="card"), SimpleNamespace(name="merchant")])
        self.now_ms = lambda: 1750000000000
        self.entries: dict[tuple[str, str, str], ListEntry] = {}
        self.lists = SimpleNamespace(get=lambda name, kind, id, now_ms: self.entries.get((name, kind, id)))
        self.ready = (True, "")
        self.is_started = True
        self.left: list[str] = []
        self.pipeline = SimpleNamespace(offer=self.offer, check_open=lambda: None)
        self.sizes = SimpleNamespace(refresh=self._refresh)
        self.audit = SimpleNamespace(newest=lambda n_max: [{"n": n_max}])

    async def _refresh(self) -> None:
        pass

    def check_started(self) -> None:
        if not self.is_started:
            raise errors.NotReady("recovering: 1 of about 2 entries (50 %)")

    def offer(self, body: bytes, form: int, answered: Callable[[Answer], object]) -> None:
        (answer,) = self._answers([body], form, REPLIES)
        self._note("offer", json.loads(body).get("event_id") if form == JSON else None)
        answered(answer)

    async def submit_many(self, bodies: list[bytes], form: int, wanted: int) -> list[Answer]:
        answers = self._answers(bodies, form, wanted)
        self._note("submit_many", len(bodies), wanted)
        return answers

    async def try_many(self, bodies: list[bytes], form: int, wanted: int) -> list[Answer]:
        answers = self._answers(bodies, form, wanted | DECISIONS)
        self._note("try_many", len(bodies), wanted)
        return answers

    def _answers(self, bodies: list[bytes], form: int, wanted: int) -> list[Answer]:
        """Raises the error of a lone row, as offer's caller would hear it."""
        answers: list[Answer] = []
        for body in bodies:
            try:
                decision = _decision(decode_transaction(body), {"l1": 1} if wanted & TRACES else None)
            except errors.WeirError as error:
                answers.append(error)
            else:
                answers.append(encode_decision(decision) if wanted == REPLIES else decision)
        if len(answers) == 1 and isinstance(answers[0], errors.WeirError):
            raise answers[0]
        return answers

    async def label(self, labels: list[Label]) -> list[LabelReply]:
        self._note("label", len(labels))
        return [LabelReply(label.event_id, "applied", 5) for label in labels]

    async def decision(self, event_id: str) -> Any:
        self._note("decision", event_id)
        return SimpleNamespace(reply=lambda: {"event_id": event_id})

    async def entity(self, kind: str, entity_id: str) -> dict[str, Any]:
        self._note("entity", kind, entity_id)
        return {"kind": kind, "id": entity_id}

    async def put_list(self, name: str, kind: str, entity_id: str, reason: str, expires: int | None) -> None:
        self._note("put_list", name, kind, entity_id, reason, expires)
        self.entries[name, kind, entity_id] = ListEntry(reason, expires, 1)

    async def delete_list(self, name: str, kind: str, entity_id: str) -> None:
        self._note("delete_list", name, kind, entity_id)
        del self.entries[name, kind, entity_id]

    def tiers(self) -> list[dict[str, Any]]:
        return [{"name": "l1", "enabled": True}]

    def consumers(self) -> list[dict[str, Any]]:
        return [{"name": "ledger", "lag": 0}]

    def warnings(self) -> list[str]:
        return []

    async def switch_tier(self, name: str, is_on: bool, reason: str, who: str) -> None:
        self._note("switch_tier", name, is_on, reason, who)

    async def erase(self, kind: str, entity_id: str, who: str, deadline_s: float) -> dict[str, Any]:
        self._note("erase", kind, entity_id, who)
        return {"kind": kind, "id": entity_id, "left": self.left}

    def _note(self, *call: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(call)


def _decision(tx: Transaction, trace: dict[str, Any] | None = None) -> Decision:
    return Decision(tx.event_id, 0.25, "approve", "cards-1", "onnx", 7, reasons=("R",), trace=trace)


class Service:
    """A running web application, its engine double and one key per role."""

    def __init__(self, url: str, session: ClientSession, engine: EngineDouble, keys: dict[Role, str]) -> None:
        self.url = url
        self.session = session
        self.engine = engine
        self.keys = keys

    async def call(
        self, method: str, path: str, body: Any = None, role: Role | None = Role.ADMIN, **headers: str
    ) -> tuple[int, Any, Any]:
        """Status, JSON of the body (bytes if it is none), headers."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if role is not None:
            sent["Authorization"] = f"Bearer {self.keys[role]}"
        data = io.BytesIO(body) if isinstance(body, bytes) else body
        async with self.session.request(method, self.url + path, data=data, headers=sent) as reply:
            content = await reply.read()
            is_json = reply.content_type.endswith(("/json", "+json")) and content and method != "HEAD"
            return reply.status, json.loads(content) if is_json else content, reply.headers


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    keys = {role: add_key(tmp_path, role, role.word) for role in Role}
    engine = EngineDouble()
    settings = Settings(server=ServerSettings(body_bytes_max=2048, batch_body_bytes_max=8192, batch_rows_max=20))
    app = build_web_app(cast(Any, engine), KeyRing(tmp_path / KEY_FILE), Metrics(), settings)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with ClientSession() as session:
        yield Service(f"http://127.0.0.1:{runner.addresses[0][1]}", session, engine, keys)
    await runner.cleanup()


def _assert_problem(reply: tuple[int, Any, Any], status: int, field: str | None) -> None:
    assert reply[0] == status
    assert reply[2]["Content-Type"] == "application/problem+json"
    assert reply[1]["status"] == status
    assert reply[1]["detail"]
    assert reply[1].get("field") == field


async def test_score_answers_decision(service: Service) -> None:
    """A valid transaction is committed and answered without reasons or trace."""
    status, reply, headers = await service.call("POST", "/v1/score", BODY, Role.INGEST)
    assert (status, reply["outcome"], headers["Content-Type"]) == (200, "approve", "application/json")
    assert "reasons" not in reply
    assert "trace" not in reply
    assert service.engine.calls == [("offer", "t-1")]


async def test_score_flags_reach_engine_and_reply(service: Service) -> None:
    """commit, explain and trace do what they say."""
    _, reply, _ = await service.call("POST", "/v1/score?commit=false&explain=1&trace=1", BODY)
    assert service.engine.calls == [("try_many", 1, DECISIONS | REASONS | TRACES)]
    assert (reply["reasons"], reply["trace"]) == (["R"], {"l1": 1})


@pytest.mark.parametrize(("query", "field"), [("comit=false", "?comit"), ("commit=no", "?commit"), ("commit", "?commit")])
async def test_score_unknown_flag_changes_nothing(service: Service, query: str, field: str) -> None:
    """A misspelt flag is refused: scoring with commit=true instead would change state."""
    _assert_problem(await service.call("POST", f"/v1/score?{query}", BODY), 422, field)
    assert service.engine.calls == []


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, "body"),
        (b"{", 400, "body"),
        (b"\xff", 400, "body"),
        (BODY.replace(b'"c1"', b'"\xff"'), 400, "card_id"),
        (BODY.replace(b"1299", b"-5"), 422, "amount"),
        (BODY.replace(b"1299", b"1.5"), 422, "amount"),
        (BODY.replace(b'"ts": 1750000000000, ', b""), 422, "ts"),
        (b" " * 2049, 413, "body"),
        (b"x" * 10_000_000, 413, "body"),
    ],
)
async def test_score_bad_body_names_field_and_never_reaches_engine(
    service: Service, body: bytes, status: int, field: str
) -> None:
    """Each wrong body gets its problem, the engine sees none of them, the service stays up."""
    _assert_problem(await service.call("POST", "/v1/score", body), status, field)
    assert service.engine.calls == []
    assert (await service.call("POST", "/v1/score", BODY))[0] == 200


async def test_chunked_body_above_limit_is_too_large(service: Service) -> None:
    """A body that does not announce its length is cut off at the limit all the same."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000

    _assert_problem(await service.call("POST", "/v1/score", chunks()), 413, "body")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidEvent("ts: too old", "ts"), 422),
        (errors.Conflict("t-1 was accepted with another body", "event_id"), 409),
        (errors.Overloaded("queue holds 8192 of 8192"), 429),
        (errors.ScoringFailed("the model failed"), 500),
        (errors.NotReady("recovering"), 503),
        (errors.JournalUnavailable("disk full"), 503),
        (errors.TierUnavailable("redis", "no answer"), 503),
    ],
)
async def test_engine_error_becomes_its_problem(service: Service, error: errors.WeirError, status: int) -> None:
    """Whatever the engine raises is answered with its own status, detail and headers."""
    service.engine.error = error
    reply = await service.call("POST", "/v1/score", BODY)
    _assert_problem(reply, status, error.field)
    assert error.headers().items() <= dict(reply[2]).items()


async def test_unexpected_error_is_500_with_request_id_and_leaks_nothing(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug is answered with a request id, its message stays out of the reply and the log."""
    service.engine.error = KeyError("secret-card-id")
    reply = await service.call("POST", "/v1/score", BODY)
    _assert_problem(reply, 500, None)
    logged = "".join(capsys.readouterr())
    assert reply[1]["request_id"] in logged
    assert "secret-card-id" not in logged + json.dumps(reply[1])


@pytest.mark.parametrize("header", [None, "Bearer nonsense", "Basic abc"])
async def test_no_or_wrong_key_is_unauthorized(service: Service, header: str | None) -> None:
    """Without a known key nothing is read and nothing happens."""
    headers = {} if header is None else {"Authorization": header}
    reply = await service.call("POST", "/v1/score", BODY, None, **headers)
    _assert_problem(reply, 401, "Authorization")
    assert reply[2]["WWW-Authenticate"].startswith("Bearer")
    assert service.engine.calls == []


@pytest.mark.parametrize("path", ["/v1/tiers", "/v1/entities/card/c1", "/v1/lists/deny/card/c1"])
async def test_ingest_key_is_forbidden_where_analysts_go(service: Service, path: str) -> None:
    """An ingest key gets 403, an analyst's passes the check."""
    _assert_problem(await service.call("GET", path, role=Role.INGEST), 403, "Authorization")
    assert (await service.call("GET", path, role=Role.ANALYST))[0] in (200, 404)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/score", "POST"),
        ("PUT", "/v1/entities/card/c1", "DELETE, GET, HEAD"),
        ("PATCH", "/v1/lists/deny/card/c1", "DELETE, GET, HEAD, PUT"),
        ("POST", "/livez", "GET, HEAD"),
    ],
)
async def test_wrong_method_is_405_with_allow(service: Service, method: str, path: str, allow: str) -> None:
    """The reply lists the methods that the path has."""
    reply = await service.call(method, path)
    _assert_problem(reply, 405, None)
    assert reply[2]["Allow"] == allow


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/scores", "/v1/score/", "/v1/entities/card", "/../etc/passwd"])
async def test_unknown_path_is_404(service: Service, path: str) -> None:
    """A path that does not exist is a problem, too."""
    _assert_problem(await service.call("GET", path, role=None), 404, None)


async def test_batch_array_errors_in_place(service: Service) -> None:
    """The reply has one entry per row, in order."""
    body = b"[" + BODY + b"," + BODY.replace(b"1299", b"-1") + b"]"
    status, reply, _ = await service.call("POST", "/v1/score/batch?explain=1&commit=0", body)
    assert status == 200
    assert service.engine.calls == [("try_many", 2, DECISIONS | REASONS)]
    assert [entry["event_id"] for entry in reply] == ["t-1", "t-1"]
    assert reply[0]["reasons"] == ["R"]
    assert reply[1]["error"]["field"] == "amount"


async def test_batch_trace_comes_with_every_decision(service: Service) -> None:
    """?trace=1 reaches the engine, and each decision carries its trace."""
    status, reply, _ = await service.call("POST", "/v1/score/batch?trace=1", b"[" + BODY + b"," + BODY + b"]")
    assert (status, service.engine.calls) == (200, [("submit_many", 2, DECISIONS | TRACES)])
    assert [entry["trace"] for entry in reply] == [{"l1": 1}] * 2


async def test_batch_ndjson_in_ndjson_out(service: Service) -> None:
    """NDJSON is answered with NDJSON, line by line."""
    body = BODY + b"\n" + b"{\n" + BODY
    status, reply, headers = await service.call("POST", "/v1/score/batch", body, Content_Type="application/x-ndjson")
    lines = [json.loads(line) for line in reply.splitlines()] if isinstance(reply, bytes) else []
    assert (status, headers["Content-Type"]) == (200, "application/x-ndjson")
    assert ["error" in line for line in lines] == [False, True, False]


async def test_batch_empty_is_empty(service: Service) -> None:
    """An empty batch is answered with an empty batch and does not bother the engine."""
    assert (await service.call("POST", "/v1/score/batch", b"[]"))[:2] == (200, [])
    assert service.engine.calls == []


async def test_batch_rows_at_limit_and_above(service: Service) -> None:
    """Twenty rows pass, twenty-one are refused as a whole."""
    assert (await service.call("POST", "/v1/score/batch", b"[" + b",".join([BODY] * 20) + b"]"))[0] == 200
    _assert_problem(await service.call("POST", "/v1/score/batch", b"[" + b",".join([BODY] * 21) + b"]"), 413, "body")


async def test_labels_are_applied_and_counted(service: Service) -> None:
    """Labels reach the engine; a wrong one refuses the request."""
    label = {"event_id": "t-1", "label": "fraud", "ts": 1750000000000}
    status, reply, _ = await service.call("POST", "/v1/labels", json.dumps([label]).encode())
    assert (status, reply["applied"], reply["labels"][0]["status"]) == (200, 1, "applied")
    wrong = json.dumps([label, {**label, "label": "x"}]).encode()
    _assert_problem(await service.call("POST", "/v1/labels", wrong), 422, "[1].label")
    assert service.engine.calls == [("label", 1)]


@pytest.mark.parametrize(("quoted", "event_id"), [("t-1", "t-1"), ("a%2Fb", "a/b"), ("%C3%A4%20b", "ä b"), ("50%25", "50%")])
async def test_decision_path_is_unquoted(service: Service, quoted: str, event_id: str) -> None:
    """Any printable event_id can be asked for."""
    assert (await service.call("GET", f"/v1/decisions/{quoted}"))[1] == {"event_id": event_id}


async def test_unknown_kind_and_list_are_404_with_field(service: Service) -> None:
    """A kind that the spec lacks or a list that does not exist is named."""
    _assert_problem(await service.call("GET", "/v1/entities/planet/x"), 404, "kind")
    _assert_problem(await service.call("GET", "/v1/lists/grey/card/x"), 404, "list")
    _assert_problem(await service.call("GET", "/v1/entities/card/" + "x" * 129), 422, "id")


async def test_list_entry_put_get_delete(service: Service) -> None:
    """An entry can be made, read and taken away; afterwards it is not there."""
    path = "/v1/lists/deny/card/c1"
    entry = {"list": "deny", "kind": "card", "id": "c1", "reason": "stolen", "expires": None}
    _assert_problem(await service.call("GET", path), 404, "id")
    assert (await service.call("PUT", path, b'{"reason": "stolen"}'))[:2] == (200, entry)
    assert (await service.call("GET", path))[:2] == (200, entry)
    assert (await service.call("DELETE", path))[0] == 204
    _assert_problem(await service.call("DELETE", path), 404, "id")
    _assert_problem(await service.call("PUT", path, b"{}"), 422, "reason")


async def test_health_is_open_and_ready_follows_engine(service: Service) -> None:
    """Liveness and readiness need no key; not ready is a 503 with the reason."""
    assert (await service.call("GET", "/livez", role=None))[0] == 200
    assert (await service.call("HEAD", "/livez", role=None))[:2] == (200, b"")
    assert (await service.call("GET", "/readyz", role=None))[0] == 200
    service.engine.ready = (False, "replaying the journal")
    reply = await service.call("GET", "/readyz", role=None)
    _assert_problem(reply, 503, None)
    assert reply[1]["detail"] == "replaying the journal"


async def test_before_the_start_nothing_but_health_is_served(service: Service) -> None:
    """503 with the reason, whatever the route; who has no key still hears of that, and what is nowhere of this."""
    service.engine.is_started = False
    for method, path in (("POST", "/v1/score?commit=false"), ("PUT", "/v1/lists/deny/card/c1"), ("GET", "/v1/tiers")):
        reply = await service.call(method, path, BODY)
        _assert_problem(reply, 503, None)
        assert reply[1]["detail"] == "recovering: 1 of about 2 entries (50 %)"
    _assert_problem(await service.call("GET", "/v1/tiers", role=None), 401, "Authorization")
    _assert_problem(await service.call("GET", "/v1/nowhere"), 404, None)
    assert [(await service.call("GET", path, role=None))[0] for path in ("/livez", "/metrics")] == [200, 200]
    assert service.engine.calls == []


async def test_metrics_count_requests_and_refusals(service: Service) -> None:
    """What was asked and refused shows up in the exposition."""
    await service.call("POST", "/v1/score", BODY)
    await service.call("POST", "/v1/score", b"{")
    text = (await service.call("GET", "/metrics", role=None))[1].decode()
    assert 'weir_requests_total{route="score",status="200"} 1.0' in text
    assert 'weir_requests_total{route="score",status="400"} 1.0' in text
    assert 'weir_refused_total{reason="malformed-body"} 1.0' in text


async def test_tiers_are_listed(service: Service) -> None:
    """Analysts see each tier, and who follows the journal."""
    shown = {"tiers": [{"name": "l1", "enabled": True}], "consumers": [{"name": "ledger", "lag": 0}], "warnings": []}
    assert (await service.call("GET", "/v1/tiers"))[1] == shown


async def test_tier_is_switched_with_a_reason_or_not_at_all(service: Service) -> None:
    """Whoever switches is named by the key; what is missing or wrong is named too, and nothing is switched."""
    body = b'{"enabled": false, "reason": "compare"}'
    assert (await service.call("PUT", "/v1/tiers/l1", body))[:2] == (200, {"name": "l1", "enabled": True})
    assert service.engine.calls == [("switch_tier", "l1", False, "compare", "admin")]
    for wrong, field in (
        (b'{"enabled": false}', "reason"),
        (b'{"reason": "x"}', "enabled"),
        (b'{"enabled": 0, "reason": "x"}', "enabled"),
        (b'{"enabled": true, "reason": ""}', "reason"),
        (b'{"enabled": true, "reason": "x", "until": 1}', "until"),
    ):
        _assert_problem(await service.call("PUT", "/v1/tiers/l1", wrong), 422, field)
    _assert_problem(await service.call("PUT", "/v1/tiers/l1", b"["), 400, "body")
    _assert_problem(await service.call("PUT", "/v1/tiers/l1", body, role=Role.INGEST), 403, "Authorization")
    assert len(service.engine.calls) == 1


async def test_erasure_says_whether_it_is_done(service: Service) -> None:
    """200 once the id is gone everywhere, 202 while something is left; not for ingest keys, not for unknown kinds."""
    path = "/v1/entities/card/c%2F1"
    assert (await service.call("DELETE", path, role=Role.ANALYST))[:2] == (200, {"kind": "card", "id": "c/1", "left": []})
    service.engine.left = ["ledger"]
    assert (await service.call("DELETE", path))[0] == 202
    assert service.engine.calls == [("erase", "card", "c/1", "analyst"), ("erase", "card", "c/1", "admin")]
    _assert_problem(await service.call("DELETE", path, role=Role.INGEST), 403, "Authorization")
    _assert_problem(await service.call("DELETE", "/v1/entities/planet/x"), 404, "kind")
    assert len(service.engine.calls) == 2


async def test_audit_takes_a_limit(service: Service) -> None:
    """100 entries unless the caller says how many; anything else is refused."""
    assert (await service.call("GET", "/v1/audit"))[:2] == (200, {"entries": [{"n": 100}]})
    assert (await service.call("GET", "/v1/audit?limit=1000"))[1] == {"entries": [{"n": 1000}]}
    for wrong in ("0", "1001", "x", "-1", "", "1e3"):
        _assert_problem(await service.call("GET", f"/v1/audit?limit={wrong}"), 422, "?limit")
    _assert_problem(await service.call("GET", "/v1/audit?since=1"), 422, "?since")
