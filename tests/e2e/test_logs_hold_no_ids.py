"""What a service writes, to stdout and stderr, over load, bad input, failures and a crash: no id, no key, no body."""

import asyncio
import json
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import redis.asyncio

from features.transaction import Transaction
from service.auth import Role, add_key

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.postgres]

N_ROWS = 400
N_CARDS = 120  # more profiles than fit L1, so that levels are asked
AMOUNT = 7_654_321
HAPPENED = (  # else this test shows less than it says
    "call refused", "request not read", "level unavailable", "ledger unavailable", "profile refused", "tier switched",
    "journal was cut", "CheckViolationError", '"request_id": "***"',
)  # fmt: skip
SETTINGS = (
    "l1.bytes_max=65536",
    "bloom.enabled=false",
    "l2.flush_interval_ms=100",
    "write_behind.interval_ms=20",
    "watch.share=1",
    "shadow.share=1",
    "server.request_deadline_ms=1000",
    "otel.endpoint=http://127.0.0.1:9/v1/traces",
    "otel.share=1",
)


def _card(number: int) -> str:
    """A card number that is none: right length, right check digit."""
    digits = f"400000{number:09d}"
    doubled = [int(d) * (2 - place % 2) for place, d in enumerate(digits)]
    return digits + str(-sum(value - 9 * (value > 9) for value in doubled) % 10)


def _transactions(tag: str, n: int = N_ROWS) -> list[Transaction]:
    return [
        Transaction(
            f"evt-{tag}-{number}", 1_767_225_600_000 + number * 60_000, AMOUNT, "EUR", _card(number % N_CARDS),
            f"mer-{tag}-{number % 37}", device_id=f"dev-{tag}-{number % 53}", ip=f"2001:db8:{tag[:4]}::{number % 41:x}",
            country="DE", mcc=5411, channel="ecom",
        )
        for number in range(n)
    ]  # fmt: skip


