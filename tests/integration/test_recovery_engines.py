"""Recovery with each engine: whatever is in the journal, profiles, decisions and marks come out the same, in any memory."""

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from features.transaction import Transaction
from gocore.locate import missing_core
from models.scorer import Scorer
from service import recovery
from service.app import load_model
from service.decisions import StoredDecision, decode_stored
from service.errors import TierUnavailable
from service.fetch import entity_key
from service.journal import LABEL, TX, read_directory
from service.records import decode_label, decode_outcome
from service.settings import load_settings
from service.tiers.l2 import Column

if TYPE_CHECKING:
    from tests.integration.conftest import Running

Start = Callable[..., Any]
NEVER_FLUSHED = ("l2.flush_interval_ms=3600000", "write_behind.interval_ms=60000")
SMALL_L1 = "l1.bytes_max=65536"  # 30 profiles
ROWS = (64, 7)  # of a chunk


@pytest.fixture(scope="session", params=["go", "onnx"])
def model(request: pytest.FixtureRequest) -> tuple[Any, Any, Scorer]:
    """The packaged plan and model card, and each engine in turn."""
    reason = missing_core() if request.param == "go" else None
    if reason is not None:
        pytest.skip(reason)
    return load_model(load_settings(None, [f"scorer={request.param}"]))


@pytest.fixture(params=[None, *ROWS])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Rows of a chunk: as they are, and a few, so that an entity is found again in another chunk."""
    if request.param is not None:
        monkeypatch.setattr(recovery, "CORE_ROWS", request.param)
    return request.param  # type: ignore[no-any-return]  # pytest types it as Any


async def live_a_while(running: "Running", stream: list[Transaction], rng: random.Random) -> None:
    """Transactions late and in order, in several currencies, with labels, list changes and an erasure between them."""
    sent: list[Transaction] = []
    while len(sent) < 600:
        part = stream[len(sent) : len(sent) + rng.randrange(1, 60)]
        part = [
            msgspec.structs.replace(
                tx, currency=rng.choice(["EUR", "USD", "SEK"]), ts=tx.ts - rng.choice([0, 0, 0, 5_000_000]),
                device_id=tx.device_id if rng.random() < 0.7 else None,
            )
            for tx in part
        ]  # fmt: skip
        await running.send(part, batch=rng.randrange(1, 40))
        sent += part
        for tx in rng.sample(sent, rng.randrange(4)):
            await running.label(tx.event_id, rng.choice(["fraud", "fraud", "legit"]))
        if rng.random() < 0.1:
            await running.engine.put_list("deny", "card", f"c{rng.randrange(9)}", "stolen", None)
        if rng.random() < 0.05:
            running.engine.erasures.begin("card", rng.choice(sent).card_id)


def journaled_decisions(running: "Running") -> dict[str, StoredDecision]:
    """Every decision with its last label, as the journal's files say."""
    found: dict[str, StoredDecision] = {}
    for block in read_directory(running.settings.data_dir / "journal"):
        for entry in block.entries:
            if entry.kind == TX:
                stored = decode_outcome(entry.lsn, entry.body, entry.decision)
                found[stored.transaction().event_id] = stored
            elif entry.kind == LABEL:
                record = decode_label(entry.body)
                labelled = msgspec.structs.replace(found[record.event_id], label=record.label, label_lsn=entry.lsn)
                found[record.event_id] = labelled
    return found


async def assert_decisions(running: "Running") -> int:
    made = journaled_decisions(running)
    for event_id, stored in made.items():
        kept = running.engine.decisions.find(event_id)
        assert kept is not None, event_id
        assert msgspec.structs.replace(kept, body=b"") == msgspec.structs.replace(stored, body=b"")
        if running.engine.erasures.n_done + len(running.engine.erasures.pending) == 0:
            assert kept.body == stored.body
    return len(made)


