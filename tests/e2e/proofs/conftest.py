"""What the proofs need beside a Weir: stores that can be killed, paused, emptied and put back, a rough load, snapshots."""

import asyncio
import contextlib
import functools
import itertools
import os
import random
import shutil
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import msgspec
import psutil
import pytest
import redis.asyncio

from features.transaction import Transaction
from models.generator import generate
from service.embedded import EmbeddedServers
from service.journal_format import BadBlock, BlockReader
from service.journal_segments import list_segments, read_mark
from service.tiers.l2 import L2, RocksStore
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

if TYPE_CHECKING:
    from tests.e2e.conftest import Truth, Weir

KILLS = int(os.environ.get("KILLS", "4"))  # per test; `make proof` asks for 20
SETTLED_S = 20.0
BATCH_MAX = 24  # transactions of one request
LABEL_TS = 1_775_000_000_000  # ms; after the stream
_databases = itertools.count(1)


class Stores:
    """A Valkey and a Postgres of our own, which a test may end, stop and start as it likes."""

    def __init__(self, servers: EmbeddedServers) -> None:
        self._servers = servers
        self.redis_url = servers.redis_url
        self.postgres_url = ""

    async def fresh(self) -> None:
        """Both running, Valkey empty, a new database."""
        await self.resume("redis")
        await self.resume("postgres")
        async with self.redis() as client:
            await client.flushall()
        name = f"proof_{next(_databases)}"
        connection = await asyncpg.connect(self._servers.postgres_url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        self.postgres_url = self._servers.postgres_url.replace("/postgres?", f"/{name}?")

    @property
    def urls(self) -> tuple[str, str]:
        return self.redis_url, self.postgres_url

    @property
    def settings(self) -> tuple[str, str]:
        return f"redis.url={self.redis_url}", f"postgres.url={self.postgres_url}"

    def redis(self) -> Any:
        """A client, as a context manager."""
        return redis.asyncio.Redis.from_url(self.redis_url)

    def kill(self, name: str) -> None:
        """SIGKILL the server and all its children, at once."""
        for process in self._processes(name):
            process.kill()
        self._server(name).process.wait()

    def pause(self, name: str) -> None:
        """SIGSTOP: the sockets stay, nobody answers."""
        for process in self._processes(name):
            process.suspend()

    async def resume(self, name: str, empty: bool = False) -> None:
        """Whatever was done to the server: it answers again, with its data, unless it was killed and is to be `empty`."""
        server = self._server(name)
        if server.running():
            for process in self._processes(name):
                process.resume()
            return
        if empty:
            for path in server.dir.iterdir():
                shutil.rmtree(path)
        await server.start()

    def count_connections(self) -> int:
        """Processes of Postgres that serve our database, counted from outside, so that a paused server can be counted too."""
        database, n = f" {urlsplit(self.postgres_url).path[1:]} ", 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self._processes("postgres"):
                n += database in " ".join(process.cmdline())
        return n

    def _server(self, name: str) -> Any:
        return self._servers._valkey if name == "redis" else self._servers._postgres

    def _processes(self, name: str) -> list[psutil.Process]:
        leader = psutil.Process(self._server(name).process.pid)
        return [leader, *leader.children(recursive=True)]


class Stopping(Exception):
    """A 503: the service is about to end."""


class Load:
    """Clients that send what real ones send: single and batch, again, twice at once, changed, labels. Over the lives of a Weir.

    Of each event the first reply is kept, and every later one is held against it.
    """

    def __init__(
        self, weir: "Weir", txs: Sequence[Transaction], rng: random.Random, n_clients: int = 4, pace_s: float = 0.0
    ) -> None:
        self.weir = weir
        self.counts: Counter[str] = Counter()
        self.first: dict[str, dict[str, Any]] = {}
        self.sent: dict[str, Transaction] = {}  # as acknowledged
        self.labels: dict[str, tuple[int, list[str]]] = {}  # how many up to the last acknowledged one; all that were sent
        self.refused: set[str] = set()  # got a 503, and perhaps a decision later
        self._fresh: set[str] = set()
        self._winners: dict[str, Transaction] = {}
        self._rng = rng
        self._pace_s = pace_s
        self._labelling = asyncio.Lock()
        self._todo = [deque(txs[n::n_clients]) for n in range(n_clients)]

    @property
    def n_left(self) -> int:
        return sum(map(len, self._todo))

    async def run(self) -> None:
        """Until everything is sent, or the process is gone."""
        await asyncio.gather(*(self._client(todo) for todo in self._todo))

    async def reach(self, n_acknowledged: int, running: "asyncio.Future[None]") -> None:
        """Wait until so many events have their answer, while `run` is under way."""
        while len(self.first) < n_acknowledged and not running.done():  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.001)
        assert len(self.first) >= n_acknowledged

    async def run_out(self) -> None:
        """Send what is left, then everything again: each event has its first answer."""
        await self.run()
        assert not self.n_left
        txs = list(self.sent.values())
        async with self.weir.client() as session:
            for start in range(0, len(txs), 250):
                for tx, reply in zip(
                    txs[start : start + 250], await self._batch(session, txs[start : start + 250]), strict=True
                ):
                    assert reply.get("replayed"), reply
                    self._note(tx, reply)

    def assert_kept(self, truth: "Truth") -> None:
        """Every acknowledged decision is in the journal as it was answered, and is what a fresh engine gives; labels too."""
        for event_id, reply in self.first.items():
            made = truth.decisions[event_id]
            assert (reply["lsn"], reply["score"], reply["outcome"]) == (made.lsn, made.score, made.outcome)
            if not reply["degraded"]:
                assert truth.scores[event_id] == pytest.approx(reply["score"], rel=0, abs=1e-6), event_id
        for event_id, tx in self.sent.items():
            assert truth.decisions[event_id].transaction() == tx
        for event_id, (n_acknowledged, labels) in self.labels.items():
            if n_acknowledged:
                assert truth.labels[event_id] in labels[n_acknowledged - 1 :], event_id

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        return f"{len(self.first)} acknowledged ({kinds})"

    async def _client(self, todo: deque[Transaction]) -> None:
        try:
            async with self.weir.client() as session:
                while todo:
                    await self._step(session, todo)
                    await asyncio.sleep(self._pace_s)
        except (aiohttp.ClientError, ConnectionError):
            self.counts["cut off"] += 1
        except Stopping:
            self.counts["turned away"] += 1

    async def _step(self, session: aiohttp.ClientSession, todo: deque[Transaction]) -> None:
        rng, choice = self._rng, self._rng.random()
        known = [self.sent[e] for e in rng.sample(list(self.first), 5)] if len(self.first) > 50 else []
        if choice < 0.3:
            await self._one(session, todo[0])
        elif choice < 0.7 or not known:
            await self._mixed_batch(session, [todo[n] for n in range(min(len(todo), rng.randrange(2, BATCH_MAX)))])
        elif choice < 0.75:
            await self._at_once(session, todo[0], todo[0])
        elif choice < 0.8:
            await self._at_once(session, todo[0], _changed(todo[0]))
        elif choice < 0.9:
            for tx, reply in zip(known, await self._batch(session, known), strict=True):
                assert reply.get("replayed"), reply
                self._note(tx, reply)
        elif choice < 0.94:
            status, reply = await self._post(session, "/v1/score", _changed(known[0]))
            assert status == 409, reply
            self.counts["conflicts"] += 1
        else:
            await self._label(session, [tx.event_id for tx in known])
        while todo and todo[0].event_id in self.sent:
            todo.popleft()
        for n in range(min(len(todo), BATCH_MAX)):
            todo[n] = self._winners.pop(todo[n].event_id, todo[n])

    async def _one(self, session: aiohttp.ClientSession, tx: Transaction) -> None:
        status, reply = await self._post(session, "/v1/score", tx)
        if status == 200:
            self._note(tx, reply)
        else:
            self._note_loser(tx, status, reply)

    async def _mixed_batch(self, session: aiohttp.ClientSession, txs: list[Transaction]) -> None:
        """Some rows come twice, some again with another body."""
        again = [self._rng.choice(txs) for _ in range(self._rng.randrange(3))]
        rows = [*txs, *again, *[_changed(tx) for tx in again[:1]]]
        replies = await self._batch(session, rows)
        for tx, reply in zip(rows, replies, strict=True):
            if "score" in reply:
                self._note(tx, reply)
            elif reply["error"]["status"] == 503:
                self.refused.add(tx.event_id)
            else:
                self._note_loser(tx, reply["error"]["status"], reply)

    async def _at_once(self, session: aiohttp.ClientSession, *rivals: Transaction) -> None:
        """Concurrent requests for one event: with one body both get the same decision, with two one of them gets 409."""
        results = await asyncio.gather(*(self._post(session, "/v1/score", tx) for tx in rivals), return_exceptions=True)
        for tx, result in zip(rivals, results, strict=True):
            if not isinstance(result, BaseException):
                status, reply = result
                if status == 200:
                    self._note(tx, reply)
                else:
                    self._note_loser(tx, status, reply)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _label(self, session: aiohttp.ClientSession, event_ids: list[str]) -> None:
        label = "fraud" if self._rng.random() < 0.8 else "legit"
        async with self._labelling:  # which of two at once was the last, only the journal would know
            for event_id in event_ids:
                self.labels.setdefault(event_id, (0, []))[1].append(label)
            content = [{"event_id": event_id, "label": label, "ts": LABEL_TS} for event_id in event_ids]
            status, reply = await self._post(session, "/v1/labels", content)
        assert status == 200, reply
        for row in reply["labels"]:
            assert row["status"] in ("applied", "unchanged"), row
            labels = self.labels[row["event_id"]][1]
            self.labels[row["event_id"]] = len(labels), labels
            self.counts["labels"] += 1

    async def _batch(self, session: aiohttp.ClientSession, txs: Sequence[Transaction]) -> list[dict[str, Any]]:
        status, replies = await self._post(session, "/v1/score/batch", txs)
        assert status == 200, replies
        return list(replies)

    async def _post(self, session: aiohttp.ClientSession, path: str, content: Any) -> tuple[int, Any]:
        async with session.post(path, data=msgspec.json.encode(content)) as response:
            reply = msgspec.json.decode(await response.read())
        if response.status == 503:
            txs = content if isinstance(content, Sequence) else [content]
            self.refused |= {tx.event_id for tx in txs if isinstance(tx, Transaction)}
            raise Stopping
        return response.status, reply

    def _note(self, tx: Transaction, reply: dict[str, Any]) -> None:
        event_id = tx.event_id
        assert reply["event_id"] == event_id
        first = self.first.setdefault(event_id, reply)
        for field in ("lsn", "score", "outcome", "model", "degraded"):
            assert reply[field] == first[field], (reply, first)
        assert self.sent.setdefault(event_id, tx) == tx
        if reply["replayed"]:
            self.counts["replayed"] += 1
        else:
            assert event_id not in self._fresh, f"{event_id} was scored twice"
            self._fresh.add(event_id)

    def _note_loser(self, tx: Transaction, status: int, reply: Any) -> None:
        """Another body of this event came first, perhaps in a request whose answer never came: that one is sent then.

        A 409 is no promise that the other was accepted: it may still have been on its way when the process was killed.
        """
        assert status == 409, reply
        self.counts["conflicts"] += 1
        self._winners[tx.event_id] = _changed(tx)
        assert self.sent.get(tx.event_id) in (None, _changed(tx))


