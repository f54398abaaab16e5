"""One stream, many ways through the service: the same scores, the same bytes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from features.transaction import Transaction
from service.tiers.l2 import L2, RocksStore

if TYPE_CHECKING:
    from tests.e2e.conftest import Client, MakeWeir, Truth, Weir

MakeClient = Callable[["Weir"], "Client"]
N_EVENTS = 2_000

pytestmark = pytest.mark.e2e


async def replay(weir: "Weir", client: "Client", txs: list[Transaction], batch: int) -> dict[str, float]:
    """Scores of the stream sent by one client, the service started from empty and stopped afterwards."""
    await weir.start()
    await client.send(txs, batch)
    await asyncio.to_thread(weir.stop)
    assert len(client.acknowledged) == len(txs)
    return {event_id: reply["score"] for event_id, reply in client.acknowledged.items()}


async def stored(weir: "Weir", keys: list[bytes]) -> list[bytes | None]:
    store = RocksStore(weir.directory / "l2")
    try:
        return await L2(store).fill(keys)
    finally:
        store.close()


async def test_same_stream_by_one_client_gives_same_scores_and_bytes(
    make_weir: "MakeWeir", make_client: MakeClient, truth_of: Callable[[Path], "Truth"], stream: list[Transaction]
) -> None:
    """Twice from empty; in batches of 1, 7 and 256; with L1 at 1 % of the entities' bytes and off: nothing differs."""
    txs = stream[:N_EVENTS]
    ways = {
        "256": (256, ()),
        "256 again": (256, ()),
        "7": (7, ()),
        "1": (1, ()),
        "small l1": (50, ("l1.bytes_max=65536",)),
        "no l1": (50, ("l1.enabled=false", "bloom.enabled=false")),
    }
    weirs = {name: make_weir("queue.batch_max=256", *more, name=name.replace(" ", "-")) for name, (_, more) in ways.items()}
    scores: dict[str, dict[str, float]] = {}
    for pair in (("256", "7"), ("256 again", "1"), ("small l1", "no l1")):  # two at a time: there are two cores
        found = await asyncio.gather(*(replay(weirs[n], make_client(weirs[n]), txs, ways[n][0]) for n in pair))
        scores |= dict(zip(pair, found, strict=True))
    truth = truth_of(weirs["256"].directory)
    keys = list(truth.profiles)
    for name in ways:
        different = [event_id for event_id, score in scores[name].items() if score != truth.scores[event_id]]
        assert not different, f"{name}: {len(different)} scores differ"
        assert await stored(weirs[name], keys) == list(truth.profiles.values()), name
    print(f"{len(ways)} ways, {len(txs)} events, {len(keys)} profiles, {sum(map(len, truth.profiles.values()))} bytes")  # noqa: T201  # shown by -rP


async def test_eight_clients_leave_what_their_journal_says(
    make_weir: "MakeWeir", make_client: MakeClient, truth_of: Callable[[Path], "Truth"], stream: list[Transaction]
) -> None:
    """Eight clients at once, their cards mixed: a fresh engine fed the journal in LSN order has the same bytes and scores."""
    weir = make_weir("l1.bytes_max=65536")
    await weir.start()
    clients = [make_client(weir) for _ in range(8)]
    await asyncio.gather(*(client.send(stream[n :: len(clients)], 1 + 4 * n) for n, client in enumerate(clients)))
    await asyncio.to_thread(weir.stop)
    truth = truth_of(weir.directory)
    acknowledged = {event_id: reply for client in clients for event_id, reply in client.acknowledged.items()}
    assert {e: r["score"] for e, r in acknowledged.items()} == truth.scores
    assert {e: r["lsn"] for e, r in acknowledged.items()} == truth.lsns
    assert len(truth.lsns) == len(stream)
    assert await stored(weir, list(truth.profiles)) == list(truth.profiles.values())
    print(f"8 clients, {len(truth.lsns)} events, {len(truth.profiles)} profiles")  # noqa: T201  # shown by -rP
