"""A real engine in this process, over a real RocksDB, and the truth about it: a fresh MemoryEngine fed its journal."""

import asyncio
import functools
import itertools
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog

from features.memory import MemoryEngine
from features.plan import Plan
from features.transaction import Transaction
from models.card import ARTIFACTS, MODEL_FILE, ModelCard
from models.generator import generate
from models.onnx_scorer import OnnxScorer
from models.scorer import Scorer
from service.app import load_model, start_engine
from service.codec import MSGPACK, Label, LabelReply
from service.decide import Decision
from service.decisions import decode_body, encode_body
from service.engine import Engine
from service.errors import WeirError
from service.fetch import entity_key
from service.journal import ERASURE, LABEL, TX, Block, read_directory
from service.levels import ON, Level
from service.records import decode_erasure, decode_label
from service.settings import Settings, load_settings
from service.ticket import DECISIONS, Answer

BASE = (
    "time.clock=stream",
    "redis.deadline_ms=10000",  # a machine that runs other tests beside this one stands still for seconds
    "postgres.deadline_ms=10000",
    "write_behind.interval_ms=20",
    "l2.flush_interval_ms=200",
)


class Truth:
    """What a fresh engine makes of journal blocks: profiles by key, scores and LSNs by event."""

    def __init__(self, plan: Plan, reference: OnnxScorer, blocks: Iterable[Block]) -> None:
        self.scores: dict[str, float] = {}
        self.lsns: dict[str, int] = {}
        self.n_labels = 0
        engine = MemoryEngine(plan)
        for block in blocks:
            txs = [(entry.lsn, decode_body(entry.body)) for entry in block.entries if entry.kind == TX]
            if txs:
                vectors = engine.vectors([tx for _, tx in txs], txs[0][0])
                risks = reference.infer(vectors).tolist()
                for (lsn, tx), risk in zip(txs, risks, strict=True):
                    assert tx.event_id not in self.lsns, f"{tx.event_id} was journaled twice"
                    self.scores[tx.event_id], self.lsns[tx.event_id] = risk, lsn
            for entry in block.entries:
                if entry.kind == LABEL:
                    record = decode_label(entry.body)
                    self.n_labels += 1
                    if record.delta:
                        engine.label(decode_body(record.body), record.delta, entry.lsn)
                elif entry.kind == ERASURE:
                    erasure = decode_erasure(entry.body)
                    engine.erase(erasure.kind, erasure.id)
        self.profiles: dict[bytes, bytes] = {}
        for kind, index in zip(plan.kinds, engine.index, strict=True):
            for entity in index:
                profile = engine.profile(kind.name, entity)
                if profile is not None:  # else it was erased
                    self.profiles[entity_key(kind.name, entity)] = profile


class Running:
    """One started engine. `engine` may be reached into: these tests are about its insides."""

    def __init__(
        self, engine: Engine, settings: Settings, plan: Plan, scorer: Scorer, reference: OnnxScorer, stack: AsyncExitStack
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.plan = plan
        self.scorer = scorer
        self.reference = reference
        self._stack = stack

    async def stop(self) -> None:
        await self._stack.aclose()

    def copy_as_killed(self, name: str) -> None:
        """The data directory as it is on disk now, under another name: what a kill would leave of an idle process."""
        directory = self.settings.data_dir
        while True:
            try:
                shutil.copytree(directory, directory.parent / name)
            except shutil.Error:  # RocksDB has compacted a file away meanwhile: no instant looked like this
                shutil.rmtree(directory.parent / name)
            else:
                return

    def level(self, name: str) -> Level:
        return next(level for level in self.engine.levels if level.name == name)

    def submit(self, tx: Transaction) -> "asyncio.Future[Decision]":
        """One request of one transaction. Raises Overloaded and NotReady at once, everything else from the future."""
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()

        def resolve(answer: Answer) -> None:
            if isinstance(answer, Decision) and not future.done():
                future.set_result(answer)
            elif isinstance(answer, WeirError) and not future.done():
                future.set_exception(answer)

        self.engine.pipeline.offer(encode_body(tx), MSGPACK, resolve)
        return future

    async def submit_many(self, txs: Sequence[Transaction], wanted: int = DECISIONS) -> Sequence[Answer]:
        """One request of many transactions."""
        return await self.engine.submit_many([encode_body(tx) for tx in txs], MSGPACK, wanted)

    async def send(self, txs: Sequence[Transaction], batch: int = 100) -> list[Decision]:
        """Score in requests of `batch`; every one of them has to succeed."""
        answers: list[Answer] = []
        for start in range(0, len(txs), batch):
            answers += await self.submit_many(txs[start : start + batch])
        good = [answer for answer in answers if isinstance(answer, Decision)]
        assert len(good) == len(txs), [answer for answer in answers if isinstance(answer, WeirError)][:3]
        return good

    async def label(self, event_id: str, label: str = "fraud") -> LabelReply:
        (reply,) = await self.engine.label([Label(event_id=event_id, label=label, ts=1)])  # type: ignore[arg-type]  # Literal
        return reply

    def truth(self) -> Truth:
        """Of the journal as it is now, its files read as a stranger would."""
        return Truth(self.plan, self.reference, read_directory(self.settings.data_dir / "journal"))

    def truth_of(self, *journals: Path) -> Truth:
        """Of several journals, one after the other."""
        return Truth(self.plan, self.reference, itertools.chain.from_iterable(read_directory(path) for path in journals))

    async def profiles(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """The newest bytes of each key: L1, what waits, then the levels in the order in which they are read."""
        found: dict[bytes, bytes | None] = {}
        numbers = {kind.name: kind.number for kind in self.plan.kinds}
        for key in keys:
            kind, _, entity = key.decode().partition(":")
            in_ram = self.engine.l1.peek(numbers[kind], entity) or self.engine.write_behind.waiting(key)
            found[key] = in_ram
            for level in self.engine.levels:
                if found[key] is None and level.state == ON and not level.lacks([key]):
                    (found[key],) = await level.tier.fill([key])
        return found

    async def ledger_rows(self) -> dict[str, int]:
        """event_id -> LSN of every row, once the ledger has caught up; no event twice."""
        feed, url = self.engine.ledger_feed, self.settings.postgres.url
        assert feed is not None
        async with asyncio.timeout(60):
            while feed.position < self.engine.journal.last_lsn:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.01)
        connection = await asyncpg.connect(url)
        rows = await connection.fetch("SELECT event_id, lsn FROM weir_ledger")
        await connection.close()
        found = {row["event_id"]: row["lsn"] for row in rows}
        assert len(found) == len(rows), "an event has two rows"
        return found

    async def assert_true(self) -> Truth:
        """Every profile has the bytes that the journal says; returns the truth."""
        truth = self.truth()
        found = await self.profiles(truth.profiles)
        wrong = [key for key, profile in truth.profiles.items() if found[key] != profile]
        assert not wrong, f"{len(wrong)} of {len(found)} profiles differ from the journal's, as {wrong[:5]}"
        return truth


@pytest.fixture(autouse=True)
def _plain_logs() -> None:
    """The default renderer draws the locals of every frame: seconds, and pages, for an error that a test wants."""
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, renderer])


