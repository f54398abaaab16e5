"""The journal: the local, append-only log in which a transaction is accepted, or it never happened.

Invariants: an LSN is given out once, ever (each run has its own epoch, LSNs of failed appends are burnt); a block is in
the file whole or not at all; `durable_lsn` never runs ahead of an fsync, and after a failed one nothing is promised
(journal_sync.py). With `bytes_max` the segments never take more than that: what nobody needs is trimmed although it was to
be kept longer, what somebody needs stays, and then nothing is taken. Everything runs on the event loop's thread except fsync.
Each run writes segments of its own, so a segment has one epoch.
Cost: append 3.3 µs for one entry of 260 bytes, 0.5 µs per entry at 64. Format: docs/reference/journal.md.
"""

import asyncio
import os
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import msgspec

from service.journal_format import (
    EPOCH_MAX,
    EPOCH_SHIFT,
    ERASURE,
    LABEL,
    LIST,
    SEGMENT_HEADER_BYTES,
    TX,
    Block,
    Entry,
    JournalCorrupt,
    JournalError,
    JournalFull,
    JournalWriteError,
    encode_block,
    encode_entries,
    encode_segment_header,
    segment_name,
)
from service.journal_segments import (
    DAMAGED_SUFFIX,
    Checked,
    Segment,
    check,
    list_segments,
    read_mark,
    read_segments,
    repair,
    sync_file,
    trimmed_lsn,
    write_again,
    write_mark,
)
from service.journal_sync import DURABLE_MARK, Syncer, Unsynced
from service.metrics import Histogram

__all__ = [
    "EPOCH_MAX",
    "EPOCH_SHIFT",
    "ERASURE",
    "LABEL",
    "LIST",
    "TX",
    "Block",
    "Entry",
    "Journal",
    "JournalCorrupt",
    "JournalError",
    "JournalFull",
    "JournalWriteError",
    "read_directory",
]

Sync = Literal["group", "interval", "os"]

_EPOCH = "epoch"
_LOST = "lost"
_CLOSED = -1
FULL_FREE_BYTES = 64 * 1024  # beside the entries that were refused; then a full disk counts as one with room again
# How long a full disk is believed to be full: file systems do not tell what a quota or root's reserve leaves.
REFUSAL_MIN_S, REFUSAL_MAX_S = 1.0, 30.0
REFUSALS = ("bytes_max", "disk_full", "failed")


def read_directory(path: Path, from_lsn: int = 0) -> Iterator[Block]:
    """Blocks of a journal that nobody has open, without changing it. Raises JournalCorrupt, as `Journal.read`."""
    durable_lsn = read_mark(path / DURABLE_MARK)
    return read_segments(list_segments(path), from_lsn, durable_lsn or 0)


