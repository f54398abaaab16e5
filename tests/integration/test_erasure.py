"""Erasure over real stores: what is forgotten is gone everywhere, stays gone, and everybody else counts on."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import msgspec
import pytest
import redis

from features.transaction import Transaction, blank, is_blank
from service.decisions import decode_body
from service.errors import Conflict, NotFound
from service.journal import ERASURE, TX, read_directory
from service.levels import OFF, ON
from service.records import decode_erasure

if TYPE_CHECKING:
    from tests.integration.conftest import Running, Start

SMALL_L1 = "l1.bytes_max=65536"
CARD = "c4"
WHO = "tester"


def of_card(txs: Sequence[Transaction], card: str = CARD) -> list[Transaction]:
    return [tx for tx in txs if tx.card_id == card]


def rename(txs: Sequence[Transaction], old: str, new: str) -> list[Transaction]:
    """The same stream with an id that can be searched for in files."""
    return [msgspec.structs.replace(tx, card_id=new) if tx.card_id == old else tx for tx in txs]


def files_with(directory: Path, needle: str) -> list[str]:
    return [
        str(p.relative_to(directory)) for p in sorted(directory.rglob("*")) if p.is_file() and needle.encode() in p.read_bytes()
    ]


async def settled(running: "Running") -> None:
    """Write-behind and the ledger have everything."""
    engine = running.engine
    async with asyncio.timeout(15):
        while sum(engine.write_behind.lags().values()) or engine.pipeline.touched:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await running.ledger_rows()


async def finished(running: "Running") -> None:
    """No erasure is under way."""
    async with asyncio.timeout(20):
        while running.engine.erasures.pending:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.05)


async def test_erased_card_is_gone_everywhere_and_others_keep_their_bytes(
    start: "Start", stream: list[Transaction], redis_url: str, postgres_url: str
) -> None:
    """No store, no file of ours and no row of the ledger holds the id; all other profiles are as before; it stays so."""
    secret = "secret-card-4711-ü"
    txs = rename(stream[:600], CARD, secret)
    mine = of_card(txs, secret)
    assert len(mine) > 5
    urls = (f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    running = await start(SMALL_L1, *urls)
    await running.send(txs, batch=20)
    await running.label(mine[0].event_id)
    await settled(running)
    before = running.truth()
    key = f"card:{secret}".encode()
    others = {k: p for k, p in before.profiles.items() if k != key}
    result = await running.engine.erase("card", secret, WHO, 20)
    assert (result["state"], result["left"], result["listed"]) == ("erased", [], [])
    with pytest.raises(NotFound):
        await running.engine.entity("card", secret)
    for level in running.engine.levels:
        assert await level.tier.fill([key]) == [None], level.name
        assert await level.tier.fill(list(others)) == list(others.values()), level.name
    stored = await running.engine.decision(mine[0].event_id)
    assert is_blank(stored.transaction().card_id)
    assert stored.label == "fraud"
    assert stored.reply()["transaction"]["card_id"] is None
    connection = await asyncpg.connect(postgres_url)
    held = await connection.fetchval("SELECT count(*) FROM weir_ledger WHERE position($1::bytea IN tx) > 0", secret.encode())
    named = await connection.fetchval("SELECT count(*) FROM weir_ledger WHERE card_id = $1", secret)
    n_rows, n_blank = await connection.fetchrow("SELECT count(*), count(*) FILTER (WHERE card_id = '') FROM weir_ledger")
    await connection.close()
    assert (held, named, n_rows, n_blank) == (0, 0, len(txs), len(mine))
    with redis.Redis.from_url(redis_url) as client:
        assert not list(client.scan_iter(match=b"*secret-card*"))
    await running.stop()
    running = await start(SMALL_L1, *urls)
    with pytest.raises(NotFound):
        await running.engine.entity("card", secret)
    found = await running.profiles(others)
    assert found == others
    assert running.engine.erasures.pending == []
    audit = running.engine.audit.newest(5)
    assert [(entry["who"], entry["action"], entry["kind"]) for entry in audit] == [(WHO, "erase", "card")]
    await running.stop()
    # After a restart, for until then RocksDB's manifest names the first and last key of files that are gone.
    assert files_with(running.settings.data_dir, secret) == []


async def test_erased_card_that_pays_again_begins_anew(start: "Start", stream: list[Transaction]) -> None:
    """The first payment after the erasure is the card's first: scores and bytes are those of the journal; old ids stay used."""
    running = await start(SMALL_L1)
    txs = stream[:400]
    await running.send(txs[:200], batch=10)
    engine = running.engine
    decisions = []
    erased_at = []
    for start_row in range(200, 400, 25):
        erasing = asyncio.create_task(engine.erase("card", CARD, WHO, 0))
        decisions += await running.send(txs[start_row : start_row + 25], batch=5)
        erased_at.append((await erasing)["lsn"])
    truth = await running.assert_true()
    scores = {d.event_id: d.score for d in decisions}
    assert scores == {event_id: truth.scores[event_id] for event_id in scores}
    old = of_card(txs[:200])[0]
    again = await running.submit(old)
    assert again.replayed
    with pytest.raises(Conflict):
        await running.submit(msgspec.structs.replace(old, amount=old.amount + 1))
    await finished(running)
    again = await running.submit(old)
    assert again.replayed
    for other in (msgspec.structs.replace(old, amount=old.amount + 1), msgspec.structs.replace(old, card_id="x" * 9)):
        with pytest.raises(Conflict):
            await running.submit(other)
    entries = [e for block in read_directory(running.settings.data_dir / "journal") for e in block.entries]
    found = [decode_erasure(e.body) for e in entries if e.kind == ERASURE]
    assert [record.id for record in found] == [blank(CARD)] * len(erased_at)
    mine = [e.lsn for e in entries if e.kind == TX and decode_body(e.body).card_id == CARD]
    assert min(mine, default=erased_at[-1] + 1) > erased_at[-1], "an entry before the last erasure holds the id"
    assert len(of_card(txs[200:])) > 5


