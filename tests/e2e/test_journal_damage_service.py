"""A damaged journal, seen through the service: what a start says, what it refuses, and what it goes on with."""

import asyncio
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from features.transaction import Transaction
from service.journal import read_directory
from service.tiers.l2 import L2, RocksStore

if TYPE_CHECKING:
    from tests.e2e.conftest import Client, MakeWeir, Truth, Weir

pytestmark = pytest.mark.e2e

LAZY = ("l2.flush_interval_ms=3600000", "journal.sync=os")  # the journal alone has everything, and no mark moves


async def run_and_kill(weir: "Weir", client: "Client", txs: list[Transaction]) -> None:
    await weir.start()
    await client.send(txs, batch=20)
    weir.kill()


def newest_segment(weir: "Weir") -> Path:
    return max((weir.directory / "journal").glob("*.seg"))


def refusal(weir: "Weir") -> str:
    """What a start that has to fail says: one line, and no traceback."""
    ended = subprocess.run(weir.command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Traceback" not in ended.stderr
    return ended.stderr


@pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage"])
async def test_damaged_tail_is_cut_and_reported(
    make_weir: "MakeWeir", make_client: Callable[["Weir"], "Client"], truth_of: Callable[..., "Truth"],
    stream: list[Transaction], damage: str,
) -> None:  # fmt: skip
    """Past the durable LSN the tail may be anything: the start cuts it, says so, and the profiles are those of what is left."""
    weir = make_weir(*LAZY)
    await run_and_kill(weir, make_client(weir), stream[:400])
    segment = newest_segment(weir)
    data = segment.read_bytes()
    broken = {
        "truncated": data[:-37],
        "flipped": data[:-50] + bytes([data[-50] ^ 1]) + data[-49:],
        "garbage": data + b"\xff" * 99,
    }
    segment.write_bytes(broken[damage])
    n_before = len([entry for block in read_directory(weir.directory / "journal") for entry in block.entries])
    assert n_before == (400 if damage == "garbage" else 380)
    await weir.start()
    found = re.search(r'"bytes": (\d+).*"event": "journal was cut"', weir.log())
    assert found, weir.log()
    n_cut = int(found[1])
    assert segment.name in weir.log()
    weir.stop()
    truth = truth_of(weir.directory)
    assert len(truth.lsns) == n_before
    store = RocksStore(weir.directory / "l2")
    await truth.assert_in_store(L2(store))
    store.close()
    print(f"{damage}: {n_cut} bytes cut, {n_before} of 400 events left")  # noqa: T201  # shown by -s


async def test_flipped_block_below_the_durable_lsn_refuses_the_start_and_names_the_lsn(
    make_weir: "MakeWeir", make_client: Callable[["Weir"], "Client"], stream: list[Transaction]
) -> None:
    """An entry that was promised cannot be read: LSN, file and byte are named, nothing is changed; --accept-loss goes on."""
    weir = make_weir("journal.sync=group", "l2.flush_interval_ms=3600000")
    await run_and_kill(weir, make_client(weir), stream[:400])
    segment = newest_segment(weir)
    blocks = list(read_directory(weir.directory / "journal"))
    middle = blocks[len(blocks) // 2]
    data = bytearray(segment.read_bytes())
    at = data.index(middle.entries[0].body)
    data[at + 5] ^= 0x40
    segment.write_bytes(data)
    before = {path: path.read_bytes() for path in (weir.directory / "journal").iterdir()}
    said = refusal(weir)
    assert f"first missing LSN {middle.first_lsn} " in said
    assert segment.name in said
    assert "at byte" in said
    assert "--accept-loss" in said
    assert {path: path.read_bytes() for path in (weir.directory / "journal").iterdir()} == before
    weir.program = (*weir.program, "--accept-loss")
    await weir.start()
    assert '"event": "journal was cut"' in weir.log()
    assert f"LSN {middle.first_lsn}" in weir.log()
    event_ids = {entry.lsn: number for number, entry in enumerate(e for block in blocks for e in block.entries)}
    kept, lost = stream[0].event_id, stream[event_ids[middle.first_lsn]].event_id
    assert weir.call("GET", f"/v1/decisions/{kept}").status == 200
    assert weir.call("GET", f"/v1/decisions/{lost}").status == 404
    weir.stop()


async def test_damage_in_an_old_segment_is_told_by_who_reads_it(
    make_weir: "MakeWeir", make_client: Callable[["Weir"], "Client"], stream: list[Transaction], redis_url: str
) -> None:
    """A tier met late needs what recovery did not read: it stays out, the reason names the LSN, and scoring goes on."""
    small = ("journal.segment_bytes=65536", "l2.flush_interval_ms=50")
    weir = make_weir(*small)
    await weir.start()
    await make_client(weir).send(stream[:1500], batch=20)
    weir.stop()
    segments = sorted((weir.directory / "journal").glob("*.seg"))
    assert len(segments) > 2
    data = bytearray(segments[1].read_bytes())
    data[len(data) // 2] ^= 0x10
    segments[1].write_bytes(data)
    weir.overrides += [f"redis.url={redis_url}"]
    await weir.start()
    client = make_client(weir)
    await client.send(stream[1500:1700], batch=20)
    assert len(client.acknowledged) == 200
    redis: dict[str, Any] = {}
    async with asyncio.timeout(15):
        while "first missing LSN" not in redis.get("reason", ""):
            await asyncio.sleep(0.02)
            redis = next(tier for tier in weir.call("GET", "/v1/tiers").json["tiers"] if tier["name"] == "redis")
    assert redis["state"] == "down"
    assert segments[1].name in redis["reason"]
    assert redis["reason"].split("first missing LSN ")[1].split()[0] in weir.log()
    weir.stop()
