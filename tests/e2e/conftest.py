"""`weir serve` or `weir-go` as a real process: started, spoken to over HTTP, killed; and the truth about its journal."""

import asyncio
import functools
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import msgspec
import pytest
import redis.asyncio

from features.memory import MemoryEngine
from features.transaction import Transaction, is_blank
from gocore.locate import SERVER
from models.card import ARTIFACTS, MODEL_FILE
from models.generator import generate
from models.onnx_scorer import OnnxScorer
from service.app import load_model
from service.auth import Role, add_key
from service.decisions import StoredDecision, decode_body
from service.fetch import entity_key, split_key
from service.journal import ERASURE, LABEL, TX, Block, read_directory
from service.records import decode_erasure, decode_label, decode_outcome
from service.settings import load_settings
from service.tiers.base import Tier, lsn_of

READY_S = 120.0  # a start is 2 s of CPU, and the machine may be busy with much else
STOP_S = 60.0
REDIS_PREFIX = b"weir:p:"
N_CLIENTS = 4
RIVAL_DEADLINE = "server.request_deadline_ms=500"
PYTHON_SERVE = (sys.executable, "-m", "service", "serve")
LABEL_TS = 1_775_000_000_000  # ms; after the stream
FOREVER = "time.past_ms_max=315360000000"  # a client that is weeks of event time ahead makes nobody too late


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Weir:
    """One data directory and the `program` that serves it. `stdout` and `stderr` of all its lives are kept beside it."""

    def __init__(self, directory: Path, overrides: Sequence[str], program: Sequence[str] = PYTHON_SERVE) -> None:
        self.directory = directory
        self.overrides = list(overrides)
        self.url = ""
        self.key = ""
        self.lives = 0
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        sets = [part for override in ("server.port=0", *self.overrides) for part in ("--set", override)]
        return [*self.program, "--data-dir", str(self.directory), *sets]

    async def start(self) -> None:
        """Start and wait for the ready line; raises AssertionError with the log if the process ends instead."""
        self.lives += 1
        # To a file, not a pipe: nobody reads while the process is loaded.
        with self._log("out").open("wb") as out, self._log("err").open("wb") as err:
            self._process = subprocess.Popen(self.command, stdout=out, stderr=err)  # noqa: ASYNC220  # it takes a millisecond
        deadline = time.monotonic() + READY_S
        while "weir ready" not in self._log("out").read_text():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            await asyncio.sleep(0.02)
        self.url = self._log("out").read_text().partition("url=")[2].split()[0]
        if not self.key:  # of a running service: it has to be accepted at once
            self.key = await asyncio.to_thread(add_key, self.directory, Role.ADMIN, "test")

    def kill(self, number: int = signal.SIGKILL, times: int = 1) -> int:
        """Send the signal, wait for the end, return the exit code. `times`: how often it is sent, a little apart."""
        assert self._process is not None
        for _ in range(times):
            self._process.send_signal(number)
            time.sleep(0.02 * (times - 1))
        code = self._process.wait(timeout=STOP_S)
        self._process = None
        return code

    def stop(self) -> None:
        """SIGTERM; the process has to end cleanly."""
        assert self.kill(signal.SIGTERM) == 0, self.log()

    def end(self) -> None:
        """For the fixture: whatever state it is in."""
        if self._process is not None:
            self.kill()

    def log(self) -> str:
        return self._log("err").read_text()[-4000:]

    def client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(self.url, headers={"Authorization": f"Bearer {self.key}"})

    def call(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        """One request on a connection of its own; with the key, unless another Authorization is given ("": none)."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        sent = {"Authorization": f"Bearer {self.key}"} | dict(headers or {})
        try:
            connection.request(method, path, body, {name: value for name, value in sent.items() if value})
            reply = connection.getresponse()
            return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def _log(self, stream: str) -> Path:
        return self.directory.with_name(f"{self.directory.name}-{self.lives}.{stream}")


class Client:
    """Sends transactions one after the other and notes what was acknowledged."""

    def __init__(self, weir: Weir) -> None:
        self._weir = weir
        self.acknowledged: dict[str, dict[str, Any]] = {}
        self.n_replayed = 0

    async def send(self, txs: Sequence[Transaction], batch: int) -> None:
        """In requests of `batch`, 0: one by one over /v1/score. Ends silently when the process is gone."""
        try:
            async with self._weir.client() as session:
                for start in range(0, len(txs), max(batch, 1)):
                    part = txs[start : start + max(batch, 1)]
                    body = msgspec.json.encode(part if batch else part[0])
                    async with session.post("/v1/score/batch" if batch else "/v1/score", data=body) as response:
                        reply = msgspec.json.decode(await response.read())
                    assert response.status == 200, reply
                    for decision in reply if batch else [reply]:
                        assert "score" in decision, decision
                        self.n_replayed += decision["replayed"]
                        self.acknowledged[decision["event_id"]] = decision
        except (aiohttp.ClientError, ConnectionError):
            pass

    async def label(self, event_ids: Sequence[str], label: str = "fraud") -> int:
        """Returns how many labels were acknowledged."""
        try:
            async with self._weir.client() as session:
                body = msgspec.json.encode([{"event_id": e, "label": label, "ts": LABEL_TS} for e in event_ids])
                async with session.post("/v1/labels", data=body) as response:
                    reply = msgspec.json.decode(await response.read())
                    assert response.status == 200, reply
                    return len(event_ids)
        except (aiohttp.ClientError, ConnectionError):
            return 0


class Truth:
    """The journals of data directories, one after the other, and what a fresh engine fed them in LSN order has.

    Of a later directory only what lies above the LSNs of the earlier ones counts, of the first what lies above `after_lsn`.
    `seed`: profiles that the fresh engine begins with.
    """

    def __init__(
        self, *directories: Path, spec: str = "cards", after_lsn: int = 0, seed: Mapping[bytes, bytes] | None = None
    ) -> None:
        plan, _, _ = load_model(load_settings(None, [f"spec={spec}"]))
        reference = OnnxScorer(plan, ARTIFACTS / plan.spec_name / MODEL_FILE)
        engine = MemoryEngine(plan)
        self.plan = plan
        self.scores: dict[str, float] = {}
        self.lsns: dict[str, int] = {}
        self.decisions: dict[str, StoredDecision] = {}
        self.labels: dict[str, str] = {}
        self.last_lsn = after_lsn
        for key, profile in (seed or {}).items():
            number, entity = split_key(plan, key)
            engine.slabs[number].put(engine._slot(number, entity), profile)
        for block in self._blocks(directories):
            txs = [(entry.lsn, decode_body(entry.body)) for entry in block.entries if entry.kind == TX]
            if txs:
                vectors = engine.vectors([tx for _, tx in txs], txs[0][0])
                risks = reference.infer(vectors).tolist()
                for (lsn, tx), risk in zip(txs, risks, strict=True):
                    assert tx.event_id not in self.lsns, f"{tx.event_id} was journaled twice"
                    self.scores[tx.event_id], self.lsns[tx.event_id] = risk, lsn
            for entry in block.entries:
                if entry.kind == TX:
                    self.decisions[decode_body(entry.body).event_id] = decode_outcome(entry.lsn, entry.body, entry.decision)
                elif entry.kind == LABEL:
                    record = decode_label(entry.body)
                    self.labels[record.event_id] = record.label
                    if record.delta:
                        engine.label(decode_body(record.body), record.delta, entry.lsn)
                elif entry.kind == ERASURE:
                    erasure = decode_erasure(entry.body)
                    if not is_blank(erasure.id):
                        engine.erase(erasure.kind, erasure.id)
        self.profiles: dict[bytes, bytes] = {}
        for kind, index in zip(plan.kinds, engine.index, strict=True):
            for entity in index:
                bytes_now = engine.profile(kind.name, entity)
                if bytes_now is not None:  # not erased
                    self.profiles[entity_key(kind.name, entity)] = bytes_now

    def _blocks(self, directories: Sequence[Path]) -> Iterator[Block]:
        for directory in directories:
            for block in read_directory(directory / "journal", self.last_lsn + 1):
                self.last_lsn = block.last_lsn
                yield block

    async def assert_in_store(self, tier: Tier) -> None:
        """After a clean stop the store has every profile with the journal's bytes, and its position says so."""
        assert await tier.read_position() >= max(self.lsns.values())
        keys = list(self.profiles)
        found: list[bytes | None] = []
        for start in range(0, len(keys), 256):
            found += await tier.fill(keys[start : start + 256])
        wrong = [key for key, profile in zip(keys, found, strict=True) if profile != self.profiles[key]]
        assert not wrong, f"{tier.name}: {len(wrong)} of {len(keys)} profiles differ, as {wrong[:3]}"

    async def assert_in_ledger(self, url: str) -> int:
        """The ledger has each event once, with the journal's content in every column. Returns the number of rows."""
        connection = await asyncpg.connect(url)
        rows = await connection.fetch("SELECT * FROM weir_ledger")
        await connection.close()
        found = {row["event_id"]: dict(row) for row in rows}
        assert len(found) == len(rows), "an event has two rows in the ledger"
        missing, extra = self.decisions.keys() - found.keys(), found.keys() - self.decisions.keys()
        assert not missing | extra, f"ledger: {len(missing)} rows missing, as {sorted(missing)[:3]}; {len(extra)} too many"
        for event_id, made in self.decisions.items():
            assert found[event_id] == self._ledger_row(event_id, made)
        return len(rows)

    def _ledger_row(self, event_id: str, made: StoredDecision) -> dict[str, Any]:
        tx = decode_body(made.body)
        return {
            "lsn": made.lsn, "event_id": tx.event_id, "ts": tx.ts, "card_id": tx.card_id, "merchant_id": tx.merchant_id,
            "amount": tx.amount, "currency": tx.currency, "score": made.score, "outcome": made.outcome, "model": made.model,
            "scorer": made.scorer, "reasons": list(made.reasons), "tx": made.body,
            "label": {None: None, "fraud": 1, "legit": 0}[self.labels.get(event_id)],
        }  # fmt: skip


class Snapshot(msgspec.Struct):
    """What Redis and Postgres hold: profiles by key (claims of LSNs among them), positions, the ledger by LSN."""

    redis: dict[bytes, bytes]
    postgres: dict[bytes, bytes]
    redis_position: int
    positions: dict[str, int]
    ledger: dict[int, dict[str, Any]]

    @property
    def highest_lsn(self) -> int:
        """No LSN at or below this one may be given out again."""
        profiles = [lsn_of(p) for p in (*self.redis.values(), *self.postgres.values())]
        return max([self.redis_position, *self.positions.values(), *self.ledger, *profiles])

    def entities(self, store: str) -> dict[bytes, bytes]:
        """The profiles alone."""
        held: dict[bytes, bytes] = getattr(self, store)
        return {key: profile for key, profile in held.items() if key[0]}

    def assert_durable(self, durable_lsn: int) -> None:
        """Neither store knows more than the disk of the Weir does."""
        known = {"redis position": self.redis_position, **self.positions, "ledger rows": max(self.ledger, default=0)}
        for store in ("redis", "postgres"):
            known[f"{store} profiles"] = max(map(lsn_of, self.entities(store).values()), default=0)
        ahead = {name: lsn - durable_lsn for name, lsn in known.items() if lsn > durable_lsn}
        assert not ahead, f"beyond the durable LSN {durable_lsn}: {ahead}"

    def assert_not_undone_by(self, after: "Snapshot") -> None:
        """Nothing here is newer than what `after` has, and no row of the ledger is missing or changed."""
        for store in ("redis", "postgres"):
            now = getattr(after, store)
            lost = [
                key for key, profile in getattr(self, store).items() if key not in now or lsn_of(now[key]) < lsn_of(profile)
            ]
            assert not lost, f"{store}: {len(lost)} profiles were taken back, as {lost[:3]}"
        assert after.redis_position >= self.redis_position
        assert all(after.positions[consumer] >= lsn for consumer, lsn in self.positions.items())
        changed = [lsn for lsn, row in self.ledger.items() if not _is_kept(row, after.ledger.get(lsn))]
        assert not changed, f"{len(changed)} rows of the ledger are gone or changed"


def _is_kept(row: dict[str, Any], now: dict[str, Any] | None) -> bool:
    """The same row, but for a label that was given later."""
    if now is None or (row["label"] is not None and now["label"] is None):
        return False
    return {**row, "label": None} == {**now, "label": None}


async def take_snapshot(redis_url: str, postgres_url: str) -> Snapshot:
    """Of stores that nobody writes to."""
    opened: Any = redis.asyncio.Redis.from_url(redis_url)  # the stubs say that every reply may also be text
    async with opened as client:
        keys = [key async for key in client.scan_iter(match=REDIS_PREFIX + b"*", count=1000)]
        values = await client.mget(keys) if keys else []
        record = await client.get("weir:position")
    connection = await asyncpg.connect(postgres_url)
    profiles = await connection.fetch("SELECT key, profile FROM weir_profiles WHERE profile <> ''")  # not the count of puts
    positions = await connection.fetch("SELECT consumer, lsn FROM weir_positions")
    ledger = await connection.fetch("SELECT * FROM weir_ledger")
    await connection.close()
    return Snapshot(
        {key.removeprefix(REDIS_PREFIX): value for key, value in zip(keys, values, strict=True)},
        dict(profiles),
        int.from_bytes(record[:8], "little") if record else 0,
        dict(positions),
        {row["lsn"]: dict(row) for row in ledger},
    )


MakeWeir = Callable[..., Weir]


@pytest.fixture
def make_weir(tmp_path: Path) -> Iterator[MakeWeir]:
    """`make_weir("l1.bytes_max=65536", name="a", program=...)`: a Weir, not started yet, killed at the end."""
    made: list[Weir] = []

    def make(*overrides: str, name: str = "data", program: Sequence[str] = PYTHON_SERVE) -> Weir:
        made.append(Weir(tmp_path / name, ["time.clock=stream", FOREVER, *overrides], program))
        return made[-1]

    yield make
    for weir in made:
        weir.end()


@pytest.fixture(scope="session")
def weir_go() -> tuple[str, ...]:
    """The command of the all-Go server."""
    if not SERVER.is_file():
        pytest.skip(f"{SERVER.name} is not built; make go builds it (it needs Go and a C compiler)")
    return (str(SERVER),)


@pytest.fixture
def make_weir_go(make_weir: MakeWeir, weir_go: tuple[str, ...]) -> MakeWeir:
    """The same for weir-go."""
    return functools.partial(make_weir, program=weir_go)


@pytest.fixture(scope="module")
def rivals(tmp_path_factory: pytest.TempPathFactory, weir_go: tuple[str, ...]) -> Iterator[tuple[Weir, Weir]]:
    """`weir serve` and `weir-go`, running side by side with the same settings."""
    directory = tmp_path_factory.mktemp("rivals")
    both = Weir(directory / "python", [RIVAL_DEADLINE]), Weir(directory / "go", [RIVAL_DEADLINE], weir_go)
    loop = asyncio.new_event_loop()
    try:
        for weir in both:
            loop.run_until_complete(weir.start())
        yield both
        for weir in both:
            weir.stop()
    finally:
        loop.close()
        for weir in both:
            weir.end()


@pytest.fixture(scope="session")
def make_one() -> Callable[[Path, Sequence[str]], Iterator[Weir]]:
    """`for one in make_one(directory, settings)`: a running `weir serve` with the stream's clock, ended afterwards."""

    def make(directory: Path, settings: Sequence[str]) -> Iterator[Weir]:
        one = Weir(directory, ["time.clock=stream", *settings])
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(one.start())
            yield one
        finally:
            loop.close()
            one.end()

    return make


@pytest.fixture(scope="module")
def weir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weir]:
    """One running `weir serve`, with the stream's clock."""
    one = Weir(tmp_path_factory.mktemp("weir"), ["time.clock=stream"])
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(one.start())
        yield one
        one.stop()
    finally:
        loop.close()
        one.end()


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison takes its turn with all others, as where there is no `nice`: beside other tests it would hardly get one."""
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def make_client() -> Callable[[Weir], Client]:
    """A Client of a Weir."""
    return Client


@pytest.fixture
def truth_of() -> Callable[..., Truth]:
    """The Truth of data directories, and of a spec if it is not `cards`."""
    return Truth


@pytest.fixture
def snapshot() -> Callable[[str, str], Awaitable[Snapshot]]:
    """`await snapshot(redis_url, postgres_url)`: all that both hold."""
    return take_snapshot


@pytest.fixture
def rng() -> random.Random:
    """Seeded by SEED, which is printed."""
    seed = int(os.environ.get("SEED", "1"))
    print(f"SEED={seed}")  # noqa: T201  # pytest shows it with a failure
    return random.Random(seed)


@pytest.fixture(scope="session")
def stream() -> list[Transaction]:
    """3,000 generated transactions of 75 cards, in order of time."""
    rows = generate(3_000, seed=7, n_cards=75).to_pylist()
    fields = Transaction.__struct_fields__
    return [Transaction(**{field: row[field] for field in fields if row[field] is not None}) for row in rows]


@pytest.fixture
def by_client(stream: list[Transaction]) -> list[list[Transaction]]:
    """The stream for four clients: a card's transactions all go through the same one."""
    parts: list[list[Transaction]] = [[] for _ in range(N_CLIENTS)]
    for tx in stream:
        parts[int(tx.card_id[1:]) % N_CLIENTS].append(tx)
    return parts
