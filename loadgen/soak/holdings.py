"""What Redis and Postgres hold in the end: profiles by key, and the ledger. Read when nobody writes any more."""

from typing import Any

import asyncpg
import msgspec
import redis.asyncio

REDIS_PREFIX = b"weir:p:"  # the default namespace
ROWS_AT_ONCE = 2_000


class LedgerRow(msgspec.Struct, frozen=True, gc=False):
    """A decision as the ledger has it; label 1 is fraud, 0 legit."""

    lsn: int
    event_id: str
    amount: int
    score: float
    outcome: str
    label: int | None


async def redis_profiles(url: str) -> dict[bytes, bytes]:
    """Every profile by entity key ("card:c1")."""
    opened: Any = redis.asyncio.Redis.from_url(url)  # the stubs say that every reply may also be text
    found: dict[bytes, bytes] = {}
    async with opened as client:
        keys = [key async for key in client.scan_iter(match=REDIS_PREFIX + b"*", count=1000)]
        for start in range(0, len(keys), ROWS_AT_ONCE):
            part = keys[start : start + ROWS_AT_ONCE]
            values = await client.mget(part)
            found |= {k.removeprefix(REDIS_PREFIX): v for k, v in zip(part, values, strict=True) if v is not None}
    return {key: value for key, value in found.items() if b":" in key}  # others are claims of LSNs


async def postgres_profiles(url: str) -> dict[bytes, bytes]:
    """The same."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT key, profile FROM weir_profiles WHERE profile <> ''")
        return {bytes(row["key"]): bytes(row["profile"]) for row in rows if b":" in bytes(row["key"])}
    finally:
        await connection.close()


async def ledger_rows(url: str) -> list[LedgerRow]:
    """All of them, by LSN."""
    connection = await asyncpg.connect(url)
    try:
        columns = ", ".join(LedgerRow.__struct_fields__)
        rows = await connection.fetch(f"SELECT {columns} FROM weir_ledger ORDER BY lsn")
        return [LedgerRow(*row) for row in rows]
    finally:
        await connection.close()
