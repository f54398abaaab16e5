"""SIGKILL at random instants under load, in each journal.sync mode: nothing that was acknowledged is lost or counted twice."""

import asyncio
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from features.transaction import Transaction
from service.decisions import decode_body
from service.journal import TX, read_directory
from service.journal_segments import read_mark

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir, Truth, Weir
    from tests.e2e.proofs.conftest import Load, Stores

MakeLoad = Callable[..., "Load"]
TruthOf = Callable[..., "Truth"]

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.postgres]

LIFE_S = 0.5  # of the longest life under load
START_S = 1.0  # about what a start takes
SETTINGS = (
    "redis.deadline_ms=5000", "postgres.deadline_ms=5000", "write_behind.interval_ms=20", "l2.flush_interval_ms=100",
    "l1.bytes_max=300000", "journal.segment_bytes=262144",
)  # fmt: skip


async def start_and_kill(weir: "Weir", after_s: float) -> None:
    """Begin a start and kill it, wherever it is by then."""
    starting = asyncio.ensure_future(weir.start())
    await asyncio.sleep(after_s)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    weir.kill()


def journaled(directory: Path) -> dict[str, int]:
    """event_id -> LSN of what is in the journal of a process that was killed."""
    blocks = read_directory(directory / "journal")
    return {decode_body(e.body).event_id: e.lsn for block in blocks for e in block.entries if e.kind == TX}


@pytest.mark.parametrize("sync", ["group", "interval", "os"])
async def test_killed_at_random_instants_keeps_everything_acknowledged(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", stores_true: Any, cut_journal: Any,
    snapshot: Any, long_stream: list[Transaction], kills: int, rng: random.Random, sync: str,
) -> None:  # fmt: skip
    """A quarter of the kills falls into a start; every store and the ledger end with the journal's bytes and content."""
    weir = make_weir(*SETTINGS, *stores.settings, f"journal.sync={sync}")
    load = make_load(weir, long_stream, rng)
    n_in_start = most_past_mark = 0
    for number in range(kills):
        if number % 4 == 1:
            n_in_start += 1
            await start_and_kill(weir, rng.uniform(0.2, 1.2) * START_S)
            continue
        await weir.start()
        running = asyncio.ensure_future(load.run())
        await asyncio.sleep(rng.uniform(0.02, LIFE_S))
        weir.kill()
        await running
        lsns = journaled(weir.directory)
        assert {e: lsns.get(e) for e in load.first} == {e: reply["lsn"] for e, reply in load.first.items()}
        durable_lsn = read_mark(weir.directory / "journal" / "durable")
        assert durable_lsn is not None
        (await snapshot(*stores.urls)).assert_durable(durable_lsn)
        past_mark = [e for e, reply in load.first.items() if reply["lsn"] > durable_lsn]
        most_past_mark = max(most_past_mark, len(past_mark))
        assert sync != "group" or not past_mark, f"a power failure would lose {past_mark[:3]}"
    lost_power = ""
    if sync == "group" and load.first:
        lost_power = await assert_kept_without_power(make_weir, weir, load, truth_of, cut_journal, rng)
    await weir.start()
    await load.run_out()
    await asyncio.to_thread(weir.stop)
    truth = truth_of(weir.directory)
    load.assert_kept(truth)
    assert truth.lsns.keys() == {tx.event_id for tx in long_stream}
    assert not any(reply["degraded"] for reply in load.first.values())
    counts = await stores_true(truth, stores, weir.directory)
    print(  # noqa: T201  # shown by -s
        f"sync={sync}: {kills} kills, {n_in_start} of them in a start; {load}; {len(truth.lsns)} journaled;"
        f" at most {most_past_mark} acknowledged past the mark at a kill; {counts}{lost_power}"
    )


async def assert_kept_without_power(
    make_weir: "MakeWeir", weir: "Weir", load: "Load", truth_of: TruthOf, cut_journal: Any, rng: random.Random
) -> str:
    """What `group` has acknowledged is still there when the power fails too: no page that was not fsynced survives."""
    after = make_weir(*SETTINGS, "journal.sync=group", name="without-power")
    shutil.copytree(weir.directory, after.directory)
    _, n_gone = cut_journal(after.directory / "journal", rng.randrange(200))
    after.key = weir.key
    await after.start()
    n_again = 0
    async with after.client() as session:
        for event_id, reply in load.first.items():
            async with session.get(f"/v1/decisions/{event_id}") as response:
                kept = await response.json()
            assert (kept.get("lsn"), kept.get("score")) == (reply["lsn"], reply["score"]), kept
            n_again += 1
    await asyncio.to_thread(after.stop)
    truth_of(after.directory)  # readable from end to end, nothing twice
    return f"; power lost: {n_gone} entries cut, {n_again} acknowledged still there"
