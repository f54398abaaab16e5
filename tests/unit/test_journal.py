"""The live journal: appending, durability, epochs, trimming. Damage on disk is in test_journal_damage.py."""

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.journal import (
    ERASURE,
    LABEL,
    LIST,
    TX,
    Entry,
    Journal,
    JournalError,
    JournalWriteError,
    read_directory,
)

Batch = list[tuple[int, bytes, bytes]]


def tx(n: int = 1, size: int = 50) -> Batch:
    return [(TX, b"b%04d" % i + b"x" * size, b"d%04d" % i) for i in range(n)]


def entries_of(directory: Path, from_lsn: int = 0) -> list[Entry]:
    return [entry for block in read_directory(directory, from_lsn) for entry in block.entries]


def lsns(entries: Sequence[Entry]) -> list[int]:
    return [entry.lsn for entry in entries]


async def until_durable(journal: Journal, lsn: int) -> None:
    """Waits without asking for a sync, as sync_to would; 5 s at most."""
    for _ in range(5000):
        if journal.durable_lsn >= lsn:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{lsn} did not become durable")


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = Journal.open(tmp_path, sync="group")
    journal.start()
    yield journal
    await journal.close()


def test_journal_entries_of_every_kind_come_back_as_they_were(tmp_path: Path) -> None:
    """What is appended is read back: kinds, bodies and decisions, empty ones too, with consecutive LSNs."""
    journal = Journal.open(tmp_path, sync="group")
    batch = [(TX, b'{"a":1}', b"d"), (LABEL, b"", b""), (LIST, b"\x00" * 300, b""), (ERASURE, b"e", b"\xff")]
    first_lsn = journal.append(batch)
    assert first_lsn == (1 << 48) | 1
    assert journal.append(tx()) == first_lsn + 4
    assert journal.last_lsn == first_lsn + 4
    assert journal.next_lsn == first_lsn + 5
    journal.abandon()
    blocks = list(read_directory(tmp_path))
    assert [(b.first_lsn, b.last_lsn) for b in blocks] == [
        (first_lsn, first_lsn + 3),
        (first_lsn + 4, first_lsn + 4),
    ]
    assert [(e.kind, e.body, e.decision) for e in blocks[0].entries] == batch
    assert lsns(blocks[0].entries) == list(range(first_lsn, first_lsn + 4))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=80), st.binary(max_size=20)), min_size=1, max_size=6),
        max_size=12,
    ),
    segment_bytes=st.integers(1, 600),
)
def test_journal_random_batches_survive_rotation_and_reopening(
    tmp_path_factory: pytest.TempPathFactory, batches: list[Batch], segment_bytes: int
) -> None:
    """Any batches, over any segment size, come back in order, live and after a reopening."""
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal.open(directory, sync="os", segment_bytes=segment_bytes)
    for batch in batches:
        journal.append(batch)
    live = [block.entries for block in journal.read()]
    journal.abandon()
    reopened = Journal.open(directory, sync="os")
    assert (reopened.cut_bytes, reopened.cut_reason) == (0, None)
    assert [block.entries for block in reopened.read()] == live
    reopened.abandon()
    assert [[(e.kind, e.body, e.decision) for e in entries] for entries in live] == batches


def test_append_of_a_thousand_entries_is_one_block(tmp_path: Path) -> None:
    """A batch with more buffers than one writev takes (IOV_MAX is 1024) is still one block."""
    journal = Journal.open(tmp_path, sync="os")
    journal.append(tx(1025))
    assert [len(block.entries) for block in journal.read()] == [1025]
    journal.abandon()


def test_append_past_the_segment_size_begins_a_segment_named_by_its_first_lsn(tmp_path: Path) -> None:
    """A block that no longer fits opens the next segment; one that fits exactly does not."""
    journal = Journal.open(tmp_path, sync="os")
    journal.append(tx())
    header_and_block = journal.bytes_total
    block = header_and_block - 24
    journal.abandon()

    directory = tmp_path / "small"
    journal = Journal.open(directory, sync="os", segment_bytes=header_and_block + block)
    first_lsn = journal.append(tx())
    journal.append(tx())
    assert len(list(directory.glob("*.seg"))) == 1
    third_lsn = journal.append(tx())
    names = sorted(path.name for path in directory.glob("*.seg"))
    assert names == [f"{first_lsn:016x}.seg", f"{third_lsn:016x}.seg"]
    assert journal.bytes_total == sum(path.stat().st_size for path in directory.glob("*.seg"))
    journal.abandon()


