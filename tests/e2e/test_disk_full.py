"""Full disks: a small mount fills up under load, or the journal reaches its bound; nothing is lost, and it goes on."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest

from features.transaction import Transaction
from service.tiers.l2 import L2, RocksStore

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir, Truth, Weir

FillDisk = Callable[[Path, int], Path]

pytestmark = pytest.mark.e2e

LEFT_BYTES = 200 << 10  # of the small disk, once its ballast lies there
PATIENCE_S = 120.0  # RocksDB looks every 5 s whether it has space again
PAUSE_S = 0.02  # after a refusal


class Insistent:
    """Sends transactions, in requests of `batch` (0: single ones), until each of them has been accepted."""

    def __init__(self, weir: "Weir", txs: Sequence[Transaction], batch: int) -> None:
        self.weir = weir
        self.left = list(txs)
        self.batch = batch
        self.acknowledged: dict[str, dict[str, Any]] = {}
        self.refusals: list[dict[str, Any]] = []

    async def run(self) -> None:
        """Ends when all is accepted, or the process is gone."""
        try:
            async with self.weir.client() as session:
                while self.left:
                    await self._send(session, self.left[: max(self.batch, 1)])
        except (aiohttp.ClientError, ConnectionError):
            pass

    async def _send(self, session: aiohttp.ClientSession, part: list[Transaction]) -> None:
        body = msgspec.json.encode(part if self.batch else part[0])
        async with session.post("/v1/score/batch" if self.batch else "/v1/score", data=body) as response:
            replies = msgspec.json.decode(await response.read())
        replies = replies if isinstance(replies, list) else [replies]
        assert len(replies) == len(part), replies
        for reply in replies:
            if "score" in reply:
                self.acknowledged[reply["event_id"]] = reply
            else:
                problem = reply.get("error", reply)
                assert problem["status"] == 503, reply
                self.refusals.append(problem)
        self.left = [tx for tx in self.left if tx.event_id not in self.acknowledged]
        if len(part) > len([r for r in replies if "score" in r]):
            await asyncio.sleep(PAUSE_S)


async def until(what: str, is_so: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Wait for it, PATIENCE_S at most."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = is_so()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s until {what}"
        await asyncio.sleep(0.05)


async def call(weir: "Weir", method: str, path: str, what: object = None) -> tuple[int, Any]:
    body = None if what is None else json.dumps(what).encode()
    reply = await asyncio.to_thread(weir.call, method, path, body)
    return reply.status, json.loads(reply.body) if reply.body else None


async def until_refused(weir: "Weir", requests: Iterator[tuple[str, str, object]]) -> dict[str, Any]:
    """Small entries may find room in a page that is begun: repeat until one does not."""
    for method, path, what in requests:
        status, reply = await call(weir, method, path, what)
        assert status in (200, 201, 204, 503), reply
        if status == 503:
            problem: dict[str, Any] = reply
            return problem
    raise AssertionError("never refused")


def list_changes() -> Iterator[tuple[str, str, object]]:
    return (("PUT", f"/v1/lists/deny/card/full-{n}", {"reason": "x" * 60}) for n in range(2_000))


def label_requests(event_ids: Sequence[str]) -> Iterator[tuple[str, str, object]]:
    for event_id in event_ids:
        yield "POST", "/v1/labels", [{"event_id": event_id, "label": "fraud", "ts": 1_775_000_000_000}]


async def assert_full(weir: "Weir", clients: Sequence[Insistent], disk: Path) -> None:
    """What callers and operators see of a full disk."""
    refusals = [reply for client in clients for reply in client.refusals]
    journal = str(disk / "data" / "journal")
    said = [reply["detail"] for reply in refusals if reply["type"].endswith("journal-unavailable")]
    assert said, refusals[:3]
    assert all("disk is full" in detail and journal in detail for detail in said), said[:3]
    list_problem = await until_refused(weir, list_changes())
    label_problem = await until_refused(weir, label_requests(list(clients[0].acknowledged)))
    for problem in (list_problem, label_problem):
        assert problem["type"].endswith("journal-unavailable"), problem
        assert "disk is full" in problem["detail"], problem
    status, ready = await call(weir, "GET", "/readyz")
    assert status == 503
    assert "disk is full" in ready["detail"], ready
    for client in clients:
        for event_id, reply in list(client.acknowledged.items())[:20]:
            status, stored = await call(weir, "GET", f"/v1/decisions/{event_id}")
            assert (status, stored["lsn"]) == (200, reply["lsn"])
    assert (await call(weir, "GET", "/livez"))[0] == 200
    assert (await call(weir, "GET", "/v1/tiers"))[0] == 200
    assert await metric(weir, 'weir_journal_refused_total{reason="disk_full"}') > 0


async def is_on_again(weir: "Weir") -> bool:
    """Ready, L2 is read and written, and everything in it is durable."""
    if (await call(weir, "GET", "/readyz"))[0] != 200:
        return False
    _, tiers = await call(weir, "GET", "/v1/tiers")
    return (await metric(weir, "weir_l2_flush_lag")) == 0 and all(
        tier["state"] == "on" for tier in tiers["tiers"] if tier["name"] == "l2"
    )


async def metric(weir: "Weir", series: str) -> float:
    text = (await asyncio.to_thread(weir.call, "GET", "/metrics")).body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"{series} ")]
    return float(line.split()[-1])


async def assert_nothing_lost(weir: "Weir", clients: Sequence[Insistent], truth: "Truth", n_events: int) -> None:
    """After the stop: what was acknowledged is in the journal, once, and L2 has the journal's bytes."""
    acknowledged = {event_id: reply for client in clients for event_id, reply in client.acknowledged.items()}
    assert len(acknowledged) == n_events
    assert acknowledged.keys() == truth.lsns.keys()
    for event_id, reply in acknowledged.items():
        assert truth.lsns[event_id] == reply["lsn"]
        if not reply["degraded"] and not reply["replayed"]:
            assert truth.scores[event_id] == reply["score"]
    store = RocksStore(weir.directory / "l2")
    try:
        await truth.assert_in_store(L2(store))
    finally:
        store.close()


