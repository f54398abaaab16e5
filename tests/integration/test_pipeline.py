"""The pipeline in a real engine: all or nothing, idempotency, order, single flight."""

import asyncio
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from features.transaction import Transaction
from models.arena import Arena
from models.scorers import NAMES, missing_scorer
from service.codec import Label
from service.decide import Decision
from service.errors import Conflict, JournalUnavailable, NotReady, Overloaded, ScoringFailed, WeirError
from service.fetch import entity_key
from service.ticket import TRACES
from service.tiers.base import Tier

if TYPE_CHECKING:
    from tests.integration.conftest import Running

Start = Callable[..., Any]
QUIET = ("write_behind.interval_ms=60000", "l2.flush_interval_ms=3600000", "journal.sync=os")


def make_tx(number: int, card: str = "c1", merchant: str = "m1", amount: int = 1000) -> Transaction:
    return Transaction(f"e{number}", 1_767_225_600_000 + number * 1000, amount, "EUR", card, merchant)


@pytest.fixture(scope="session", params=NAMES)
def scorer_name(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    name: str = request.param
    missing = missing_scorer(name)
    if missing is not None:
        pytest.skip(missing)
    return name


class BrokenScorer:
    """Advances the first half of the batch as the real one would, then raises; or scores everything as NaN."""

    name = "onnx"

    def __init__(self, real: Any, gives_nan: bool) -> None:
        self._real = real
        self._gives_nan = gives_nan
        self.n_calls = 0

    def score(self, arena: Arena, n_rows: int) -> int:
        self.n_calls += 1
        half = n_rows // 2
        if self._gives_nan:
            waves: int = self._real.score(arena, n_rows)
            arena.risk[half:n_rows] = np.nan
            return waves
        self._real.score(arena, half + 1)
        raise RuntimeError("the model broke")

    def undo(self, arena: Arena, lsn: int) -> None:
        self._real.undo(arena, lsn)

    def advance(self, arena: Arena, n_rows: int) -> None:
        raise AssertionError("only for recovery")


class SlowTier:
    """A tier whose answers for some keys wait for `gate`; it counts what it was asked."""

    def __init__(self, tier: Tier, slow: bytes) -> None:
        self.name = tier.name
        self.gate = asyncio.Event()
        self.asked: list[bytes] = []
        self._tier = tier
        self._slow = slow

    async def fill(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.asked += keys
        if self._slow in keys:
            await self.gate.wait()
        return await self._tier.fill(keys)

    async def put(self, profiles: Mapping[bytes, bytes], position: int) -> None:
        await self._tier.put(profiles, position)

    async def read_position(self) -> int:
        return await self._tier.read_position()


def slow_down(running: "Running", slow: bytes) -> SlowTier:
    level = running.engine.levels[0]
    tier = SlowTier(level.tier, slow)
    level.tier, level._near = tier, None  # it is asked with an await, as one behind a network
    return tier


async def settled(future: "asyncio.Future[Any]", turns: int = 20) -> bool:
    for _ in range(turns):
        await asyncio.sleep(0)
    return future.done()


def break_writev(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def fail(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "writev", fail)
    return monkeypatch.undo


def limit_files(running: "Running") -> Callable[[], None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    segment = max((running.settings.data_dir / "journal").glob("*"), key=lambda path: path.stat().st_size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size + 100, hard))  # part of the block fits
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("cause", ["raises", "nan", "no space", "file limit", "surprise"])
async def test_batch_that_fails_leaves_no_trace(
    start: Start, stream: list[Transaction], monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """Whatever fails, every tx of the batch gets the error, profiles and decisions are as before, no LSN is used again."""
    running = await start(*QUIET)
    pipeline, journal = running.engine.pipeline, running.engine.journal
    await running.send(stream[:300])
    before = await running.profiles(running.truth().profiles)
    batch, last_lsn, first_bad = stream[300:364], journal.last_lsn, journal.next_lsn
    real, undo = pipeline.scorer, monkeypatch.undo
    if cause in ("raises", "nan"):
        pipeline.scorer = BrokenScorer(real, cause == "nan")
    elif cause == "no space":
        undo = break_writev(monkeypatch)
    elif cause == "surprise":
        monkeypatch.setattr(journal, "append_encoded", None)  # a TypeError, which nobody has listed
    else:
        undo = limit_files(running)
    try:
        answers = await running.submit_many(batch)
        with pytest.raises(WeirError):
            await running.submit(make_tx(1))
    finally:
        undo()
        pipeline.scorer = real
    expected = ScoringFailed if cause in ("raises", "nan") else JournalUnavailable
    assert [type(answer) for answer in answers] == [expected] * len(batch)
    assert await running.profiles(before) == before
    assert journal.last_lsn == last_lsn
    assert journal.next_lsn == first_bad + len(batch) + 1
    assert pipeline.n_waiting == 0
    assert all(running.engine.decisions.find(tx.event_id) is None for tx in batch)
    again = await running.send([*batch, *stream[364:500]])
    assert not any(decision.replayed for decision in again)
    assert min(decision.lsn for decision in again) == first_bad + len(batch) + 1
    truth = await running.assert_true()
    assert len(truth.lsns) == 500
    assert {d.event_id: d.score for d in again} == {d.event_id: truth.scores[d.event_id] for d in again}
    print(f"{cause}: {len(batch) + 1} failed, {len(truth.lsns)} journaled, {len(truth.profiles)} profiles")  # noqa: T201  # shown by -rP


async def test_scorers_switched_between_batches_leave_the_bytes_of_one(start: Start, stream: list[Transaction]) -> None:
    """Whichever engine scored which batch: profiles and scores are those of a fresh engine."""
    running: Running = await start()
    names = [name for name in NAMES if missing_scorer(name) is None]
    for turn, first in enumerate(range(0, 1_000, 50)):
        await running.engine.scorers.use(names[turn % len(names)])
        decisions = await running.send(stream[first : first + 50], batch=[1, 7, 50][turn % 3])
        assert {decision.scorer for decision in decisions} == {names[turn % len(names)]}
        await running.label(stream[first].event_id)
    truth = await running.assert_true()
    assert len(truth.lsns) == 1_000


async def test_start_after_a_failed_batch_is_not_refused(start: Start, stream: list[Transaction]) -> None:
    """Burnt LSNs at the journal's end are no lost entries: positions never claim them and the next start goes through."""
    running = await start()
    await running.send(stream[:50])
    running.engine.pipeline.scorer = BrokenScorer(running.scorer, False)
    answers = await running.submit_many(stream[50:60])
    assert {type(answer) for answer in answers} == {ScoringFailed}
    await running.stop()
    running = await start()
    assert len((await running.assert_true()).lsns) == 50
    await running.send(stream[50:60])


async def test_label_that_cannot_be_journaled_leaves_no_trace(
    start: Start, stream: list[Transaction], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label whose append fails raises, changes no profile, and can be sent again."""
    running = await start(*QUIET)
    await running.send(stream[:200])
    undo = break_writev(monkeypatch)
    with pytest.raises(JournalUnavailable):
        await running.label(stream[100].event_id)
    undo()
    assert (await running.assert_true()).n_labels == 0
    assert (await running.label(stream[100].event_id)).status == "applied"
    assert (await running.assert_true()).n_labels == 1


async def test_same_event_again_is_replayed_and_counted_once(start: Start, stream: list[Transaction]) -> None:
    """In one batch, in two requests at once, later, from RocksDB, after a restart: the first decision, nothing twice."""
    running = await start("queue.batch_max=256")
    txs = stream[:120]
    both = await running.send([*txs, *txs], batch=240)
    first = {decision.event_id: decision for decision in both[:120]}
    assert [d.replayed for d in both] == [False] * 120 + [True] * 120

    async def check(again: Sequence[Decision]) -> None:
        assert all(d.replayed and d.lsn == first[d.event_id].lsn and d.score == first[d.event_id].score for d in again)
        assert len((await running.assert_true()).lsns) == running.engine.pipeline.n_rows + n_before

    n_before = 0
    await check(both[120:])
    others = stream[120:200]
    left, right = await asyncio.gather(running.send(others), running.send(others))
    assert sorted(d.replayed for d in [*left, *right]) == [False] * 80 + [True] * 80
    first |= {d.event_id: d for d in [*left, *right] if not d.replayed}
    await check([d for d in [*left, *right] if d.replayed])
    await wait_until(lambda: len(running.engine.decisions) == 0)
    await check(await running.send(txs))
    await running.stop()
    running, n_before = await start(), 200
    await check(await running.send(stream[:200]))
    print(f"{len(first)} events sent {120 * 3 + 80 * 2 + 200} times, journaled {len(running.truth().lsns)} times")  # noqa: T201  # shown by -rP


async def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)


async def test_same_event_with_other_body_conflicts(start: Start, stream: list[Transaction]) -> None:
    """In one batch, while the first is under way, later, from RocksDB, after a restart: 409, and nothing changes."""
    running = await start(*QUIET[1:])
    txs = stream[:60]
    others = [msgspec.structs.replace(tx, amount=tx.amount + 1) for tx in txs]
    answers = await running.submit_many([*txs, *others])
    assert [isinstance(answer, Conflict) for answer in answers] == [False] * 60 + [True] * 60
    future = running.submit(stream[60])
    with pytest.raises(Conflict):
        await running.submit(msgspec.structs.replace(stream[60], amount=1))
    assert not (await future).replayed

    async def all_conflict() -> None:
        for other in others:
            with pytest.raises(Conflict):
                await running.submit(other)
        assert len((await running.assert_true()).lsns) == 61

    await all_conflict()
    await running.stop()
    running = await start()
    assert len(running.engine.decisions) == 0
    await all_conflict()


async def test_client_that_hangs_up_loses_nothing(start: Start, stream: list[Transaction]) -> None:
    """A cancelled future or request stops nobody: the events are journaled, decided, and replayed to who asks again."""
    running = await start("bloom.enabled=false")
    futures = [running.submit(tx) for tx in stream[:20]]
    for future in futures:
        future.cancel()
    request = asyncio.create_task(running.submit_many(stream[20:60]))
    await asyncio.sleep(0)
    request.cancel()
    await running.engine.pipeline.drain(5)
    again = await running.send(stream[:60])
    assert all(decision.replayed for decision in again)
    assert len((await running.assert_true()).lsns) == 60


async def test_label_whose_client_hangs_up_is_applied_and_unpinned(start: Start, stream: list[Transaction]) -> None:
    """A label that waits for a profile is applied although its request is gone, and pins nothing afterwards."""
    running = await start("bloom.enabled=false", "l1.enabled=false", "write_behind.interval_ms=1")
    await running.send(stream[:50])
    await wait_until(lambda: running.engine.write_behind.n_waiting == 0)
    tier = slow_down(running, entity_key("merchant", stream[0].merchant_id))
    request = asyncio.create_task(running.label(stream[0].event_id))
    assert not await settled(request)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    tier.gate.set()
    await wait_until(lambda: running.engine.journal.last_lsn == running.truth().lsns[stream[49].event_id] + 1)
    await settled(asyncio.get_running_loop().create_future())
    assert (await running.assert_true()).n_labels == 1
    assert len(running.engine.l1) == 0


async def test_card_that_misses_holds_back_only_itself(start: Start) -> None:
    """While one card's profile is read, another card at the same merchant is scored; the card's own order stands."""
    running = await start("bloom.enabled=false")
    await running.send([make_tx(0, "warm")])
    tier = slow_down(running, b"card:cold")
    cold = running.submit(make_tx(1, "cold"))
    later = running.submit(make_tx(3, "cold"))
    batch = asyncio.ensure_future(running.submit_many([make_tx(4, "cold"), make_tx(5, "warm")]))
    assert not await settled(cold)
    warm = await running.submit(make_tx(2, "other"))
    assert not cold.done()
    assert not later.done()
    assert not batch.done()
    tier.gate.set()
    in_batch = [answer for answer in await batch if isinstance(answer, Decision)]
    lsns = [(await cold).lsn, (await later).lsn, in_batch[0].lsn]
    assert lsns == sorted(lsns)
    assert warm.lsn < lsns[0]
    await running.assert_true()


async def test_misses_on_one_profile_share_one_read(start: Start) -> None:
    """Ten transactions of ten cards at one unknown merchant ask for the merchant once."""
    running = await start("bloom.enabled=false")
    tier = slow_down(running, b"merchant:m1")
    futures = [running.submit(make_tx(n, f"c{n}")) for n in range(5)]
    assert not await settled(futures[0])
    futures += [running.submit(make_tx(n, f"c{n}")) for n in range(5, 10)]
    assert not await settled(futures[-1])
    tier.gate.set()
    await asyncio.gather(*futures)
    assert tier.asked.count(b"merchant:m1") == 1
    assert len((await running.assert_true()).lsns) == 10


async def test_ticket_behind_two_others_is_scored_once(start: Start) -> None:
    """A request that waits behind two, one of which waits behind the other, is released by the last of them, once."""
    running = await start("bloom.enabled=false")
    tier = slow_down(running, b"card:a")
    first = asyncio.ensure_future(running.submit_many([make_tx(1, "a"), make_tx(2, "b")]))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(running.submit_many([make_tx(3, "a")]))
    await asyncio.sleep(0)
    third = asyncio.ensure_future(running.submit_many([make_tx(4, "b"), make_tx(5, "a")]))
    assert not await settled(third)
    tier.gate.set()
    answers = [answer for request in (first, second, third) for answer in await request]
    lsns = [answer.lsn for answer in answers if isinstance(answer, Decision)]
    assert lsns == list(range(lsns[0], lsns[0] + 5))
    assert running.engine.pipeline.n_rows == 5
    await running.assert_true()


async def test_random_requests_over_a_slow_tier_keep_order_and_count_once(
    start: Start, stream: list[Transaction], rng: Any
) -> None:
    """Requests of random size from 8 clients over a tier of random delay, L1 off: bytes, scores and card order hold."""
    running = await start("bloom.enabled=false", "l1.enabled=false", "write_behind.interval_ms=1", "queue.batch_max=16")
    level = running.engine.levels[0]
    fill = level.tier.fill

    async def fill_late(keys: Sequence[bytes]) -> list[bytes | None]:
        await asyncio.sleep(rng.random() * 0.003)
        found: list[bytes | None] = await fill(keys)
        return found

    level.tier.fill = fill_late
    queue = list(stream[:1500])
    sent: list[str] = []
    answers: list[Decision] = []

    async def client() -> None:
        while queue:
            n = rng.randint(1, 12)
            part = queue[:n]
            del queue[:n]
            sent.extend(tx.event_id for tx in part)
            answers.extend(await running.send(part, batch=n))

    await asyncio.gather(*(client() for _ in range(8)))
    truth = await running.assert_true()
    assert {d.event_id: d.score for d in answers} == truth.scores
    assert {d.event_id: d.lsn for d in answers} == truth.lsns
    by_card: dict[str, list[int]] = {}
    card_of = {tx.event_id: tx.card_id for tx in stream}
    for event_id in sent:
        by_card.setdefault(card_of[event_id], []).append(truth.lsns[event_id])
    assert all(lsns == sorted(lsns) for lsns in by_card.values())
    assert running.engine.write_behind.n_waiting < len(truth.profiles)
    print(f"{len(truth.lsns)} events, {len(truth.profiles)} profiles, {sum(running.engine.l1.n_evicted)} evictions")  # noqa: T201  # shown by -rP


async def test_queue_full_is_refused_and_one_less_is_not(start: Start) -> None:
    """With queue.events_max = 4 the fifth waiting transaction is Overloaded; after the drain there is room again."""
    running = await start("queue.events_max=4", "queue.batch_max=4", "bloom.enabled=false")
    futures = [running.submit(make_tx(n, f"c{n}")) for n in range(4)]
    with pytest.raises(Overloaded):
        running.submit(make_tx(4))
    await asyncio.gather(*futures)
    assert not (await running.submit(make_tx(4))).replayed
    running.engine.pipeline.is_open = False
    with pytest.raises(NotReady):
        running.submit(make_tx(5))


async def test_labels_move_fraud_counters_once(start: Start, stream: list[Transaction]) -> None:
    """Fraud adds one, again is unchanged, legit takes it back, an unknown event changes nothing."""
    running = await start(*QUIET)
    await running.send(stream[:300])
    event_id = stream[150].event_id
    key = entity_key("merchant", stream[150].merchant_id)

    async def profile() -> bytes | None:
        found: dict[bytes, bytes | None] = await running.profiles([key])
        return found[key]

    before = await profile()
    assert (await running.label(event_id)).status == "applied"
    marked = await profile()
    assert (await running.label(event_id)).status == "unchanged"
    assert await profile() == marked != before
    assert (await running.label(event_id, "legit")).status == "applied"
    taken_back = await profile()
    assert before is not None
    assert taken_back is not None
    assert without_lsn(taken_back) == without_lsn(before)
    assert (await running.label("nobody")).status == "unknown_event"
    labels = [Label(event_id=tx.event_id, label="fraud", ts=1) for tx in stream[:100]]
    replies = await asyncio.gather(*(running.engine.label(labels) for _ in range(3)))
    assert sorted(r.status for part in replies for r in part) == ["applied"] * 100 + ["unchanged"] * 200
    assert (await running.assert_true()).n_labels == 102


def without_lsn(profile: bytes) -> bytes:
    return profile[:16] + profile[24:]


async def test_label_raises_fraud_rate_after_its_delay(start: Start) -> None:
    """A labelled fraud at a merchant raises the merchant's fraud-rate features of a transaction past the window's delay."""
    running = await start(*QUIET)
    day = 86_400_000
    txs = [make_tx(n, f"c{n}", amount=1000) for n in range(10)]
    await running.send(txs)
    probe = msgspec.structs.replace(make_tx(99, "c99"), ts=txs[0].ts + 10 * day)
    names = [name for name in running.plan.feature_names if "fraud" in name]

    async def features() -> list[float]:
        number = running.engine.journal.next_lsn
        tx = msgspec.structs.replace(probe, event_id=f"p{number}")
        (decision,) = await running.submit_many([tx], TRACES)
        trace = decision.trace if isinstance(decision, Decision) else None
        assert trace is not None
        return [trace["features"][name] for name in names]

    assert await features() == [0.0] * len(names)
    for tx in txs[:5]:
        await running.label(tx.event_id)
    after = await features()
    assert max(after) > 0.3
    assert (await running.assert_true()).n_labels == 5


async def test_label_finds_events_older_than_the_idempotency_window(start: Start, stream: list[Transaction]) -> None:
    """A week later the filter has forgotten the event; its label and its decision are found all the same."""
    running = await start()
    await running.send(stream[:20])
    await wait_until(lambda: len(running.engine.decisions) == 0)

    class Forgetful:
        def suspects(self, keys: Sequence[bytes]) -> list[int]:
            return []

        def add_many(self, keys: Sequence[bytes]) -> None:
            pass

    running.engine.decisions.maybe = Forgetful()
    assert (await running.engine.decision(stream[3].event_id)).lsn
    assert (await running.label(stream[3].event_id)).status == "applied"
