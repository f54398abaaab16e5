"""A damaged journal seen from outside: what a start drops, what it refuses, and what a catch-up says of an old segment."""

import asyncio
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from features.transaction import Transaction
from service.journal import read_directory
from service.journal_segments import list_segments, read_mark
from service.tiers.l2 import L2, RocksStore
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

if TYPE_CHECKING:
    from tests.e2e.conftest import Client, MakeWeir, Truth, Weir

MakeClient = Callable[["Weir"], "Client"]
TruthOf = Callable[[Path], "Truth"]

pytestmark = pytest.mark.e2e

LAZY = ("journal.sync=os", "write_behind.interval_ms=60000", "l2.flush_interval_ms=600000")  # nothing becomes durable
SMALL_SEGMENTS = "journal.segment_bytes=65536"
PATIENCE_S = 20.0


def newest(directory: Path) -> Path:
    return max((directory / "journal").glob("*.seg"))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x55]))


def blocks_of(directory: Path) -> list[tuple[int, int]]:
    """(first LSN, last LSN) of every block."""
    return [(block.first_lsn, block.last_lsn) for block in read_directory(directory / "journal")]


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "journal").iterdir()}


def records(weir: "Weir", event: str) -> list[dict[str, Any]]:
    """What the last life logged under `event`."""
    log = weir.directory.with_name(f"{weir.directory.name}-{weir.lives}.err").read_text()
    found = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [record for record in found if record["event"] == event]


def serve(weir: "Weir", *options: str) -> tuple[int, list[str]]:
    """A start that ends by itself: its exit code, and the lines on standard error that are not of the log."""
    done = subprocess.run([*weir.command, *options], capture_output=True, text=True, timeout=60, check=False)
    assert "weir ready" not in done.stdout
    return done.returncode, [line for line in done.stderr.splitlines() if not line.startswith("{")]


async def load(weir: "Weir", make_client: MakeClient, txs: Sequence[Transaction]) -> "Client":
    client = make_client(weir)
    await client.send(txs, 10)
    assert len(client.acknowledged) == len(txs)
    return client


@pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage"])
async def test_damaged_tail_is_dropped_named_and_the_rest_is_the_truth(
    make_weir: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction], damage: str,
    rng: random.Random,
) -> None:  # fmt: skip
    """Past the durable LSN a crash may leave anything: it starts, says how many bytes went and after which LSN, and goes on."""
    weir = make_weir()
    await weir.start()
    await load(weir, make_client, stream[:500])
    weir.stop()
    whole = blocks_of(weir.directory)
    weir.overrides += LAZY
    await weir.start()
    client = await load(weir, make_client, stream[500:800])
    weir.kill()
    durable = read_mark(weir.directory / "journal" / "durable") or 0
    assert durable == whole[-1][1], "the tail is durable: nothing may be dropped"
    tail = newest(weir.directory)
    size = tail.stat().st_size
    offset = rng.randrange(24, size)
    if damage == "truncated":
        with tail.open("r+b") as file:
            file.truncate(offset)
    elif damage == "flipped":
        flip(tail, offset)
    else:
        with tail.open("ab") as file:
            file.write(rng.randbytes(100))
    damaged_bytes = tail.stat().st_size
    await weir.start()
    (cut,) = records(weir, "journal was cut")
    kept = tail.stat().st_size if tail.exists() else 0
    assert cut["bytes"] == damaged_bytes - kept
    last_lsn = blocks_of(weir.directory)[-1][1]
    assert f"LSN {last_lsn}" in cut["reason"], cut
    lost = [event_id for event_id, reply in client.acknowledged.items() if reply["lsn"] > last_lsn]
    assert bool(lost) == (damage != "garbage")
    await client.send(stream[500:], 10)  # what was lost is a new event, what was kept is replayed
    weir.stop()
    truth = truth_of(weir.directory)
    assert truth.lsns.keys() == {tx.event_id for tx in stream}
    store = RocksStore(weir.directory / "l2")
    try:
        await truth.assert_in_store(L2(store))
    finally:
        store.close()
    print(f"{damage} at byte {offset} of {size}: {cut['bytes']} bytes, {len(lost)} events dropped")  # noqa: T201  # shown by -rP


