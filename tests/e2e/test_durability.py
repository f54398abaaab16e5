"""SIGKILL under load: what was acknowledged is there, nothing is counted twice, every store ends with the journal's bytes."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from features.transaction import Transaction
from service.tiers.base import lsn_of
from service.tiers.l2 import L2, RocksStore
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

if TYPE_CHECKING:
    from tests.e2e.conftest import Client, MakeWeir, Truth, Weir

MakeClient = Callable[["Weir"], "Client"]

pytestmark = pytest.mark.e2e


async def assert_acknowledged_is_kept(weir: "Weir", clients: list["Client"], truth: "Truth") -> int:
    """Each acknowledged decision is in the journal, is what a fresh engine gives, and is what the service still says."""
    acknowledged = {event_id: reply for client in clients for event_id, reply in client.acknowledged.items()}
    for event_id, reply in acknowledged.items():
        assert truth.lsns[event_id] == reply["lsn"]
        if not reply["degraded"]:
            assert truth.scores[event_id] == reply["score"]
    async with weir.client() as session:
        for event_id in random.Random(1).sample(sorted(acknowledged), min(len(acknowledged), 300)):
            async with session.get(f"/v1/decisions/{event_id}") as response:
                stored = await response.json()
            assert response.status == 200, stored
            assert (stored["lsn"], stored["score"]) == (acknowledged[event_id]["lsn"], acknowledged[event_id]["score"])
        for key in random.Random(2).sample(sorted(truth.profiles), 100):
            kind, _, entity = key.decode().partition(":")
            async with session.get(f"/v1/entities/{kind}/{entity}") as response:
                shown = await response.json()
            assert shown["lsn"] == lsn_of(truth.profiles[key]), key
    return len(acknowledged)


@pytest.mark.parametrize("batch", [16])  # one by one, and much else: proofs/test_kills.py
async def test_kill_under_load_loses_nothing_and_counts_nothing_twice(
    make_weir: "MakeWeir", make_client: MakeClient, truth_of: Callable[[Path], "Truth"],
    by_client: list[list[Transaction]], rng: random.Random, redis_url: str, postgres_url: str, batch: int,
) -> None:  # fmt: skip
    """Four clients, killed three times at random instants, the second time during recovery; labels too."""
    weir = make_weir(
        f"redis.url={redis_url}", f"postgres.url={postgres_url}", "redis.deadline_ms=1000", "postgres.deadline_ms=1000",
        "l1.bytes_max=200000", "journal.sync=interval", "write_behind.interval_ms=20", "l2.flush_interval_ms=100",
    )  # fmt: skip
    parts = [part[: 500 if batch else 250] for part in by_client]
    clients = [make_client(weir) for _ in parts]
    n_labels = n_resent = 0
    for life in range(3):
        await weir.start()
        if life == 1:  # a start that is killed before it is ready, or just after
            weir.kill()
            await start_and_kill_early(weir, rng)
            await weir.start()
        todo = [[tx for tx in part if tx.event_id not in c.acknowledged] for part, c in zip(parts, clients, strict=True)]
        n_resent += sum(map(len, todo)) * bool(life)
        load = asyncio.gather(*(client.send(part, batch) for client, part in zip(clients, todo, strict=True)))
        before, goal = n_acknowledged(clients), rng.uniform(0.05, 0.3) * sum(map(len, parts))
        while n_acknowledged(clients) < before + goal and not load.done():  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.001)
        done = list(clients[0].acknowledged)[life * 20 :][:20]
        n_labels += await clients[0].label(done)
        weir.kill()
        await load
        truth = truth_of(weir.directory)
        assert set(done) <= truth.labels.keys()
    await weir.start()
    assert n_resent > 0, "never killed under load"
    await assert_acknowledged_is_kept(weir, clients, truth_of(weir.directory))
    await asyncio.gather(*(client.send(part, batch) for client, part in zip(clients, parts, strict=True)))
    truth = truth_of(weir.directory)
    n_kept = await assert_acknowledged_is_kept(weir, clients, truth)
    assert truth.lsns.keys() == {tx.event_id for part in parts for tx in part}
    weir.stop()
    store = RocksStore(weir.directory / "l2")
    pool = PostgresPool(postgres_url)
    redis = RedisTier(redis_url)
    try:
        for tier in (L2(store), redis, PostgresTier(pool, 1000)):
            await truth.assert_in_store(tier)
    finally:
        store.close()
        await redis.close()
        await pool.close()
    await truth.assert_in_ledger(postgres_url)
    print(  # noqa: T201  # shown by -rP
        f"batch={batch}: {n_kept} acknowledged, {len(truth.lsns)} journaled, {n_labels} labels, {n_resent} sent again,"
        f" {sum(c.n_replayed for c in clients)} replayed, {len(truth.profiles)} profiles in 3 stores, {weir.lives} lives"
    )


def n_acknowledged(clients: list["Client"]) -> int:
    return sum(len(client.acknowledged) for client in clients)


async def start_and_kill_early(weir: "Weir", rng: random.Random) -> None:
    """Start, and kill at a random instant of the start."""
    starting = asyncio.ensure_future(weir.start())
    await asyncio.sleep(rng.uniform(0.2, 1.0))
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    weir.kill()


async def test_repeated_and_changed_events_after_a_kill(
    make_weir: "MakeWeir", make_client: MakeClient, truth_of: Callable[[Path], "Truth"], stream: list[Transaction]
) -> None:
    """After a kill the same body is replayed with the same score, another body gets 409, and nothing is counted again."""
    weir = make_weir()
    await weir.start()
    client = make_client(weir)
    await client.send(stream[:300], 50)
    first: dict[str, Any] = dict(client.acknowledged)
    weir.kill()
    await weir.start()
    await client.send(stream[:300], 50)
    assert client.n_replayed == 300
    assert {e: r["score"] for e, r in client.acknowledged.items()} == {e: r["score"] for e, r in first.items()}
    async with weir.client() as session:
        for tx in stream[:20]:
            other = msgspec.structs.replace(tx, amount=tx.amount + 1)
            async with session.post("/v1/score", data=msgspec.json.encode(other)) as response:
                assert response.status == 409
    assert len(truth_of(weir.directory).lsns) == 300
    weir.stop()


async def test_stop_answers_everything_and_leaves_nothing_to_replay(
    make_weir: "MakeWeir", make_client: MakeClient, truth_of: Callable[[Path], "Truth"], stream: list[Transaction]
) -> None:
    """SIGTERM under load: exit code 0, whatever was journaled is in L2 with the journal's bytes."""
    weir = make_weir("l1.bytes_max=200000", "write_behind.interval_ms=5")
    await weir.start()
    client = make_client(weir)
    load = asyncio.ensure_future(client.send(stream, 64))
    await asyncio.sleep(0.4)
    await asyncio.to_thread(weir.stop)
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    truth = truth_of(weir.directory)
    assert client.acknowledged.keys() <= truth.lsns.keys()
    store = RocksStore(weir.directory / "l2")
    try:
        await truth.assert_in_store(L2(store))
    finally:
        store.close()
    print(f"{len(client.acknowledged)} acknowledged, {len(truth.lsns)} journaled, {len(truth.profiles)} profiles in l2")  # noqa: T201  # shown by -rP
