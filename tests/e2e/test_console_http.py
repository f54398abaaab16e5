"""The console's side of HTTP, without a browser: files, headers, sessions, CSRF, throttling, the live feed."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest

from service.auth import KEY_FILE, Role, _read, _write, add_key
from service.console.assets import PLOTLY_NAME

JSON = {"Content-Type": "application/json"}
TOGGLE = b'{"enabled": false, "reason": "a test"}'
TX: dict[str, Any] = {
    "event_id": "f-1",
    "ts": 1750000000000,
    "amount": 1299,
    "currency": "EUR",
    "card_id": "c1",
    "merchant_id": "m1",
}
NO_KEY = {"Authorization": ""}


@pytest.fixture(scope="module")
def weir(tmp_path_factory: pytest.TempPathFactory, make_one: Any) -> Iterator[Any]:
    """A service that lets the tests fail to sign in as often as they like, with a fast feed for two."""
    settings = ["console.login_failures_max=1000", "console.feed_interval_ms=100", "console.feed_clients_max=2"]
    yield from make_one(tmp_path_factory.mktemp("console"), settings)


class Browser:
    """What a browser does with cookies, and the page with the CSRF token."""

    def __init__(self, weir: Any) -> None:
        self._weir = weir
        self.cookie = ""
        self.csrf = ""

    def sign_in(self, key: str) -> Any:
        reply = self._weir.call("POST", "/v1/session", json.dumps({"key": key}).encode(), NO_KEY | JSON)
        if reply.status == 200:
            cookie = SimpleCookie(reply.headers["set-cookie"])
            self.cookie = f"weir_session={cookie['weir_session'].value}"
            self.csrf = reply.json["csrf"]
        return reply

    def call(self, method: str, path: str, body: bytes | None = None, csrf: str | None = None, **headers: str) -> Any:
        token = {"X-CSRF-Token": self.csrf if csrf is None else csrf}
        return self._weir.call(method, path, body, NO_KEY | {"Cookie": self.cookie} | token | headers)


@pytest.fixture
def browser(weir: Any) -> Browser:
    """Signed in as admin."""
    browser = Browser(weir)
    assert browser.sign_in(weir.key).status == 200
    return browser


def _assert_problem(reply: Any, status: int, field: str | None) -> None:
    assert reply.headers["content-type"] == "application/problem+json"
    assert (reply.status, reply.json["status"], reply.json.get("field")) == (status, status, field), reply.json
    assert reply.json["detail"]
    assert b"Traceback" not in reply.body


def _state(weir: Any) -> Any:
    """Everything that a refused call must not change."""
    tiers = {tier["name"]: tier["enabled"] for tier in weir.call("GET", "/v1/tiers").json["tiers"]}
    return tiers, weir.call("GET", "/v1/audit").json, weir.call("GET", "/v1/scorer").json["scorer"]


def test_page_is_open_and_its_headers_are_strict(weir: Any) -> None:
    """No key is needed to see the sign-in; nothing inline may run, no other site may frame it."""
    for path in ("/console", "/console/"):
        reply = weir.call("GET", path, headers=NO_KEY)
        assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert b"style=" not in reply.body
        assert b"onclick" not in reply.body


def test_every_file_that_the_page_names_is_there(weir: Any) -> None:
    """Page, styles, modules and what modules import: followed from file to file."""
    seen, wanted = set(), ["/console"]
    while wanted:
        path = wanted.pop()
        seen.add(path)
        reply = weir.call("GET", path, headers=NO_KEY)
        assert reply.status == 200, path
        text = reply.body.decode() if path != f"/console/{PLOTLY_NAME}" else ""
        assert "PLOTLY_BUNDLE" not in text
        names = {part.partition('"')[0] for part in text.split('"/console/')[1:]}
        names |= {part.partition('"')[0] for part in text.split('from "./')[1:]}
        wanted += [f"/console/{name}" for name in names if f"/console/{name}" not in seen and name]
    assert {"/console/main.js", "/console/page-audit.js", "/console/parts.css", f"/console/{PLOTLY_NAME}"} <= seen


def test_files_are_cached_and_compressed(weir: Any) -> None:
    """Ours are asked for again and not sent twice; Plotly's bundle is kept for a year."""
    first = weir.call("GET", "/console/main.js", headers=NO_KEY)
    assert first.headers["cache-control"] == "no-cache"
    again = weir.call("GET", "/console/main.js", headers=NO_KEY | {"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    bundle = weir.call("GET", f"/console/{PLOTLY_NAME}", headers=NO_KEY | {"Accept-Encoding": "gzip"})
    assert "immutable" in bundle.headers["cache-control"]
    assert bundle.headers["content-encoding"] == "gzip"
    assert len(bundle.body) < 2_000_000


@pytest.mark.parametrize(
    "name", ["nothing.js", "index.html", "..%2fassets.py", "%2e%2e%2fassets.py", "assets.py", "__init__.py"]
)
def test_nothing_else_is_a_file(weir: Any, name: str) -> None:
    """A name is looked up, it is no path."""
    _assert_problem(weir.call("GET", f"/console/{name}", headers=NO_KEY), 404, "name")


def test_cookie_is_hidden_from_scripts_and_other_sites(weir: Any) -> None:
    """HttpOnly, SameSite=Strict; no Secure without TLS; never the key; nothing is stored by anybody between."""
    reply = Browser(weir).sign_in(weir.key)
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie
    assert weir.key not in cookie
    assert weir.key not in reply.body.decode()
    assert reply.headers["cache-control"] == "no-store"
    assert (reply.json["name"], reply.json["role"]) == ("test", "admin")


@pytest.mark.parametrize(
    ("body", "content_type", "status", "field"),
    [
        (b'{"key": "weir_admin_nobody"}', "application/json", 401, "key"),
        (b"{}", "application/json", 422, "key"),
        (b'{"key": ""}', "application/json", 422, "key"),
        (b'{"key": 5}', "application/json", 422, "key"),
        (b'{"key": "x", "role": "admin"}', "application/json", 422, "role"),
        (b'{"key": "' + b"x" * 257 + b'"}', "application/json", 422, "key"),
        (b"[", "application/json", 400, "body"),
        (b'["x"]', "application/json", 400, "body"),
        (b"\xff\xfe", "application/json", 400, "body"),
        (b"", "application/json", 400, "body"),
        (b'{"key": "' + b"x" * 5000 + b'"}', "application/json", 413, "body"),
        (b"key=weir_admin_nobody", "application/x-www-form-urlencoded", 415, "Content-Type"),
        (b'{"key": "x"}', "text/plain", 415, "Content-Type"),
    ],
)
def test_wrong_sign_in_is_a_problem(weir: Any, body: bytes, content_type: str, status: int, field: str) -> None:
    """Each is named, sets no cookie, and does not repeat what may be a key."""
    reply = weir.call("POST", "/v1/session", body, NO_KEY | {"Content-Type": content_type})
    _assert_problem(reply, status, field)
    assert "set-cookie" not in reply.headers
    assert b"nobody" not in reply.body


def test_ingest_key_may_not_sign_in(weir: Any) -> None:
    """The console is for analysts and admins."""
    key = add_key(weir.directory, Role.INGEST, "till")
    reply = Browser(weir).sign_in(key)
    _assert_problem(reply, 403, "key")
    assert "set-cookie" not in reply.headers


def test_session_reads_and_changes_with_its_token(weir: Any, browser: Browser) -> None:
    """Cookie alone reads; cookie and token change; the audit names the key of the session."""
    assert browser.call("GET", "/v1/session").json["csrf"] == browser.csrf
    assert browser.call("GET", "/v1/tiers", csrf="").status == 200
    assert browser.call("PUT", "/v1/tiers/bloom", TOGGLE).status == 200
    newest = weir.call("GET", "/v1/audit").json["entries"][0]
    assert (newest["who"], newest["tier"], newest["reason"]) == ("test", "bloom", "a test")
    assert browser.call("PUT", "/v1/tiers/bloom", TOGGLE.replace(b"false", b"true")).status == 200


@pytest.mark.parametrize(
    "method_path", ["PUT /v1/tiers/l1", "PUT /v1/scorer", "DELETE /v1/entities/card/c1", "DELETE /v1/session"]
)
@pytest.mark.parametrize("csrf", ["", "wrong"])
def test_change_without_csrf_token_is_refused(weir: Any, browser: Browser, method_path: str, csrf: str) -> None:
    """Whatever the change: 403, the header is named, nothing changes."""
    before = _state(weir)
    method, path = method_path.split()
    _assert_problem(browser.call(method, path, TOGGLE, csrf=csrf), 403, "X-CSRF-Token")
    assert _state(weir) == before
    assert browser.call("GET", "/v1/session").status == 200


def test_scoring_with_a_session_needs_the_token_too(weir: Any, browser: Browser) -> None:
    """POST /v1/score by either lane: refused without the token, scored with it."""
    body = json.dumps(TX | {"event_id": "by-session"}).encode()
    for path in ("/v1/score", "/v1/score?commit=false", "/v1/score/batch"):
        _assert_problem(browser.call("POST", path, body, csrf=""), 403, "X-CSRF-Token")
    assert weir.call("GET", "/v1/decisions/by-session").status == 404
    assert browser.call("POST", "/v1/score?commit=false", body).json["lsn"] == 0
    assert browser.call("POST", "/v1/score", body).json["event_id"] == "by-session"


@pytest.mark.parametrize(
    "cookie", ["weir_session=", "weir_session=nobody", "weir_session=" + "x" * 3000, 'weir_session="\\"', "other=1"]
)
def test_malformed_cookie_is_unauthorized(weir: Any, cookie: str) -> None:
    """No session, no key: 401 that says where to put one."""
    browser = Browser(weir)
    browser.cookie = cookie
    for method, path in (("GET", "/v1/tiers"), ("PUT", "/v1/tiers/l1"), ("GET", "/v1/session")):
        reply = browser.call(method, path, TOGGLE if method == "PUT" else None, csrf="x")
        assert reply.status == 401
        assert reply.json["field"] in ("Cookie", "Authorization")
        assert reply.headers["www-authenticate"]


def test_a_key_counts_before_a_cookie(weir: Any, browser: Browser) -> None:
    """With an Authorization header the cookie is not looked at: a wrong key is not saved by a session."""
    reply = browser.call("GET", "/v1/tiers", Authorization="Bearer weir_admin_wrong")
    _assert_problem(reply, 401, "Authorization")


def test_signing_out_ends_the_session(browser: Browser) -> None:
    """Afterwards the cookie is nobody's, and the browser is told to drop it."""
    reply = browser.call("DELETE", "/v1/session")
    assert (reply.status, reply.body) == (204, b"")
    assert "Max-Age=0" in reply.headers["set-cookie"]
    _assert_problem(browser.call("GET", "/v1/tiers"), 401, "Cookie")


def test_analyst_session_toggles_and_ends_with_its_key(weir: Any) -> None:
    """An analyst may toggle; when the key leaves the file, the session is over within a second."""
    browser = Browser(weir)
    assert browser.sign_in(add_key(weir.directory, Role.ANALYST, "ana")).json["role"] == "analyst"
    assert browser.call("PUT", "/v1/tiers/bloom", TOGGLE).status == 200
    assert browser.call("PUT", "/v1/tiers/bloom", TOGGLE.replace(b"false", b"true")).status == 200
    path: Path = weir.directory / KEY_FILE
    _write(path, [entry for entry in _read(path) if entry.name != "ana"])
    deadline = time.monotonic() + 1.0
    while (reply := browser.call("PUT", "/v1/tiers/l1", TOGGLE.replace(b"false", b"true"))).status == 200:
        assert time.monotonic() < deadline, "a revoked key is noticed within a second"
    _assert_problem(reply, 401, "Cookie")


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/tiers/l1", b'{"enabled": false}', 422, "reason"),
        ("/v1/tiers/l1", b'{"enabled": false, "reason": "x", "for_hours": 1}', 422, "for_hours"),
        ("/v1/tiers/l9", TOGGLE, 404, "name"),
        ("/v1/tiers/l1", b"{", 400, "body"),
        ("/v1/tiers/l1", b'{"enabled": false, "reason": "' + b"x" * 1_100_000 + b'"}', 413, "body"),
        ("/v1/scorer", b'{"scorer": "abacus", "reason": "x"}', 422, "scorer"),
    ],
)
def test_wrong_change_by_a_session_changes_nothing(
    weir: Any, browser: Browser, path: str, body: bytes, status: int, field: str
) -> None:
    """Unknown tier or field, missing reason, bad JSON, oversize: a problem that names the field."""
    before = _state(weir)
    _assert_problem(browser.call("PUT", path, body), status, field)
    assert _state(weir) == before


