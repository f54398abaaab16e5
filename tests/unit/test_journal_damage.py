"""The journal after a crash or on a bad disk: what is cut, what refuses the start, what an accepted loss keeps."""

import asyncio
import shutil
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.journal import TX, Journal, JournalCorrupt, JournalError, read_directory
from service.journal_format import encode_segment_header

EPOCH_1 = 1 << 48
Build = Callable[..., Path]


def bodies(directory: Path) -> list[bytes]:
    return [entry.body for block in read_directory(directory) for entry in block.entries]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x55
    path.write_bytes(data)


def newest(directory: Path) -> Path:
    return max(directory.glob("*.seg"))


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Makes a journal of five one-entry blocks, LSN 1 to 5 of epoch 1, of which the first `durable` are synced."""

    def build(durable: int, segment_bytes: int = 1 << 20) -> Path:
        directory = tmp_path / "journal"

        async def write() -> None:
            journal = Journal.open(directory, sync="group", segment_bytes=segment_bytes)
            for n in range(1, 6):
                lsn = journal.append([(TX, b"body-%d" % n, b"decision")])
                if n == durable:
                    await journal.sync_to(lsn)
            journal.abandon()

        asyncio.run(write())
        return directory

    return build


# Bytes of build()'s blocks: header 20, entry header 9, body 6, decision 8.
BLOCK = 20 + 9 + 6 + 8
HEADER = 24


def test_open_torn_at_every_byte_of_the_last_block_cuts_it(build: Build, tmp_path: Path) -> None:
    """Wherever a crash cut the last, not yet durable block, it is dropped and reported, and the next run works."""
    original = build(durable=4)
    whole = newest(original).stat().st_size
    assert whole == HEADER + 5 * BLOCK
    for size in range(whole - BLOCK, whole):
        directory = tmp_path / "torn"
        shutil.copytree(original, directory)
        with newest(directory).open("r+b") as file:
            file.truncate(size)
        assert bodies(directory) == [b"body-%d" % n for n in range(1, 5)]
        journal = Journal.open(directory, sync="os")
        assert journal.cut_bytes == size - (whole - BLOCK)
        assert (journal.cut_reason is None) == (journal.cut_bytes == 0)
        assert journal.last_lsn == journal.durable_lsn == EPOCH_1 + 4
        assert journal.append([(TX, b"next", b"")]) == (2 << 48) | 1
        journal.abandon()
        assert bodies(directory) == [b"body-%d" % n for n in range(1, 5)] + [b"next"]
        shutil.rmtree(directory)


@pytest.mark.parametrize("tail", [b"\x00" * 5, b"\x00" * 4096, b"\xff" * 300])
def test_open_garbage_after_the_last_block_is_cut(build: Build, tail: bytes) -> None:
    """Zeros or noise that a power failure left at the end are no entries: they go, every block stays."""
    directory = build(durable=5)
    with newest(directory).open("ab") as file:
        file.write(tail)
    assert len(bodies(directory)) == 5
    journal = Journal.open(directory, sync="os")
    assert journal.cut_bytes == len(tail)
    assert journal.last_lsn == EPOCH_1 + 5
    journal.abandon()


@pytest.mark.parametrize("part", range(0, BLOCK, 3))
def test_open_flipped_byte_below_durable_is_refused_and_names_the_lsn(build: Build, part: int) -> None:
    """A damaged block that was durable refuses the start, names its LSN and offset, and changes nothing on disk."""
    directory = build(durable=5)
    offset = HEADER + 2 * BLOCK
    flip(newest(directory), offset + part)
    before = newest(directory).read_bytes()
    for read in (lambda: Journal.open(directory, sync="os"), lambda: list(read_directory(directory))):
        with pytest.raises(JournalCorrupt, match=f"{EPOCH_1 + 3} .*byte {offset}") as caught:
            read()
        assert caught.value.lsn == EPOCH_1 + 3
        assert caught.value.offset == offset
    assert newest(directory).read_bytes() == before


def test_open_flipped_byte_in_the_last_durable_block_is_refused(build: Build) -> None:
    """The very last block is damage too, not a torn tail, once it was durable; truncated or flipped."""
    directory = build(durable=5)
    flip(newest(directory), HEADER + 5 * BLOCK - 1)
    with pytest.raises(JournalCorrupt) as caught:
        Journal.open(directory, sync="os")
    assert caught.value.lsn == EPOCH_1 + 5
    with newest(directory).open("r+b") as file:
        file.truncate(HEADER + 4 * BLOCK)
    for read in (lambda: Journal.open(directory, sync="os"), lambda: list(read_directory(directory))):
        with pytest.raises(JournalCorrupt, match="ends at") as caught:
            read()
        assert caught.value.lsn == EPOCH_1 + 5


def test_open_hole_past_durable_is_cut_with_what_follows(build: Build) -> None:
    """Past the durable LSN a power failure may leave a hole: the journal is cut there, and stays a prefix."""
    directory = build(durable=2)
    flip(newest(directory), HEADER + 3 * BLOCK + 30)
    with pytest.raises(JournalCorrupt) as caught:
        bodies(directory)
    assert caught.value.lsn == EPOCH_1 + 4
    journal = Journal.open(directory, sync="os")
    assert journal.cut_bytes == 2 * BLOCK
    assert journal.last_lsn == EPOCH_1 + 3
    journal.abandon()
    assert bodies(directory) == [b"body-1", b"body-2", b"body-3"]


def test_open_hole_past_durable_cuts_later_segments_too(build: Build) -> None:
    """If an unsynced segment is damaged, the newer segments after it go as well."""
    directory = build(durable=2, segment_bytes=HEADER + 2 * BLOCK)
    second = sorted(directory.glob("*.seg"))[1]
    flip(second, HEADER + BLOCK + 30)
    journal = Journal.open(directory, sync="os")
    assert journal.cut_bytes == 2 * BLOCK + HEADER
    assert newest(directory) == second
    journal.append([(TX, b"next", b"")])
    journal.abandon()
    assert bodies(directory) == [b"body-1", b"body-2", b"body-3", b"next"]


@pytest.mark.parametrize("size", [0, 10, HEADER])
def test_open_segment_that_was_only_begun_is_dropped(build: Build, size: int) -> None:
    """A crash between creating a segment and its first block leaves a stump, which is no damage."""
    directory = build(durable=5)
    stump = directory / f"{EPOCH_1 + 6:016x}.seg"
    stump.write_bytes(encode_segment_header(EPOCH_1 + 5)[:size])
    assert len(bodies(directory)) == 5
    journal = Journal.open(directory, sync="os")
    assert journal.last_lsn == EPOCH_1 + 5
    journal.append([(TX, b"next", b"")])
    journal.abandon()
    assert len(bodies(directory)) == 6


def test_read_missing_segment_raises(build: Build) -> None:
    """A segment deleted from the middle is noticed although every remaining block is fine."""
    directory = build(durable=5, segment_bytes=HEADER + 2 * BLOCK)
    sorted(directory.glob("*.seg"))[1].unlink()
    with pytest.raises(JournalCorrupt, match="the one before ends at") as caught:
        bodies(directory)
    assert caught.value.lsn == EPOCH_1 + 3


def test_open_without_any_segment_is_refused(build: Build) -> None:
    """A journal whose segments are all gone ends below its durable LSN."""
    directory = build(durable=5)
    newest(directory).unlink()
    with pytest.raises(JournalCorrupt, match="was durable up to"):
        Journal.open(directory, sync="os")
    journal = Journal.open(directory, sync="os", accept_loss=True)
    assert journal.next_lsn >> 48 == 2
    journal.abandon()


@pytest.mark.parametrize("mark", ["durable", "epoch"])
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_open_with_damaged_mark_is_refused_unless_accepted(build: Build, mark: str, damage: str) -> None:
    """Without its marks the journal cannot tell a torn tail from a loss, so the operator has to say so."""
    directory = build(durable=5)
    if damage == "missing":
        (directory / mark).unlink()
    else:
        flip(directory / mark, 5)
    with pytest.raises(JournalCorrupt, match=mark):
        Journal.open(directory, sync="os")
    journal = Journal.open(directory, sync="os", accept_loss=True)
    assert journal.last_lsn == EPOCH_1 + 5
    assert journal.cut_bytes == 0
    journal.abandon()
    Journal.open(directory, sync="os").abandon()


@pytest.mark.parametrize("part", range(0, BLOCK, 3))
def test_accept_loss_keeps_every_readable_block(build: Build, part: int) -> None:
    """An accepted loss drops the damaged block alone, keeps the original file, and later starts need no flag."""
    directory = build(durable=5)
    segment = newest(directory)
    flip(segment, HEADER + 2 * BLOCK + part)
    damaged = segment.read_bytes()
    journal = Journal.open(directory, sync="os", accept_loss=True)
    assert journal.cut_bytes == BLOCK
    assert str(EPOCH_1 + 3) in (journal.cut_reason or "")
    assert journal.next_lsn == (2 << 48) | 1
    journal.abandon()
    assert bodies(directory) == [b"body-1", b"body-2", b"body-4", b"body-5"]
    assert segment.with_name(segment.name + ".damaged").read_bytes() == damaged
    Journal.open(directory, sync="os").abandon()


def test_accept_loss_after_a_truncation_lowers_the_durable_lsn(build: Build) -> None:
    """Once the loss of the end is accepted, the shorter journal is the journal."""
    directory = build(durable=5)
    with newest(directory).open("r+b") as file:
        file.truncate(HEADER + 3 * BLOCK + 7)
    journal = Journal.open(directory, sync="os", accept_loss=True)
    assert journal.last_lsn == journal.durable_lsn == EPOCH_1 + 3
    journal.abandon()
    Journal.open(directory, sync="os").abandon()
    assert len(bodies(directory)) == 3


@pytest.mark.parametrize("offset", [0, 9, 13, 20])
def test_accept_loss_with_a_damaged_segment_header_keeps_the_blocks(build: Build, offset: int) -> None:
    """A bad header refuses the start; accepted, it is rewritten and costs no entry."""
    directory = build(durable=5, segment_bytes=HEADER + 2 * BLOCK)
    flip(sorted(directory.glob("*.seg"))[1], offset)
    with pytest.raises(JournalCorrupt):
        bodies(directory)
    Journal.open(directory, sync="os", accept_loss=True).abandon()
    assert len(bodies(directory)) == 5


def test_accept_loss_of_a_whole_segment_joins_its_neighbours(build: Build) -> None:
    """After a lost segment is accepted the rest reads and reopens without a complaint."""
    directory = build(durable=5, segment_bytes=HEADER + 2 * BLOCK)
    sorted(directory.glob("*.seg"))[1].unlink()
    journal = Journal.open(directory, sync="os", accept_loss=True)
    assert f"{EPOCH_1 + 3} to {EPOCH_1 + 4}" in (journal.cut_reason or "")
    journal.abandon()
    assert bodies(directory) == [b"body-1", b"body-2", b"body-5"]
    Journal.open(directory, sync="os").abandon()


@pytest.mark.parametrize("damage", ["none", "middle", "end", "all", "durable mark"])
def test_accept_loss_remembers_how_far_entries_may_be_missing(build: Build, damage: str) -> None:
    """Whoever is behind the end of a journal that lost something cannot be brought up from it, after later starts too."""
    directory = build(durable=5)
    if damage == "middle":
        flip(newest(directory), HEADER + 2 * BLOCK + 30)
    elif damage == "end":
        with newest(directory).open("r+b") as file:
            file.truncate(HEADER + 3 * BLOCK)
    elif damage == "all":
        newest(directory).unlink()
    elif damage == "durable mark":
        flip(directory / "durable", 5)
    for accept_loss in (True, False):
        journal = Journal.open(directory, sync="os", accept_loss=accept_loss)
        journal.append([(TX, b"next", b"")])
        # Without the mark nobody knows what was durable: everything so far may be missing.
        expected = {"none": 0, "durable mark": (2 << 48) - 1}.get(damage, EPOCH_1 + 5)
        assert journal.lost_lsn == expected
        journal.abandon()


def test_open_with_a_damaged_mark_of_a_loss_is_refused_unless_accepted(build: Build) -> None:
    """What says how far entries are missing is believed only if it is intact."""
    directory = build(durable=5)
    flip(newest(directory), HEADER + 2 * BLOCK + 30)
    Journal.open(directory, sync="os", accept_loss=True).abandon()
    flip(directory / "lost", 5)
    with pytest.raises(JournalCorrupt, match="lost"):
        Journal.open(directory, sync="os")
    journal = Journal.open(directory, sync="os", accept_loss=True)
    assert journal.lost_lsn >= EPOCH_1 + 5
    journal.abandon()


def test_trim_deletes_the_original_of_a_repaired_segment_too(build: Build) -> None:
    """The damaged original does not outlive its segment: it holds people's data."""
    directory = build(durable=5, segment_bytes=HEADER + 2 * BLOCK)
    flip(min(directory.glob("*.seg")), HEADER + 30)
    journal = Journal.open(directory, sync="os", accept_loss=True)
    assert list(directory.glob("*.damaged"))
    journal.trim(EPOCH_1 + 5)
    assert not list(directory.glob("*.damaged"))
    journal.abandon()


