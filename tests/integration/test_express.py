"""Express in the pipeline: answers, journal and profiles as by the stops one by one; who may go by it, and its failures."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from features.transaction import Transaction
from gocore.errors import CorePanic
from gocore.locate import missing_core
from service.codec import JSON
from service.errors import JournalUnavailable, ScoringFailed, WeirError
from service.journal import JournalWriteError
from service.ticket import Answer
from tests.integration.conftest import Running, Start

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")


class Watched:
    """In the place of a pipeline's express: how many rows came how far."""

    def __init__(self, running: Running) -> None:
        self._express: Any = running.engine.pipeline._express
        self.failure: Exception | None = None
        self.n_decoded = self.n_scored = self.n_encoded = 0
        running.engine.pipeline._express = self  # type: ignore[assignment]  # it does what an Express does

    def takes(self, *arguments: Any) -> bool:
        return bool(self._express.takes(*arguments))

    def run(self, *arguments: Any) -> Any:
        passed = self._express.run(*arguments)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        n = len(arguments[1])
        self.n_decoded += n
        self.n_scored += n if passed.is_scored else 0
        self.n_encoded += n if passed.encoded is not None else 0
        return passed


async def offer(running: Running, bodies: Sequence[bytes]) -> list[Answer]:
    """Requests that come in one turn of the loop."""
    answers: list[Answer | None] = [None] * len(bodies)
    done = asyncio.Event()

    def keep(place: int, answer: Answer) -> None:
        answers[place] = answer
        if None not in answers:
            done.set()

    for place, body in enumerate(bodies):
        running.engine.pipeline.offer(body, JSON, lambda answer, place=place: keep(place, answer))  # type: ignore[misc]
    async with asyncio.timeout(10):
        await done.wait()
    return [answer for answer in answers if answer is not None]


def shown(answers: Sequence[Answer]) -> list[object]:
    return [(a.status, a.code, str(a)) if isinstance(a, WeirError) else a for a in answers]


def bodies_of(txs: Sequence[Transaction]) -> list[bytes]:
    return [msgspec.json.encode(tx) for tx in txs]


def journal_of(running: Running) -> list[bytes]:
    files = sorted((running.settings.data_dir / "journal").glob("*.wal"))
    return [file.read_bytes() for file in files]


async def test_same_answers_and_journal_as_by_the_stops(start: Start, stream: list[Transaction], rng: random.Random) -> None:
    """New, sent again, changed, invalid and suspicious ones, in turns of one to forty: all bytes are equal."""
    bodies = bodies_of(stream[:1_500])
    for _ in range(150):
        at = rng.randrange(len(bodies))
        changed = bodies[at].replace(b'"amount":', b'"amount":1')
        bodies.insert(at + rng.randrange(20), rng.choice([bodies[at], changed, b"{}", b"\xff"]))
    with_express, without = await start(directory="with"), await start(directory="without")
    watched = Watched(with_express)
    without.engine.pipeline._express = None
    at = 0
    while at < len(bodies):
        turn = bodies[at : at + rng.choice([1, 2, 5, 40])]
        at += len(turn)
        assert shown(await offer(with_express, turn)) == shown(await offer(without, turn))
    assert 0 < watched.n_encoded < watched.n_scored < watched.n_decoded
    assert journal_of(with_express) == journal_of(without)
    await with_express.assert_true()
    for tx in stream[:1_500:10]:
        assert with_express.engine.decisions.find(tx.event_id) == without.engine.decisions.find(tx.event_id) is not None


async def test_what_the_core_raises_leaves_no_trace(start: Start, stream: list[Transaction]) -> None:
    """Once scored and encoded it fails: an error for each, LSNs are burnt, profiles as before; the next goes by it again."""
    running = await start()
    watched = Watched(running)
    bodies = bodies_of(stream[:3])
    await offer(running, bodies)
    n_before, next_lsn = running.engine.pipeline.n_failed_batches, running.engine.journal.next_lsn
    again = bodies_of([msgspec.structs.replace(tx, event_id=f"{tx.event_id}-2") for tx in stream[:3]])
    watched.failure = CorePanic("asked for")
    answers = await offer(running, again)
    assert all(isinstance(answer, ScoringFailed) and "nothing was changed" in str(answer) for answer in answers)
    assert running.engine.pipeline.n_failed_batches == n_before + 1
    assert running.engine.journal.next_lsn == next_lsn + 3
    assert running.engine.pipeline.n_waiting == 0
    await running.assert_true()
    assert all(isinstance(answer, bytes) for answer in await offer(running, again))
    await running.assert_true()


async def test_a_journal_that_refuses_takes_it_back(
    start: Start, stream: list[Transaction], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All were approved and encoded; then nothing counts."""
    running = await start()
    watched = Watched(running)
    await offer(running, bodies_of(stream[:3]))
    again = bodies_of([msgspec.structs.replace(tx, event_id=f"{tx.event_id}-2") for tx in stream[:3]])
    with monkeypatch.context() as patched:

        def refuse(*_: object) -> int:
            raise JournalWriteError("the disk is full")

        patched.setattr(running.engine.journal, "append_encoded", refuse)
        answers = await offer(running, again)
    assert all(isinstance(answer, JournalUnavailable) for answer in answers)
    assert watched.n_encoded >= 3
    await running.assert_true()
    assert all(isinstance(answer, bytes) for answer in await offer(running, again))
    await running.assert_true()


async def test_lists_and_onlookers_have_their_say(start: Start, stream: list[Transaction]) -> None:
    """With an entity on a list, or somebody who looks on, every stop is called."""
    running = await start()
    watched = Watched(running)
    await offer(running, bodies_of(stream[:3]))
    n_before = watched.n_decoded
    assert n_before
    card = stream[0].card_id
    await running.engine.put_list("deny", "card", card, "stolen", None)
    changed = msgspec.structs.replace(stream[0], event_id="on-the-list")
    (answer,) = await offer(running, bodies_of([changed]))
    assert isinstance(answer, bytes)
    assert b"DENY_LIST_CARD" in answer
    assert watched.n_decoded == n_before
    await running.engine.delete_list("deny", "card", card)
    await offer(running, bodies_of([msgspec.structs.replace(stream[0], event_id="off-the-list")]))
    assert watched.n_decoded == n_before + 1


async def test_group_sync_answers_twins_of_what_went_by_express(start: Start, stream: list[Transaction]) -> None:
    """Scored, and not answered before the fsync: the same event meanwhile gets the same answer, another body a conflict."""
    running = await start("journal.sync=group")
    watched = Watched(running)
    await offer(running, bodies_of(stream[:3]))
    body = msgspec.json.encode(msgspec.structs.replace(stream[0], event_id="twin"))
    other = msgspec.json.encode(msgspec.structs.replace(stream[0], event_id="twin", amount=1))
    answers: list[Answer] = []
    n_before = watched.n_encoded + watched.n_scored
    running.engine.pipeline.offer(body, JSON, answers.append)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert watched.n_encoded + watched.n_scored > n_before
    assert answers == []
    running.engine.pipeline.offer(body, JSON, answers.append)
    running.engine.pipeline.offer(other, JSON, answers.append)
    async with asyncio.timeout(10):
        while len(answers) < 3:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.005)
    conflict = next(answer for answer in answers if isinstance(answer, WeirError))
    first, again = sorted(answer for answer in answers if isinstance(answer, bytes))  # "replayed":false, then true
    assert conflict.status == 409
    assert first.replace(b'"replayed":false', b'"replayed":true') == again
    await running.assert_true()