class Journal:
    """The live log of one process. Made by `open`; `start` and `close` frame its life on an event loop."""

    cut_bytes: int  # bytes that this start cut off or, with accept_loss, lost
    cut_reason: str | None  # why and where, None if nothing was
    trimmed_lsn: int  # every entry above it is here; a consumer whose position is below it cannot catch up
    lost_lsn: int  # up to here an accepted loss may have cost entries: nor can a consumer whose position is below this one

    def __init__(
        self, directory: Path, sync: Sync, interval_ms: int, segment_bytes: int, bytes_max: int, found: Checked, next_lsn: int
    ) -> None:
        """Use `open`."""
        self.cut_bytes, self.cut_reason = found.cut_bytes, found.cut_reason
        self.trimmed_lsn = trimmed_lsn(found.segments)
        self.lost_lsn = read_mark(directory / _LOST) or 0
        self.bytes_max = bytes_max
        self.holder = ""  # which consumer needs the oldest segment, for messages; whoever trims knows it
        self.n_refused = dict.fromkeys(REFUSALS, 0)
        self._directory = directory
        self._sync = sync
        self._interval_s = interval_ms / 1000
        self._segment_bytes = segment_bytes
        # Room for what arrives between two looks of the keeper.
        self._bytes_wanted = max(bytes_max - 2 * segment_bytes, bytes_max // 2)
        self._segments = found.segments
        # Two counters, because trim counts on another thread.
        self._bytes_added = sum(segment.size for segment in found.segments)
        self._bytes_trimmed = 0
        self._fd = _CLOSED  # the segment being written, opened by the first append
        self._retired_fds: list[int] = []  # written before it, waiting for their fsync
        self._is_directory_dirty = False
        self._next_lsn = next_lsn
        self._last_lsn = found.last_lsn
        self._refusal: JournalWriteError | None = None  # of the last append, if it found no room
        self._refused_bytes, self._refused_at = 0, 0.0
        self._syncer = Syncer(directory, found.last_lsn, self._hand_over, self._copy_segments, self._begin_anew)
        self._interval_task: asyncio.Task[None] | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        sync: Sync = "interval",
        interval_ms: int = 50,
        segment_bytes: int = 64 << 20,
        bytes_max: int = 0,
        epoch_floor: int = 0,
        accept_loss: bool = False,
    ) -> Self:
        """Checks what is there, makes it durable and begins a new epoch, above `epoch_floor` and any seen here.

        `bytes_max`: of all segments together, 0 for no limit, else at least four times `segment_bytes`.
        Reads and fsyncs files: call it before the loop serves. The caller holds the lock of the data directory.
        Raises JournalCorrupt (not with `accept_loss`: then every readable block is kept), JournalWriteError.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            segments = list_segments(directory)
            durable_lsn = _read_own_mark(directory / DURABLE_MARK, segments, accept_loss)
            epoch_seen = max(
                _read_own_mark(directory / _EPOCH, segments, accept_loss),
                epoch_floor,
                max(durable_lsn, segments[-1].first_lsn if segments else 0) >> EPOCH_SHIFT,
            )
            _read_own_mark(directory / _LOST, [], accept_loss)
            found = _repair(directory, segments, durable_lsn) if accept_loss else check(segments, durable_lsn)
            epoch = max(epoch_seen, found.last_lsn >> EPOCH_SHIFT) + 1
            if epoch > EPOCH_MAX:
                raise JournalError(f"epoch {epoch} is past the last one, {EPOCH_MAX}: begin with a new data directory")
            # After a SIGKILL the tail may be in the page cache only; whoever is handed it takes it for durable.
            if found.last_lsn > durable_lsn:
                write_again(found.segments, durable_lsn)
            elif found.segments:
                sync_file(found.segments[-1].path)
            sync_file(directory)
            write_mark(directory / DURABLE_MARK, found.last_lsn)
            write_mark(directory / _EPOCH, epoch)
            return cls(directory, sync, interval_ms, segment_bytes, bytes_max, found, (epoch << EPOCH_SHIFT) | 1)
        except OSError as error:
            raise JournalWriteError(f"cannot open the journal in {directory}", error) from error

    @property
    def is_synced_before_reply(self) -> bool:
        """True in the mode `group`: nobody is answered before `sync_to` has returned."""
        return self._sync == "group"

    @property
    def next_lsn(self) -> int:
        """The LSN that the next entry will get."""
        return self._next_lsn

    @property
    def last_lsn(self) -> int:
        """The LSN of the last entry that is in the journal; 0 if it never had one."""
        return self._last_lsn

    @property
    def durable_lsn(self) -> int:
        """Everything in the journal up to here survives a power failure."""
        return self._syncer.durable_lsn

    @property
    def sync_seconds(self) -> Histogram:
        """How long fsyncs took, s."""
        return self._syncer.seconds

    def n_entries_after(self, lsn: int) -> int:
        """How many LSNs of this run lie above `lsn`, those that were never used included."""
        return max(self._last_lsn - max(lsn, (self._next_lsn >> EPOCH_SHIFT) << EPOCH_SHIFT), 0)

    @property
    def bytes_total(self) -> int:
        """Size of all segments."""
        return self._bytes_added - self._bytes_trimmed

    @property
    def excess_bytes(self) -> int:
        """How much should be trimmed although it was to be kept: the bound is near, or the disk is full."""
        excess = self.bytes_total - self._bytes_wanted if self.bytes_max else 0
        if self._refusal is not None and self._refusal.is_disk_full and self.problem:
            excess = max(excess, self.room_bytes)
        return max(excess, 0)

    @property
    def room_bytes(self) -> int:
        """How much to free at a time where room is short."""
        return 2 * self._segment_bytes

    @property
    def problem(self) -> str:
        """Why nothing can be appended at this moment; empty while it can. Asks the file system only after it was full."""
        if self._syncer.failure is not None:
            return str(self._syncer.failure)
        age_s = time.monotonic() - self._refused_at
        if self._refusal is None or age_s > REFUSAL_MAX_S:
            return ""
        if isinstance(self._refusal, JournalFull):
            has_room = self.bytes_total + self._refused_bytes <= self.bytes_max
        else:
            has_room = age_s > REFUSAL_MIN_S and _free_bytes(self._directory) >= self._refused_bytes + FULL_FREE_BYTES
        return "" if has_room else str(self._refusal)

    def append(self, entries: Sequence[tuple[int, bytes, bytes]]) -> int:
        """Appends (kind, body, decision) tuples as one block; see `append_encoded`."""
        return self.append_encoded(encode_entries(entries), len(entries))

    def append_encoded(self, entries: bytes, n_entries: int) -> int:
        """Appends entries as encode_entries gives them as one block; returns the LSN of the first. Never waits for the disk.

        Raises JournalWriteError; then the file is as it was before, the LSNs are burnt, and, unless an fsync or the
        undoing failed, the next append may succeed. JournalFull: `bytes_max` is reached.
        """
        assert n_entries, "a block has at least one entry"
        first_lsn = self._next_lsn
        self._next_lsn = first_lsn + n_entries
        if self._syncer.failure is not None:
            self.n_refused["failed"] += 1
            raise self._syncer.failure_again()
        head, rest = encode_block(first_lsn, n_entries, entries)
        size = len(head) + len(rest)
        if self._bytes_added - self._bytes_trimmed + size > self.bytes_max > 0:
            raise self._refuse(self._full(size), size)
        if self._fd == _CLOSED or SEGMENT_HEADER_BYTES < self._segments[-1].size > self._segment_bytes - size:
            try:
                self._begin_segment(first_lsn)
            except JournalWriteError as error:
                raise self._refuse(error, size) from error.__cause__
        try:
            written = os.writev(self._fd, (head, rest))
            if written != size:
                self._finish_write((head + rest)[written:])
        except OSError as error:
            self._undo_write()
            refusal = JournalWriteError(f"cannot append {size} bytes to {self._segments[-1].path}", error)
            raise self._refuse(refusal, size) from error
        self._segments[-1].size += size
        self._bytes_added += size
        self._last_lsn = self._next_lsn - 1
        self._refusal = None
        return first_lsn

    def burn(self, n: int) -> None:
        """Skips `n` LSNs: those of a batch that failed after it had been numbered."""
        self._next_lsn += n

    async def sync_to(self, lsn: int) -> None:
        """Returns when everything in the journal up to `lsn` is durable, in every sync mode. Raises JournalWriteError.

        The wait may be cancelled; the fsync goes on.
        """
        # Those above the last one are burnt, or not given out yet.
        await self._syncer.sync_to(min(lsn, self._last_lsn))

    def start(self) -> None:
        """Starts the interval task if the mode has one. Call it on the running loop."""
        self._syncer.loop = asyncio.get_running_loop()
        if self._sync == "interval":
            self._interval_task = self._syncer.loop.create_task(self._sync_every_interval(), name="journal-interval")

    async def close(self) -> None:
        """Makes everything durable and closes the files. Raises JournalWriteError if that fails now, not before."""
        if self._interval_task is not None:
            self._interval_task.cancel()
            await asyncio.wait([self._interval_task])
        try:
            if self._syncer.failure is None:
                await self.sync_to(self._last_lsn)
            await self._syncer.finish()
        except OSError as error:
            raise JournalWriteError("cannot sync the durable LSN", error) from error
        finally:
            await self._syncer.wait()
            self.abandon()

    def abandon(self) -> None:
        """Closes the files as they are, as a crash would; for a start that goes no further. Repeating it is harmless."""
        self._syncer.close()
        self._close_files()
        self._syncer.failure = self._syncer.failure or JournalWriteError("the journal is closed")

    def read(self, from_lsn: int = 0) -> Iterator[Block]:
        """Every entry from `from_lsn` to the last one of this moment, in order; appends may go on meanwhile.

        May be consumed on another thread. Raises JournalCorrupt: all of these entries have been accepted.
        """
        return read_segments(self._copy_segments(), from_lsn, self._last_lsn)

    def trim(self, below_lsn: int, keep_s: float = 0.0, bytes_min: int = 0) -> int:
        """Deletes segments that hold only LSNs below `below_lsn`, never the newest; returns the bytes freed.

        A segment that was written to within the last `keep_s` seconds stays, and so do those after it, but not before
        `bytes_min` were freed. Deleting 64 MiB takes milliseconds, so it may be called on another thread. Raises JournalError.
        """
        freed = 0
        while len(self._segments) > 1 and self._segments[1].first_lsn <= below_lsn:
            segment = self._segments[0]
            try:
                if freed >= bytes_min and time.time() - segment.path.stat().st_mtime < keep_s:
                    break
                segment.path.unlink()
                segment.path.with_name(segment.path.name + DAMAGED_SUFFIX).unlink(missing_ok=True)
            except OSError as error:
                raise JournalError(f"cannot delete {segment.path}: {error}") from error
            del self._segments[0]
            freed += segment.size
            self._bytes_trimmed += segment.size
        self.trimmed_lsn = trimmed_lsn(self._segments)
        return freed

    def finished_segments(self, below_lsn: int) -> list[Segment]:
        """Every segment that begins below `below_lsn`, none of them written to any more. Raises JournalWriteError."""
        if self._fd != _CLOSED and self._segments[-1].first_lsn < below_lsn:
            self._begin_segment(self._next_lsn)
        return [msgspec.structs.replace(segment) for segment in self._segments if segment.first_lsn < below_lsn]

    def _begin_segment(self, first_lsn: int) -> None:
        path = self._directory / segment_name(first_lsn)
        header = encode_segment_header(self._last_lsn)
        fd = _CLOSED
        try:
            # 0o600: bodies are people's payments.
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            written = os.write(fd, header)
            if written != len(header):
                os.write(fd, header[written:])  # says why it was short
        except OSError as error:
            if fd != _CLOSED:
                os.close(fd)
                path.unlink(missing_ok=True)
            raise JournalWriteError(f"cannot begin segment {path}", error) from error
        if self._fd != _CLOSED:
            self._retired_fds.append(self._fd)
        self._fd = fd
        self._segments.append(Segment(first_lsn, path, len(header)))
        self._bytes_added += len(header)
        self._is_directory_dirty = True
        if self._retired_fds:
            self._syncer.begin()

    def _finish_write(self, left: bytes) -> None:
        """After a short write: the rest, or the error that made it short. Raises OSError."""
        while left:
            left = left[os.write(self._fd, left) :]

    def _undo_write(self) -> None:
        segment = self._segments[-1]
        try:
            os.ftruncate(self._fd, segment.size)
        except OSError as error:
            # Half a block may stand at the end; anything appended after it would be unreadable.
            self._syncer.fail(JournalWriteError(f"cannot cut {segment.path} back to {segment.size} bytes", error))

    def _full(self, size: int) -> JournalFull:
        why = f"{self.holder} still needs the oldest of them" if self.holder else "they are about to be trimmed"
        return JournalFull(
            f"the journal holds {self.bytes_total} bytes, {size} more would exceed journal.bytes_max = {self.bytes_max}; {why}:"
            " let it catch up, turn it off, or raise journal.bytes_max"
        )

    def _refuse(self, refusal: JournalWriteError, size: int) -> JournalWriteError:
        self.n_refused[
            "bytes_max" if isinstance(refusal, JournalFull) else "disk_full" if refusal.is_disk_full else "failed"
        ] += 1
        if isinstance(refusal, JournalFull) or refusal.is_disk_full:
            self._refusal, self._refused_bytes, self._refused_at = refusal, size, time.monotonic()
        return refusal

    def _hand_over(self) -> Unsynced:
        unsynced = Unsynced(self._retired_fds, self._fd, self._is_directory_dirty, self._last_lsn)
        self._retired_fds, self._is_directory_dirty = [], False
        return unsynced

    def segments(self) -> list[Segment]:
        """Copies of all segments as they are now, in LSN order: for whoever reads their bytes."""
        return self._copy_segments()

    def segments_from(self, lsn: int, n_max: int) -> list[Segment]:
        """Copies of at most `n_max` segments, in LSN order, from the one on that `lsn` is in or would be."""
        segments = list(self._segments)  # at once: another thread trims
        start = max(bisect_right(segments, lsn, key=lambda segment: segment.first_lsn) - 1, 0)
        return [msgspec.structs.replace(segment) for segment in segments[start : start + n_max]]

    def _copy_segments(self) -> list[Segment]:
        return [msgspec.structs.replace(segment) for segment in self._segments]

    def _begin_anew(self) -> None:
        """Other descriptors have written and synced everything; these would only tell of the old failure again."""
        self._close_files()

    def _close_files(self) -> None:
        for fd in (*self._retired_fds, self._fd):
            if fd != _CLOSED:
                os.close(fd)
        self._retired_fds, self._fd = [], _CLOSED

    async def _sync_every_interval(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.sync_to(self._last_lsn)
            except JournalWriteError:
                continue  # every append says so until it is over


def _repair(directory: Path, segments: list[Segment], durable_lsn: int) -> Checked:
    """`repair`, and a mark of how far entries may be missing; while it is at work, that is everything so far."""
    so_far = max(durable_lsn, (((segments[-1].first_lsn >> EPOCH_SHIFT) + 1) << EPOCH_SHIFT) - 1 if segments else 0)
    lost_lsn = read_mark(directory / _LOST)
    if lost_lsn is None:
        lost_lsn = so_far
    write_mark(directory / _LOST, max(lost_lsn, so_far))
    found = repair(segments)
    if durable_lsn and found.cut_reason is None and found.last_lsn >= durable_lsn:
        write_mark(directory / _LOST, lost_lsn)
    elif durable_lsn:
        write_mark(directory / _LOST, max(lost_lsn, durable_lsn, found.last_lsn))
    return found


def _free_bytes(directory: Path) -> int:
    stat = os.statvfs(directory)
    return stat.f_frsize * stat.f_bavail


def _read_own_mark(path: Path, segments: Sequence[Segment], accept_loss: bool) -> int:
    """A mark that this program wrote before the first segment; without it a torn tail and a loss look the same."""
    value = read_mark(path) if path.exists() or not segments else None
    if value is None and not accept_loss:
        first_lsn = segments[-1].first_lsn if segments else 1
        raise JournalCorrupt(f"the mark {path.name!r} is missing or damaged", first_lsn, str(path), 0)
    return value or 0
