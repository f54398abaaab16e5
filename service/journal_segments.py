"""The journal's directory at rest: which segments there are, reading them in order, checking and repairing at a start.

What counts as damage depends on the durable LSN, up to which everything was fsynced and promised. Bytes that cannot be
read below it are a loss: JournalCorrupt, unless the operator accepts it, and then every readable block is kept and the
damaged file stays beside the repaired one. Past it a power failure leaves what it likes, holes included: everything
from the first bad byte is cut, so that the journal stays a prefix of what happened.
Checking costs about 2 µs per entry of the segments from the durable LSN on; older ones are verified when they are read.
"""

import io
import os
import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from service.journal_format import (
    SEGMENT_HEADER_BYTES,
    SEGMENT_SUFFIX,
    BadBlock,
    Block,
    BlockReader,
    JournalCorrupt,
    decode_mark,
    decode_segment_header,
    encode_mark,
    encode_segment_header,
)

DAMAGED_SUFFIX = ".damaged"  # the untouched original of a repaired segment, deleted together with it
_COPY_BYTES = 1 << 20
_SEGMENT_NAME = re.compile(r"[0-9a-f]{16}" + re.escape(SEGMENT_SUFFIX))


class Segment(msgspec.Struct):
    """One file. No LSN in it is below `first_lsn`, all are below the first LSN of the segment after it."""

    first_lsn: int
    path: Path
    size: int  # bytes


class Checked(msgspec.Struct):
    """What a start found: the segments that stay, and what was cut from, or lost in, the others."""

    segments: list[Segment]
    last_lsn: int = 0
    cut_bytes: int = 0
    cut_reason: str | None = None


def list_segments(directory: Path) -> list[Segment]:
    """The segments of a directory in LSN order."""
    paths = sorted(path for path in directory.iterdir() if _SEGMENT_NAME.fullmatch(path.name))
    return [Segment(int(path.stem, 16), path, path.stat().st_size) for path in paths]


def read_segments(segments: Sequence[Segment], from_lsn: int, durable_lsn: int) -> Iterator[Block]:
    """Every entry from `from_lsn` on, in blocks. Raises JournalCorrupt at a bad block, a missing or an unreadable segment.

    Bad bytes at the very end, past `durable_lsn` and with nothing readable after them, end the iteration silently.
    """
    try:
        last_lsn = yield from _walk(segments, _start_index(segments, from_lsn), from_lsn)
    except _Unreadable as bad:  # a segment that somebody removed, a block that the disk does not give back
        first_lsn = max(bad.segment.first_lsn, from_lsn)
        raise JournalCorrupt(f"cannot be read ({bad})", first_lsn, str(bad.segment.path), 0) from bad
    except _Damage as damage:
        if damage.is_tail and damage.last_lsn >= durable_lsn:
            return
        raise damage.as_corrupt() from damage
    _check_length(segments, last_lsn, durable_lsn)


def check(segments: list[Segment], durable_lsn: int) -> Checked:
    """Verifies the segments from the durable LSN on and cuts what is bad past it. Raises JournalCorrupt."""
    walk = _walk(segments, _start_index(segments, durable_lsn), 0)
    found = Checked(segments)
    try:
        while True:
            next(walk)
    except StopIteration as end:
        found.last_lsn = end.value
    except _Damage as damage:
        if damage.last_lsn < durable_lsn:
            raise damage.as_corrupt() from damage
        found.last_lsn = damage.last_lsn
        _cut(found, damage)
    _check_length(segments, found.last_lsn, durable_lsn)
    return found


def repair(segments: list[Segment]) -> Checked:
    """Verifies every segment and keeps each readable block. For a start that accepts the loss; never refuses one."""
    found = Checked(segments)
    last_lsn = None
    reasons = []
    for segment in segments:
        kept, last_lsn, problems = _readable(segment.path.read_bytes(), segment, last_lsn)
        if problems:
            found.cut_bytes += max(0, segment.size - sum(map(len, kept)))
            reasons.append(f"{segment.path.name}: {', '.join(problems)}")
            _replace(segment, kept)
    found.last_lsn = last_lsn or 0
    found.cut_reason = "; ".join(reasons) or None
    return found