@pytest.mark.parametrize("is_killed", [False, True], ids=["goes-on", "killed"])
async def test_disk_full_under_load_refuses_and_goes_on_when_there_is_room(
    small_disk: Path, make_weir: "MakeWeir", by_client: list[list[Transaction]], truth_of: Callable[[Path], "Truth"],
    fill_disk: FillDisk, is_killed: bool,
) -> None:  # fmt: skip
    """Journal, L2 and log fill a small disk: 503 that says so, reads work; with room again, or after a kill, all is right."""
    # One segment: of several a full disk gives up those that L2 has, as it should, and the truth is all that ever was.
    weir = make_weir(
        "l1.bytes_max=200000", "journal.segment_bytes=16777216", "write_behind.interval_ms=20", "l2.flush_interval_ms=100",
        name="small/data",
    )  # fmt: skip
    await weir.start()
    ballast = fill_disk(small_disk, LEFT_BYTES)
    clients = [Insistent(weir, part, batch) for part, batch in zip(by_client, (0, 16, 64, 0), strict=True)]
    load = asyncio.gather(*(client.run() for client in clients))
    await until("everybody is refused", lambda: load.done() or all(client.refusals for client in clients if client.left))
    assert not load.done(), "the disk was never full"
    await assert_full(weir, clients, small_disk)
    if is_killed:
        weir.kill()
        await load
        assert_refused_start(weir)
        ballast.unlink()
        await weir.start()
    else:
        ballast.unlink()
    await asyncio.wait_for(asyncio.gather(load, *(client.run() for client in clients if is_killed)), PATIENCE_S)
    await until("the service is as before", lambda: is_on_again(weir))
    weir.stop()
    truth = truth_of(weir.directory)
    await assert_nothing_lost(weir, clients, truth, sum(map(len, by_client)))
    n_refused = sum(len(client.refusals) for client in clients)
    print(f"{len(truth.lsns)} journaled, {n_refused} refusals, {len(truth.profiles)} profiles in l2, {weir.lives} lives")  # noqa: T201  # shown by -rP


def assert_refused_start(weir: "Weir") -> None:
    """A start on the full disk: one line that says so, no traceback, and the journal is left as it was."""
    before = journal_bytes(weir.directory)
    done = subprocess.run(weir.command, capture_output=True, text=True, timeout=60, check=False)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode not in (0, 120), done.stderr
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("weir: "), errors
    assert "No space left on device" in errors[0] or "disk is full" in errors[0], errors
    assert str(weir.directory) in errors[0], errors
    assert journal_bytes(weir.directory) == before


def journal_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "journal").glob("*.seg")}