def _changed(tx: Transaction) -> Transaction:
    """The same event with another body; of that one, the first again."""
    return msgspec.structs.replace(tx, amount=tx.amount ^ 1)


async def assert_stores_true(snapshot: Callable[..., Any], truth: "Truth", stores: Stores, l2: Path | None) -> str:
    """After a clean stop every store has the truth's bytes and nothing else, the ledger the journal's content.

    l2: the data directory of the Weir whose own store is looked at too.
    """
    n_profiles = len(truth.profiles)
    redis_tier, pool = RedisTier(stores.redis_url, 2_000), PostgresPool(stores.postgres_url)
    try:
        await truth.assert_in_store(redis_tier)
        await truth.assert_in_store(PostgresTier(pool, 2_000))
    finally:
        await redis_tier.close()
        await pool.close()
    if l2 is not None:
        store = RocksStore(l2 / "l2")
        try:
            await truth.assert_in_store(L2(store))
        finally:
            store.close()
    held = await snapshot(*stores.urls)
    for name in ("redis", "postgres"):
        extra = held.entities(name).keys() - truth.profiles.keys()
        assert not extra, f"{name} has {len(extra)} profiles that the journal knows nothing of, as {sorted(extra)[:3]}"
    n_rows = await truth.assert_in_ledger(stores.postgres_url)
    return f"{n_profiles} profiles x {2 + (l2 is not None)} stores compared, {n_rows} ledger rows"