async def test_rotation_syncs_the_old_segment_off_the_loop(tmp_path: Path) -> None:
    """After a rotation the finished segment becomes durable without anybody asking, in mode `os` too."""
    journal = Journal.open(tmp_path, sync="os", segment_bytes=100)
    journal.start()
    first_lsn = journal.append(tx())
    assert journal.durable_lsn == 0
    journal.append(tx())
    await until_durable(journal, first_lsn)
    await journal.close()


@pytest.mark.parametrize("floor", [0, 7])
def test_open_raises_the_epoch_at_every_start(tmp_path: Path, floor: int) -> None:
    """Each run's epoch is above the last one's and above the floor, whether or not anything was appended."""
    first = Journal.open(tmp_path, sync="os", epoch_floor=floor)
    assert first.next_lsn == ((floor + 1) << 48) | 1
    first.append(tx())
    first.abandon()
    for more in (2, 3):
        again = Journal.open(tmp_path, sync="os")
        assert again.next_lsn == ((floor + more) << 48) | 1
        again.abandon()


def test_open_without_epoch_file_takes_the_epoch_from_the_segments(tmp_path: Path) -> None:
    """With a loss accepted, a lost epoch file does not bring an old epoch back."""
    journal = Journal.open(tmp_path, sync="os", epoch_floor=4)
    journal.append(tx())
    journal.abandon()
    (tmp_path / "epoch").unlink()
    journal = Journal.open(tmp_path, sync="os", accept_loss=True)
    assert journal.next_lsn >> 48 == 6
    journal.abandon()


def test_open_past_the_last_epoch_raises(tmp_path: Path) -> None:
    """Epoch 32767 is given out, 32768 would not fit a signed LSN and is refused."""
    Journal.open(tmp_path / "a", sync="os", epoch_floor=32766).abandon()
    with pytest.raises(JournalError, match="32768"):
        Journal.open(tmp_path / "a", sync="os")


def test_burn_skips_lsns_and_leaves_a_readable_gap(tmp_path: Path) -> None:
    """Burnt LSNs are never given out, and the journal reads, checks and reopens with the gap."""
    journal = Journal.open(tmp_path, sync="os")
    first_lsn = journal.append(tx())
    journal.burn(3)
    assert journal.append(tx(2)) == first_lsn + 4
    journal.burn(2)
    assert journal.last_lsn == first_lsn + 5
    journal.abandon()
    reopened = Journal.open(tmp_path, sync="os")
    assert lsns([e for b in reopened.read() for e in b.entries]) == [first_lsn, first_lsn + 4, first_lsn + 5]
    reopened.abandon()


async def test_sync_to_a_burnt_lsn_returns(journal: Journal) -> None:
    """Waiting for an LSN that nothing will ever fill waits for what is there, not forever."""
    first_lsn = journal.append(tx())
    journal.burn(5)
    async with asyncio.timeout(5):
        await journal.sync_to(first_lsn + 5)
    assert journal.durable_lsn == first_lsn


