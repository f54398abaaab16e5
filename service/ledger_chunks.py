"""What the ledger gets in one transaction, made on a worker thread of the journal's bytes: rows by the Go core, and labels.

The core takes whole blocks of nothing but transactions, which is nearly all of them. Labels that stand between them are
gathered here; a block that holds transactions and is left all the same (this service writes none) begins a chunk of blocks for
the reference. One chunk at a time: its rows lie in memory that the next one takes.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import structlog

from gocore.binding import load_core
from gocore.errors import GoCoreError
from gocore.ledger_rows import BEYOND, FULL, MORE, LedgerRows
from gocore.locate import missing_core
from service.journal import TX, Block
from service.journal_cursor import Cursor, Misfit, Place
from service.journal_segments import Segment
from service.records import LABEL, decode_label

log = structlog.get_logger(__name__)

CHUNK_ROWS = 8_000  # rows of one transaction
CHUNK_BYTES = 6 << 20  # bytes of them, as Postgres gets them; a row of 13 fields has 400
WINDOW_BYTES = 1 << 20  # bytes of the journal that are read at a time; more where a block is larger
OTHER_ENTRIES_MAX = 64  # labels and other entries of one chunk: 1 ms with the GIL
BLOCK_ENTRIES_MAX = 500  # entries of a chunk for the reference


class Chunk(msgspec.Struct, frozen=True):
    """Everything up to `position`: rows for Ledger.append_encoded and labels, or blocks for the reference. `place` follows."""

    position: int
    place: Place | None
    rows: memoryview
    labels: dict[int, int]
    blocks: list[Block]


class ChunkMaker:
    """One call at a time; a chunk is valid until the next one. Raises GoCoreError."""

    def __init__(self, rows_max: int = CHUNK_ROWS, bytes_max: int = CHUNK_BYTES) -> None:
        self._rows = LedgerRows(load_core(), rows_max, bytes_max)
        self._window = np.empty(WINDOW_BYTES, dtype=np.uint8)

    def make(self, segments: Sequence[Segment], place: Place | None, position: int, to_lsn: int) -> Chunk:
        """What follows `position`, up to `to_lsn`. `segments`: some, from the one on that holds it. Raises Misfit."""
        with Cursor(segments, place, position, self._window) as cursor:
            return self._make(cursor, position, to_lsn)

    def _make(self, cursor: Cursor, position: int, to_lsn: int) -> Chunk:
        rows = self._rows
        rows.begin()
        labels: dict[int, int] = {}
        n_others = 0
        while rows.n_rows < rows.rows_max and n_others < OTHER_ENTRIES_MAX:
            window = cursor.read()
            if not window.size:
                break
            made = rows.add(window, cursor.floor_lsn, position, to_lsn)
            if made.taken:
                cursor.advance(made.taken, made.before)
            if made.state == MORE:
                if not made.taken:
                    cursor.widen()
                continue
            if made.state == BEYOND or (made.state == FULL and rows.n_rows):
                break
            before = cursor.place
            block = next(cursor.blocks(), None)
            if block is None:
                break
            if any(entry.kind == TX for entry in block.entries):
                if rows.n_rows or labels:
                    return self._chunk(before, position, labels)
                return _chunk_of_blocks(cursor, block, position, to_lsn)
            labels |= _labels_of(block)
            n_others += len(block.entries)
        return self._chunk(cursor.place, position, labels)

    def _chunk(self, place: Place | None, position: int, labels: dict[int, int]) -> Chunk:
        found = self._rows.finish() if self._rows.n_rows else memoryview(b"")
        return Chunk(position if place is None else place.position, place, found, labels, [])


def _chunk_of_blocks(cursor: Cursor, first: Block, position: int, to_lsn: int) -> Chunk:
    """`first` and some that follow it: it takes no time to find out that they are left too."""
    blocks, place, n_entries = [first], cursor.place, len(first.entries)
    try:
        for block in cursor.blocks():
            if block.last_lsn > to_lsn or n_entries >= BLOCK_ENTRIES_MAX:
                break
            blocks.append(block)
            place = cursor.place
            n_entries += len(block.entries)
    except Misfit:
        pass  # the next chunk begins with it
    return Chunk(position if place is None else place.position, place, memoryview(b""), {}, blocks)


def _labels_of(block: Block) -> dict[int, int]:
    records = [decode_label(entry.body) for entry in block.entries if entry.kind == LABEL]
    return {record.tx_lsn: int(record.label == "fraud") for record in records}


def open_maker() -> ChunkMaker | None:
    """Where the core is there and works; else None."""
    if missing_core() is None:
        try:
            return ChunkMaker()
        except GoCoreError as error:
            log.warning("the ledger is fed by the reference", problem=str(error))
    return None