def test_throttle_refuses_after_the_failures(tmp_path_factory: pytest.TempPathFactory, make_one: Any) -> None:
    """Three wrong keys, then nobody at this address may try, not even with the right one; keys over /v1 go on."""
    for one in make_one(tmp_path_factory.mktemp("throttled"), ["console.login_failures_max=3"]):
        browser = Browser(one)
        assert [browser.sign_in("weir_admin_wrong").status for _ in range(3)] == [401, 401, 401]
        reply = browser.sign_in(one.key)
        _assert_problem(reply, 429, None)
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert one.call("GET", "/v1/tiers").status == 200


def test_console_that_is_off_is_not_there(tmp_path_factory: pytest.TempPathFactory, make_one: Any) -> None:
    """No page, no sessions; the API goes on."""
    for one in make_one(tmp_path_factory.mktemp("off"), ["console.enabled=false"]):
        for method, path in (("GET", "/console"), ("GET", "/console/main.js"), ("POST", "/v1/session")):
            assert one.call(method, path, b"{}" if method == "POST" else None).status == 404
        assert one.call("GET", "/v1/tiers").status == 200


async def _events(session: Any, **headers: str) -> AsyncGenerator[tuple[str, Any], None]:
    """Events of the feed, with the session's key unless other headers are given."""
    async with session.get("/v1/events", headers=headers) as reply:
        assert reply.status == 200, await reply.text()
        assert reply.content_type == "text/event-stream"
        event = ""
        async for line in reply.content:
            name, _, value = line.decode().strip().partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                yield event, json.loads(value)


