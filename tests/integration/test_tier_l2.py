"""What L2 promises beyond the suite of all tiers: crashes, locking, stalls, columns, a free loop."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.errors import TierUnavailable
from service.tiers import l2
from service.tiers.base import lsn_of
from service.tiers.l2 import (
    L2,
    NOW_KEYS_MAX,
    NOW_PAUSE_S,
    NOW_S_MAX,
    NOW_SLOW_MAX,
    NOW_STEP_KEYS,
    Column,
    RocksStore,
    StoreLocked,
)

MakeProfile = Callable[..., bytes]

CRASHING_WRITER = """
import asyncio, os, signal, struct, sys
from pathlib import Path
from service.tiers.l2 import NOW_KEYS_MAX, NOW_PAUSE_S, NOW_S_MAX, NOW_SLOW_MAX, NOW_STEP_KEYS, L2, Column, RocksStore

async def main():
    store = RocksStore(Path(sys.argv[1]), memtable_bytes=1 << 20)  # small: some memtables flush by themselves
    tier, decisions = L2(store), Column(store, "decisions")
    for lsn in range(1, 41):
        profile = b"\\1" + bytes(15) + struct.pack("<Q", lsn) + os.urandom(1000)
        await tier.put({b"card:%d" % i: profile for i in range(100)}, lsn)
        await decisions.put_many({b"t-%d" % lsn: b"decided"})
        if lsn == 20:
            await tier.flush()
    flushing = asyncio.create_task(tier.flush()) if sys.argv[2] == "flushing" else None
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksStore]:
    opened = RocksStore(tmp_path / "l2")
    yield opened
    opened.close()


@pytest.mark.parametrize("when", ["idle", "flushing"])
async def test_l2_killed_after_puts_reopens_at_its_position_or_later(tmp_path: Path, when: str) -> None:
    """After SIGKILL everything up to the position is there; what is newer may be there or not, but nothing is torn."""
    writer = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", CRASHING_WRITER, str(tmp_path / "l2"), when], check=False
    )
    assert writer.returncode == -signal.SIGKILL
    store = RocksStore(tmp_path / "l2")
    tier, decisions = L2(store), Column(store, "decisions")
    position = await tier.read_position()
    assert position == 20 if when == "idle" else position in (20, 40)
    found = await tier.fill([b"card:%d" % i for i in range(100)])
    assert all(profile is not None and lsn_of(profile) >= position and len(profile) == 1024 for profile in found)
    assert None not in await decisions.get_many([b"t-%d" % lsn for lsn in range(1, position + 1)])
    store.close()


def test_l2_second_opener_is_refused_with_the_directory(store: RocksStore, tmp_path: Path) -> None:
    """A directory that is open, here or in another process, gives one clear error and stays usable."""
    with pytest.raises(StoreLocked, match=f"{tmp_path}/l2 is used by another process"):
        RocksStore(tmp_path / "l2")
    code = "import sys; from pathlib import Path; from service.tiers.l2 import RocksStore; RocksStore(Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path / "l2")], capture_output=True, check=False)
    assert b"StoreLocked" in other.stderr
    assert store.read_position() == 0


async def test_l2_after_close_raises_tier_unavailable(tmp_path: Path, make_profile: MakeProfile) -> None:
    """Whatever comes after close is told so, in the words of every tier."""
    store = RocksStore(tmp_path / "l2")
    tier = L2(store)
    store.close()
    for call in (tier.fill([b"a"]), tier.fill([b"a"] * 64), tier.put({b"a": make_profile(1)}, 1), tier.flush(1)):
        with pytest.raises(TierUnavailable):
            await call


async def test_l2_position_is_not_readable_before_flush(store: RocksStore, make_profile: MakeProfile) -> None:
    """A put does not move the position, its flush does."""
    tier = L2(store)
    await tier.put({b"card:a": make_profile(3)}, 3)
    assert await tier.read_position() == 0
    await tier.flush()
    assert await tier.read_position() == 3
    await tier.flush(2)
    assert await tier.read_position() == 3


