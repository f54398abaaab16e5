"""The Python service's tiers over stores that the Go tiers have written to: reads what is there, then writes itself.

Arguments: URL and namespace of a Redis, URL of a Postgres. Run by python_test.go, which checks what this leaves behind.
"""

import asyncio
import struct
import sys

from service.ledger import Ledger, LedgerRow
from service.tiers.base import Tier
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

N = 300  # profiles; more than one slice of a put
EPOCH = 1 << 48


def made(lsn: int, mark: int) -> bytes:
    """As tierstest.Made."""
    return b"\x01" + bytes(15) + struct.pack("<Q", lsn) + bytes(103) + bytes([mark])


async def check(tier: Tier) -> None:
    """Everything that the Go side put is there; then odd keys get newer bytes, even ones older bytes that must not win."""
    assert await tier.read_position() == EPOCH | N, tier.name
    keys = [f"card:ü{i}".encode() for i in range(N)]
    found = await tier.fill([*keys, b"card:nowhere"])
    assert found == [*[made(EPOCH | i + 1, i % 100) for i in range(N)], None], tier.name
    newer = {key: made(2 * EPOCH | i, 100 + i % 100) if i % 2 else made(EPOCH | i, 255) for i, key in enumerate(keys)}
    await tier.put(newer, 2 * EPOCH | 7)
    await tier.put({}, EPOCH)  # a lower position


async def check_ledger(pool: PostgresPool) -> None:
    """The rows of the Go side are there; then one more."""
    ledger = Ledger(pool)
    assert await ledger.read_position() == EPOCH | 3
    async with pool.connection(1_000) as connection:
        rows = [tuple(row) for row in await connection.fetch("SELECT * FROM weir_ledger ORDER BY lsn")]
    go = (EPOCH | 1, "t-1", 1_750_000_000_000, "c1", "mü", 1299, "EUR", 0.25, "review", "m", "go", ["R1", "R2"], b"\x81\x00")
    assert rows == [(*go, 1), (EPOCH | 2, "t-2", *go[2:11], [], b"", None)], rows
    row = LedgerRow(EPOCH | 4, "t-4", 1, "c", "m", 1, "EUR", 0.5, "approve", "m", "onnx", [], b"x")
    await ledger.append([row], EPOCH | 4, {EPOCH | 2: 0})


async def main() -> None:
    redis = RedisTier(sys.argv[1], 2_000, namespace=sys.argv[2])
    await check(redis)
    await redis.close()
    pool = PostgresPool(sys.argv[3])
    await check(PostgresTier(pool, 2_000))
    await check_ledger(pool)
    await pool.close()


asyncio.run(main())