async def _join(session: Any, **headers: str) -> AsyncGenerator[tuple[str, Any], None]:
    """A feed that has begun; streams of earlier tests are noticed to have gone at their next event."""
    while True:
        events = _events(session, **headers)
        try:
            await anext(events)
            return events
        except AssertionError:
            await asyncio.sleep(0.1)


async def test_feed_tells_what_passes_and_why(weir: Any) -> None:
    """Figures, decisions, and of those that were seen the trace; what passed unseen has none."""
    assert weir.call("POST", "/v1/score", json.dumps(TX | {"event_id": "unseen"}).encode()).status == 200
    async with weir.client() as session:
        told: dict[str, Any] = {}
        decisions: list[Any] = []
        stats: list[Any] = []
        async with asyncio.timeout(20):
            async for event, data in _events(session):
                if not stats and event == "stats":
                    async with session.post("/v1/score", json=TX | {"event_id": "seen"}) as reply:
                        told = await reply.json()
                if event == "stats":
                    stats.append(data)
                    if decisions and sum(sum(s["outcomes"].values()) for s in stats) >= 1:
                        break
                else:
                    decisions += data
    assert [one["event_id"] for one in decisions] == ["seen"]
    assert decisions[0]["score"] == told["score"]
    assert decisions[0]["lsn"] == told["lsn"]
    asked = sum(s["lookups"]["l1"]["asked"] for s in stats)
    assert asked == 2  # the card and the merchant
    assert any(s["latency_ms"]["p99"] for s in stats)
    assert {tier["name"] for tier in stats[0]["tiers"]} >= {"l1", "bloom", "l2"}
    seen = weir.call("GET", "/v1/decisions/seen").json["trace"]
    assert {kind: profile["tier"] for kind, profile in seen["profiles"].items()} == {
        "card": "l1", "merchant": "l1", "device": "absent", "ip": "absent",
    }  # fmt: skip
    assert len(seen["features"]) == 40
    assert set(seen["us"]) == {"lookup", "score", "decide", "journal"}
    assert "trace" not in weir.call("GET", "/v1/decisions/unseen").json


