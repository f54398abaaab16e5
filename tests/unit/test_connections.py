"""Counting of connections, over real sockets: what an address is, and that one that ended makes room."""

import asyncio
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from service.connections import Connections, _group
from service.metrics import Metrics
from service.settings import ServerSettings


class Counted(asyncio.Protocol):
    """A protocol that asks and tells as both lanes do, and greets who may stay."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._connections.admit(cast("asyncio.Transport", transport)):
            assert self._connections.admit(cast("asyncio.Transport", transport)), (
                "who goes over to another lane is counted once"
            )
            self._transport = cast("asyncio.Transport", transport)
            self._transport.write(b"welcome")

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self._transport)


@pytest.fixture
async def connections(tmp_path: Path) -> AsyncIterator[Connections]:
    """Served on a UNIX socket in tmp_path: at most 4, and 1 of an address."""
    found = Connections(ServerSettings(connections_max=4, connections_per_address_max=1), Metrics())
    server = await asyncio.get_running_loop().create_unix_server(lambda: Counted(found), str(tmp_path / "s"))
    yield found
    server.close()


async def _greeting(path: Path) -> tuple[bytes, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    async with asyncio.timeout(5):
        return await reader.read(200), writer


async def _until_at_most(connections: Connections, n: int) -> None:
    for _ in range(500):
        if len(connections) <= n:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{len(connections)} connections are still open")


async def test_unix_socket_is_no_address_and_counts_in_all(connections: Connections, tmp_path: Path) -> None:
    """Four connections although an address may have one; the fifth is one too many; one that ends makes room."""
    held = [await _greeting(tmp_path / "s") for _ in range(4)]
    assert [text for text, _ in held] == [b"welcome"] * 4
    assert len(connections) == 4
    text, late = await _greeting(tmp_path / "s")
    assert text.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    late.close()
    held[0][1].close()
    await _until_at_most(connections, 3)
    text, again = await _greeting(tmp_path / "s")
    assert text == b"welcome"
    for writer in (again, *(writer for _, writer in held)):
        writer.close()
    await _until_at_most(connections, 0)
    assert connections._by_address == {}


@pytest.mark.parametrize(
    ("peer", "group"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("2001:db8::1", 5, 0, 0), "2001:db8::/64"),
        (("2001:db8:0:0:ffff::9", 5, 0, 0), "2001:db8::/64"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        ("", ""),
        (None, ""),
        (b"\x00abstract", ""),
        (("no address", 1), ""),
    ],
)
def test_peer_counts_as_its_address_or_network(peer: object, group: str) -> None:
    """IPv6 customers have a /64 each; an IPv4 client is the same over a socket for both; a UNIX socket is none."""
    assert _group(peer) == group


def test_open_files_are_raised_to_what_connections_need() -> None:
    """A soft limit of 256 becomes what 2,000 connections need; where the hard limit is lower, the log says so."""
    code = (
        "import resource, sys\n"
        "from service.connections import raise_open_files\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, int(sys.argv[1])))\n"
        "raise_open_files(2000)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 3_100:
        pytest.skip(f"the hard limit of open files is {hard}, too low to be lowered")
    for allowed, expected, is_told in (("3100", "3024", False), ("600", "600", True)):
        done = subprocess.run([sys.executable, "-c", code, allowed], capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        assert lines[-1] == expected
        assert ("too few open files" in done.stdout + done.stderr) == is_told