def write_again(segments: Sequence[Segment], durable_lsn: int) -> int:
    """Verifies everything after `durable_lsn`, writes the same bytes in the same places and syncs them; returns the last LSN.

    After an fsync has failed the kernel may take pages that it could not write for clean: they are still read, but no later
    fsync writes them. Writing them again makes them dirty. Files are cut to their `size`. Raises OSError, JournalCorrupt.
    """
    start = _start_index(segments, durable_lsn)
    for segment in segments[start:]:
        if segment.path.stat().st_size > segment.size:
            os.truncate(segment.path, segment.size)
    last_lsn = durable_lsn
    for segment in segments[start:]:
        with segment.path.open("r+b") as file:
            offset = 0  # of the header too, where the whole segment is new
            try:
                reader = BlockReader(file, segment.size, segment.first_lsn)
                for number, _ in enumerate(reader.blocks(durable_lsn + 1)):
                    if number == 0 and segment.first_lsn <= durable_lsn:
                        offset = reader.block_offset
            except BadBlock as bad:
                raise _Damage(bad, [segment], 0, last_lsn).as_corrupt() from bad
            if reader.last_lsn > durable_lsn:
                _write_in_place(file, offset)
                last_lsn = reader.last_lsn
            os.fsync(file.fileno())
    if segments:
        sync_file(segments[0].path.parent)
    return last_lsn


def _write_in_place(file: IO[bytes], offset: int) -> None:
    while True:
        file.seek(offset)
        data = file.read(_COPY_BYTES)
        if not data:
            break
        file.seek(offset)
        file.write(data)
        offset += len(data)
    file.flush()


def trimmed_lsn(segments: Sequence[Segment]) -> int:
    """The highest LSN that is no longer here because it was trimmed away; 0 if nothing was."""
    if not segments:
        return 0
    with segments[0].path.open("rb") as file:
        return decode_segment_header(file.read(SEGMENT_HEADER_BYTES))


def read_mark(path: Path) -> int | None:
    """The number in a mark file: 0 if there is no such file or it is empty, None if it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    return decode_mark(data) if data else 0


def write_mark(path: Path, value: int) -> None:
    """Replaces a mark file durably: afterwards it holds the old number or the new one."""
    temporary = path.with_suffix(".tmp")
    _write_durably(temporary, [encode_mark(value)])
    temporary.replace(path)
    sync_file(path.parent)


def sync_file(path: Path) -> None:
    """fsync of a file or directory that nobody has open. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Damage(Exception):
    """Where a walk through the segments had to stop; `last_lsn` is the last one before it."""

    def __init__(self, bad: BadBlock, segments: Sequence[Segment], index: int, last_lsn: int) -> None:
        super().__init__(bad.problem)
        self.problem = bad.problem
        self.offset = bad.offset
        self.segment = segments[index]
        self.index = index
        self.last_lsn = last_lsn
        self.is_tail = False
        self.missing_lsn = max(last_lsn + 1, self.segment.first_lsn)

    def as_corrupt(self) -> JournalCorrupt:
        return JournalCorrupt(self.problem, self.missing_lsn, str(self.segment.path), self.offset)


class _Unreadable(OSError):
    """Not damage: the system does not give the bytes."""

    def __init__(self, error: OSError, segment: Segment) -> None:
        super().__init__(error.errno, error.strerror, str(segment.path))
        self.segment = segment

    def __str__(self) -> str:
        return str(self.strerror)


def _start_index(segments: Sequence[Segment], lsn: int) -> int:
    """The index of the segment that would hold `lsn`; 0 if all are above it."""
    return max(0, sum(segment.first_lsn <= lsn for segment in segments) - 1)


def _walk(segments: Sequence[Segment], start: int, from_lsn: int) -> Generator[Block, None, int]:
    """Blocks of segments `start` and later; returns the last LSN. Raises _Damage at the first bad byte, _Unreadable."""
    last_lsn: int | None = None
    for index in range(start, len(segments)):
        try:
            last_lsn = yield from _walk_one(segments, index, last_lsn, from_lsn)
        except OSError as error:
            raise _Unreadable(error, segments[index]) from error
    return last_lsn or 0


