"""The bytes of the journal's blocks from a place on, as they stand in the segments: for a reader that comes again and again.

A place outlives appends, new segments and trimming: it names a segment and an offset, and where that segment is gone the cursor
begins with the first one that may hold what is wanted. Nothing is kept open between two visits. What is not as it should be
raises Misfit: whoever asked goes on with `Journal.read`, which has the words for it. For a worker thread; reading leaves
the GIL alone. Without a place a segment is read from its start.
"""

import os
from collections.abc import Iterator, Sequence
from typing import IO, Self

import msgspec
import numpy as np
import numpy.typing as npt

from service.journal_format import SEGMENT_HEADER_BYTES, BadBlock, Block, BlockReader, JournalError, decode_segment_header
from service.journal_segments import Segment

Bytes = npt.NDArray[np.uint8]


class Misfit(Exception):
    """The journal cannot be read on from here in this way; the message says why."""


class Place(msgspec.Struct, frozen=True):
    """The block after `before_lsn` begins at `offset` of the segment `first_lsn`. Everything up to `position` was read."""

    position: int
    first_lsn: int
    offset: int
    before_lsn: int


class Cursor:
    """Walks `segments` (copies, in LSN order) from `place` on if it is of `position`, else from the first one's start.

    `window`: memory for what is read at a time. `before_lsn` is the last LSN that was passed.
    """

    def __init__(self, segments: Sequence[Segment], place: Place | None, position: int, window: Bytes) -> None:
        self._left = list(segments)
        self._position = position
        self._file: IO[bytes] | None = None
        self._window = window
        self._segment: Segment | None = None
        self.offset = self.before_lsn = 0
        if place is not None and place.position == position:
            numbers = [number for number, segment in enumerate(segments) if segment.first_lsn == place.first_lsn]
            if numbers and place.offset <= segments[numbers[0]].size:
                self._segment = segments[numbers[0]]
                self._left = list(segments[numbers[0] + 1 :])
                self.offset, self.before_lsn = place.offset, place.before_lsn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def place(self) -> Place | None:
        """Where it stands now; None if it has not begun."""
        if self._segment is None:
            return None
        return Place(max(self._position, self.before_lsn), self._segment.first_lsn, self.offset, self.before_lsn)

    @property
    def floor_lsn(self) -> int:
        """Everything that is still to come lies above it."""
        return self.before_lsn if self._segment is None else max(self.before_lsn, self._segment.first_lsn - 1)

    def read(self) -> Bytes:
        """What stands from here on, at most one window of one segment; nothing at the end. Valid until it is called again."""
        try:
            while self._segment is None or self.offset == self._segment.size:
                if not self._left:
                    return self._window[:0]
                self._next_segment()
            n_bytes = min(self._window.size, self._segment.size - self.offset)
            n_read = os.preadv(self._open(self._segment).fileno(), [self._window.data[:n_bytes]], self.offset)
        except OSError as error:  # also a segment that was trimmed meanwhile
            raise Misfit(f"a segment cannot be read: {error}") from error
        return self._window[:n_read]

    def advance(self, n_bytes: int, before_lsn: int) -> None:
        """`n_bytes` of what was read are done, up to `before_lsn`."""
        self.offset, self.before_lsn = self.offset + n_bytes, before_lsn

    def widen(self) -> None:
        """Read more at a time: what was read holds no whole block. Raises Misfit if that cannot be for lack of bytes."""
        assert self._segment is not None
        if self._window.size >= self._segment.size - self.offset:
            raise Misfit(f"bytes that are no block, {self._segment.path.name} at byte {self.offset}")
        self._window = np.empty(2 * self._window.size, dtype=np.uint8)

    def blocks(self) -> Iterator[Block]:
        """The blocks from here to the end of the segment, decoded and checked; the cursor stands behind the last one given."""
        assert self._segment is not None
        try:
            file = self._open(self._segment)
            reader = BlockReader(file, self._segment.size, self._segment.first_lsn)
            reader.offset, reader.last_lsn = self.offset, self.before_lsn
            for block in reader.blocks(self._position + 1):
                self.offset, self.before_lsn = reader.offset, reader.last_lsn
                yield block
        except (OSError, BadBlock) as error:
            raise Misfit(f"a block cannot be read: {error}") from error

    def _next_segment(self) -> None:
        self._close()
        before, self._segment = self._segment, self._left.pop(0)
        try:
            previous_last_lsn = decode_segment_header(self._open(self._segment).read(SEGMENT_HEADER_BYTES))
        except (BadBlock, JournalError) as error:
            raise Misfit(f"{self._segment.path.name}: {error}") from error
        if before is not None and previous_last_lsn != self.before_lsn:
            raise Misfit(f"{self._segment.path.name} does not follow the segment before it")
        self.offset, self.before_lsn = SEGMENT_HEADER_BYTES, previous_last_lsn

    def _open(self, segment: Segment) -> IO[bytes]:
        if self._file is None:
            self._file = segment.path.open("rb", buffering=0)
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
