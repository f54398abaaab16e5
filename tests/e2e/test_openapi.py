"""/openapi.json: every route is in it, replies are what it says, and generated requests meet neither a 5xx nor a surprise.

EXAMPLES=200 makes schemathesis generate more (`make fuzz`); SEED chooses others.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from service.auth import KEY_FILE, KeyRing
from service.correlation import REQUEST_ID, TRACEPARENT, TRACESTATE
from service.handlers.router import build_web_app
from service.metrics import Metrics
from service.openapi import document
from service.openapi_calls import CALLS
from service.settings import Settings

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir, Weir

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("EXAMPLES", "2"))
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)
TX = {"event_id": "api-1", "ts": 1750000000000, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"}
SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STREAMS = ("/v1/score/stream", "/v1/events")
ORDINARY = {"content-type", "content-length", "date", "server"}  # of any HTTP server
# Real calls whose replies are read as the documented types: path, query or id, body.
REAL: list[tuple[str, str, str, Any]] = [
    ("POST", "/v1/score", "/v1/score?explain=1&trace=1", TX),
    ("POST", "/v1/labels", "/v1/labels", [{"event_id": "api-1", "label": "fraud", "ts": 1750000000001}]),
    ("GET", "/v1/decisions/{event_id}", "/v1/decisions/api-1", None),
    ("GET", "/v1/entities/{kind}/{id}", "/v1/entities/card/c1", None),
    ("PUT", "/v1/lists/{list}/{kind}/{id}", "/v1/lists/deny/card/c9", {"reason": "stolen"}),
    ("GET", "/v1/lists/{list}/{kind}/{id}", "/v1/lists/deny/card/c9", None),
    ("DELETE", "/v1/entities/{kind}/{id}", "/v1/entities/card/c1", None),
    ("GET", "/v1/tiers", "/v1/tiers", None),
    ("PUT", "/v1/tiers/{name}", "/v1/tiers/bloom", {"enabled": True, "reason": "as it is"}),
    ("GET", "/v1/scorer", "/v1/scorer", None),
    ("GET", "/v1/models", "/v1/models", None),
    ("GET", "/v1/audit", "/v1/audit?limit=3", None),
    ("GET", "/v1/compare", "/v1/compare", None),
    ("GET", "/v2", "/v2", None),
    ("GET", "/v2/models/{name}", "/v2/models/cards-mlp", None),
    ("POST", "/v2/repository/index", "/v2/repository/index", {}),
    ("GET", "/livez", "/livez", None),
    ("GET", "/readyz", "/readyz", None),
]


def test_document_names_every_route(tmp_path: Path) -> None:
    """No route of /v1, /v2 or the health routes is undocumented, none is made up."""
    engine = SimpleNamespace(check_started=lambda: None, pipeline=SimpleNamespace(offer=None), plan=SimpleNamespace(kinds=[]))
    app = build_web_app(cast(Any, engine), KeyRing(tmp_path / KEY_FILE), Metrics(), Settings())
    found = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    routes = {(method, path) for method, path in found if method not in ("*", "HEAD") and not path.startswith("/console")}
    assert routes == set(CALLS)


def test_document_is_complete_and_says_what_bodies_are() -> None:
    """Every reference has its target; every call has a role or says that it is open, and every refusal a problem."""
    tree = document()
    text = json.dumps(tree)
    assert "\\Z" not in text
    for name in {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in tree["components"]["schemas"]
    for path, methods in tree["paths"].items():
        for method, operation in methods.items():
            assert ("x-weir-role" in operation) == (operation.get("security") != []), (method, path)
            for status, reply in operation["responses"].items():
                is_problem = "application/problem+json" in reply.get("content", {})
                assert is_problem == (int(status) >= 400), (method, path, status)
    tx = tree["components"]["schemas"]["Transaction"]
    assert tx["required"] == ["event_id", "ts", "amount", "currency", "card_id", "merchant_id"]
    assert tx["additionalProperties"] is False


def test_every_call_takes_and_gives_what_correlates_it() -> None:
    """A request id in any call and reply; a trace context where there is a key, given back where the head waits for it."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            taken = {p["$ref"].rpartition("/")[2] for p in operation["parameters"] if "$ref" in p}
            is_open, is_stream = operation.get("security") == [], path in STREAMS
            assert taken == ({REQUEST_ID} if is_open else {REQUEST_ID, TRACEPARENT, TRACESTATE}), (method, path)
            for status, reply in operation["responses"].items():
                traced = not is_open and status not in ("401", "403") and not (is_stream and status < "4")
                assert set(reply["headers"]) - {"Retry-After"} == {REQUEST_ID} | ({TRACEPARENT} if traced else set()), path


@pytest.mark.parametrize(("method", "path", "url", "body"), REAL, ids=lambda part: part if isinstance(part, str) else "")
def test_real_reply_has_the_documented_members(weir: "Weir", method: str, path: str, url: str, body: Any) -> None:
    """What a call answers on real data can be read as the type in the document."""
    reply = weir.call(
        method, url, None if body is None else json.dumps(body).encode(), {REQUEST_ID: "api/7", TRACEPARENT: SAMPLED}
    )
    assert reply.headers[REQUEST_ID.lower()] == "api/7"
    documented = document()["paths"][path][method.lower()]["responses"][str(reply.status)]["headers"]
    assert set(reply.headers) - ORDINARY <= {name.lower() for name in documented}
    assert reply.status in CALLS[method, path].statuses, reply
    msgspec.json.decode(reply.body, type=CALLS[method, path].reply)


async def test_generated_requests_meet_no_server_error_and_no_undocumented_reply(make_weir: "MakeWeir") -> None:
    """schemathesis: every call with generated paths, queries and bodies."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install 'weir[dev]'")
    weir = make_weir("console.login_failures_max=1000", "time.past_ms_max=3153600000000", "server.request_deadline_ms=300")
    await weir.start()
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{weir.url}/openapi.json", "--no-color",
        "-H", f"Authorization: Bearer {weir.key}", "--checks", ",".join(CHECKS), "--max-examples", str(EXAMPLES),
        "--phases", "fuzzing" if EXAMPLES < 20 else "examples,coverage,fuzzing", "--generation-database", "none",
        "--exclude-path", "/v1/events", "--seed", os.environ.get("SEED", "1"), "--request-timeout", "10",
    ]  # fmt: skip
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.e2e.fuzz_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=weir.directory, env=environment, capture_output=True, text=True, check=False)  # noqa: ASYNC221
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "43 passed" in done.stdout, done.stdout[-3000:]  # one for each call but the endless feed
    weir.stop()
    assert '"level": "error"' not in weir.log()
