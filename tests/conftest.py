"""Fixtures that several tests need: real servers, fresh for each test, and a way to make them fail."""

import asyncio
import contextlib
import hashlib
import itertools
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
import msgspec
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from features.plan import compile_plan
from features.spec import load_spec
from models.card import ARTIFACTS, CARD_FILE, Golden, ModelCard, load_card, save_artifact
from models.graph import Network, build_graph, run_graph
from service.embedded import EmbeddedServers, EmbeddedUnavailable

SMALL_DISK_BYTES = 112 << 20  # RocksDB goes on when it sees room for a memtable again, 32 MiB

_databases = itertools.count(1)


@contextlib.contextmanager
def _running_servers(prefix: str) -> Iterator[EmbeddedServers]:
    # Not tmp_path: sockets need a short path, and nothing of it is worth keeping.
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    # A loop of our own, closed again: asyncio.run would take pytest-asyncio's away.
    loop = asyncio.new_event_loop()
    try:
        servers = loop.run_until_complete(EmbeddedServers.start(directory))
    except EmbeddedUnavailable as error:
        pytest.skip(str(error))

    async def without_fsync() -> None:
        connection = await asyncpg.connect(servers.postgres_url)
        await connection.execute("ALTER SYSTEM SET fsync = off")  # nothing here has to outlive a power failure
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()

    try:
        loop.run_until_complete(without_fsync())
        yield servers
    finally:
        loop.run_until_complete(servers.stop())
        loop.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def embedded_servers() -> Iterator[EmbeddedServers]:
    """One real Valkey and one real Postgres for all tests; skips where their packages are missing."""
    with _running_servers("weir-test-") as servers:
        yield servers


@pytest.fixture(scope="session")
def own_servers() -> Iterator[EmbeddedServers]:
    """Another pair, which tests may kill and pause."""
    with _running_servers("weir-own-") as servers:
        yield servers


@pytest.fixture
def redis_url(embedded_servers: EmbeddedServers) -> str:
    """URL of an empty Valkey that does not evict."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(unquote(urlsplit(embedded_servers.redis_url).path))
        client.sendall(b"FLUSHALL\r\nCONFIG SET maxmemory-policy noeviction\r\n")
        reply = client.makefile("rb")
        assert [reply.readline(), reply.readline()] == [b"+OK\r\n", b"+OK\r\n"]
        reply.close()
    return embedded_servers.redis_url


@pytest.fixture
def postgres_url(embedded_servers: EmbeddedServers) -> str:
    """URL of an empty database of its own."""
    name = f"test_{next(_databases)}"

    async def create() -> None:
        connection = await asyncpg.connect(embedded_servers.postgres_url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(create())
    loop.close()
    return embedded_servers.postgres_url.replace("/postgres?", f"/{name}?")


@pytest.fixture
def make_profile() -> Callable[..., bytes]:
    """`make_profile(lsn, n_bytes=64, fill=b"x")`: bytes with an LSN where every tier looks for it."""

    def make(lsn: int, n_bytes: int = 64, fill: bytes = b"x") -> bytes:
        return (b"\x01" + bytes(15) + struct.pack("<Q", lsn) + fill * n_bytes)[:n_bytes]

    return make


class Proxy:
    """A TCP port in front of a Unix socket, whose far side can fall silent or die."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server
        self.port = 0

    async def start(self) -> None:
        """Listen on `port`, any free one the first time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def freeze(self) -> None:
        """From here on nothing passes, and nobody is told."""
        self._flowing.clear()

    def thaw(self) -> None:
        """What was held back passes again."""
        self._flowing.set()

    async def stop(self) -> None:
        """Cut every connection and refuse new ones."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)
        self._tasks.clear()
        self._writers.clear()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)  # at once: the proxy may be stopped while the far side is being reached
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        self._writers.add(far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()


@pytest.fixture
async def proxy_to() -> AsyncIterator[Callable[[str], Awaitable[Proxy]]]:
    """`await proxy_to(path)`: a Proxy in front of the Unix socket at `path`."""
    proxies: list[Proxy] = []

    async def start(path: str) -> Proxy:
        proxy = Proxy(path)
        await proxy.start()
        proxies.append(proxy)
        return proxy

    yield start
    for proxy in proxies:
        proxy.thaw()
        await proxy.stop()


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to be filled; skips where none may be mounted."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    if request.param == "tmpfs":
        _run_or_skip("mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(mount_point))
    else:
        image = tmp_path / "small.img"
        with image.open("wb") as file:
            file.truncate(SMALL_DISK_BYTES)
        _run_or_skip("mkfs.ext4", "-q", "-m", "0", str(image))
        _run_or_skip("mount", "-o", "loop", str(image), str(mount_point))
    yield mount_point
    if subprocess.run(["umount", str(mount_point)], check=False).returncode != 0:  # somebody is still at home
        subprocess.run(["umount", "-l", str(mount_point)], check=True)


def _run_or_skip(*command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small disk can be made here: {done.stderr.strip()}")


@pytest.fixture
def fill_disk() -> Callable[[Path, int], Path]:
    """`fill_disk(disk, left)`: a file there that leaves about `left` bytes free; delete it to make room."""

    def fill(disk: Path, left: int) -> Path:
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            while (free := _free_bytes(disk)) > left:
                try:
                    file.write(bytes(min(1 << 20, free - left)))
                    os.fsync(file.fileno())
                except OSError:  # what is free is not always to be had
                    break
        return ballast

    return fill


def _free_bytes(disk: Path) -> int:
    stat = os.statvfs(disk)
    return stat.f_bavail * stat.f_frsize


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """scikit-learn and BLAS use one thread: beside other tests a second one mostly spins; boosting takes six times as long."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def make_model() -> Callable[..., ModelCard]:
    """`make_model(directory, seed=1, **fields)`: an artifact for the cards spec, a small random network with a whole card.

    `fields` replace those of the card: to damage it. Other seeds give other scores.
    """
    plan = compile_plan(load_spec("cards"))
    packaged = load_card(ARTIFACTS / "cards")
    assert packaged.golden is not None
    inputs = np.array(packaged.golden.inputs, dtype=np.float32)

    def make(directory: Path, seed: int = 1, **fields: Any) -> ModelCard:
        draw = np.random.default_rng(seed)
        shapes: list[tuple[int, ...]] = [(plan.n_features, 4), (4, 1)]
        weights = [draw.normal(0, 0.5, shape).astype(np.float32) for shape in shapes]
        biases = [np.zeros(4, dtype=np.float32), np.array([-3.0], dtype=np.float32)]
        inverse_std = (1 / (inputs.std(axis=0) + 1)).astype(np.float32)
        network = Network(inputs.mean(axis=0), inverse_std, 10.0, weights, biases)
        model = build_graph(network, {"weir.seed": str(seed)})
        digest = hashlib.sha256(model).hexdigest()
        golden = Golden(packaged.golden.inputs, [float(risk) for risk in run_graph(model, inputs)])  # type: ignore[union-attr]  # see above
        card = msgspec.structs.replace(packaged, name="rival", version=digest[:12], sha256=digest, golden=golden)
        save_artifact(directory, model, card)
        card = msgspec.structs.replace(card, **fields)
        (directory / CARD_FILE).write_bytes(msgspec.json.encode(card))
        return card

    return make