async def test_trace_of_the_feed_equals_the_trace_of_the_reply(weir: Any) -> None:
    """What the watcher kept is what `?trace=1` said of the same transactions, alone and in a batch."""
    async with weir.client() as session:
        async with asyncio.timeout(20):
            events = await _join(session)
            rows = [TX | {"event_id": f"b-{n}", "ts": TX["ts"] + 1000 * n, "card_id": f"k{n}"} for n in range(30)]
            replies = []
            for body in (rows[:1], rows[1:20], rows[20:]):
                async with session.post("/v1/score/batch?trace=1", json=body) as reply:
                    replies += await reply.json()
                await asyncio.sleep(0.25)  # the next second of the feed has room again
        kept = 0
        for reply in replies:
            trace = weir.call("GET", f"/v1/decisions/{reply['event_id']}").json.get("trace")
            if trace is not None:
                kept += 1
                assert trace["features"] == reply["trace"]["features"]
                assert trace["profiles"] == reply["trace"]["profiles"]
        assert kept == 30
        await events.aclose()


async def test_feed_is_for_few(weir: Any) -> None:
    """Two may follow; the third is told to come later, and there is room again when one goes."""
    async with weir.client() as session:
        async with asyncio.timeout(20):
            first, second = await _join(session), await _join(session)
            reply = await asyncio.to_thread(weir.call, "GET", "/v1/events")
            _assert_problem(reply, 429, None)
            assert reply.headers["retry-after"] == "10"
            await first.aclose()
            for _ in range(100):
                async with session.get("/v1/events") as again:
                    if again.status == 200:
                        break
                await asyncio.sleep(0.05)
            assert again.status == 200
            await second.aclose()