@pytest.mark.parametrize("left", [0, 40960])
def test_first_start_on_a_full_disk_is_one_line(
    small_disk: Path, make_weir: "MakeWeir", fill_disk: FillDisk, left: int
) -> None:
    """Wherever the start runs out of space it ends with one line, and a start with room works."""
    weir = make_weir(name="small/data")
    ballast = fill_disk(small_disk, left)
    with subprocess.Popen(weir.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # comes with the end, if it is not ready before
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
    errors = [line for line in log.splitlines() if not line.startswith("{")]
    if "weir ready" not in first:  # with little enough space
        assert process.returncode == 1, log
        assert len(errors) == 1, log
        assert "No space left on device" in errors[0] or "disk is full" in errors[0], errors
        assert str(small_disk) in errors[0], errors
    else:
        assert left, "it started on a full disk"
    ballast.unlink()
    asyncio.run(weir.start())
    weir.stop()


def test_keys_add_on_a_full_disk_keeps_the_keys(small_disk: Path, make_weir: "MakeWeir", fill_disk: FillDisk) -> None:
    """A key that cannot be written is refused in one line; those that were there stay."""
    weir = make_weir(name="small/data")
    asyncio.run(weir.start())
    keys = (weir.directory / "keys.json").read_bytes()
    ballast = fill_disk(small_disk, 0)
    command = [sys.executable, "-m", "service", "keys", "add", "--role", "admin", "--name", "late"]
    done = subprocess.run(
        [*command, "--data-dir", str(weir.directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert (weir.directory / "keys.json").read_bytes() == keys
    assert weir.call("GET", "/v1/tiers").status == 200
    ballast.unlink()
    weir.stop()


async def test_journal_bound_refuses_what_a_consumer_holds_back(
    make_weir: "MakeWeir", by_client: list[list[Transaction]], truth_of: Callable[[Path], "Truth"]
) -> None:
    """A Redis that never answers holds back the journal up to journal.bytes_max; once it is turned off all is accepted."""
    bytes_max = 262_144
    weir = make_weir(
        "journal.segment_bytes=65536", f"journal.bytes_max={bytes_max}", "write_behind.interval_ms=20",
        "l2.flush_interval_ms=100",
    )  # fmt: skip
    await weir.start()  # alone, so that L2 is complete and can fill a Redis that the journal no longer reaches back to
    weir.stop()
    weir.overrides.append("redis.url=redis://127.0.0.1:1/0")
    await weir.start()
    clients = [Insistent(weir, part, batch) for part, batch in zip(by_client, (0, 16, 64, 0), strict=True)]
    load = asyncio.gather(*(client.run() for client in clients))
    await until("everybody is refused", lambda: load.done() or all(client.refusals for client in clients if client.left))
    await until("the reason is known", lambda: any("redis" in r["detail"] for c in clients for r in c.refusals))
    problem = next(r for c in clients for r in reversed(c.refusals) if "redis" in r["detail"])
    assert problem["type"].endswith("journal-unavailable")
    assert f"journal.bytes_max = {bytes_max}" in problem["detail"]
    assert "turn it off" in problem["detail"]
    for requests in (list_changes(), label_requests(list(clients[0].acknowledged))):
        assert "journal.bytes_max" in (await until_refused(weir, requests))["detail"]
    assert sum(map(len, journal_bytes(weir.directory).values())) <= bytes_max
    status, ready = await call(weir, "GET", "/readyz")
    assert status == 200 or "journal.bytes_max" in ready["detail"], ready
    n_before = sum(len(client.acknowledged) for client in clients)
    status, _ = await call(weir, "PUT", "/v1/tiers/redis", {"enabled": False, "reason": "it holds back the journal"})
    assert status == 200
    largest = 0
    deadline = time.monotonic() + PATIENCE_S
    while not load.done():
        assert time.monotonic() < deadline, "it did not go on"
        largest = max(largest, sum(path.stat().st_size for path in (weir.directory / "journal").glob("*.seg") if path.exists()))
        await asyncio.sleep(0.01)
    await load
    assert sum(len(client.acknowledged) for client in clients) == sum(map(len, by_client)) > n_before
    assert 0 < largest <= bytes_max
    # The journal no longer goes back to the first event, so the truth is what the service says: nobody is asked twice.
    acknowledged = {event_id: reply for client in clients for event_id, reply in client.acknowledged.items()}
    assert len({reply["lsn"] for reply in acknowledged.values()}) == len(acknowledged)
    for event_id in random.Random(1).sample(sorted(acknowledged), 200):
        status, stored = await call(weir, "GET", f"/v1/decisions/{event_id}")
        assert (status, stored["lsn"]) == (200, acknowledged[event_id]["lsn"])
    weir.stop()
    print(f"{n_before} accepted before, {sum(len(c.refusals) for c in clients)} refusals, journal at most {largest} bytes")  # noqa: T201  # shown by -rP
