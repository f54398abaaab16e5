"""The ledger: rows, labels and position move together, once."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from service.errors import TierUnavailable
from service.ledger import Ledger, LedgerRow
from service.tiers.postgres import PostgresPool, PostgresTier

pytestmark = pytest.mark.postgres
EPOCH = 32767 << 48


def row(lsn: int, event_id: str = "") -> LedgerRow:
    """A row as the journal would give it."""
    return LedgerRow(
        lsn=lsn,
        event_id=event_id or f"t-{lsn}",
        ts=1_750_000_000_000,
        card_id="c1",
        merchant_id="mérchant \N{PILE OF POO}",
        amount=10**10,
        currency="EUR",
        score=0.123456789,
        outcome="review",
        model="cards-1",
        scorer="onnx",
        reasons=["L3_UNKNOWN", 'quote " and , comma'],
        tx=b'{"amount": 1\xff\x00}',
    )


@pytest.fixture
async def pool(postgres_url: str) -> AsyncIterator[PostgresPool]:
    opened = PostgresPool(postgres_url)
    await opened.open()
    yield opened
    await opened.close()


async def lsns(pool: PostgresPool) -> list[int]:
    async with pool.connection(1000) as connection:
        return [found[0] for found in await connection.fetch("SELECT lsn FROM weir_ledger ORDER BY lsn")]


async def test_ledger_append_stores_every_column_and_the_position(pool: PostgresPool) -> None:
    """A row comes back as it went in, byte for byte, with no label yet."""
    ledger = Ledger(pool)
    assert await ledger.read_position() == 0
    await ledger.append([row(EPOCH | 1)], EPOCH | 2)
    assert await ledger.read_position() == EPOCH | 2
    async with pool.connection(1000) as connection:
        found = await connection.fetchrow("SELECT * FROM weir_ledger")
    expected = row(EPOCH | 1)
    assert {**found} == {name: getattr(expected, name) for name in LedgerRow.__struct_fields__} | {"label": None}


async def test_ledger_repeated_and_overlapping_appends_add_nothing_twice(pool: PostgresPool) -> None:
    """A retry is a no-op, an overlap adds only what is new, an older position changes nothing."""
    ledger = Ledger(pool)
    first = [row(lsn) for lsn in range(1, 201)]
    await ledger.append(first, 200)
    await ledger.append(first, 200)
    await ledger.append(first[:50], 50)
    await ledger.append([row(lsn) for lsn in range(151, 251)], 260)
    assert await lsns(pool) == list(range(1, 251))
    assert await ledger.read_position() == 260


async def test_ledger_concurrent_appends_of_the_same_rows_add_them_once(pool: PostgresPool) -> None:
    """Two writers with the same rows wait for each other at the position."""
    ledger = Ledger(pool)
    rows = [row(lsn) for lsn in range(1, 101)]
    await asyncio.gather(*(ledger.append(rows, 100) for _ in range(4)))
    assert await lsns(pool) == list(range(1, 101))


async def test_ledger_append_that_fails_leaves_rows_and_position(pool: PostgresPool) -> None:
    """A row that Postgres refuses (a zero byte in text) takes the whole append back, and the next one works."""
    ledger = Ledger(pool)
    with pytest.raises(TierUnavailable):
        await ledger.append([row(1), row(2, "bad\x00id")], 2)
    assert (await lsns(pool), await ledger.read_position()) == ([], 0)
    await ledger.append([row(1)], 2)
    assert await lsns(pool) == [1]


async def test_ledger_labels_are_set_by_lsn(pool: PostgresPool) -> None:
    """Labels of the same append and later ones are stored; a changed mind too; unknown LSNs are ignored."""
    ledger = Ledger(pool)
    await ledger.append([row(1), row(2), row(3)], 4, labels={2: 1})
    await ledger.append([], 5, labels={3: 1, 999: 1})
    await ledger.append([], 6, labels={3: 0})
    async with pool.connection(1000) as connection:
        found = await connection.fetch("SELECT lsn, label FROM weir_ledger ORDER BY lsn")
    assert list(map(tuple, found)) == [(1, None), (2, 1), (3, 0)]
    assert await ledger.read_position() == 6


async def test_ledger_position_is_its_own(pool: PostgresPool) -> None:
    """Ledger and profile tier share the pool, not the position."""
    tier = PostgresTier(pool)
    await Ledger(pool).append([], 7)
    assert await tier.read_position() == 0


async def test_ledger_server_falls_silent_raises_within_deadline_and_retries(
    postgres_url: str, proxy_to: Callable[[str], Awaitable[Any]]
) -> None:
    """A server that stops answering, before or in the middle of an append, costs the deadline; the retry adds rows once."""
    url = urlsplit(postgres_url)
    proxy = await proxy_to(unquote(url.query.removeprefix("host=")) + "/.s.PGSQL.5432")
    pool = PostgresPool(f"postgresql://weir@127.0.0.1:{proxy.port}{url.path}")
    proxy.freeze()
    start = time.monotonic()
    with pytest.raises(TierUnavailable, match="no answer in 100 ms"):
        await pool.open(deadline_ms=100)
    proxy.thaw()
    await pool.open()
    ledger = Ledger(pool, deadline_ms=300)
    rows = [row(lsn) for lsn in range(1, 4000)]
    append = asyncio.create_task(ledger.append(rows, 4000))
    await asyncio.sleep(0.01)
    proxy.freeze()
    with pytest.raises(TierUnavailable, match="no answer in 300 ms"):
        await append
    assert time.monotonic() - start < 1
    proxy.thaw()
    await Ledger(pool).append(rows, 4000)
    assert await lsns(pool) == list(range(1, 4000))
    await pool.close()


async def test_ledger_before_open_raises_tier_unavailable(postgres_url: str) -> None:
    """An append through a pool that is not open raises, and read_position opens it."""
    pool = PostgresPool(postgres_url)
    ledger = Ledger(pool)
    with pytest.raises(TierUnavailable, match="not connected"):
        await ledger.append([row(1)], 1)
    assert await ledger.read_position() == 0
    await ledger.append([row(1)], 1)
    await pool.close()