@pytest.mark.parametrize("accept_loss", [False, True])
def test_open_segment_of_a_newer_format_is_refused_and_left_alone(build: Build, accept_loss: bool) -> None:
    """An intact segment of an unknown version is not damage: no flag makes this program cut it."""
    directory = build(durable=5)
    segment = newest(directory)
    data = segment.read_bytes()
    header = struct.pack("<8sIQ", b"WEIRJRNL", 2, 0)
    header = struct.pack("<8sIIQ", b"WEIRJRNL", 2, zlib.crc32(header), 0)
    segment.write_bytes(header + data[HEADER:])
    with pytest.raises(JournalError, match="format 2") as caught:
        Journal.open(directory, sync="os", accept_loss=accept_loss)
    assert not isinstance(caught.value, JournalCorrupt)
    assert segment.read_bytes() == header + data[HEADER:]


def test_open_after_sigkill_has_everything_that_was_appended(tmp_path: Path) -> None:
    """A process killed while it appends loses no entry whose append had returned, in the laxest mode too."""
    program = f"""
        import sys
        from pathlib import Path
        from service.journal import Journal, TX

        journal = Journal.open(Path({str(tmp_path)!r}), sync="os", segment_bytes=20_000)
        while True:
            lsn = journal.append([(TX, b"x" * 100, b"d")] * 3)
            sys.stdout.write(f"{{lsn + 2}}\\n")
            sys.stdout.flush()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        answered = [int(process.stdout.readline()) for _ in range(300)]
        process.kill()
        answered += [int(line) for line in process.stdout.read().split(b"\n")[:-1]]
    journal = Journal.open(tmp_path, sync="os")
    found = [entry.lsn for block in journal.read() for entry in block.entries]
    assert found[: answered[-1] - EPOCH_1] == list(range(EPOCH_1 + 1, answered[-1] + 1))
    assert len(found) % 3 == 0
    journal.abandon()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, HEADER + 5 * BLOCK - 1), mask=st.integers(1, 255), accept_loss=st.booleans())
def test_open_any_changed_byte_of_a_durable_segment_is_noticed(
    durable_journal: Path, tmp_path_factory: pytest.TempPathFactory, offset: int, mask: int, accept_loss: bool
) -> None:
    """Whatever byte changes, the start refuses; with the loss accepted at most one block is gone, none is wrong."""
    directory = tmp_path_factory.mktemp("changed") / "journal"
    shutil.copytree(durable_journal, directory)
    data = bytearray(newest(directory).read_bytes())
    data[offset] ^= mask
    newest(directory).write_bytes(data)
    if not accept_loss:
        with pytest.raises(JournalCorrupt):
            Journal.open(directory, sync="os")
        return
    Journal.open(directory, sync="os", accept_loss=True).abandon()
    kept = bodies(directory)
    assert len(kept) >= 4
    assert set(kept) <= {b"body-%d" % n for n in range(1, 6)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=400), keep=st.integers(0, HEADER + 5 * BLOCK))
def test_open_any_tail_past_durable_leaves_a_prefix(
    unsynced_journal: Path, tmp_path_factory: pytest.TempPathFactory, noise: bytes, keep: int
) -> None:
    """Whatever a power failure makes of bytes that were never synced, the start goes through with whole blocks only."""
    directory = tmp_path_factory.mktemp("noise") / "journal"
    shutil.copytree(unsynced_journal, directory)
    newest(directory).write_bytes(newest(directory).read_bytes()[:keep] + noise)
    Journal.open(directory, sync="os").abandon()
    kept = bodies(directory)
    assert kept == [b"body-%d" % n for n in range(1, 6)][: len(kept)]
    assert len(kept) >= (keep - HEADER) // BLOCK


@pytest.fixture
def durable_journal(build: Build) -> Path:
    return build(durable=5)


@pytest.fixture
def unsynced_journal(build: Build) -> Path:
    return build(durable=0)