async def test_feed_needs_an_analyst_and_ends_with_the_session(weir: Any, browser: Browser) -> None:
    """No key and ingest keys are refused; signing out ends a stream that runs."""
    _assert_problem(weir.call("GET", "/v1/events", headers=NO_KEY), 401, "Authorization")
    key = add_key(weir.directory, Role.INGEST, "till-2")
    _assert_problem(weir.call("GET", "/v1/events", headers={"Authorization": f"Bearer {key}"}), 403, "Authorization")
    head = weir.call("HEAD", "/v1/events")
    assert (head.status, head.body) == (200, b"")
    async with weir.client() as session:
        del session.headers["Authorization"]
        async with asyncio.timeout(20):
            events = await _join(session, Cookie=browser.cookie)
            assert browser.call("DELETE", "/v1/session").status == 204
            seen = [event async for event, _ in events]
        assert seen[-1] == "end"


async def test_service_stops_at_once_although_somebody_follows(make_weir: Any) -> None:
    """A feed that is open does not hold up the stop."""
    weir = make_weir()
    await weir.start()
    async with weir.client() as session:
        events = _events(session)
        async with asyncio.timeout(20):
            await anext(events)
            started = asyncio.get_running_loop().time()
            await asyncio.to_thread(weir.stop)
            assert asyncio.get_running_loop().time() - started < 3.0, weir.log()
            assert [event async for event, _ in events] == []