async def test_damage_below_the_durable_lsn_refuses_the_start_until_the_loss_is_accepted(
    make_weir: "MakeWeir", make_client: MakeClient, stream: list[Transaction], rng: random.Random
) -> None:
    """One line that names LSN, file and byte, exit code 1, nothing changed; with --accept-loss it starts and says the loss."""
    weir = make_weir()
    await weir.start()
    await load(weir, make_client, stream[:300])
    weir.kill()
    blocks = blocks_of(weir.directory)
    segment = newest(weir.directory)
    # Not everything was durable when it was killed: after this stop it is.
    await weir.start()
    weir.stop()
    number = rng.randrange(1, len(blocks))
    with segment.open("rb") as file:
        offset = file.read().find(blocks[number][0].to_bytes(8, "little")) - 8
    (weir.directory / "journal" / "durable").write_bytes(mark_of(weir.directory, blocks[-1][1]))
    newer = [path for path in (weir.directory / "journal").glob("*.seg") if path > segment]
    assert not newer, "the last start wrote a segment of its own"
    flip(segment, offset + rng.randrange(4, 40))
    before = files_of(weir.directory)
    code, errors = serve(weir)
    assert code == 1
    assert len(errors) == 1, errors
    assert errors[0].startswith("weir: ")
    for part in (f"LSN {blocks[number][0]}", str(segment), f"byte {offset}", "--accept-loss"):
        assert part in errors[0], (part, errors)
    assert files_of(weir.directory) == before
    shutil.copytree(weir.directory / "journal", weir.directory.with_name("copy"))
    program, weir.program = weir.program, (*weir.program, "--accept-loss")
    await weir.start()
    (cut,) = records(weir, "journal was cut")
    assert f"LSN {blocks[number][0]}" in cut["reason"], cut
    assert cut["bytes"] > 0
    assert (segment.with_name(segment.name + ".damaged")).read_bytes() == before[segment.name]
    kept = blocks_of(weir.directory)
    assert kept == [block for block in blocks if block != blocks[number]]
    await load(weir, make_client, stream[300:400])
    weir.stop()
    weir.program = program
    await weir.start()  # the loss was accepted once
    assert not records(weir, "journal was cut")
    weir.stop()


def mark_of(directory: Path, lsn: int) -> bytes:
    """The bytes of the durable mark; a clean stop has written it."""
    data = (directory / "journal" / "durable").read_bytes()
    assert int.from_bytes(data[4:12], "little") == lsn
    return data


async def test_accepted_loss_that_no_store_has_leaves_what_the_journal_still_holds(
    make_weir: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction], rng: random.Random
) -> None:
    """Where the journal alone had it, a lost block never happened: its events are unknown, all else is the rest's truth."""
    weir = make_weir("journal.sync=group", "l2.flush_interval_ms=600000")
    await weir.start()
    client = await load(weir, make_client, stream[:400])
    weir.kill()
    blocks = blocks_of(weir.directory)
    first_lsn, last_lsn = blocks[rng.randrange(1, len(blocks) - 1)]
    segment = newest(weir.directory)
    flip(segment, segment.read_bytes().find(first_lsn.to_bytes(8, "little")) + 30)
    code, errors = serve(weir)
    assert code == 1
    assert f"LSN {first_lsn}" in errors[0]
    weir.program = (*weir.program, "--accept-loss")
    await weir.start()
    assert f"LSN {first_lsn}" in records(weir, "journal was cut")[0]["reason"]
    lost = {event_id for event_id, reply in client.acknowledged.items() if first_lsn <= reply["lsn"] <= last_lsn}
    assert lost
    for event_id in client.acknowledged:
        assert weir.call("GET", f"/v1/decisions/{event_id}").status == (404 if event_id in lost else 200), event_id
    weir.stop()
    truth = truth_of(weir.directory)
    assert truth.lsns.keys() == client.acknowledged.keys() - lost
    store = RocksStore(weir.directory / "l2")
    try:
        await truth.assert_in_store(L2(store))
    finally:
        store.close()