@pytest.mark.parametrize("flush_ms", ["20", "3600000"])
async def test_erasure_survives_a_kill_and_late_flushes(
    start: "Start", stream: list[Transaction], redis_url: str, postgres_url: str, flush_ms: str
) -> None:
    """Killed right after the erasure was journaled, before any store heard of it: it is applied, and carried through, after."""
    urls = (SMALL_L1, f"l2.flush_interval_ms={flush_ms}", f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    running = await start(*urls)
    await running.send(stream[:300], batch=20)
    await settled(running)
    await running.send(stream[300:500], batch=20)
    running.engine.erasures.begin("card", CARD)
    running.copy_as_killed("killed")
    truth = running.truth()
    key = f"card:{CARD}".encode()
    assert key not in truth.profiles
    await running.stop()
    again = await start(*urls, directory="killed")
    await again.assert_true()
    with pytest.raises(NotFound):
        await again.engine.entity("card", CARD)
    await finished(again)
    for level in again.engine.levels:
        assert await level.tier.fill([key]) == [None], level.name
    assert files_with(again.settings.data_dir / "journal", f"\xa2{CARD}") == []


async def test_erasure_waits_for_a_tier_that_is_off(
    start: "Start", stream: list[Transaction], redis_url: str, postgres_url: str
) -> None:
    """A tier that was off during the erasure still has the old profile; turned on it gets the tombstone before it is read."""
    running = await start(SMALL_L1, f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    engine = running.engine
    await running.send(stream[:400], batch=20)
    await settled(running)
    key = f"card:{CARD}".encode()
    await engine.switch_tier("redis", False, "maintenance", WHO)
    assert running.level("redis").state == OFF
    result = await engine.erase("card", CARD, WHO, 1)
    assert (result["state"], result["left"]) == ("erasing", ["journal", "tombstones", "files"])
    assert await running.level("redis").tier.fill([key]) != [None]
    await running.stop()
    running = await start(SMALL_L1, f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    engine = running.engine
    assert running.level("redis").state == OFF, "a toggle outlives a restart"
    await engine.switch_tier("redis", True, "back", WHO)
    await finished(running)
    assert running.level("redis").state == ON
    for level in engine.levels:
        assert await level.tier.fill([key]) == [None], level.name
    with pytest.raises(NotFound):
        await engine.entity("card", CARD)
