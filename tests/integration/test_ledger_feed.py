"""The ledger's feed: what the Go core makes of the journal's bytes and what the reference does are the same rows, each once."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from features.plan import compile_plan
from features.spec import load_spec
from features.transaction import CHANNELS, Transaction, blank
from gocore.locate import missing_core
from service.decisions import StoredDecision, encode_body
from service.errors import TierUnavailable
from service.journal import ERASURE, LABEL, LIST, TX, Journal, JournalCorrupt
from service.ledger import Ledger
from service.ledger_chunks import ChunkMaker
from service.ledger_feed import LedgerFeed
from service.records import ErasureRecord, LabelRecord, encode_erasure, encode_label, encode_outcome
from service.tiers.postgres import PostgresPool

pytestmark = pytest.mark.postgres
needs_core = pytest.mark.skipif(missing_core() is not None, reason=missing_core() or "")

TEXTS = (
    "c1",
    "mérchant \N{PILE OF POO}",
    "quote \" ' , {} \\N \\",
    "日本語",
    "ÿ\u0377",
    "~" * 128,
    "\N{PILE OF POO}" * 128,
    "NULL",
    "0",
)
EXTREMES = (0.0, 1.0, 5e-324, 0.1234567890123456789)
CURRENCIES = sorted(compile_plan(load_spec("cards")).currencies)

Entry = tuple[int, bytes, bytes]


@pytest.fixture
async def pool(postgres_url: str) -> AsyncIterator[PostgresPool]:
    opened = PostgresPool(postgres_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal.open(tmp_path / "journal", sync="os", segment_bytes=1 << 16)
    opened.start()
    yield opened
    opened.abandon()


def entry(number: int, **fields: Any) -> Entry:
    """A transaction with its decision, as the pipeline writes it."""
    tx: dict[str, Any] = {"card_id": f"c{number % 7}", "merchant_id": "m", "amount": number, "currency": "EUR"} | fields
    reasons = tx.pop("reasons", ("R1",))
    stored = StoredDecision(0, b"", tx.pop("score", 0.25), tx.pop("outcome", "approve"), "cards-1", "go", ("L3",), reasons)
    return TX, encode_body(Transaction(f"e{number}", 1_750_000_000_000 + number, **tx)), encode_outcome(stored)


def odd_entries(rng: random.Random, n: int) -> list[Entry]:
    """Of everything that a transaction and its decision may hold, something each."""
    return [
        entry(
            number, card_id=rng.choice(TEXTS), merchant_id=rng.choice(TEXTS), amount=rng.choice((0, 1, 10**10)),
            currency=CURRENCIES[number % len(CURRENCIES)], device_id=rng.choice((None, *TEXTS)), ip=rng.choice((None, *TEXTS)),
            country=rng.choice((None, "DE")), mcc=rng.choice((None, 0, 9999)), channel=rng.choice((None, *CHANNELS)),
            lat=(place := rng.choice((None, -90.0, 1.5))), lon=place, score=rng.choice(EXTREMES),
            outcome=rng.choice(("approve", "review", "decline")), reasons=tuple(rng.choices(TEXTS, k=rng.choice((0, 0, 1, 3)))),
        )
        for number in range(n)
    ]  # fmt: skip


def label(tx_lsn: int, value: str = "fraud") -> Entry:
    return LABEL, encode_label(LabelRecord("e", value, 1, 1, b"\x80", tx_lsn)), b""


async def rows(pool: PostgresPool) -> list[tuple[Any, ...]]:
    async with pool.connection(10_000) as connection:
        return list(map(tuple, await connection.fetch("SELECT * FROM weir_ledger ORDER BY lsn")))


def feed_of(pool: PostgresPool, journal: Journal, maker: ChunkMaker | None) -> LedgerFeed:
    return LedgerFeed(Ledger(pool), journal, 0, 10, maker)


@needs_core
async def test_ledger_feed_both_ways_give_the_same_rows(
    journal: Journal, pool: PostgresPool, postgres_url: str, rng: random.Random
) -> None:
    """Odd texts, all currencies, labels, lists, erasures, blanked ids, blocks of everything at once, many segments."""
    entries = odd_entries(rng, 3_000)
    erased = Transaction("gone", 1_750_000_000_000, 5, "EUR", blank("card é"), blank("m\N{PILE OF POO}"), device_id=blank("d"))
    entries += [(TX, encode_body(erased), entries[0][2])] * 3
    lsns: list[int] = []
    while entries:
        block, entries = entries[: (size := rng.choice((1, 3, 64, 256)))], entries[size:]
        first = journal.append(block)
        lsns += range(first, first + len(block))
        other = rng.choice(
            (None, label(rng.choice(lsns), rng.choice(("fraud", "legit"))), (LIST, b"x", b""), "erasure", "mixed")
        )
        if other == "erasure":
            journal.append([(ERASURE, encode_erasure(ErasureRecord("card", blank("c1"))), b"")])
        elif other == "mixed" and entries:
            first = journal.append([entries.pop(), label(rng.choice(lsns)), entries.pop() if entries else label(lsns[0])])
        elif isinstance(other, tuple):
            journal.append([other])
        if rng.random() < 0.1:
            journal.burn(3)
    assert len(journal.segments()) > 5
    other_pool = await _another(postgres_url)
    maker = ChunkMaker(rows_max=500)
    fast, reference = feed_of(pool, journal, maker), feed_of(other_pool, journal, None)
    await fast.ship()
    await reference.ship()
    found = await rows(pool)
    assert found == await rows(other_pool)
    assert len(found) > 3_000
    assert {row[-1] for row in found} == {None, 0, 1}
    assert [row[3:5] for row in found if row[1] == "gone"][-1] == ("", "")
    assert fast.position == reference.position == await Ledger(pool).read_position() == journal.last_lsn
    await other_pool.close()


async def _another(postgres_url: str) -> PostgresPool:
    connection = await asyncpg.connect(postgres_url)
    name = f"{await connection.fetchval('SELECT current_database()')}_other"
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    pool = PostgresPool(f"{postgres_url.split('/test_')[0]}/{name}?{postgres_url.partition('?')[2]}")
    await pool.open()
    return pool


@pytest.fixture(params=["core", "reference"])
def maker(request: pytest.FixtureRequest) -> Callable[[], ChunkMaker | None]:
    """Either way: `maker()`."""
    if request.param == "reference":
        return lambda: None
    if missing_core() is not None:
        pytest.skip(missing_core() or "")
    return lambda: ChunkMaker(rows_max=100)


Maker = Callable[[], ChunkMaker | None]


async def test_ledger_feed_follows_what_is_appended_and_trimmed(journal: Journal, pool: PostgresPool, maker: Maker) -> None:
    """Visit after visit, with segments trimmed as soon as the ledger has them."""
    feed = feed_of(pool, journal, maker())
    expected = []
    for number in range(40):
        first = journal.append([entry(i) for i in range(40 * number, 40 * number + 40)])
        expected += list(range(first, first + 40))
        if number % 3 == 0:
            await feed.ship()
            journal.trim(feed.position)
    await feed.stop(10)
    assert [row[0] for row in await rows(pool)] == expected
    assert journal.trimmed_lsn > 0
    assert feed.position == journal.last_lsn


async def test_ledger_feed_an_append_that_succeeded_unnoticed_adds_nothing_twice(
    journal: Journal, pool: PostgresPool, maker: Maker
) -> None:
    """Somebody with the same position was faster, by all of it or by a part that ends within our chunk."""
    ours, theirs = feed_of(pool, journal, maker()), feed_of(pool, journal, None)
    await ours.ship()
    for n_shipped in (30, 70):
        first = journal.append([entry(number) for number in range(30)])
        await ours.ship()
        await theirs.ship()
        journal.append([entry(number) for number in range(n_shipped)])
        await theirs.ship()
        journal.append([entry(number) for number in range(40)])
        await ours.ship()
        assert ours.position == journal.last_lsn
        assert first
    found = [row[0] for row in await rows(pool)]
    assert found == sorted(set(found))
    assert len(found) == 2 * (30 + 40) + 30 + 70


async def test_ledger_feed_from_a_position_within_a_block_adds_the_rest(
    journal: Journal, pool: PostgresPool, maker: Maker
) -> None:
    """A position that another program left where no block ends."""
    first = journal.append([entry(number) for number in range(50)])
    await Ledger(pool).append([], first + 19)
    await feed_of(pool, journal, maker()).ship()
    assert [row[0] for row in await rows(pool)] == list(range(first + 20, first + 50))


async def test_ledger_feed_restored_ledger_is_filled_again(journal: Journal, pool: PostgresPool, maker: Maker) -> None:
    """It went back while we ran: refused once, then everything above what it has is there again, erased ids too."""
    feed = feed_of(pool, journal, maker())
    first = journal.append([entry(number) for number in range(50)])
    await feed.ship()
    erased = encode_body(Transaction("e", 1_750_000_000_000, 1, "EUR", blank("c1"), "m"))
    journal.append([(TX, erased, entry(0)[2])])
    await feed.ship()
    before = await rows(pool)
    async with pool.connection(1_000) as connection:
        await connection.execute("DELETE FROM weir_ledger WHERE lsn > $1", first + 9)
        await connection.execute("UPDATE weir_positions SET lsn = $1 WHERE consumer = 'ledger'", first + 9)
    journal.append([entry(99)])
    with pytest.raises(TierUnavailable, match=f"went back to LSN {first + 9}"):
        await feed.ship()
    feed.start()
    while feed.position < journal.last_lsn or feed.state != "on":  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(0.01)
    await feed.stop(10)
    found = await rows(pool)
    assert found[:-1] == before
    assert found[50][3:5] == ("", "m")


async def test_ledger_feed_damaged_journal_ships_what_is_before_it_and_raises(
    journal: Journal, pool: PostgresPool, maker: Maker
) -> None:
    """The words are the reference's, whoever met the damage."""
    first = journal.append([entry(number) for number in range(20)])
    journal.append([entry(number) for number in range(20, 40)])
    journal.append([entry(number) for number in range(40, 60)])
    path = journal.segments()[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    feed = feed_of(pool, journal, maker())
    with pytest.raises(JournalCorrupt, match=f"checksum of a block does not match; first missing LSN {first + 20}"):
        await feed.ship()
    assert {row[0] for row in await rows(pool)} <= set(range(first, first + 20))


async def test_ledger_feed_text_that_postgres_refuses_changes_nothing(
    journal: Journal, pool: PostgresPool, maker: Maker
) -> None:
    """A zero byte within an id, which no service writes: neither rows nor position, and it is said."""
    journal.append([entry(1), entry(2, card_id="a\x00b")])
    feed = feed_of(pool, journal, maker())
    with pytest.raises(TierUnavailable, match="0x00"):
        await feed.ship()
    assert (await rows(pool), await Ledger(pool).read_position()) == ([], 0)


async def test_ledger_feed_stopped_in_the_middle_ships_the_rest_once(
    journal: Journal, pool: PostgresPool, maker: Maker, rng: random.Random
) -> None:
    """However far a chunk had got when the feed was stopped."""
    for number in range(0, 6_000, 200):
        journal.append([entry(number + i) for i in range(200)])
    for _ in range(20):
        feed = feed_of(pool, journal, maker())
        feed.start()
        await asyncio.sleep(rng.random() * 0.05)
        await feed.stop(rng.choice((0.0, 0.01, 0.02)))
    await feed.stop(10)
    found = [row[1] for row in await rows(pool)]
    assert found == [f"e{number}" for number in range(6_000)]


@needs_core
async def test_ledger_feed_ships_nothing_above_the_durable_lsn(journal: Journal) -> None:
    """A chunk ends with the last block that lies below the bound as a whole."""
    lsns = [journal.append([entry(number), entry(number)]) for number in range(6)]
    maker = ChunkMaker()
    assert maker.make(journal.segments(), None, 0, lsns[3]).position == lsns[2] + 1
    chunk = maker.make(journal.segments(), None, lsns[0], lsns[3] + 1)
    assert (chunk.position, len(chunk.rows) > 0) == (lsns[3] + 1, True)
    nothing = maker.make(journal.segments(), chunk.place, chunk.position, lsns[4])
    assert (nothing.position, len(nothing.rows), nothing.labels, nothing.blocks) == (chunk.position, 0, {}, [])


@needs_core
async def test_ledger_feed_block_larger_than_the_core_has_room_for_goes_the_reference_way(
    journal: Journal, pool: PostgresPool
) -> None:
    """Neither lost nor in the way of what follows it."""
    expected: list[int] = []
    for size in (10, 300, 10, 2_500, 10):
        first = journal.append([entry(number) for number in range(size)])
        expected += range(first, first + size)
    await feed_of(pool, journal, ChunkMaker(rows_max=50, bytes_max=1 << 15)).ship()
    assert [row[0] for row in await rows(pool)] == expected


@needs_core
async def test_ledger_feed_core_that_fails_leaves_it_to_the_reference(journal: Journal, pool: PostgresPool) -> None:
    """A panic in the core costs speed, no row."""
    maker = ChunkMaker()
    maker._rows._core.ledger_rows = lambda job: maker._rows._core.panic()  # type: ignore[method-assign]  # a real panic
    first = journal.append([entry(number) for number in range(5)])
    feed = feed_of(pool, journal, maker)
    try:
        await feed.ship()
    finally:
        del maker._rows._core.ledger_rows
    assert [row[0] for row in await rows(pool)] == list(range(first, first + 5))


async def test_ledger_feed_server_falls_silent_within_a_chunk_and_gets_it_again(
    journal: Journal, pool: PostgresPool, maker: Maker, postgres_url: str, proxy_to: Callable[[str], Awaitable[Any]]
) -> None:
    """The deadline ends it; nothing of the chunk is there, and the next attempt adds it once."""
    n_rows = 6_000
    for number in range(0, n_rows, 200):
        journal.append([entry(number + i) for i in range(200)])
    url = urlsplit(postgres_url)
    proxy = await proxy_to(unquote(url.query.removeprefix("host=")) + "/.s.PGSQL.5432")
    far = PostgresPool(f"postgresql://weir@127.0.0.1:{proxy.port}{url.path}")
    await far.open()
    feed = feed_of(far, journal, maker())
    feed._ledger = Ledger(far, deadline_ms=1_000)
    await feed._meet()
    shipping = asyncio.create_task(feed.ship())
    await asyncio.sleep(0.005)
    proxy.freeze()
    with pytest.raises(TierUnavailable, match="no answer in 1000 ms"):
        await shipping
    proxy.thaw()
    found = [row[0] for row in await rows(pool)]
    assert await Ledger(pool).read_position() == (found[-1] if found else 0)
    feed._ledger = Ledger(far)
    await feed.ship()
    assert feed.position == journal.last_lsn
    assert [row[1] for row in await rows(pool)] == [f"e{number}" for number in range(n_rows)]
    await far.close()
