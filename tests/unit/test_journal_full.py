"""The journal at its bound, on a full disk, and after an fsync that a full disk made fail."""

import asyncio
import errno
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service import journal_sync
from service.journal import REFUSAL_MIN_S, TX, Journal, JournalCorrupt, JournalFull, JournalWriteError, read_directory
from service.journal_segments import list_segments, write_again

FillDisk = Callable[[Path, int], Path]
SEGMENT_BYTES = 1_000
BODY = b"x" * 171
BLOCK = 20 + 9 + 171  # header, entry header, body: 200 bytes
HEADER = 24


def one(n: int = 0) -> list[tuple[int, bytes, bytes]]:
    return [(TX, b"%03d" % n + BODY[3:], b"")]


def bodies(directory: Path) -> list[int]:
    return [int(entry.body[:3]) for block in read_directory(directory) for entry in block.entries]


def fill(journal: Journal) -> int:
    """Append until it refuses; how many it took."""
    for n in range(10_000):
        try:
            journal.append(one(n % 1_000))
        except JournalFull:
            return n
    raise AssertionError("it has no bound")


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


@pytest.fixture
def bounded(tmp_path: Path) -> Journal:
    """4 to 5 segments of 4 entries each fit."""
    return Journal.open(tmp_path / "journal", sync="os", segment_bytes=SEGMENT_BYTES, bytes_max=4 * SEGMENT_BYTES)


def test_append_at_the_bound_is_refused_and_changes_nothing(bounded: Journal, tmp_path: Path) -> None:
    """The last entry that fits is taken, the next one not: size, limit, holder and fix are named, LSNs are burnt."""
    n = fill(bounded)
    size, lsn, next_lsn = bounded.bytes_total, bounded.last_lsn, bounded.next_lsn
    assert size <= 4 * SEGMENT_BYTES < size + BLOCK + HEADER
    assert next_lsn == lsn + 2  # the refused one's is burnt
    bounded.holder = "redis, which has everything up to LSN 7,"
    with pytest.raises(JournalFull) as caught:
        bounded.append(one())
    said = str(caught.value)
    for part in (str(size), "journal.bytes_max = 4000", "redis, which has everything up to LSN 7, still needs", "turn it off"):
        assert part in said, said
    assert bounded.problem == said
    assert (bounded.bytes_total, bounded.last_lsn, bounded.next_lsn) == (size, lsn, next_lsn + 1)
    assert bounded.n_refused == {"bytes_max": 2, "disk_full": 0, "failed": 0}
    assert size == sum(path.stat().st_size for path in (tmp_path / "journal").glob("*.seg"))
    bounded.abandon()
    assert bodies(tmp_path / "journal") == list(range(n))


def test_append_after_a_trim_at_the_bound_is_taken_again(bounded: Journal, tmp_path: Path) -> None:
    """Room that a trim makes is used at once, and no reason is left."""
    fill(bounded)
    assert bounded.problem
    freed = bounded.trim(bounded.next_lsn, 3_600.0, bounded.excess_bytes)
    assert freed >= 2 * SEGMENT_BYTES - HEADER - BLOCK
    assert bounded.problem == ""
    lsn = bounded.append(one(777))
    assert bounded.last_lsn == lsn
    bounded.abandon()
    assert bodies(tmp_path / "journal")[-1] == 777


def test_trim_keeps_by_age_only_as_far_as_the_bound_allows(bounded: Journal) -> None:
    """What nobody needs stays for keep_s, unless bytes are wanted: then the oldest segments go, and no more than that."""
    fill(bounded)
    before = bounded.bytes_total
    assert bounded.trim(bounded.next_lsn, 3_600.0) == 0
    wanted = bounded.excess_bytes
    assert wanted == before - 2 * SEGMENT_BYTES
    freed = bounded.trim(bounded.next_lsn, 3_600.0, wanted)
    assert wanted <= freed < wanted + SEGMENT_BYTES
    assert (bounded.bytes_total, bounded.excess_bytes) == (before - freed, 0)
    bounded.abandon()


def test_trim_at_the_bound_leaves_what_is_needed(bounded: Journal) -> None:
    """However much is wanted, a segment that somebody needs stays."""
    fill(bounded)
    second = list_segments(bounded._directory)[1].first_lsn
    freed = bounded.trim(second, 3_600.0, 1 << 30)
    assert 0 < freed < SEGMENT_BYTES
    assert list_segments(bounded._directory)[0].first_lsn == second
    assert fill(bounded) > 0
    bounded.abandon()