def cut_to_durable(journal: Path, torn_bytes: int = 0) -> tuple[int, int]:
    """What a power failure may leave of a journal at rest: nothing past the mark `durable`, but for `torn_bytes` of a block.

    Returns (the durable LSN, how many entries are gone).
    """
    durable_lsn, n_gone = read_mark(journal / "durable") or 0, 0
    for segment in list_segments(journal):
        with segment.path.open("rb") as file:
            reader, keep = BlockReader(file, segment.size, segment.first_lsn), None
            try:
                while True:
                    start = reader.offset
                    block = next(reader.blocks(), None)
                    if block is None:
                        break
                    if block.last_lsn > durable_lsn:
                        keep = start if keep is None else keep
                        n_gone += len(block.entries)
            except BadBlock:  # a block that the kill left half written
                keep = start if keep is None else keep
        if segment.first_lsn > durable_lsn:
            segment.path.unlink()
        elif keep is not None:
            os.truncate(segment.path, min(keep + torn_bytes, segment.size))
    return durable_lsn, n_gone


@pytest.fixture
async def stores(own_servers: EmbeddedServers) -> AsyncIterator[Stores]:
    """Both stores, running and empty; whatever the test did to them is undone."""
    own = Stores(own_servers)
    await own.fresh()
    yield own
    await own.resume("redis")
    await own.resume("postgres")


