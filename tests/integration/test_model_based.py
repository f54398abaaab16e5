"""The whole engine against a simple oracle: random operations, real RocksDB, Redis and Postgres, all compared after each.

Operations: score (new, late, repeated, with another body), label, put on and take off a list, turn tiers off and on, lose a
store for a while, erase, crash, restart, wait. The oracle keeps every profile in a MemoryEngine and every decision in a dict.
After each step every reply that was not degraded has the oracle's score, and every profile that can be found has the oracle's
bytes; in the end, with everything on again, each level holds all of them, byte for byte, and the ledger each event once.
EXAMPLES and STEPS say how much of it (make proof: more).
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from features.memory import MemoryEngine
from features.profile import is_partial, is_tombstone
from features.transaction import Transaction, blank
from models.card import ARTIFACTS, MODEL_FILE
from models.onnx_scorer import OnnxScorer
from service.app import load_model, start_engine
from service.codec import MSGPACK, Label
from service.decide import Decision
from service.decisions import encode_body
from service.errors import Conflict, TierUnavailable
from service.fetch import entity_key
from service.levels import OFF, ON
from service.settings import load_settings
from service.ticket import DECISIONS, Answer

START_TS = 1_767_225_600_000
MINUTE_MS = 60_000
TIERS = ("l1", "bloom", "l2", "redis", "postgres")
REMOTE = ("redis", "postgres")
N_CARDS, N_OTHERS = 12, 5
OTHERS = [None, None, None, ("merchant", "m1"), ("device", "d2"), ("ip", "10.0.0.3")]
EXAMPLES = int(os.environ.get("EXAMPLES", "6"))
STEPS = int(os.environ.get("STEPS", "40"))

PHASES = [phase for phase in Phase if phase != Phase.shrink or "SHRINK" in os.environ]  # shrinking takes minutes

_names = itertools.count()
_counts: Counter[str] = Counter()


class Oracle:
    """What should be so. Everything is applied one after the other, with the LSNs that the engine gave."""

    def __init__(self) -> None:
        self.plan, self.card, self.scorer = load_model(load_settings(None, ["spec=cards"]))
        self.reference = OnnxScorer(self.plan, ARTIFACTS / self.plan.spec_name / MODEL_FILE)
        self.engine = MemoryEngine(self.plan)
        self.txs: dict[str, Transaction] = {}
        self.decisions: dict[str, Decision] = {}
        self.labels: dict[str, str] = {}
        self.denied: set[str] = set()
        self.erased: dict[tuple[str, str], int] = {}

    def score(self, tx: Transaction, lsn: int) -> float:
        vectors = self.engine.vectors([tx], lsn)
        return float(self.reference.infer(vectors)[0])

    def label(self, event_id: str, label: str, lsn: int) -> None:
        delta = int(label == "fraud") - int(self.labels.get(event_id) == "fraud")
        self.labels[event_id] = label
        tx = self.txs[event_id]
        for kind in self.plan.kinds:
            entity = getattr(tx, kind.id_field)
            if entity is not None and self.erased.get((kind.name, entity), 0) > self.decisions[event_id].lsn:
                tx = msgspec.structs.replace(tx, **{kind.id_field: blank(entity)})
        if delta:
            self.engine.label(tx, delta, lsn)

    def erase(self, kind: str, entity: str, lsn: int) -> None:
        self.erased[kind, entity] = lsn
        self.engine.erase(kind, entity)

    def profiles(self) -> dict[bytes, bytes]:
        found = {}
        for kind, index in zip(self.plan.kinds, self.engine.index, strict=True):
            for entity in index:
                profile = self.engine.profile(kind.name, entity)
                if profile is not None:
                    found[entity_key(kind.name, entity)] = profile
        return found


class Machine(RuleBasedStateMachine):
    """One data directory, one namespace in Redis, one database in Postgres."""

    redis_url = postgres_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.root = Path(tempfile.mkdtemp(prefix="weir-model-"))
        self.name = f"m{next(_names)}"
        self.directory = self.root / "life-0"
        self.directory.mkdir()
        self.oracle = Oracle()
        self.n_events = 0
        self.ts = START_TS
        self.held: set[str] = set()
        self.is_whole = False

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    @initialize()
    def begin(self) -> None:
        self.run(self._empty_postgres())
        self.run(self._start())
        self.is_whole = True

    @rule(
        cards=st.lists(st.integers(0, N_CARDS - 1), min_size=1, max_size=5),
        other=st.integers(0, N_OTHERS - 1),
        minutes=st.sampled_from([0, 1, 7, 90]),
        late=st.sampled_from([0, 0, 0, 3, 200, 60 * 24 * 40]),
        with_device=st.booleans(),
    )
    def score(self, cards: list[int], other: int, minutes: int, late: int, with_device: bool) -> None:
        """New events, some of them late, in one request."""
        self.ts += minutes * MINUTE_MS
        txs = []
        for card in cards:
            self.n_events += 1
            device = f"d{other}" if with_device else None
            ts = max(self.ts - late * MINUTE_MS, START_TS)
            amount = 100 * self.n_events % 70_000
            txs.append(Transaction(f"e{self.n_events}", ts, amount, "EUR", f"c{card}", f"m{other}", device, f"10.0.0.{other}"))
        self._score(txs)

    @rule(card=st.integers(0, N_CARDS - 1), other=st.integers(0, N_OTHERS - 1))
    def score_one(self, card: int, other: int) -> None:
        """One event, now."""
        self.score([card], other, 1, 0, True)

    @rule(other=st.integers(0, N_OTHERS - 1))
    def score_all(self, other: int) -> None:
        """An event of every card: more profiles than L1 holds."""
        self.score(list(range(N_CARDS)), other, 5, 0, True)
        self.score(list(range(100, 140)), other, 5, 0, False)

    def submit_many(self, txs: list[Transaction]) -> Coroutine[Any, Any, Sequence[Answer]]:
        return self.engine.submit_many([encode_body(tx) for tx in txs], MSGPACK, DECISIONS)

    def _score(self, txs: list[Transaction]) -> None:
        answers = self.run(self.submit_many(txs))
        for tx, answer in zip(txs, answers, strict=True):
            assert isinstance(answer, Decision), answer
            expected = self.oracle.score(tx, answer.lsn)
            _counts["degraded" if answer.degraded else "scored"] += 1
            if not answer.degraded:
                assert answer.score == expected, (tx, answer, expected)
            if tx.card_id in self.oracle.denied:
                assert answer.outcome == "decline"
            assert not answer.replayed
            self.oracle.txs[tx.event_id], self.oracle.decisions[tx.event_id] = tx, answer

    @precondition(lambda self: self.oracle.txs)
    @rule(data=st.data(), change=st.booleans())
    def score_again(self, data: st.DataObject, change: bool) -> None:
        """The same event once more: the stored answer, and nothing is counted; with another body it is refused."""
        event_id = data.draw(st.sampled_from(sorted(self.oracle.txs)))
        tx, first = self.oracle.txs[event_id], self.oracle.decisions[event_id]
        if change:
            (answer,) = self.run(self.submit_many([msgspec.structs.replace(tx, amount=tx.amount + 1)]))
            assert isinstance(answer, Conflict)
            return
        answers = self.run(self.submit_many([tx, tx]))
        for answer in answers:
            assert isinstance(answer, Decision), answer
            assert (answer.replayed, answer.lsn, answer.score) == (True, first.lsn, first.score)
        _counts["replayed"] += 2

    @precondition(lambda self: self.oracle.txs)
    @rule(data=st.data(), label=st.sampled_from(["fraud", "fraud", "legit"]))
    def label(self, data: st.DataObject, label: str) -> None:
        """A label, perhaps the same again, perhaps another."""
        event_id = data.draw(st.sampled_from(sorted(self.oracle.txs)))
        (reply,) = self.run(self.engine.label([Label(event_id, label, 1)]))  # type: ignore[arg-type]  # Literal
        if self.oracle.labels.get(event_id) == label:
            assert reply.status == "unchanged"
            return
        assert reply.status == "applied"
        self.oracle.label(event_id, label, reply.lsn)
        _counts["labels"] += 1

    @rule(card=st.integers(0, N_CARDS - 1), deny=st.booleans())
    def change_list(self, card: int, deny: bool) -> None:
        """On the deny list, or off it."""
        name = f"c{card}"
        if deny:
            self.run(self.engine.put_list("deny", "card", name, "stolen", None))
            self.oracle.denied.add(name)
        else:
            self.run(self.engine.delete_list("deny", "card", name))
            self.oracle.denied.discard(name)

    @rule(tier=st.sampled_from(TIERS), is_on=st.booleans())
    def toggle(self, tier: str, is_on: bool) -> None:
        """An analyst's hand on a tier."""
        self.run(self.engine.switch_tier(tier, is_on, "model", "tester"))
        _counts["toggles"] += 1

    @rule(tier=st.sampled_from((*REMOTE, "l2")), seconds=st.sampled_from([0.0, 0.05]))
    def lose(self, tier: str, seconds: float) -> None:
        """A store cannot be reached from now on."""
        level = next(level for level in self.engine.levels if level.name == tier)
        if level.state == OFF:
            return
        consumer = next(c for c in self.engine.write_behind.consumers if c.level is level)
        level.fail(TierUnavailable(tier, "lost"))
        consumer.probe_at = 1e12
        self.held.add(tier)
        self.run(asyncio.sleep(seconds))
        _counts["outages"] += 1

    @precondition(lambda self: self.held)
    @rule()
    def heal(self) -> None:
        """Every store can be reached again."""
        for consumer in self.engine.write_behind.consumers:
            consumer.probe_at = 0.0
        self.held.clear()

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.1]))
    def wait(self, seconds: float) -> None:
        """Whatever goes on in the background goes on."""
        self.run(asyncio.sleep(seconds))

    @rule(card=st.integers(0, N_CARDS - 1), other=st.sampled_from(OTHERS), wait=st.booleans())
    def erase(self, card: int, other: tuple[str, str] | None, wait: bool) -> None:
        """An entity is forgotten."""
        kind, entity = other or ("card", f"c{card}")
        result = self.run(self.engine.erase(kind, entity, "tester", 0.2 if wait else 0))
        self.oracle.erase(kind, entity, result["lsn"])
        _counts["erasures"] += 1

    @rule(how=st.sampled_from(["stop", "kill"]))
    def restart(self, how: str) -> None:
        """A clean stop, or a crash; and a start."""
        self.is_whole = False
        if how == "kill":
            self._crash()
        else:
            self.run(self.stack.aclose())
            _counts["restarts"] += 1
        self.run(self._start())
        self.is_whole = True

    def _crash(self) -> None:
        """What is on disk at this moment is all that the next life has; the stores get nothing more from this one."""
        _counts["crashes"] += 1
        rocks = self.engine.erasures._rocks
        rocks._executor.shutdown()
        rocks._db.cancel_all_background(True)  # else files would come and go under the copy
        dead = self.directory
        self.directory = self.root / f"life-{_counts['crashes']}-{self.n_events}-{len(list(self.root.iterdir()))}"
        shutil.copytree(dead, self.directory)
        for consumer in self.engine.write_behind.consumers:
            consumer.level.state = OFF
        feed = self.engine.ledger_feed
        assert feed is not None
        feed.ship = _ship_nothing  # type: ignore[method-assign]  # a dead process ships nothing
        with contextlib.suppress(Exception):  # RocksDB cannot flush any more
            self.run(self.stack.aclose())
        shutil.rmtree(dead)

    @invariant()
    def decisions_are_the_oracles(self) -> None:
        if not self.is_whole:
            return
        for event_id in list(self.oracle.decisions)[-3:]:
            stored = self.run(self.engine.decision(event_id))
            first = self.oracle.decisions[event_id]
            assert (stored.lsn, stored.score, stored.outcome) == (first.lsn, first.score, first.outcome)
            assert stored.label == self.oracle.labels.get(event_id)

    @invariant()
    def profiles_are_the_oracles(self) -> None:
        if self.is_whole:
            self.run(self._compare())

    async def _compare(self) -> None:
        """Every profile that can be found, as a transaction would find it."""
        truth = self.oracle.profiles()
        numbers = {kind.name: kind.number for kind in self.oracle.plan.kinds}
        engine = self.engine
        for key in [*truth, *(entity_key(kind, entity) for kind, entity in self.oracle.erased)]:
            kind, _, entity = key.decode().partition(":")
            found = await engine.fetcher.read(numbers[kind], entity)
            if found.degraded or (found.profile is not None and is_partial(found.profile)):
                _counts["unknown"] += 1
                continue
            assert found.profile == truth.get(key), (key, found.source)
            _counts["compared"] += 1

    def teardown(self) -> None:
        try:
            if self.is_whole:
                self.run(self._end())
        finally:
            if self.is_whole:
                self.loop.run_until_complete(self.stack.aclose())
            self.loop.close()
            shutil.rmtree(self.root, ignore_errors=True)

    async def _end(self) -> None:
        """Everything on, everything caught up: all levels are whole, and the ledger has every event once."""
        engine = self.engine
        for tier in TIERS:
            await engine.switch_tier(tier, True, "the end", "tester")
        for consumer in engine.write_behind.consumers:
            consumer.probe_at = 0.0
        async with asyncio.timeout(30):
            while not self._is_settled():  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.01)
        truth = self.oracle.profiles()
        erased = [entity_key(kind, entity) for kind, entity in self.oracle.erased if entity_key(kind, entity) not in truth]
        for level in engine.levels:
            found = dict(zip(truth, await level.tier.fill(list(truth)), strict=True))
            wrong = [key for key, profile in truth.items() if found[key] != profile]
            assert not wrong, f"{level.name}: {len(wrong)} of {len(truth)} differ, as {wrong[:3]}"
            left = [profile for profile in await level.tier.fill(erased) if profile is not None and not is_tombstone(profile)]
            assert not left, f"{level.name} still has what was erased"
        connection = await asyncpg.connect(self.postgres_url)
        rows = await connection.fetch("SELECT event_id, lsn, outcome, label FROM weir_ledger")
        await connection.close()
        labels = {"fraud": 1, "legit": 0, None: None}
        found_rows = sorted((row["event_id"], row["lsn"], row["outcome"], row["label"]) for row in rows)
        oracle = self.oracle
        expected = [(e, d.lsn, d.outcome, labels[oracle.labels.get(e)]) for e, d in oracle.decisions.items()]
        assert found_rows == sorted(expected)
        _counts["examples"] += 1

    def _is_settled(self) -> bool:
        engine = self.engine
        lag = sum(engine.write_behind.lags().values()) + len(engine.pipeline.touched)
        is_shipped = engine.ledger_feed is not None and engine.ledger_feed.position >= engine.journal.last_lsn
        is_on = all(level.state == ON for level in engine.levels)
        return is_on and is_shipped and not lag and not engine.fetcher.partial and not engine.erasures.pending

    async def _start(self) -> None:
        overrides = (
            "scorer=auto", f"data_dir={self.directory}", f"redis.url={self.redis_url}", f"redis.namespace={self.name}",
            f"postgres.url={self.postgres_url}", "l1.bytes_max=65536", "time.clock=stream", "time.past_ms_max=315360000000",
            "write_behind.interval_ms=5", "l2.flush_interval_ms=20", "redis.deadline_ms=2000", "postgres.deadline_ms=2000",
            "journal.segment_bytes=65536",
        )  # fmt: skip
        self.held.clear()
        self.stack = AsyncExitStack()
        try:
            self.engine = await start_engine(
                load_settings(None, overrides), self.oracle.plan, self.oracle.card, self.oracle.scorer, False, self.stack
            )
        except BaseException:
            await self.stack.aclose()
            raise

    async def _empty_postgres(self) -> None:
        connection = await asyncpg.connect(self.postgres_url)
        if await connection.fetchval("SELECT to_regclass('weir_ledger')") is not None:
            await connection.execute("TRUNCATE weir_ledger, weir_profiles; UPDATE weir_positions SET lsn = 0")
        await connection.close()


async def _ship_nothing() -> None:
    raise TierUnavailable("ledger", "the process is dead")


def test_random_operations_leave_what_the_oracle_says(redis_url: str, postgres_url: str) -> None:
    """After every step of every example, decisions and profiles are the oracle's."""
    Machine.redis_url, Machine.postgres_url = redis_url, postgres_url
    _counts.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, phases=PHASES, deadline=None, print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    print(dict(_counts))  # noqa: T201  # shown by -rP
    assert _counts["compared"] > 100