Start = Callable[..., Any]  # async: (*overrides, directory=..., accept_loss=...) -> Running


@pytest.fixture(scope="session")
def scorer_name() -> str:
    """Which engine scores: the default one. A module that tests both overrides this."""
    return "auto"


@functools.cache
def _model_of(scorer_name: str) -> tuple[Plan, ModelCard, Scorer]:
    return load_model(load_settings(None, [f"scorer={scorer_name}"]))


# Not of the session: pytest would keep the engine of the first module that has a scorer_name of its own for all that follow.
@pytest.fixture
def model(scorer_name: str) -> tuple[Plan, ModelCard, Scorer]:
    """The packaged plan and model card, and the engine."""
    return _model_of(scorer_name)


_references: dict[str, OnnxScorer] = {}  # by spec


@pytest.fixture
def reference(model: tuple[Plan, ModelCard, Scorer]) -> OnnxScorer:
    """What the engine is held against: numpy and onnxruntime in this process."""
    plan = model[0]
    if plan.spec_name not in _references:
        _references[plan.spec_name] = OnnxScorer(plan, ARTIFACTS / plan.spec_name / MODEL_FILE)
    return _references[plan.spec_name]


@pytest.fixture
async def start(tmp_path: Path, model: tuple[Plan, ModelCard, Scorer], reference: OnnxScorer) -> AsyncIterator[Start]:
    """`await start("l1.bytes_max=65536", directory="a")`: a Running; stopped at the end, if it still runs."""
    stacks: list[AsyncExitStack] = []

    async def begin(*overrides: str, directory: str = "data", accept_loss: bool = False) -> Running:
        settings = load_settings(None, [*BASE, f"data_dir={tmp_path / directory}", *overrides])
        settings.data_dir.mkdir(exist_ok=True)
        plan, card, scorer = model
        stack = AsyncExitStack()
        stacks.append(stack)
        try:
            engine = await start_engine(settings, plan, card, scorer, accept_loss, stack)
        except BaseException:
            await stack.aclose()
            raise
        return Running(engine, settings, plan, scorer, reference, stack)

    yield begin
    for stack in reversed(stacks):
        await stack.aclose()


@pytest.fixture(scope="session")
def stream() -> list[Transaction]:
    """2,000 generated transactions of 50 cards, in order of time."""
    rows = generate(2_000, seed=4, n_cards=50).to_pylist()
    fields = Transaction.__struct_fields__
    return [Transaction(**{field: row[field] for field in fields if row[field] is not None}) for row in rows]


@pytest.fixture
def rng() -> random.Random:
    """Seeded by SEED, which is printed."""
    seed = int(os.environ.get("SEED", "1"))
    print(f"SEED={seed}")  # noqa: T201  # pytest shows it with a failure
    return random.Random(seed)