def _walk_one(segments: Sequence[Segment], index: int, last_lsn: int | None, from_lsn: int) -> Generator[Block, None, int]:
    """The same for one segment, which follows `last_lsn` (None: it is the first)."""
    segment = segments[index]
    with segment.path.open("rb") as file:
        try:
            reader = BlockReader(file, segment.size, segment.first_lsn)
        except BadBlock as bad:
            damage = _Damage(bad, segments, index, last_lsn or 0)
            # A process killed between creating a segment and its first block leaves less than a header.
            damage.is_tail = index == len(segments) - 1 and segment.size <= SEGMENT_HEADER_BYTES
            raise damage from bad
        if last_lsn is not None and reader.previous_last_lsn != last_lsn:
            problem = f"segment follows LSN {reader.previous_last_lsn}, the one before ends at {last_lsn}"
            damage = _Damage(BadBlock(problem, 0), segments, index, last_lsn)
            damage.missing_lsn = last_lsn + 1
            raise damage
        try:
            yield from reader.blocks(from_lsn)
        except BadBlock as bad:
            damage = _Damage(bad, segments, index, reader.last_lsn)
            damage.is_tail = index == len(segments) - 1 and not reader.find_block()
            raise damage from bad
        return reader.last_lsn


def _check_length(segments: Sequence[Segment], last_lsn: int, durable_lsn: int) -> None:
    if last_lsn < durable_lsn:
        path, size = (str(segments[-1].path), segments[-1].size) if segments else ("no segment", 0)
        problem = f"the journal ends at LSN {last_lsn}, but was durable up to {durable_lsn}"
        raise JournalCorrupt(problem, last_lsn + 1, path, size)


def _cut(found: Checked, damage: _Damage) -> None:
    """Drops everything from the damage on, newest file first: if this is interrupted, the next start repeats it."""
    segment, index = damage.segment, damage.index
    keep_bytes = damage.offset if damage.offset > SEGMENT_HEADER_BYTES else 0
    found.cut_bytes = sum(s.size for s in found.segments[index:]) - keep_bytes
    where = f"{segment.path.name} at byte {damage.offset}"
    found.cut_reason = f"{damage.problem} ({where}); everything after LSN {damage.last_lsn} is gone"
    n_kept = index + 1 if keep_bytes else index
    for later in reversed(found.segments[n_kept:]):
        later.path.unlink()
    found.segments = found.segments[:n_kept]
    if keep_bytes:
        os.truncate(segment.path, keep_bytes)
        segment.size = keep_bytes
    sync_file(segment.path.parent)


def _readable(data: bytes, segment: Segment, last_lsn: int | None) -> tuple[list[bytes], int, list[str]]:
    """(header and readable ranges of blocks, last LSN, problems) of a segment that follows `last_lsn` (None: first)."""
    problems = []
    try:
        previous_last_lsn = decode_segment_header(data[:SEGMENT_HEADER_BYTES])
        if last_lsn is not None and previous_last_lsn != last_lsn:
            problems.append(f"LSNs {last_lsn + 1} to {previous_last_lsn} are missing before it")
            previous_last_lsn = last_lsn
    except BadBlock as bad:
        problems.append(bad.problem)
        previous_last_lsn = segment.first_lsn - 1 if last_lsn is None else last_lsn
    header = encode_segment_header(previous_last_lsn)
    data = header + data[SEGMENT_HEADER_BYTES:]
    kept = [header]
    reader = BlockReader(io.BytesIO(data), len(data), segment.first_lsn)
    while True:
        start = reader.offset
        try:
            for _ in reader.blocks():
                pass
        except BadBlock as bad:
            kept.append(data[start : bad.offset])
            problems.append(f"{bad.problem} at byte {bad.offset}, LSN {reader.last_lsn + 1}")
            if reader.find_block():
                continue
            break
        kept.append(data[start : reader.offset])
        break
    return kept, reader.last_lsn, problems


def _replace(segment: Segment, parts: Sequence[bytes]) -> None:
    damaged = segment.path.with_name(segment.path.name + DAMAGED_SUFFIX)
    damaged.unlink(missing_ok=True)
    damaged.hardlink_to(segment.path)
    replace_durably(segment.path, parts)
    segment.size = sum(map(len, parts))


def replace_durably(path: Path, parts: Sequence[bytes]) -> None:
    """Put another file in the place of a segment; whoever reads the old one goes on reading it. Raises OSError."""
    temporary = path.with_suffix(".tmp")
    _write_durably(temporary, parts)
    temporary.replace(path)
    sync_file(path.parent)


def _write_durably(path: Path, parts: Sequence[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