@pytest.mark.parametrize("l1", [SMALL_L1, "l1.bytes_max=67108864"])
async def test_everything_in_the_journal_comes_back(
    start: Start, stream: list[Transaction], rng: random.Random, rows: int | None, l1: str
) -> None:
    """Bytes of a fresh engine, decisions with their labels, lists; with more entities than L1 holds too."""
    running = await start(*NEVER_FLUSHED)
    await live_a_while(running, stream, rng)
    lists = dict(running.engine.lists.items())
    running.copy_as_killed("killed")
    again = await start(l1, directory="killed")
    truth = await again.assert_true()
    n_decisions = await assert_decisions(again)
    assert dict(again.engine.lists.items()) == lists
    assert sum(again.engine.l1.n_evicted) > 100 if l1 == SMALL_L1 else not any(again.engine.l1.n_evicted)
    await again.stop()
    last = await start(l1, directory="killed")
    assert last.engine.recovery.n_entries == 0
    assert (await last.assert_true()).lsns == truth.lsns
    assert n_decisions == len(truth.lsns)
    print(f"{n_decisions} decisions, {truth.n_labels} labels, {len(truth.profiles)} profiles")  # noqa: T201  # shown by -rP


async def test_first_change_that_is_unwritten_is_marked(
    start: Start, stream: list[Transaction], rng: random.Random, rows: int | None
) -> None:
    """Write-behind hears of every profile that recovery changed, with the first LSN that changed it."""
    running = await start(*NEVER_FLUSHED)
    await live_a_while(running, stream, rng)
    first_lsns: dict[bytes, int] = {}
    erased = {(erasure.kind, erasure.id) for erasure in running.engine.erasures.pending}
    for block in read_directory(running.settings.data_dir / "journal"):
        for entry in block.entries:
            if entry.kind != TX:
                continue
            tx = decode_outcome(entry.lsn, entry.body, entry.decision).transaction()
            for kind in running.plan.kinds:
                entity = getattr(tx, kind.id_field)
                if entity is not None and (kind.name, entity) not in erased:
                    first_lsns.setdefault(entity_key(kind.name, entity), entry.lsn)
    running.copy_as_killed("killed")
    again = await start(*NEVER_FLUSHED, directory="killed")
    again.engine.write_behind._see()
    (consumer,) = again.engine.write_behind.consumers
    marked = consumer.in_flight | dict(consumer.dirty.items())
    assert {key: marked.get(key) for key in first_lsns} == first_lsns


async def test_decisions_that_the_column_refuses_wait_in_memory(
    start: Start, stream: list[Transaction], rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local store that takes no writes does not keep the service from starting, and gets them when it does."""
    running = await start(*NEVER_FLUSHED)
    await live_a_while(running, stream, rng)
    running.copy_as_killed("killed")

    def refuse(*_: object) -> bool:
        raise TierUnavailable("l2", "No space left on device")

    async def refuse_later(*_: object) -> None:
        refuse()

    with monkeypatch.context() as patched:
        patched.setattr(Column, "put_now", refuse)
        patched.setattr(Column, "put_many", refuse_later)
        again = await start("l2.flush_interval_ms=3600000", directory="killed")
        n_decisions = await assert_decisions(again)
        assert len(again.engine.decisions) == n_decisions
    await again.stop()
    last = await start(directory="killed")
    assert await assert_decisions(last) == n_decisions
    packed = last.engine.decisions._column.get(stream[0].event_id.encode())
    assert decode_stored(packed).lsn == last.engine.decisions.find(stream[0].event_id).lsn


async def test_erasure_is_done_again_where_recovery_brought_an_id_back(
    start: Start, stream: list[Transaction], rng: random.Random
) -> None:
    """Killed when the blanked decisions were on disk, but not the position: the journal has the id, RocksDB ends without."""
    running = await start(*NEVER_FLUSHED)
    await running.send(stream[:300])
    card = stream[10].card_id
    running.engine.erasures.begin("card", card)
    (erasure,) = running.engine.erasures.pending
    async with asyncio.timeout(15):
        while "decisions" not in erasure.done:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)
    await running.engine.erasures._rocks.compact("decisions")  # as a full memtable would be flushed at any time
    running.copy_as_killed("killed")
    again = await start(directory="killed")
    async with asyncio.timeout(15):
        while again.engine.erasures.pending:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)
    column = again.engine.decisions._column
    found = [await column.get_many(keys) async for keys in column.keys_chunks()]
    left = [packed for values in found for packed in values if packed is not None and card.encode() in packed]
    assert not [
        decode_stored(packed).transaction().event_id for packed in left if decode_stored(packed).transaction().card_id == card
    ]
    assert sum(map(len, found)) >= 300
