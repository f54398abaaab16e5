"""Large batches on the core's thread: whoever needs slabs or journal meanwhile ends them first; failures leave no trace."""

import asyncio
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from features.transaction import Transaction
from gocore.errors import GoCoreError
from models.scorers import missing_scorer
from service.codec import MSGPACK
from service.decide import Decision
from service.decisions import encode_body
from service.errors import ScoringFailed
from service.pipeline import ASIDE_ROWS
from service.ticket import DECISIONS, Answer, resolve

if TYPE_CHECKING:
    from tests.integration.conftest import Running

Start = Callable[..., Any]
QUIET = ("write_behind.interval_ms=60000", "l2.flush_interval_ms=3600000", "journal.sync=os", "queue.batch_max=1024")

pytestmark = pytest.mark.skipif(missing_scorer("go") is not None, reason=missing_scorer("go") or "")


def submit(running: "Running", txs: Sequence[Transaction]) -> "asyncio.Future[Sequence[Answer]]":
    """One request, as a part of a stream submits it."""
    future: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
    bodies = [encode_body(tx) for tx in txs]
    running.engine.pipeline.submit(bodies, MSGPACK, future.set_result, wanted=DECISIONS)
    return future


async def begin(running: "Running", txs: Sequence[Transaction]) -> "asyncio.Future[Sequence[Answer]]":
    """The same, once the batch is on the core's thread."""
    future = submit(running, txs)
    pipeline = running.engine.pipeline
    async with asyncio.timeout(5):
        while pipeline._running is None:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0)
    assert not future.done()
    return future


@pytest.fixture
def start_go(start: Start) -> Start:
    """`start`, with the go scorer, whatever other modules were given."""

    async def begin(*overrides: str) -> "Running":
        running: Running = await start(*overrides)
        await running.engine.scorers.use("go")
        return running

    return begin


async def test_large_batch_is_scored_aside_and_small_one_is_not(start_go: Start, stream: list[Transaction]) -> None:
    """From ASIDE_ROWS rows on the core's thread scores; the outcome is that of a fresh engine either way."""
    running = await start_go(*QUIET)
    handed: list[int] = []
    begun = running.engine.pipeline._aside.start

    def start_and_note(scorer: Any, arena: Any, n_rows: int, watch: Any) -> None:
        handed.append(n_rows)
        begun(scorer, arena, n_rows, watch)

    running.engine.pipeline._aside.start = start_and_note
    await running.send(stream[: ASIDE_ROWS - 1], batch=ASIDE_ROWS - 1)
    assert handed == []
    await running.send(stream[ASIDE_ROWS - 1 : 2 * ASIDE_ROWS - 1], batch=ASIDE_ROWS)
    assert handed == [ASIDE_ROWS]
    assert len((await running.assert_true()).lsns) == 2 * ASIDE_ROWS - 1


async def test_drained_pipeline_gives_its_eventfd_back_and_takes_a_new_one(start_go: Start, stream: list[Transaction]) -> None:
    """A stopped service leaves no open file; one that goes on after a drain scores aside as before."""
    running = await start_go(*QUIET)
    for part in (stream[:ASIDE_ROWS], stream[ASIDE_ROWS : 2 * ASIDE_ROWS]):
        await running.send(part, batch=ASIDE_ROWS)
        number = running.engine.pipeline._aside._fd
        assert os.readlink(f"/proc/self/fd/{number}") == "anon_inode:[eventfd]"
        await running.engine.pipeline.drain(5)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    assert len((await running.assert_true()).lsns) == 2 * ASIDE_ROWS