def test_open_above_the_bound_refuses_until_it_is_trimmed(bounded: Journal, tmp_path: Path) -> None:
    """A bound that was lowered loses nothing: nothing more is taken until a trim has made room."""
    n = fill(bounded)
    bounded.abandon()
    journal = Journal.open(tmp_path / "journal", sync="os", segment_bytes=SEGMENT_BYTES // 2, bytes_max=2 * SEGMENT_BYTES)
    with pytest.raises(JournalFull):
        journal.append(one())
    assert len([entry for block in journal.read() for entry in block.entries]) == n
    journal.trim(journal.next_lsn, 3_600.0, journal.excess_bytes)
    journal.append(one())
    journal.abandon()


def test_append_on_a_full_disk_is_named_and_goes_on_with_room(small_disk: Path, fill_disk: FillDisk) -> None:
    """ENOSPC for real, in a segment and at the beginning of one: refused, said, undone; taken again when there is room."""
    directory = small_disk / "journal"
    journal = Journal.open(directory, sync="os", segment_bytes=64 * 1024)
    ballast = fill_disk(small_disk, 100 << 10)
    n = 0
    refusals: list[JournalWriteError] = []
    while len(refusals) < 5:
        try:
            journal.append([(TX, b"%06d" % n + bytes(3_000), b"")])
            n += 1
        except JournalWriteError as error:
            refusals.append(error)
    assert n > 10
    assert all(error.is_disk_full for error in refusals)
    assert all("the disk is full" in str(error) and str(directory) in str(error) for error in refusals)
    assert "the disk is full" in journal.problem
    assert journal.excess_bytes >= journal.room_bytes
    assert journal.n_refused["disk_full"] == 5
    assert journal.bytes_total == sum(path.stat().st_size for path in directory.glob("*.seg"))
    ballast.unlink()
    journal.append([(TX, b"%06d" % n, b"")])
    assert (journal.problem, journal.excess_bytes) == ("", 0)
    journal.abandon()
    found = [int(entry.body[:6]) for block in read_directory(directory) for entry in block.entries]
    assert found == list(range(n + 1))


def test_open_on_a_full_disk_is_one_error_and_harmless(small_disk: Path, fill_disk: FillDisk) -> None:
    """The marks cannot be written: JournalWriteError, and the next open, with room, has everything."""
    directory = small_disk / "journal"
    journal = Journal.open(directory, sync="os")
    journal.append(one(1))
    journal.abandon()
    ballast = fill_disk(small_disk, 0)
    with pytest.raises(JournalWriteError, match="disk is full"):
        Journal.open(directory, sync="os")
    ballast.unlink()
    journal = Journal.open(directory, sync="os")
    assert bodies(directory) == [1]
    journal.abandon()


def test_problem_of_a_disk_that_is_full_for_us_alone_ends_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where free space tells nothing (a quota) the refusal counts for a second, so that readiness lets somebody try again."""
    journal = Journal.open(tmp_path, sync="os")
    journal.append(one())
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", lambda fd, parts: _raise(errno.EDQUOT))
        with pytest.raises(JournalWriteError, match="disk is full"):
            journal.append(one())
    assert "disk is full" in journal.problem
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + REFUSAL_MIN_S + 0.01)
    assert journal.problem == ""
    journal.abandon()


def _raise(number: int) -> int:
    raise OSError(number, os.strerror(number))


@pytest.fixture
async def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Journal, list[int]]]:
    """A journal whose fsyncs fail with the number in the list, as long as there is one: no file system here does so itself."""
    monkeypatch.setattr(journal_sync, "HEAL_INTERVAL_S", 0.02)
    numbers: list[int] = []
    fsync = os.fsync

    def failing_fsync(fd: int) -> None:
        if numbers:
            raise OSError(numbers[0], os.strerror(numbers[0]))
        fsync(fd)

    journal = Journal.open(tmp_path / "journal", sync="group", segment_bytes=SEGMENT_BYTES)
    journal.start()
    monkeypatch.setattr(os, "fsync", failing_fsync)
    yield journal, numbers
    await journal.close()


async def test_fsync_without_space_is_tried_again_and_the_journal_goes_on(
    failing: tuple[Journal, list[int]], tmp_path: Path
) -> None:
    """While it fails nothing is taken or durable; with room everything is written again, in every segment, and durable."""
    journal, numbers = failing
    await journal.sync_to(journal.append(one(0)))
    numbers.append(errno.ENOSPC)
    durable_lsn = journal.durable_lsn
    for n in range(1, 11):  # over three segments
        lsn = journal.append(one(n))
    with pytest.raises(JournalWriteError) as caught:
        await journal.sync_to(lsn)
    assert caught.value.is_disk_full
    assert "restart the service" not in str(caught.value)
    with pytest.raises(JournalWriteError):
        journal.append(one(99))
    assert "disk is full" in journal.problem
    await asyncio.sleep(0.1)
    assert journal.durable_lsn == durable_lsn
    numbers.clear()
    await until(lambda: journal.problem == "")
    assert journal.durable_lsn == lsn
    n_segments = len(list((tmp_path / "journal").glob("*.seg")))
    await journal.sync_to(journal.append(one(11)))
    assert len(list((tmp_path / "journal").glob("*.seg"))) == n_segments + 1
    assert [int(e.body[:3]) for block in journal.read() for e in block.entries] == list(range(12))


async def test_fsync_without_space_that_lost_pages_stays_failed(failing: tuple[Journal, list[int]], tmp_path: Path) -> None:
    """If what could not be written is gone when it is read back, nothing is promised until a restart."""
    journal, numbers = failing
    await journal.sync_to(journal.append(one(0)))
    numbers.append(errno.ENOSPC)
    lsn = journal.append(one(1))
    with pytest.raises(JournalWriteError):
        await journal.sync_to(lsn)
    (segment,) = (tmp_path / "journal").glob("*.seg")
    with segment.open("r+b") as file:  # what the kernel does with a clean page that it drops
        file.seek(HEADER + BLOCK + 50)
        file.write(bytes(100))
    numbers.clear()
    await until(lambda: "entries were lost" in journal.problem)
    assert f"LSN {lsn}" in journal.problem
    with pytest.raises(JournalWriteError, match="entries were lost"):
        journal.append(one(2))


async def test_fsync_that_fails_for_another_reason_stays_failed(failing: tuple[Journal, list[int]]) -> None:
    """An I/O error is final although the next fsync would succeed, and says that a restart is needed."""
    journal, numbers = failing
    numbers.append(errno.EIO)
    with pytest.raises(JournalWriteError, match="restart the service"):
        await journal.sync_to(journal.append(one()))
    numbers.clear()
    await asyncio.sleep(0.1)
    assert "restart the service" in journal.problem
    with pytest.raises(JournalWriteError):
        journal.append(one())


def test_write_again_writes_exactly_what_is_not_durable(tmp_path: Path) -> None:
    """Every byte past the durable LSN is written, none before it; half a block at the end goes."""
    journal = Journal.open(tmp_path / "journal", sync="os", segment_bytes=SEGMENT_BYTES)
    lsns = [journal.append(one(n)) for n in range(10)]
    journal.abandon()
    segments = list_segments(tmp_path / "journal")
    with segments[-1].path.open("ab") as file:
        file.write(b"half a block")
    for durable in (0, *lsns):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "journal", tmp_path / "copy")
        copies = list_segments(tmp_path / "copy")
        copies[-1].size = segments[-1].size
        for copy in copies:
            os.utime(copy.path, (0, 0))
        assert write_again(copies, durable) == lsns[-1]
        written = [copy.path.stat().st_mtime > 0 for copy in copies]
        expected = [segment.first_lsn + 3 > durable and durable < lsns[-1] for segment in segments]
        expected[-1] = True  # cut
        assert written == expected, durable
        assert bodies(tmp_path / "copy") == list(range(10))


def test_read_of_a_segment_that_is_gone_is_corrupt_not_an_os_error(tmp_path: Path) -> None:
    """A file that somebody removed under a running service is named with its first LSN."""
    journal = Journal.open(tmp_path, sync="os", segment_bytes=SEGMENT_BYTES)
    for n in range(10):
        journal.append(one(n))
    second = list_segments(tmp_path)[1]
    second.path.unlink()
    with pytest.raises(JournalCorrupt, match="cannot be read") as caught:
        list(journal.read())
    assert (caught.value.lsn, caught.value.path) == (second.first_lsn, str(second.path))
    journal.abandon()
