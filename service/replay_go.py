"""The journal in chunks, for recovery, taken apart by the Go core: the same chunks as the reference makes, ten times as fast.

Files are read a few MiB at a time, and the core checks and takes apart what it is given, all without the GIL. Where anything is
not as it should be, the reference goes on after the last good entry: it finds the words, or knows that the end is no damage.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from features.plan import Plan
from gocore.replay import BEYOND, MORE, Splitter, Taken
from models.arena import Arena
from service.journal import Block, Entry
from service.journal_format import SEGMENT_HEADER_BYTES, BadBlock, decode_segment_header
from service.journal_segments import Segment
from service.replay import Chunk, ReferenceReplay, next_split

log = structlog.get_logger(__name__)

READ_BYTES = 4 << 20  # bytes of a segment read at a time; twice that where a block is larger


class GoReplay:
    """Chunks of `segments` from the one on that holds what follows the lower position. `blocks_from`: the journal's read."""

    def __init__(
        self, plan: Plan, splitter: Splitter, arenas: Sequence[Arena], segments: Sequence[Segment],
        blocks_from: Callable[[int], Iterator[Block]], position: int, decisions_position: int, last_lsn: int,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._arenas = list(arenas)
        self._splitter = splitter
        self._blocks_from = blocks_from
        self._positions = position, decisions_position
        self._splits = sorted({position, decisions_position, last_lsn})
        self._decisions_position = decisions_position
        self._lsn = min(position, decisions_position)  # of the last entry that was taken
        self._last_lsn = last_lsn
        n_before = sum(segment.first_lsn <= self._lsn + 1 for segment in segments[1:])
        self._segments = list(segments[n_before:])
        self._file: _SegmentReader | None = None
        self._reference: ReferenceReplay | None = None
        self._turn = 0
        self._forgot = False  # numbers begin anew with the next chunk

    def next(self) -> Chunk | None:
        """See Replay."""
        while self._reference is None and self._lsn < self._last_lsn:
            chunk = self._take()
            if chunk is not None:
                return chunk
        if self._file is not None:
            self._file.close()
        return None if self._reference is None else self._reference.next()

    def _take(self) -> Chunk | None:
        """One call of the core; None if it gave nothing: there is more to be read, or the reference has to go on."""
        file = self._file
        if file is None:
            self._open(None)
            return None
        if file.is_used_up and not file.read_on():
            self._open(file)
            return None
        arena, to_lsn = self._arenas[self._turn], next_split(self._splits, self._lsn)
        taken = self._splitter.take(arena, file.rest, file.before_lsn, self._lsn, to_lsn, self._lsn >= self._decisions_position)
        self._forgot |= taken.forgot
        file.start, file.before_lsn = file.start + taken.size, taken.before
        self._lsn = to_lsn if taken.state == BEYOND else taken.last_lsn
        if taken.state == MORE:
            if not file.read_on():
                self._open(file)
        elif taken.state != BEYOND and not taken.n_entries:
            self._leave("an entry that the core does not take")
        if not taken.n_entries:
            return None
        self._turn = 1 - self._turn
        chunk = _chunk(arena, taken)
        chunk.anew, self._forgot = self._forgot, False
        return chunk

    def _open(self, before: "_SegmentReader | None") -> None:
        """The segment after `before`. What is not as it should be is for the reference to judge."""
        if before is not None:
            before.close()
            self._file = None
            if not before.is_used_up:
                self._leave(f"bytes that are no block, {before.path.name} at byte {before.offset}")
                return
        if self._lsn >= self._last_lsn:
            return
        if not self._segments:
            self._leave(f"the segments end before LSN {self._last_lsn}")
            return
        try:
            self._file = _SegmentReader(self._segments.pop(0))
        except (OSError, BadBlock) as error:
            self._leave(str(error))
            return
        if before is not None and self._file.previous_last_lsn != before.before_lsn:
            self._leave("a segment that does not follow the one before it")

    def _leave(self, problem: str) -> None:
        log.info("recovery goes on with the reference", after_lsn=self._lsn, problem=problem)
        if self._file is not None:
            self._file.close()
            self._file = None
        # Its arenas are others: a chunk that was made before may still be in use.
        arenas = [Arena(self._plan, self._arenas[0].slabs, self._arenas[0].rows_max) for _ in self._arenas]
        self._reference = ReferenceReplay(self._plan, arenas, self._blocks_from(self._lsn + 1), *self._positions)


class _SegmentReader:
    """A segment's bytes from `start` of the buffer on; before_lsn is the LSN before them. Raises OSError, BadBlock."""

    def __init__(self, segment: Segment) -> None:
        self.path: Path = segment.path
        self.buffer = np.zeros(READ_BYTES, dtype=np.uint8)
        self.n_bytes = self.start = 0
        self._size = segment.size
        self._read_to = SEGMENT_HEADER_BYTES
        self._file = segment.path.open("rb", buffering=0)
        try:
            self.previous_last_lsn = decode_segment_header(self._file.read(SEGMENT_HEADER_BYTES))
        except BadBlock:
            self.close()
            raise
        self.before_lsn = max(self.previous_last_lsn, segment.first_lsn - 1)

    @property
    def is_used_up(self) -> bool:
        """No byte of what was read is left."""
        return self.start == self.n_bytes

    @property
    def rest(self) -> npt.NDArray[np.uint8]:
        """What is left of what was read."""
        return self.buffer[self.start : self.n_bytes]

    @property
    def offset(self) -> int:
        """Where in the file the next block begins."""
        return self._read_to - (self.n_bytes - self.start)

    def read_on(self) -> bool:
        """More bytes behind those that are left; False if there are none."""
        left = self.n_bytes - self.start
        if self._read_to >= self._size:
            return False
        rest = self.buffer[self.start : self.n_bytes].copy()
        if 2 * left > len(self.buffer):
            self.buffer = np.zeros(2 * len(self.buffer), dtype=np.uint8)
        self.buffer[:left] = rest
        wanted = min(len(self.buffer) - left, self._size - self._read_to)
        n_read = self._file.readinto(self.buffer[left : left + wanted]) or 0  # type: ignore[arg-type]  # numpy stubs hide the buffer protocol
        self._read_to += n_read
        self.start, self.n_bytes = 0, left + n_read
        return n_read > 0

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _chunk(arena: Arena, taken: Taken) -> Chunk:
    chunk = Chunk(arena)
    chunk.n_rows, chunk.n_entries, chunk.last_lsn = taken.n_rows, taken.n_entries, taken.last_lsn
    chunk.new_ids, chunk.numbers = taken.new_ids, taken.numbers
    chunk.first_rows, chunk.records = taken.first_rows, taken.records
    chunk.others = [(row, Entry(lsn, kind, body, b"")) for row, lsn, kind, body in taken.others]
    return chunk
