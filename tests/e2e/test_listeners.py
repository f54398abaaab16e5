"""`weir serve` on TLS and on a UNIX socket: the same service, the same keys; and what is left when it ends."""

import asyncio
import datetime
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.auth import Role, add_key

pytestmark = pytest.mark.e2e

MakeWeir = Callable[..., Any]  # of conftest: a process with start, stop, kill, url, key
TX = {"ts": 1_750_000_000_000, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"}


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="weir-") as directory:
        yield Path(directory)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[str, ...]:
    """Settings of a self-signed certificate for localhost and 127.0.0.1, in tmp_path/cert.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weir")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return (f"server.tls_cert={tmp_path / 'cert.pem'}", f"server.tls_key={tmp_path / 'key.pem'}")


def _over_tls(weir: Any, cert: Path) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(cert)))
    return aiohttp.ClientSession(weir.url.replace("127.0.0.1", "localhost"), connector=connector)


def _over_unix(path: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession("http://weir", connector=aiohttp.UnixConnector(str(path)))


def _request(method: str, path: str, key: str = "", body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _score(session: aiohttp.ClientSession, event_id: str, key: str | None) -> tuple[int, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with session.post("/v1/score", json={"event_id": event_id, **TX}, headers=headers) as reply:
        return reply.status, await reply.json(content_type=None)


async def test_tls_and_unix_socket_are_one_service(
    make_weir: MakeWeir, tls: tuple[str, ...], tmp_path: Path, short_dir: Path
) -> None:
    """What is scored over one is known over the other; keys and roles hold on both; nothing is open without a key."""
    socket_path = short_dir / "w.sock"
    weir = make_weir(*tls, f"server.unix_socket={socket_path}")
    await weir.start()
    assert weir.url.startswith("https://127.0.0.1:")
    ingest = add_key(weir.directory, Role.INGEST, "ingest")
    async with _over_tls(weir, tmp_path / "cert.pem") as tcp, _over_unix(socket_path) as unix:
        first = await _score(tcp, "t-1", ingest)
        assert first[0] == 200, first
        again = await _score(unix, "t-1", ingest)
        assert again == (200, {**first[1], "replayed": True})
        for session in (tcp, unix):
            assert (await _score(session, "t-2", None))[0] == 401
            assert (await _score(session, "t-2", "nonsense"))[0] == 401
            for key, status in ((ingest, 403), (weir.key, 200)):
                async with session.get("/v1/tiers", headers={"Authorization": f"Bearer {key}"}) as reply:
                    assert reply.status == status
            async with session.get("/livez") as reply:
                assert reply.status == 200
    weir.stop()
    assert os.listdir(short_dir) == []


@pytest.mark.parametrize("kind", ["tls", "unix"])
async def test_connection_that_changes_routes_is_answered_in_order(
    make_weir: MakeWeir, tls: tuple[str, ...], tmp_path: Path, short_dir: Path, kind: str
) -> None:
    """Pipelined requests of several routes and a large body, over TLS and over the UNIX socket: all replies, in order."""
    socket_path = short_dir / "w.sock"
    weir = make_weir(*tls, f"server.unix_socket={socket_path}")
    await weir.start()
    if kind == "unix":
        reader, writer = await asyncio.open_unix_connection(socket_path)
    else:
        context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        port = int(weir.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    tx = json.dumps({"event_id": "t-1", **TX}).encode()
    rows = json.dumps([{**TX, "event_id": f"row-{row}", "card_id": "c" * 120} for row in range(4_000)]).encode()  # 1 MB
    one, batch = _request("POST", "/v1/score", weir.key, tx), _request("POST", "/v1/score/batch", weir.key, rows)
    sent = [one, one, _request("GET", "/livez"), one, batch, _request("GET", "/v1/decisions/t-1", weir.key), one]
    writer.write(b"".join(sent))
    replies = []
    for _ in sent:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        found = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
        assert found, head
        replies.append(json.loads(await asyncio.wait_for(reader.readexactly(int(found[1])), 10)))
    writer.close()
    first, again, live, third, scored, stored, last = replies
    assert first["replayed"] is False
    assert again == third == last == {**first, "replayed": True}
    assert live == {"status": "live"}
    assert [row["event_id"] for row in scored] == [f"row-{row}" for row in range(4_000)]
    assert stored["event_id"] == "t-1"
    await asyncio.to_thread(weir.stop)


async def test_tls_port_survives_what_is_not_tls(make_weir: MakeWeir, tls: tuple[str, ...], tmp_path: Path) -> None:
    """Plain HTTP, noise, half a hello and hang-ups on the TLS port leave the service up and the log without a traceback."""
    weir = make_weir(*tls)
    await weir.start()
    port = int(weir.url.rpartition(":")[2])
    for data in (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", bytes(range(256)) * 40, b"\x16\x03\x01\x02\x00\x01\x00", b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        if data[:1] == b"G":
            assert b"HTTP/1.1" not in await asyncio.wait_for(reader.read(), 5)
        writer.close()
    async with _over_tls(weir, tmp_path / "cert.pem") as session, session.get("/livez") as reply:
        assert reply.status == 200
    weir.stop()
    assert "Traceback" not in weir.log()


async def test_tls_connection_kept_alive_does_not_hold_up_the_stop(
    make_weir: MakeWeir, tls: tuple[str, ...], tmp_path: Path
) -> None:
    """An idle client that never says goodbye is closed with the rest, in seconds."""
    weir = make_weir(*tls)
    await weir.start()
    async with _over_tls(weir, tmp_path / "cert.pem") as session:
        assert (await _score(session, "t-1", weir.key))[0] == 200
        async with asyncio.timeout(10):
            await asyncio.to_thread(weir.stop)


async def test_unix_socket_of_killed_service_is_taken_over(make_weir: MakeWeir, short_dir: Path) -> None:
    """SIGKILL leaves the file; the next start replaces it and serves."""
    socket_path = short_dir / "w.sock"
    weir = make_weir(f"server.unix_socket={socket_path}")
    await weir.start()
    async with _over_unix(socket_path) as session:
        assert (await _score(session, "t-1", weir.key))[1]["replayed"] is False
    weir.kill()
    assert os.listdir(short_dir) == ["w.sock"]
    await weir.start()
    async with _over_unix(socket_path) as session:
        assert (await _score(session, "t-1", weir.key))[1]["replayed"] is True
    weir.stop()


async def test_unix_socket_of_running_service_is_refused(make_weir: MakeWeir, short_dir: Path, tmp_path: Path) -> None:
    """A second service does not take the socket away: it ends with one line, and the first goes on."""
    socket_path = short_dir / "w.sock"
    weir = make_weir(f"server.unix_socket={socket_path}")
    await weir.start()
    sets = ("--port", "0", "--set", f"server.unix_socket={socket_path}")
    command = [sys.executable, "-m", "service", "serve", "--data-dir", str(tmp_path / "other"), *sets]
    second = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert (second.returncode, second.stdout) == (1, "")
    assert re.fullmatch(r"weir: server\.unix_socket: \S+ is in use by another process; .*\n", second.stderr), second.stderr
    async with _over_unix(socket_path) as session:
        assert (await _score(session, "t-1", weir.key))[0] == 200
    assert weir.kill(signal.SIGTERM) == 0


async def test_unix_socket_requests_under_way_are_answered_at_the_stop(make_weir: MakeWeir, short_dir: Path) -> None:
    """A batch that is being scored when SIGTERM arrives gets its whole reply; then the connection is closed."""
    socket_path = short_dir / "w.sock"
    weir = make_weir(f"server.unix_socket={socket_path}")
    await weir.start()
    reader, writer = await asyncio.open_unix_connection(socket_path)
    body = json.dumps([{**TX, "event_id": f"t-{row}", "card_id": f"c{row}"} for row in range(5_000)]).encode()
    head = f"POST /v1/score/batch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {weir.key}\r\nContent-Length: {len(body)}"
    writer.write(f"{head}\r\n\r\n".encode() + body)
    await writer.drain()
    stopping = asyncio.create_task(asyncio.to_thread(weir.stop))
    reply_head, _, reply = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    await stopping
    assert reply_head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert [row["event_id"] for row in json.loads(reply)] == [f"t-{row}" for row in range(5_000)]
    writer.close()
