"""Who may call what: every route without a good key and with each role; what is refused changes nothing and is logged."""

import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from service.auth import KEY_FILE, KeyRing, Role, add_key, revoke_key
from service.handlers.router import build_web_app
from service.metrics import Metrics
from service.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import MakeWeir, Weir

pytestmark = pytest.mark.e2e

OPEN, INGEST, ANALYST = None, Role.INGEST, Role.ANALYST
# The whole matrix. A route that is not in it fails test_matrix_names_every_route.
MATRIX: dict[tuple[str, str], Role | None] = {
    ("GET", "/livez"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/metrics"): OPEN,
    ("GET", "/openapi.json"): OPEN,
    ("GET", "/console"): OPEN,
    ("GET", "/console/"): OPEN,
    ("GET", "/console/{name}"): OPEN,
    ("GET", "/v2/health/live"): OPEN,
    ("GET", "/v2/health/ready"): OPEN,
    ("POST", "/v1/score"): INGEST,
    ("POST", "/v1/score/batch"): INGEST,
    ("POST", "/v1/score/stream"): INGEST,
    ("POST", "/v1/labels"): INGEST,
    ("GET", "/v1/decisions/{event_id}"): INGEST,
    ("GET", "/v1/entities/{kind}/{id}"): ANALYST,
    ("DELETE", "/v1/entities/{kind}/{id}"): ANALYST,
    ("GET", "/v1/lists/{list}/{kind}/{id}"): ANALYST,
    ("PUT", "/v1/lists/{list}/{kind}/{id}"): ANALYST,
    ("DELETE", "/v1/lists/{list}/{kind}/{id}"): ANALYST,
    ("GET", "/v1/tiers"): ANALYST,
    ("PUT", "/v1/tiers/{name}"): ANALYST,
    ("GET", "/v1/scorer"): ANALYST,
    ("PUT", "/v1/scorer"): ANALYST,
    ("GET", "/v1/models"): ANALYST,
    ("PUT", "/v1/models/champion"): ANALYST,
    ("PUT", "/v1/models/challenger"): ANALYST,
    ("DELETE", "/v1/models/challenger"): ANALYST,
    ("GET", "/v1/audit"): ANALYST,
    ("GET", "/v1/compare"): ANALYST,
    ("POST", "/v1/compare"): ANALYST,
    ("GET", "/v1/compare/{id}"): ANALYST,
    ("DELETE", "/v1/compare/{id}"): ANALYST,
    ("GET", "/v2"): INGEST,
    ("POST", "/v2/repository/index"): INGEST,
    ("POST", "/v2/repository/models/{name}/load"): INGEST,
    ("POST", "/v2/repository/models/{name}/unload"): INGEST,
    ("GET", "/v2/models/{name}"): INGEST,
    ("GET", "/v2/models/{name}/ready"): INGEST,
    ("GET", "/v2/models/{name}/config"): INGEST,
    ("POST", "/v2/models/{name}/infer"): INGEST,
    ("GET", "/v2/models/{name}/versions/{version}"): INGEST,
    ("GET", "/v2/models/{name}/versions/{version}/ready"): INGEST,
    ("GET", "/v2/models/{name}/versions/{version}/config"): INGEST,
    ("POST", "/v2/models/{name}/versions/{version}/infer"): INGEST,
}
# Sessions have no key in a header, and the feed has no end: tests/e2e/test_console_http.py asks them who may.
ELSEWHERE = {("POST", "/v1/session"), ("GET", "/v1/session"), ("DELETE", "/v1/session"), ("GET", "/v1/events")}
BAD_HEADERS = (
    "",
    "Basic d2VpcjpzZWNyZXQ=",
    "Bearer",
    "Bearer  ",
    "Bearer weir_admin_guess",
    "bearer " + "x" * 4_000,
    "weir_admin_x",
)


SAMPLES = {"list": "deny", "kind": "card", "version": "1", "name": "cards", "id": "c-roles", "event_id": "e-roles"}


def sample(path: str) -> str:
    return path.format_map(SAMPLES)


def test_matrix_names_every_route(tmp_path: "Path") -> None:
    """The table above is the application's: no route is forgotten."""
    engine = SimpleNamespace(check_started=lambda: None, pipeline=SimpleNamespace(offer=None), plan=SimpleNamespace(kinds=[]))
    app = build_web_app(cast(Any, engine), KeyRing(tmp_path / KEY_FILE), Metrics(), Settings())
    found = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    named = {(method, path) for method, path in found if method not in ("*", "HEAD")}
    assert named == set(MATRIX) | ELSEWHERE


@pytest.mark.parametrize(("method", "path"), MATRIX, ids=lambda part: part)
def test_only_the_callers_role_decides(weir: "Weir", keys: dict[Role, str], method: str, path: str) -> None:
    """Too low a role is 403, no valid key 401, both with a problem; enough of one is neither."""
    need = MATRIX[method, path]
    for header in BAD_HEADERS if need is not None else ():
        reply = weir.call(method, sample(path), b"", {"Authorization": header})
        assert (reply.status, reply.json["field"]) == (401, "Authorization"), header
    for role, key in keys.items():
        reply = weir.call(method, sample(path), b"", {"Authorization": f"Bearer {key}"})
        if need is not None and role < need:
            assert reply.status == 403
            assert reply.headers["content-type"] == "application/problem+json"
            assert (reply.json["field"], key in reply.body.decode()) == ("Authorization", False)
        else:
            assert reply.status not in (401, 403), reply.body


@pytest.fixture(scope="module")
def keys(weir: "Weir") -> dict[Role, str]:
    """A key of each role."""
    return {role: add_key(weir.directory, role, f"roles-{role.word}") for role in Role}


async def test_refused_calls_change_nothing_and_are_logged(make_weir: "MakeWeir") -> None:
    """An ingest key toggles nothing; the log names the call, the reason and the key's name, on both lanes, and never a key."""
    weir = make_weir()
    await weir.start()
    key = add_key(weir.directory, Role.INGEST, "gateway")
    header = {"Authorization": f"Bearer {key}"}
    body = json.dumps({"enabled": False, "reason": "mine"}).encode()
    before = weir.call("GET", "/v1/tiers").json["tiers"]
    for tier in ("l1", "bloom", "l2"):
        assert weir.call("PUT", f"/v1/tiers/{tier}", body, header).status == 403
    assert weir.call("PUT", "/v1/scorer", b'{"scorer": "onnx", "reason": "mine"}', header).status == 403
    for guess in ("Bearer weir_admin_guess", ""):
        assert weir.call("POST", "/v1/score", b"{}", {"Authorization": guess}).status == 401
    after = weir.call("GET", "/v1/tiers").json["tiers"]
    assert [(tier["name"], tier["enabled"]) for tier in after] == [(tier["name"], tier["enabled"]) for tier in before]
    assert weir.call("GET", "/v1/audit").json["entries"] == []
    revoke_key(weir.directory, "gateway")
    weir.stop()
    log = weir.log()
    assert len(re.findall("call refused", log)) == 6
    assert len(re.findall("PUT /v1/tiers/{name}", log)) == 3
    assert "POST /v1/score" in log
    assert "gateway" in log
    assert key not in log
    assert "guess" not in log


async def test_revoked_key_stops_working_without_a_restart(make_weir: "MakeWeir") -> None:
    """Within a second, on a connection that is open too."""
    weir = make_weir()
    await weir.start()
    key = add_key(weir.directory, Role.ANALYST, "ana")
    async with weir.client() as session:
        headers = {"Authorization": f"Bearer {key}"}
        async with session.get("/v1/tiers", headers=headers) as reply:
            assert reply.status == 200
        revoke_key(weir.directory, "ana")
        status, n = 200, 0
        while status == 200:
            async with session.get("/v1/tiers", headers=headers) as reply:
                status, n = reply.status, n + 1
            assert n < 10_000
        assert status == 401