def _raw(weir: Any, *pieces: bytes) -> None:
    """Bytes that need not be HTTP, over a connection of their own."""
    host, port = weir.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def _bad_requests(weir: Any, tx: Transaction, foreign_key: str) -> None:
    """Everything that is refused, with ids and keys in all places."""
    body, card = msgspec.json.encode(tx), tx.card_id
    bearer = {"Authorization": f"Bearer {foreign_key}"}
    for headers in (bearer, {"Authorization": foreign_key}, {"Authorization": f"Basic {foreign_key}"}):
        assert weir.call("POST", "/v1/score", body, headers).status == 401
        assert weir.call("GET", f"/v1/entities/card/{card}", headers=headers).status == 401
    for path in (f"/{card}", f"/v1/{foreign_key}", f"/v1/entities/{card}/x", f"/v1/lists/{card}/card/x", f"/v2/models/{card}"):
        weir.call("GET", path)
    quoted = json.dumps(card).encode()
    for text in (body[:-1], body + body, b"[" * 300, quoted, body.replace(b'"EUR"', quoted)):
        for path in ("/v1/score", "/v1/score/batch", "/v1/score/stream", "/v1/labels", "/v1/compare", "/v1/session"):
            weir.call("POST", path, text, {"Content-Type": "application/json"})
    weir.call("POST", f"/v1/score?{card}=1", body)
    weir.call("POST", "/v1/score", body, {"Content-Encoding": card})
    weir.call("POST", "/v1/score", body, {"X-Request-Id": card, "traceparent": card})
    for request_id in (card, f"id-{card}"):
        weir.call("POST", "/v1/score", body, bearer | {"X-Request-Id": request_id})
        weir.call("GET", "/v1/decisions/nobody", headers=bearer | {"X-Request-Id": request_id})
    weir.call("PUT", "/v1/models/champion", json.dumps({"model": card, "reason": "test"}).encode())
    weir.call("PUT", f"/v1/tiers/{card}", b'{"enabled": false, "reason": "test"}')
    weir.call("POST", "/v1/session", json.dumps({"key": foreign_key}).encode(), {"Content-Type": "application/json"})
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + weir.key.encode() + b"\r\n"
    _raw(weir, card.encode() + b"\r\n\r\n")
    _raw(weir, head + card.encode() + b"\r\n\r\n" + body)
    _raw(weir, head + b"Content-Length: 999\r\n\r\n" + body)
    _raw(weir, head + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    _raw(weir, b"GET /" + card.encode() * 4000 + b" HTTP/1.1\r\n\r\n")


async def _fail_stores(weir: Any, redis_url: str, postgres_url: str, tag: str) -> None:
    """Stores that refuse what they are given, and quote it; copies that are not ours."""
    client = redis.asyncio.Redis.from_url(redis_url)
    connection = await asyncpg.connect(postgres_url)
    try:
        assert weir.call("PUT", "/v1/tiers/l2", b'{"enabled": false, "reason": "test"}').status == 200  # so that redis is asked
        await connection.execute("ALTER TABLE weir_ledger ADD CONSTRAINT no CHECK (amount < 0) NOT VALID")
        await connection.execute("ALTER TABLE weir_profiles ADD CONSTRAINT no CHECK (length(profile) < 9) NOT VALID")
        for number in range(N_CARDS):
            await client.set(f"weir:p:card:{_card(number)}", b"\x63 is no version " + _card(number).encode())
        rows = _transactions(tag)
        for start in range(0, len(rows), 100):
            weir.call("POST", "/v1/score/batch", msgspec.json.encode(rows[start : start + 100]))
            await asyncio.sleep(0.1)
        await client.config_set("maxmemory", "1")
        weir.call("POST", "/v1/score/batch", msgspec.json.encode(rows[:50]))
        await asyncio.sleep(0.5)
    finally:
        await client.config_set("maxmemory", "0")
        await client.flushall()
        await connection.execute("ALTER TABLE weir_ledger DROP CONSTRAINT no")
        await connection.execute("ALTER TABLE weir_profiles DROP CONSTRAINT no")
        await client.aclose()
        await connection.close()


def _written(weir: Any) -> Iterator[tuple[Path, str]]:
    for path in sorted(weir.directory.parent.glob(f"{weir.directory.name}-*.*")):
        yield path, path.read_text(encoding="utf-8", errors="replace")


async def test_log_of_a_whole_life_holds_no_id_and_no_key(make_weir: Any, redis_url: str, postgres_url: str) -> None:
    """Load in all forms, labels, lists, erasure, toggles, refusals, failing stores, a kill and a recovery: every line is JSON
    without any card, merchant, device, address, event, amount, key or session, plain or in hexadecimal."""
    tag = secrets.token_hex(4)
    weir = make_weir(*SETTINGS, f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    weir.key = add_key(weir.directory, Role.ADMIN, "test")
    foreign_key = f"weir_admin_{secrets.token_urlsafe(32)}"
    rows, more = _transactions(tag), _transactions(f"{tag}b")
    await weir.start()
    for tx in rows[:60]:
        assert weir.call("POST", "/v1/score", msgspec.json.encode(tx), {"X-Request-Id": "req-1"}).status == 200
    assert weir.call("POST", "/v1/score/batch?trace=1&explain=1", msgspec.json.encode(rows[60:200])).status == 200
    lines = b"".join(msgspec.json.encode(tx) + b"\n" for tx in rows[200:])
    assert weir.call("POST", "/v1/score/stream", lines, {"Content-Type": "application/x-ndjson"}).status == 200
    changed = msgspec.structs.replace(rows[0], amount=AMOUNT + 1)
    assert weir.call("POST", "/v1/score", msgspec.json.encode(changed)).status == 409
    labels = [{"event_id": tx.event_id, "label": "fraud", "ts": rows[-1].ts} for tx in rows[:30]]
    assert weir.call("POST", "/v1/labels", json.dumps(labels).encode()).status == 200
    reply = weir.call("POST", "/v1/session", json.dumps({"key": weir.key}).encode(), {"Content-Type": "application/json"})
    session = reply.headers["set-cookie"].partition("=")[2].partition(";")[0]
    assert weir.call("PUT", f"/v1/lists/deny/card/{rows[1].card_id}", b'{"reason": "test", "expires": null}').status == 200
    assert weir.call("DELETE", f"/v1/lists/deny/card/{rows[1].card_id}").status == 204
    assert weir.call("DELETE", f"/v1/entities/card/{rows[2].card_id}").status in (200, 202)
    for is_on in (b"false", b"true"):
        assert weir.call("PUT", "/v1/tiers/redis", b'{"enabled": %b, "reason": "test"}' % is_on).status == 200
    _bad_requests(weir, rows[3], foreign_key)
    await _fail_stores(weir, redis_url, postgres_url, f"{tag}b")
    weir.kill(signal.SIGKILL)
    newest = max((weir.directory / "journal").glob("*.seg"))
    with newest.open("ab") as segment:
        segment.write(b"torn " + rows[0].card_id.encode())
    await weir.start()
    assert weir.call("POST", "/v1/score", msgspec.json.encode(rows[0])).json["replayed"]
    weir.stop()
    ids = {value for tx in (*rows, *more) for value in (tx.event_id, tx.card_id, tx.merchant_id, tx.device_id, tx.ip) if value}
    secret = {*ids, weir.key, weir.key.partition("_")[2], foreign_key, session, str(AMOUNT)}
    secret |= {text.encode().hex() for text in ids}
    n_lines = 0
    for path, text in _written(weir):
        leaked = sorted(value for value in secret if value in text)
        assert leaked == [], f"{path.name}: {[line for line in text.splitlines() if any(v in line for v in leaked)][:3]}"
        for line in text.splitlines():
            n_lines += 1
            assert path.suffix == ".out" or "event" in json.loads(line), line
    events = " ".join(text for _, text in _written(weir))
    for told in HAPPENED:
        assert told in events, f"{told} did not happen"
    assert n_lines > 20