@pytest.mark.parametrize("who", ["peek", "label", "list", "erase", "small request"])
async def test_whoever_needs_the_slabs_ends_the_batch_first(start_go: Start, stream: list[Transaction], who: str) -> None:
    """A batch that is on the core's thread is whole before anybody reads a profile of it or takes the next LSN."""
    running = await start_go(*QUIET)
    await running.send(stream[:50])
    future = await begin(running, stream[50:850])
    if who == "peek":
        assert running.engine.l1.peek(0, stream[60].card_id) is not None
        assert future.done()
    elif who == "label":
        assert (await running.label(stream[10].event_id)).status == "applied"
    elif who == "list":
        await running.engine.put_list("deny", "card", "nobody", "because", None)
    elif who == "erase":
        await running.engine.erase("card", stream[60].card_id, "tester", 0)
    else:
        assert (await running.submit(stream[850])).lsn > 0
    answers = await future
    assert all(isinstance(answer, Decision) for answer in answers)
    lsns = [answer.lsn for answer in answers if isinstance(answer, Decision)]
    assert lsns == list(range(lsns[0], lsns[0] + 800))
    await running.assert_true()


async def test_parts_of_a_stream_keep_their_order(start_go: Start, stream: list[Transaction]) -> None:
    """Parts that are submitted at once, one after the other, have rising LSNs; twins across parts are answered as replays."""
    running = await start_go(*QUIET)
    parts = [stream[:400], stream[400:800], [*stream[800:1_100], stream[0]]]
    futures = [submit(running, part) for part in parts]
    answers = [answer for future in futures for answer in await future]
    decisions = [answer for answer in answers if isinstance(answer, Decision)]
    assert len(decisions) == 1_101
    assert [d.event_id for d in decisions] == [tx.event_id for part in parts for tx in part]
    assert [d.replayed for d in decisions] == [False] * 1_100 + [True]
    lsns = [d.lsn for d in decisions[:-1]]
    assert lsns == list(range(lsns[0], lsns[0] + 1_100))
    assert decisions[-1].lsn == lsns[0]
    await running.assert_true()


async def test_batch_that_fails_aside_leaves_no_trace(
    start_go: Start, stream: list[Transaction], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What collecting raises is every row's error; profiles are as before, LSNs are burnt, and the rows can be sent again."""
    running = await start_go(*QUIET)
    await running.send(stream[:300])
    before = await running.profiles(running.truth().profiles)
    scorer = running.engine.pipeline.scorer
    collect = type(scorer).collect

    def fail(self: Any, arena: Any) -> None:
        collect(self, arena)
        raise GoCoreError("the model broke")

    monkeypatch.setattr(type(scorer), "collect", fail)
    first_bad = running.engine.journal.next_lsn
    answers = await running.submit_many(stream[300:700])
    assert {type(answer) for answer in answers} == {ScoringFailed}
    assert await running.profiles(before) == before
    assert running.engine.journal.next_lsn == first_bad + 400
    monkeypatch.undo()
    again = await running.send(stream[300:700], batch=400)
    assert again[0].lsn == first_bad + 400
    assert len((await running.assert_true()).lsns) == 700


async def test_batch_that_could_not_be_handed_over_takes_nothing_of_the_one_before_back(
    start_go: Start, stream: list[Transaction], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error before anything was scored leaves what the batch before has changed, which is in the journal."""
    running = await start_go(*QUIET)
    await running.send(stream[:600], batch=300)
    before = await running.profiles(running.truth().profiles)
    assert before

    def fail(self: Any, arena: Any, n_rows: int, event_fd: int) -> None:
        raise GoCoreError("the core takes nothing")

    monkeypatch.setattr(type(running.engine.pipeline.scorer), "submit", fail)
    answers = await running.submit_many(stream[600:900])
    assert {type(answer) for answer in answers} == {ScoringFailed}
    assert await running.profiles(before) == before
    monkeypatch.undo()
    await running.send(stream[600:900], batch=300)
    assert len((await running.assert_true()).lsns) == 900


async def test_part_whose_stream_broke_off_keeps_nobody_from_an_answer(start_go: Start, stream: list[Transaction]) -> None:
    """The future of a stream that has gone is cancelled; whoever shares its batch is answered, and its rows are scored."""
    running = await start_go(*QUIET)
    gone: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
    bodies = [encode_body(tx) for tx in stream[:20]]
    running.engine.pipeline.submit(bodies, MSGPACK, functools.partial(resolve, gone), wanted=DECISIONS)
    gone.cancel()
    other = submit(running, stream[20:30])
    assert len(await other) == 10
    assert running.engine.pipeline.n_waiting == 0
    assert len((await running.assert_true()).lsns) == 30
