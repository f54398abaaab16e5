"""A data directory that is deleted, restored or cut back while Redis and Postgres are ahead: no LSN twice, nothing undone."""

import asyncio
import itertools
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from features.transaction import Transaction
from service.journal import read_directory

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir, Snapshot, Truth, Weir
    from tests.e2e.proofs.conftest import Load, Stores

MakeLoad = Callable[..., "Load"]
TruthOf = Callable[..., "Truth"]

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.postgres]

SETTINGS = ("redis.deadline_ms=5000", "postgres.deadline_ms=5000", "write_behind.interval_ms=20", "l2.flush_interval_ms=100")
LAZY = ("journal.interval_ms=1000", "write_behind.interval_ms=150", "l2.flush_interval_ms=300")  # a long tail past the mark
N_PART = 900  # transactions of one part of the stream


@pytest.fixture
def parts(long_stream: list[Transaction]) -> list[list[Transaction]]:
    """Three parts of the stream that have their cards and merchants in common."""
    return [long_stream[start : start + N_PART] for start in range(0, 3 * N_PART, N_PART)]


def all_lsns(directory: Path) -> list[int]:
    """Of every entry in the journal of a process that has ended."""
    return [entry.lsn for block in read_directory(directory / "journal") for entry in block.entries]


def refusal(weir: "Weir", *more: str) -> str:
    """What a start that has to fail says."""
    ended = subprocess.run([*weir.command, *more], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (1, ""), ended
    return ended.stderr


async def run(weir: "Weir", load: "Load") -> None:
    """Start, send everything, stop."""
    await weir.start()
    await load.run()
    assert not load.n_left, weir.log()
    await asyncio.to_thread(weir.stop)


async def run_and_kill(weir: "Weir", load: "Load", n_acknowledged: int) -> None:
    """Start, and kill under load."""
    await weir.start()
    running = asyncio.ensure_future(load.run())
    await load.reach(n_acknowledged, running)
    weir.kill()
    await running
    assert load.n_left


def assert_each_from_a_survivor(
    before: "Snapshot", after: "Snapshot", directory: Path, from_lsn: int, truth_of: TruthOf
) -> int:
    """Every profile is what one of the stores had, advanced by the new entries. Returns how many they had in two states."""
    seeds = before.entities("redis"), before.entities("postgres")
    truths = [truth_of(directory, seed=seed, after_lsn=from_lsn).profiles for seed in seeds]
    for store in ("redis", "postgres"):
        now = after.entities(store)
        wrong = [key for key, profile in now.items() if profile not in [truth.get(key) for truth in truths]]
        assert not wrong, f"{store}: {len(wrong)} of {len(now)} profiles are nobody's, as {wrong[:3]}"
    return sum(seeds[0].get(key) != seeds[1].get(key) for key in seeds[0].keys() | seeds[1].keys())


async def test_deleted_after_a_stop_goes_on_from_the_stores(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", stores_true: Any, snapshot: Any,
    parts: list[list[Transaction]], rng: random.Random,
) -> None:  # fmt: skip
    """A new directory beside stores that hold everything: scores and bytes go on as if nothing had happened, LSNs above."""
    weir = make_weir(*SETTINGS, *stores.settings)
    await run(weir, make_load(weir, parts[0], rng))
    before: Snapshot = await snapshot(*stores.urls)
    old = weir.directory.rename(weir.directory.with_name("old"))
    weir.key = ""
    load = make_load(weir, parts[1], rng)
    await run(weir, load)
    assert min(all_lsns(weir.directory)) > before.highest_lsn
    before.assert_not_undone_by(await snapshot(*stores.urls))
    truth = truth_of(old, weir.directory)
    load.assert_kept(truth)
    assert not any(reply["degraded"] for reply in load.first.values())
    print(f"deleted after a stop: {load}; {await stores_true(truth, stores, None)}")  # noqa: T201  # shown by -s


async def test_deleted_after_a_kill_undoes_nothing_in_the_stores(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", snapshot: Any,
    parts: list[list[Transaction]], rng: random.Random,
) -> None:  # fmt: skip
    """The stores are a little apart, and what neither had is gone with the directory; what they have is gone on from."""
    weir = make_weir(*SETTINGS, *stores.settings, "write_behind.batch_max=50")
    await run_and_kill(weir, make_load(weir, parts[0], rng), rng.randrange(200, 600))
    before: Snapshot = await snapshot(*stores.urls)
    n_old = len(all_lsns(weir.directory))
    shutil.rmtree(weir.directory)
    weir.key = ""
    load = make_load(weir, parts[1], rng)
    await run(weir, load)
    assert min(all_lsns(weir.directory)) > before.highest_lsn
    after: Snapshot = await snapshot(*stores.urls)
    before.assert_not_undone_by(after)
    n_apart = assert_each_from_a_survivor(before, after, weir.directory, 0, truth_of)
    print(  # noqa: T201  # shown by -s
        f"deleted after a kill: {n_old} entries gone; {load}; {len(before.redis)} profiles in redis, {len(before.postgres)} in"
        f" postgres, {n_apart} of them apart, {len(before.ledger)} ledger rows kept"
    )


async def test_restored_from_a_copy_is_refused_and_then_goes_on_above(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", stores_true: Any, snapshot: Any,
    parts: list[list[Transaction]], rng: random.Random,
) -> None:  # fmt: skip
    """An old copy beside stores that went on: the first missing LSN is named; with --accept-loss the stores' state goes on."""
    weir = make_weir(*SETTINGS, *stores.settings)
    await run(weir, make_load(weir, parts[0], rng))
    copy = weir.directory.with_name("copy")
    shutil.copytree(weir.directory, copy)
    last_of_copy = max(all_lsns(copy))
    await run(weir, make_load(weir, parts[1], rng))
    before: Snapshot = await snapshot(*stores.urls)
    whole = weir.directory.rename(weir.directory.with_name("whole"))
    shutil.copytree(copy, weir.directory)
    assert f"entries from {last_of_copy + 1} on" in refusal(weir)
    assert all_lsns(weir.directory) == all_lsns(copy), "a refused start changes nothing"
    weir.program = (*weir.program, "--accept-loss")
    load = make_load(weir, parts[2], rng)
    await run(weir, load)
    added = [lsn for lsn in all_lsns(weir.directory) if lsn > last_of_copy]
    assert min(added) > before.highest_lsn
    before.assert_not_undone_by(await snapshot(*stores.urls))
    truth = truth_of(whole, weir.directory)
    load.assert_kept(truth)
    print(f"restored from a copy: {load}; {await stores_true(truth, stores, None)}")  # noqa: T201  # shown by -s


async def test_restored_from_a_live_copy_is_refused_and_then_goes_on_above(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", snapshot: Any,
    parts: list[list[Transaction]], rng: random.Random,
) -> None:  # fmt: skip
    """A copy that was made while the service ran, put back after a kill."""
    weir = make_weir(*SETTINGS, *stores.settings)
    await run(weir, make_load(weir, parts[0], rng))
    await weir.start()
    load = make_load(weir, parts[1] + parts[2], rng, pace_s=0.01)
    running = asyncio.ensure_future(load.run())
    await load.reach(300, running)
    copy = weir.directory.with_name("copy")
    # A file that goes while it is copied is none that the copy needs, or the copy cannot be opened and says so below.
    copying = await asyncio.create_subprocess_exec("cp", "-r", str(weir.directory), str(copy), stderr=subprocess.DEVNULL)
    code = await copying.wait()
    await load.reach(len(load.first) + 300, running)
    weir.kill()
    await running
    assert load.n_left
    before: Snapshot = await snapshot(*stores.urls)
    shutil.rmtree(weir.directory)
    copy.rename(weir.directory)
    message = refusal(weir)
    found = re.search(r"entries from (\d+) on|first missing LSN (\d+)", message)
    assert found, message
    first_missing = int(found[1] or found[2])
    weir.program = (*weir.program, "--accept-loss")
    last = make_load(weir, [tx for tx in parts[2] if tx.event_id not in load.first], rng)
    await run(weir, last)
    added = [lsn for lsn in all_lsns(weir.directory) if lsn >= first_missing]
    assert min(added) > before.highest_lsn
    after: Snapshot = await snapshot(*stores.urls)
    before.assert_not_undone_by(after)
    n_apart = assert_each_from_a_survivor(before, after, weir.directory, first_missing - 1, truth_of)
    print(  # noqa: T201  # shown by -s
        f"restored from a live copy (cp gave {code}): first missing LSN {first_missing}; {last};"
        f" {len(before.postgres)} profiles, {n_apart} apart in redis and postgres, {len(before.ledger)} ledger rows kept"
    )


async def test_cut_back_to_the_last_fsync_starts_and_is_whole(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", stores_true: Any, cut_journal: Any,
    snapshot: Any, parts: list[list[Transaction]], rng: random.Random, kills: int,
) -> None:  # fmt: skip
    """A power failure takes what was not fsynced; no store has any of it, so the start needs no permission."""
    weir = make_weir(*SETTINGS, *stores.settings, *LAZY)
    txs = list(itertools.chain.from_iterable(parts))
    gone: list[int] = []
    for _ in range(max(2, kills // 4)):
        await run_and_kill(weir, make_load(weir, txs, rng), rng.randrange(200, 1500))
        before: Snapshot = await snapshot(*stores.urls)
        ever = set(all_lsns(weir.directory))
        durable_lsn, n_gone = cut_journal(weir.directory / "journal", rng.choice([0, 7, 40, 200]))
        before.assert_durable(durable_lsn)
        gone.append(n_gone)
    load = make_load(weir, txs, rng)
    await run(weir, load)
    assert min(lsn for lsn in all_lsns(weir.directory) if lsn > durable_lsn) > max(ever)
    before.assert_not_undone_by(await snapshot(*stores.urls))
    truth = truth_of(weir.directory)
    load.assert_kept(truth)
    print(  # noqa: T201  # shown by -s
        f"cut back to the last fsync {len(gone)} times, {gone} entries gone; {load}; {len(truth.lsns)} journaled;"
        f" {await stores_true(truth, stores, weir.directory)}"
    )