@pytest.fixture(scope="session")
def long_stream() -> list[Transaction]:
    """Enough transactions for KILLS kills, of 200 cards, in order of time."""
    rows = generate(1_000 * KILLS, seed=11, n_cards=200).to_pylist()
    fields = Transaction.__struct_fields__
    return [Transaction(**{field: row[field] for field in fields if row[field] is not None}) for row in rows]


@pytest.fixture
def make_load() -> Callable[..., Load]:
    """`make_load(weir, txs, rng)`."""
    return Load


@pytest.fixture
def stores_true(snapshot: Callable[..., Any]) -> Callable[..., Any]:
    """`await stores_true(truth, stores, directory)`: raises AssertionError, or returns a line of counts."""
    return functools.partial(assert_stores_true, snapshot)


@pytest.fixture
def cut_journal() -> Callable[..., tuple[int, int]]:
    """`cut_journal(path, torn_bytes)`: see cut_to_durable."""
    return cut_to_durable


@pytest.fixture
def kills() -> int:
    """How often a process is killed in a test."""
    return KILLS


async def wait_until_settled(weir: "Weir") -> None:
    """Wait until every tier below L1 is on and lacks nothing."""
    deadline = time.monotonic() + SETTLED_S
    async with weir.client() as session:
        while True:
            async with session.get("/v1/tiers") as response:
                tiers = [tier for tier in (await response.json())["tiers"] if tier["enabled"] and "dirty" in tier]
            if all(tier["state"] == "on" and not tier["dirty"] for tier in tiers):
                return
            assert time.monotonic() < deadline, f"{tiers} {weir.log()}"
            await asyncio.sleep(0.005)


@pytest.fixture
def settled() -> Callable[..., Any]:
    """`await settled(weir)`."""
    return wait_until_settled