async def test_l2_writes_stall_wait_without_blocking_the_loop(
    tmp_path: Path, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When flushes cannot keep up, puts wait and then succeed; the loop is held for at most a few ms at a time."""
    store = RocksStore(tmp_path / "l2", memtable_bytes=1 << 16)
    tier = L2(store)
    waits: list[float] = []
    sleep = asyncio.sleep

    async def counted(delay: float) -> None:
        waits.append(delay)
        await sleep(delay)

    monkeypatch.setattr(asyncio, "sleep", counted)  # only to know that the store did stall
    for lsn in range(1, 21):
        profile = make_profile(lsn, 8192, os.urandom(97))
        await tier.put({b"card:%d" % i: profile for i in range(64)}, 0)
    assert l2.STALL_WAIT_S in waits
    assert {lsn_of(found or b"") for found in await tier.fill([b"card:%d" % i for i in range(64)])} == {20}
    store.close()


async def test_l2_put_and_fill_hold_the_loop_under_5_ms(store: RocksStore, make_profile: MakeProfile) -> None:
    """While thousands of profiles are written, read and flushed, the loop turns at least every 5 ms (p99)."""
    tier = L2(store)
    profiles = {b"card:%d" % i: make_profile(1, 2048, os.urandom(64)) for i in range(4000)}
    gaps: list[float] = []
    done = asyncio.Event()

    async def turn() -> None:
        last = time.perf_counter()
        while not done.is_set():
            await asyncio.sleep(0)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    turning = asyncio.create_task(turn())
    await tier.put(profiles, 1)
    await asyncio.gather(tier.flush(), tier.fill(list(profiles)))
    done.set()
    await turning
    assert sorted(gaps)[int(len(gaps) * 0.99)] < 0.005


async def test_l2_keys_chunks_give_every_key_once(store: RocksStore, make_profile: MakeProfile) -> None:
    """All keys, each once, in chunks, in memtable and tables alike; decisions and lists are not among them."""
    tier = L2(store)
    keys = {b"card:%d" % i for i in range(2 * l2.CHUNK_KEYS + 1)}
    await tier.put(dict.fromkeys(keys, make_profile(1)), 0)
    await tier.flush()
    await tier.put({b"ip:1": make_profile(2), b"card:5": make_profile(2)}, 0)
    await Column(store, "decisions").put_many({b"t-1": b"x"})
    found = [key async for chunk in tier.keys_chunks() for key in chunk]
    assert sorted(found) == sorted(keys | {b"ip:1"})


async def test_l2_fill_now_reads_on_the_loop_while_reads_are_fast(
    store: RocksStore, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once; nothing of too many; of slow reads the first steps, and after two in a row nothing for a while."""
    l2 = L2(store)
    profile = make_profile(7)
    await l2.put({b"card:%d" % n: profile for n in range(40)}, 7)
    keys = [b"card:%d" % n for n in range(41)]
    assert l2.fill_now(keys) == [profile] * 40 + [None]
    assert l2.fill_now(keys * (1 + NOW_KEYS_MAX // len(keys))) == []
    assert l2.fill_now([]) == []

    def slow_get(family: str, wanted: list[bytes]) -> list[bytes | None]:
        time.sleep(2 * NOW_S_MAX)
        return get(family, wanted)

    get = store.get
    with monkeypatch.context() as patch:
        patch.setattr(store, "get", slow_get)
        for _ in range(NOW_SLOW_MAX):
            assert l2.fill_now(keys) == [profile] * NOW_STEP_KEYS
    assert l2.fill_now(keys) == []
    await asyncio.sleep(1.5 * NOW_PAUSE_S)
    assert l2.fill_now(keys) == [profile] * 40 + [None]


async def test_column_put_get_delete_round_trip(store: RocksStore) -> None:
    """Records come back, the newest call wins, deleted ones are gone, families do not mix."""
    decisions, lists = Column(store, "decisions"), Column(store, "lists")
    records = {b"t-%d" % i: b"v%d" % i for i in range(200)}
    await decisions.put_many(records)
    decisions.put_soon({b"t-1": b"newer"})
    await decisions.delete([b"t-2", b"t-unknown"])
    assert decisions.get(b"t-1") == b"newer"
    assert await decisions.get_many([b"t-2", b"t-3"]) == [None, b"v3"]
    assert await decisions.get_many([b"t-%d" % i for i in range(3, 200)]) == [b"v%d" % i for i in range(3, 200)]
    assert lists.get(b"t-1") is None
    assert len([key async for chunk in decisions.keys_chunks() for key in chunk]) == 199
    assert store.statistics()["memtable_bytes"] > 0


async def test_l2_flush_lets_other_threads_run(store: RocksStore) -> None:
    """A flush happens in a worker thread; the loop's own thread only waits."""
    names: list[str] = []
    await store.run(lambda: names.append(threading.current_thread().name))
    assert names[0].startswith("l2")