async def test_sync_to_from_50_tasks_shares_few_fsyncs(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty concurrent waiters need at most two rounds: the running one and the one that covers all the others."""
    await journal.sync_to(journal.append(tx()))  # the segment and its directory entry exist
    calls = 0
    fsync = os.fsync

    def counting_fsync(fd: int) -> None:
        nonlocal calls
        calls += 1
        fsync(fd)

    monkeypatch.setattr(os, "fsync", counting_fsync)

    async def append_and_sync() -> int:
        lsn = journal.append(tx())
        await journal.sync_to(lsn)
        assert journal.durable_lsn >= lsn
        return lsn

    appended = await asyncio.gather(*(append_and_sync() for _ in range(50)))
    assert len(set(appended)) == 50
    assert calls <= 2


async def test_sync_to_writes_the_durable_mark(journal: Journal, tmp_path: Path) -> None:
    """After a sync the mark holds the durable LSN, so losing that entry is noticed at the next start."""
    lsn = journal.append(tx())
    await journal.sync_to(lsn)
    assert lsn.to_bytes(8, "little") in (tmp_path / "durable").read_bytes()


async def test_sync_to_cancelled_waiter_does_not_disturb_the_others(journal: Journal) -> None:
    """A waiter that gives up leaves the fsync running for everyone else."""
    lsn = journal.append(tx())
    quitter = asyncio.create_task(journal.sync_to(lsn))
    stayer = asyncio.create_task(journal.sync_to(lsn))
    await asyncio.sleep(0)
    quitter.cancel()
    await stayer
    assert quitter.cancelled() or quitter.done()
    assert journal.durable_lsn == lsn


async def test_sync_interval_makes_appends_durable_by_itself(tmp_path: Path) -> None:
    """In interval mode an append becomes durable although nobody waits for it."""
    journal = Journal.open(tmp_path, sync="interval", interval_ms=1)
    journal.start()
    lsn = journal.append(tx())
    await until_durable(journal, lsn)
    await journal.close()


@pytest.mark.parametrize("mode", ["group", "interval"])
async def test_fsync_failure_is_sticky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """After one failed fsync all waiters and all later appends get the error, even if the next fsync would succeed."""
    journal = Journal.open(tmp_path, sync="interval" if mode == "interval" else "group", interval_ms=1)
    journal.start()
    lsn = journal.append(tx())
    with monkeypatch.context() as patch:

        def failing_fsync(fd: int) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr(os, "fsync", failing_fsync)
        results = await asyncio.gather(*(journal.sync_to(lsn) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [JournalWriteError] * 3
    with pytest.raises(JournalWriteError) as caught:
        journal.append(tx())
    assert caught.value.errno == 5
    with pytest.raises(JournalWriteError):
        await journal.sync_to(lsn)
    assert journal.durable_lsn == 0
    await journal.close()


async def test_close_makes_everything_durable_and_refuses_more(tmp_path: Path) -> None:
    """Closing syncs what is there; an append afterwards is refused, a second close is harmless."""
    journal = Journal.open(tmp_path, sync="os")
    journal.start()
    lsn = journal.append(tx(3)) + 2
    await journal.close()
    assert journal.durable_lsn == lsn
    with pytest.raises(JournalWriteError, match="closed"):
        journal.append(tx())
    await journal.close()
    assert (tmp_path / "durable").read_bytes()[4:12] == lsn.to_bytes(8, "little")


def test_append_partial_write_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short writev that cannot be finished leaves the file as before, burns the LSNs and lets the next append in."""
    journal = Journal.open(tmp_path, sync="os")
    first_lsn = journal.append(tx())
    (segment,) = tmp_path.glob("*.seg")
    before = segment.read_bytes()
    with monkeypatch.context() as patch:

        def short_writev(fd: int, parts: Sequence[bytes]) -> int:
            return os.pwrite(fd, b"".join(parts)[:20], 0)

        def failing_write(fd: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "writev", short_writev)
        patch.setattr(os, "write", failing_write)
        with pytest.raises(JournalWriteError) as caught:
            journal.append(tx(2))
    assert caught.value.errno == 28
    assert segment.read_bytes() == before
    assert journal.append(tx()) == first_lsn + 3
    assert lsns([e for b in journal.read() for e in b.entries]) == [first_lsn, first_lsn + 3]
    journal.abandon()


def test_append_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short writev without an error, as a signal causes, is completed and the block is whole."""
    journal = Journal.open(tmp_path, sync="os")
    journal.append(tx())
    with monkeypatch.context() as patch:

        def short_writev(fd: int, parts: Sequence[bytes]) -> int:
            return os.write(fd, b"".join(parts)[:33])

        patch.setattr(os, "writev", short_writev)
        journal.append(tx(2))
    journal.append(tx())
    assert [len(block.entries) for block in journal.read()] == [1, 2, 1]
    journal.abandon()


def test_append_on_a_full_disk_fails_and_recovers(tmp_path: Path) -> None:
    """At a real limit of the kernel appends fail, the file keeps its length, and appends work once there is room."""
    program = f"""
        import resource
        from pathlib import Path
        from service.journal import Journal, JournalWriteError, TX

        directory = Path({str(tmp_path)!r})
        journal = Journal.open(directory, sync="os")
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        first = journal.append([(TX, b"x" * 500, b"")])
        for _ in range(2):
            before = journal.bytes_total
            try:
                journal.append([(TX, b"y" * 600, b"")])
            except JournalWriteError as error:
                assert error.errno == 27, error.errno
            else:
                raise AssertionError("past the limit")
            assert next(directory.glob("*.seg")).stat().st_size == before == journal.bytes_total
        assert journal.append([(TX, b"z" * 100, b"")]) == first + 3
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert journal.append([(TX, b"w" * 600, b"")]) == first + 4
        assert [b.first_lsn - first for b in journal.read()] == [0, 3, 4]
        journal.abandon()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(entries_of(tmp_path)) == 3


def test_append_when_no_segment_can_be_made_fails_and_recovers(tmp_path: Path) -> None:
    """If the next segment cannot be created the append fails cleanly, and a later one creates it."""
    directory = tmp_path / "journal"
    journal = Journal.open(directory, sync="os")
    blocker = directory / f"{journal.next_lsn:016x}.seg"
    blocker.mkdir()
    first_lsn = journal.next_lsn
    with pytest.raises(JournalWriteError):
        journal.append(tx())
    blocker.rmdir()
    assert journal.append(tx()) == first_lsn + 1
    journal.abandon()
    assert lsns(entries_of(directory)) == [first_lsn + 1]


def test_trim_deletes_only_segments_wholly_below(tmp_path: Path) -> None:
    """Trimming below an LSN keeps the segment that holds it, all later ones and always the newest."""
    journal = Journal.open(tmp_path, sync="os", segment_bytes=1)
    first_lsn = journal.append(tx(2))
    for _ in range(3):
        journal.append(tx(2))
    total = journal.bytes_total
    assert journal.trim(first_lsn + 1) == 0
    assert journal.trimmed_lsn == 0
    freed = journal.trim(first_lsn + 3)
    assert freed > 0
    assert journal.bytes_total == total - freed
    assert journal.trimmed_lsn == first_lsn + 1
    assert lsns([e for b in journal.read() for e in b.entries])[0] == first_lsn + 2
    journal.trim(first_lsn + 100)
    assert lsns([e for b in journal.read() for e in b.entries]) == [first_lsn + 6, first_lsn + 7]
    journal.abandon()
    reopened = Journal.open(tmp_path, sync="os")
    assert reopened.trimmed_lsn == first_lsn + 5
    assert reopened.trim(reopened.next_lsn) == 0
    reopened.abandon()
    Journal.open(tmp_path, sync="os").abandon()


def test_read_from_an_lsn_gives_exactly_what_is_at_or_above_it(tmp_path: Path) -> None:
    """From any LSN, on a segment or block boundary or inside a block, every later entry comes and none before."""
    journal = Journal.open(tmp_path, sync="os", segment_bytes=400)
    first_lsn = journal.next_lsn
    for n in (1, 3, 2, 5, 1, 4):
        journal.append(tx(n))
    journal.burn(2)
    journal.append(tx(2))
    everything = lsns([e for b in journal.read() for e in b.entries])
    for lsn in range(first_lsn - 1, journal.next_lsn + 2):
        expected = [other for other in everything if other >= lsn]
        assert lsns([e for b in journal.read(lsn) for e in b.entries]) == expected
        assert lsns(entries_of(tmp_path, lsn)) == expected
    journal.abandon()


def test_read_live_ends_at_the_moment_it_began(tmp_path: Path) -> None:
    """A reader sees what was there when it began; appends meanwhile neither disturb it nor show up."""
    journal = Journal.open(tmp_path, sync="os", segment_bytes=200)
    journal.append(tx())
    reader = journal.read()
    journal.append(tx(5))
    assert len(list(reader)) == 1
    assert len(list(journal.read())) == 2
    journal.abandon()


def test_read_of_an_empty_journal_is_empty(tmp_path: Path) -> None:
    """A journal that never had an entry reads as nothing, live and at rest."""
    journal = Journal.open(tmp_path, sync="os")
    assert list(journal.read()) == []
    assert journal.trim(journal.next_lsn) == 0
    journal.abandon()
    assert entries_of(tmp_path) == []
