"""Redis or Postgres is emptied or put back to an earlier state under load: noticed, caught up, whole again."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from features.transaction import Transaction

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir, Truth, Weir
    from tests.e2e.proofs.conftest import Load, Stores

MakeLoad = Callable[..., "Load"]
TruthOf = Callable[..., "Truth"]
Restore = Callable[[], Awaitable[None]]

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.postgres]

more = pytest.mark.skipif(not os.environ.get("KILLS"), reason="only in make proof")
SETTINGS = ("redis.deadline_ms=5000", "postgres.deadline_ms=5000", "write_behind.interval_ms=20", "l1.bytes_max=300000")
DUMP = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('DUMP', key)
end
return found
"""
TABLES = ("weir_profiles", "weir_positions", "weir_ledger")


async def nothing(stores: "Stores") -> Restore:
    """Redis is emptied."""

    async def empty() -> None:
        async with stores.redis() as client:
            await client.flushall()

    return empty


async def dump(stores: "Stores") -> Restore:
    """Every key of Redis with DUMP, of one moment as in a snapshot of its own; put back with RESTORE."""
    async with stores.redis() as client:
        flat = await client.eval(DUMP, 0)
    dumped = dict(zip(flat[::2], flat[1::2], strict=True))

    async def put_back() -> None:
        async with stores.redis() as client, client.pipeline(transaction=True) as pipeline:
            pipeline.flushall()
            for key, value in dumped.items():
                pipeline.restore(key, 0, value)
            await pipeline.execute()

    return put_back


async def copy_tables(stores: "Stores") -> Restore:
    """Our tables copied as a dump would (one snapshot), their content put back in one transaction."""
    connection = await asyncpg.connect(stores.postgres_url)
    async with connection.transaction(isolation="repeatable_read"):
        for table in TABLES:
            await connection.execute(f"CREATE TABLE backup_{table} AS SELECT * FROM {table}")
    await connection.close()

    async def put_back() -> None:
        connection = await asyncpg.connect(stores.postgres_url)
        async with connection.transaction():
            await connection.execute(f"TRUNCATE {', '.join(TABLES)}")
            for table in TABLES:
                await connection.execute(f"INSERT INTO {table} SELECT * FROM backup_{table}")
        await connection.close()

    return put_back


@pytest.mark.parametrize("l2", ["false", pytest.param("true", marks=more)])
@pytest.mark.parametrize(
    "back_up",
    [
        nothing,
        dump,
        copy_tables,
    ],
)
async def test_store_put_back_under_load_is_whole_at_the_end(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", stores_true: Any, settled: Any,
    long_stream: list[Transaction], rng: random.Random, back_up: Callable[["Stores"], Awaitable[Restore]], l2: str,
) -> None:  # fmt: skip
    """Twice, at random instants: at the end it has the journal's bytes, and no row of the ledger is missing."""
    weir: Weir = make_weir(*SETTINGS, *stores.settings, f"l2.enabled={l2}")
    await weir.start()
    txs = long_stream[:2400]
    load = make_load(weir, txs, rng)
    running = asyncio.ensure_future(load.run())
    await load.reach(rng.randrange(200, 600), running)
    put_back = await back_up(stores)
    for begin in (700, 1400):
        await load.reach(rng.randrange(begin, begin + 500), running)
        await put_back()
    await running
    await settled(weir)
    await load.run_out()
    await asyncio.to_thread(weir.stop)
    truth = truth_of(weir.directory)
    load.assert_kept(truth)
    n_degraded = sum(bool(reply["degraded"]) for reply in load.first.values())
    directory = weir.directory if l2 == "true" else None
    print(  # noqa: T201  # shown by -s
        f"{back_up.__name__}, l2={l2}: {load}; {n_degraded} degraded, {len(truth.lsns)} journaled;"
        f" {await stores_true(truth, stores, directory)}"
    )


@pytest.mark.parametrize("back_up", [nothing, dump, copy_tables])
async def test_store_put_back_while_the_service_is_down_is_whole_at_the_end(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", stores_true: Any, settled: Any,
    long_stream: list[Transaction], rng: random.Random, back_up: Callable[["Stores"], Awaitable[Restore]],
) -> None:  # fmt: skip
    """As an operator would do it: the service killed, the store put back, the service started."""
    weir: Weir = make_weir(*SETTINGS, *stores.settings)
    await weir.start()
    load = make_load(weir, long_stream[:1500], rng)
    running = asyncio.ensure_future(load.run())
    await load.reach(rng.randrange(100, 500), running)
    put_back = await back_up(stores)
    await load.reach(rng.randrange(700, 1100), running)
    weir.kill()
    await running
    assert load.n_left
    await put_back()
    await weir.start()
    await load.run_out()
    await settled(weir)
    await asyncio.to_thread(weir.stop)
    truth = truth_of(weir.directory)
    load.assert_kept(truth)
    assert not any(reply["degraded"] for reply in load.first.values())
    counts = await stores_true(truth, stores, weir.directory)
    print(f"{back_up.__name__} while down: {load}; {len(truth.lsns)} journaled; {counts}")  # noqa: T201  # shown by -s