async def test_damage_in_an_old_segment_is_told_by_a_catch_up_and_the_service_goes_on(
    make_weir: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction], redis_url: str,
    postgres_url: str,
) -> None:  # fmt: skip
    """Stores met later need a segment that recovery does not: named with LSN, file and byte, not skipped, not in the way."""
    weir = make_weir(SMALL_SEGMENTS, "write_behind.interval_ms=20", "l2.flush_interval_ms=100")
    await weir.start()
    await load(weir, make_client, stream[:1_000])
    weir.stop()
    profiles = truth_of(weir.directory).profiles
    segments = list_segments(weir.directory / "journal")
    assert len(segments) > 3
    blocks = [lsns for lsns in blocks_of(weir.directory) if segments[1].first_lsn <= lsns[0] < segments[2].first_lsn]
    bad = segments[1].path
    offset = bad.read_bytes().find(blocks[2][0].to_bytes(8, "little")) - 8
    flip(bad, offset + 30)
    weir.overrides += [f"redis.url={redis_url}", f"postgres.url={postgres_url}"]
    await weir.start()
    client = await load(weir, make_client, stream[1_000:1_100])
    named = (f"LSN {blocks[2][0]}", str(bad), f"byte {offset}")
    deadline = time.monotonic() + PATIENCE_S
    while len(records(weir, "the ledger cannot be fed from the journal")) < 1 or len(records(weir, "level unavailable")) < 2:
        assert time.monotonic() < deadline, weir.log()
        await asyncio.sleep(0.1)
    await asyncio.sleep(2.5)
    tiers = json.loads(weir.call("GET", "/v1/tiers").body)
    states = {tier["name"]: tier for tier in tiers["tiers"]}
    for name in ("redis", "postgres"):
        assert states[name]["state"] != "on", states[name]
        assert all(part in states[name]["reason"] for part in named), states[name]
    (ledger,) = [consumer for consumer in tiers["consumers"] if consumer["name"] == "ledger"]
    assert ledger["state"] == "down"
    told = records(weir, "level unavailable") + records(weir, "the ledger cannot be fed from the journal")
    assert all(all(part in json.dumps(record) for part in named) for record in told)
    assert len(told) <= 4, f"read and told again and again: {len(told)} times"
    assert await client.label([stream[0].event_id]) == 1
    for event_id, reply in client.acknowledged.items():
        assert json.loads(weir.call("GET", f"/v1/decisions/{event_id}").body)["lsn"] == reply["lsn"]
    weir.stop()
    weir.program = (*weir.program, "--accept-loss")
    await weir.start()
    deadline = time.monotonic() + PATIENCE_S
    while {t["state"] for t in json.loads(weir.call("GET", "/v1/tiers").body)["tiers"]} != {"on"}:
        assert time.monotonic() < deadline, weir.log()
        await asyncio.sleep(0.1)
    weir.stop()
    # What the lost block had changed is in L2, and from there in every store, although the journal no longer tells.
    store = RocksStore(weir.directory / "l2")
    pool = PostgresPool(postgres_url)
    redis = RedisTier(redis_url)
    try:
        keys = sorted(profiles)
        expected = [found for start in range(0, len(keys), 256) for found in await L2(store).fill(keys[start : start + 256])]
        for tier in (redis, PostgresTier(pool, 5_000)):
            assert await tier.read_position() > 0
            found = [profile for start in range(0, len(keys), 256) for profile in await tier.fill(keys[start : start + 256])]
            wrong = [key for key, a, b in zip(keys, expected, found, strict=True) if a != b]
            assert not wrong, f"{tier.name}: {len(wrong)} of {len(keys)} profiles differ, as {wrong[:3]}"
    finally:
        store.close()
        await redis.close()
        await pool.close()
