"""What the postgres tier promises beyond the suite of all tiers: its schema, its pool, other servers, iteration."""

import asyncio
from collections.abc import Callable

import asyncpg
import pytest

from service.errors import TierUnavailable
from service.tiers import postgres
from service.tiers.base import CLAIM_KEY
from service.tiers.postgres import MIGRATIONS, PostgresPool, PostgresTier

pytestmark = pytest.mark.postgres
MakeProfile = Callable[..., bytes]


async def test_postgres_schema_is_created_once_by_many_openers(postgres_url: str) -> None:
    """Services that open an empty database at once agree on one schema; opening again changes nothing."""
    pools = [PostgresPool(postgres_url) for _ in range(4)]
    await asyncio.gather(*(pool.open() for pool in pools))
    await pools[0].open()
    async with pools[0].connection(1000) as connection:
        assert await connection.fetch("SELECT version FROM weir_schema") == [(len(MIGRATIONS),)]
        assert sorted(map(tuple, await connection.fetch("SELECT * FROM weir_positions"))) == [
            ("ledger", 0),
            ("postgres", 0),
        ]
    await asyncio.gather(*(pool.close() for pool in pools))


async def test_postgres_newer_schema_is_refused(postgres_url: str) -> None:
    """A database of a later Weir is left alone, and the error says which versions meet."""
    pool = PostgresPool(postgres_url)
    await pool.open()
    async with pool.connection(1000) as connection:
        await connection.execute("UPDATE weir_schema SET version = 99")
    await pool.close()
    with pytest.raises(TierUnavailable, match=f"version 99, this Weir knows {len(MIGRATIONS)}"):
        await pool.open()


async def test_postgres_connection_beyond_the_pool_waits_until_its_deadline(postgres_url: str) -> None:
    """With all connections taken, the next call gets one within its deadline or TierUnavailable."""
    pool = PostgresPool(postgres_url, size_max=1)
    await pool.open()
    async with pool.connection(1000):
        with pytest.raises(TierUnavailable, match="no answer in 50 ms"):
            async with pool.connection(50):
                pass
    async with pool.connection(50) as connection:
        assert await connection.fetchval("SELECT 1") == 1
    await pool.close()


async def test_postgres_other_server_is_noticed_until_position_is_read(
    postgres_url: str, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that meets another server than before makes fill and put refuse until read_position."""
    pool = PostgresPool(postgres_url)
    tier = PostgresTier(pool, deadline_ms=10_000)
    await tier.read_position()
    await tier.put({b"card:a": make_profile(1)}, 1)
    # As after a restart: the connections are gone and the start time is another one.
    monkeypatch.setattr(postgres, "_INCARNATION", "SELECT 'another start time'")
    admin = await asyncpg.connect(postgres_url)
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'weir'")
    await admin.close()
    for _ in range(3):  # the first may still meet the dead connection, the others the new server
        with pytest.raises(TierUnavailable):
            await tier.fill([b"card:a"])
    with pytest.raises(TierUnavailable, match="restarted or replaced"):
        await tier.put({b"card:a": make_profile(2)}, 2)
    assert await tier.read_position() == 1
    assert await tier.fill([b"card:a"]) == [make_profile(1)]
    await pool.close()


async def test_postgres_put_that_fails_leaves_nothing(postgres_url: str, make_profile: MakeProfile) -> None:
    """A statement that fails in the store changes neither profiles nor position."""
    pool = PostgresPool(postgres_url)
    tier = PostgresTier(pool, deadline_ms=10_000)
    await tier.read_position()
    async with pool.connection(1000) as connection:
        await connection.execute("ALTER TABLE weir_positions ADD CHECK (lsn < 10)")
    with pytest.raises(TierUnavailable):
        await tier.put({b"card:a": make_profile(1)}, 11)
    assert await tier.fill([b"card:a"]) == [None]
    assert await tier.read_position() == 0
    await pool.close()


async def test_postgres_keys_chunks_give_every_key_once(
    postgres_url: str, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All entities' keys in byte order, over several pages, the last of them full; the record of a claim is none of them."""
    monkeypatch.setattr(postgres, "CHUNK_KEYS", 100)
    pool = PostgresPool(postgres_url)
    tier = PostgresTier(pool, deadline_ms=10_000)
    await tier.read_position()
    assert [chunk async for chunk in tier.keys_chunks()] == []
    keys = {b"card:" + bytes([i // 256, i % 256, 0]) for i in range(300)}
    await tier.put(dict.fromkeys(keys | {CLAIM_KEY}, make_profile(1)), 0)
    chunks = [chunk async for chunk in tier.keys_chunks()]
    assert [len(chunk) for chunk in chunks] == [100, 100, 100]
    assert [key for chunk in chunks for key in chunk] == sorted(keys)
    await pool.close()
