"""L2 on a full disk, and where compactions do not keep up: it says so, keeps what it has, and goes on when there is room."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import TierUnavailable
from service.tiers import l2
from service.tiers.l2 import L2, Column, RocksStore, is_disk_full

FillDisk = Callable[[Path, int], Path]
PATIENCE_S = 30.0  # RocksDB looks every 5 s whether there is space again


async def fail_flush(store: RocksStore, tier: L2, profile: Callable[[int], bytes]) -> TierUnavailable:
    """Put and flush until the disk is full."""
    for lsn in range(1, 2_000):
        try:
            await tier.put({b"card:%d-%d" % (lsn, n): profile(lsn) for n in range(20)}, lsn)
            await tier.flush()
        except TierUnavailable as error:
            return error
    raise AssertionError("the disk never was full")


async def flush_when_there_is_room(tier: L2) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            await tier.flush()
            return
        except TierUnavailable as error:
            if time.monotonic() > deadline:
                raise AssertionError("the store did not go on") from error
            await asyncio.sleep(0.2)


@pytest.fixture
def make_noise() -> Callable[[int], bytes]:
    """A profile of 1 KiB that does not compress."""
    return lambda lsn: b"\x01" + bytes(15) + lsn.to_bytes(8, "little") + os.urandom(1_000)


async def test_flush_on_a_full_disk_fails_reads_work_and_room_heals_it(
    small_disk: Path, fill_disk: FillDisk, make_noise: Callable[[int], bytes]
) -> None:
    """A full disk is told as one; what was put is read on, and durable once there is room, without opening it again."""
    store = RocksStore(small_disk / "l2")
    tier = L2(store)
    ballast = fill_disk(small_disk, 1 << 20)
    error = await fail_flush(store, tier, make_noise)
    assert is_disk_full(error), error
    position = await tier.read_position()
    assert await tier.fill([b"card:1-0"]) != [None]
    ballast.unlink()
    await flush_when_there_is_room(tier)
    assert await tier.read_position() > position
    store.close()
    again = RocksStore(small_disk / "l2")
    last = await L2(again).read_position()
    assert None not in await L2(again).fill([b"card:%d-%d" % (lsn, n) for lsn in range(1, last + 1) for n in range(20)])
    again.close()


async def test_records_refused_by_a_full_store_precede_any_position(
    small_disk: Path, fill_disk: FillDisk, make_noise: Callable[[int], bytes]
) -> None:
    """A journaled record that RocksDB did not take is owed: nothing that is written after it is there without it."""
    store = RocksStore(small_disk / "l2")
    tier, lists, decisions = L2(store), Column(store, "lists"), Column(store, "decisions")
    ballast = fill_disk(small_disk, 1 << 20)
    await fail_flush(store, tier, make_noise)
    lists.put_soon({b"deny\x00card\x00c1": b"older"})
    lists.put_soon({b"deny\x00card\x00c1": b"newer"})
    assert lists.get(b"deny\x00card\x00c1") is None, "the store takes writes: nothing is shown here"
    with pytest.raises(TierUnavailable):
        await decisions.put_many({b"\x00position": b"far"})
    ballast.unlink()
    await flush_when_there_is_room(tier)
    await decisions.put_many({b"\x00position": b"far"})
    assert lists.get(b"deny\x00card\x00c1") == b"newer"
    store.close()


async def test_position_whose_own_flush_fails_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is cut up to the flushed position: one that stands in memory alone is still the old one."""
    store = RocksStore(tmp_path / "l2")
    tier = L2(store)
    await tier.put({b"card:1": b"\x01" + bytes(15) + (7).to_bytes(8, "little") + bytes(100)}, 7)

    async def fail_to_flush_meta() -> None:
        raise TierUnavailable(l2.NAME, l2.DISK_FULL)

    with monkeypatch.context() as patch:
        patch.setattr(store, "flush_meta", fail_to_flush_meta)
        with pytest.raises(TierUnavailable):
            await tier.flush()
    assert (await tier.read_position(), tier.has_unflushed) == (0, True)
    await tier.flush()
    assert (await tier.read_position(), tier.has_unflushed) == (7, False)
    store.close()
    again = RocksStore(tmp_path / "l2")
    assert await L2(again).read_position() == 7
    again.close()


async def test_close_on_a_full_disk_keeps_what_was_flushed(
    small_disk: Path, fill_disk: FillDisk, make_noise: Callable[[int], bytes]
) -> None:
    """Closing cannot flush: it does not raise, and the next opening has everything up to the position."""
    store = RocksStore(small_disk / "l2")
    tier = L2(store)
    ballast = fill_disk(small_disk, 1 << 20)
    await fail_flush(store, tier, make_noise)
    position = await tier.read_position()
    store.close()
    ballast.unlink()
    again = RocksStore(small_disk / "l2")
    last = await L2(again).read_position()
    assert last >= position > 0  # more, where the last flush of `meta` alone found room
    assert None not in await L2(again).fill([b"card:%d-%d" % (lsn, n) for lsn in range(1, last + 1) for n in range(20)])
    again.close()


async def _flush_many(store: RocksStore) -> None:
    for lsn in range(1, l2.L0_SLOWDOWN_FILES + 1):
        await store.write("profiles", [(b"card:%d" % lsn, bytes(100))])
        await store.flush(lsn)


async def test_flush_that_compactions_hold_back_raises_instead_of_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RocksDB lets a flush wait while too many tables are not compacted, on a full disk for ever: we ask before."""
    monkeypatch.setattr(l2, "STALL_RETRIES_MAX", 5)
    store = RocksStore(tmp_path / "l2")
    store._families["profiles"].set_options({"disable_auto_compactions": "true"})
    column = Column(store, "lists")
    with pytest.raises(TierUnavailable, match="too full, for its compactions"):
        await asyncio.wait_for(_flush_many(store), 20)
    await column.put_many({b"k": b"v"})  # it takes writes, and reads
    assert column.get(b"k") == b"v"
    store._families["profiles"].set_options({"disable_auto_compactions": "false"})
    await flush_when_there_is_room(L2(store))
    store.close()
