"""The journal in chunks, for recovery: the reference, entry by entry in Python. service/replay_go.py makes the same chunks.

A chunk is what is looked up and applied together: rows of transactions in an arena, with entries of other kinds between them.
Two arenas take turns, so that the next chunk is made, on another thread, while one is being applied.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from features.columns import encode
from features.plan import Plan
from features.transaction import Transaction
from models.arena import Arena
from service.decisions import decode_body, encode_stored
from service.journal import TX, Block, Entry
from service.records import decode_outcome, journaled_entities

REFERENCE_ROWS = 1_024  # rows of a chunk: 10 ms of Python


class Chunk:
    """Entries that follow each other. `last_lsn` is the last one's; none stands on the other side of a position to start from.

    The arena's rows have LSNs and columns; in the place of a slot stands the number of the entity within its kind, or -1. By
    kind: new_ids, whose numbers follow those of the chunks before, or, with `anew`, begin at 0; numbers, the distinct ones of
    the rows, and first_rows, in which each comes first. records: of the decisions that the column lacks, by event id. others:
    (row, entry): an entry that is no transaction, and the row before which it is to be applied.
    """

    __slots__ = (
        "anew", "arena", "first_rows", "last_lsn", "n_entries", "n_rows", "new_ids", "numbers", "others", "records",
    )  # fmt: skip

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.n_rows = self.n_entries = self.last_lsn = 0
        self.anew = True
        self.new_ids: list[list[str]] = []
        self.numbers: list[npt.NDArray[np.int64]] = []
        self.first_rows: list[npt.NDArray[np.int64]] = []
        self.records: dict[bytes, bytes] = {}
        self.others: list[tuple[int, Entry]] = []


class Replay(Protocol):
    """The entries above the lower of two positions, to the journal's end."""

    def next(self) -> Chunk | None:
        """The next chunk; None at the end. The one before the last one is void then. May be called on another thread."""


class ReferenceReplay:
    """Chunks of `blocks`, which begin above the lower position. Raises JournalCorrupt, and what an entry's decoding raises."""

    def __init__(
        self, plan: Plan, arenas: Sequence[Arena], blocks: Iterator[Block], position: int, decisions_position: int
    ) -> None:
        self._plan = plan
        self._arenas = arenas
        self._splits = sorted({position, decisions_position})
        self._decisions_position = decisions_position
        self._chunks = self._walk(blocks)

    def next(self) -> Chunk | None:
        """See Replay."""
        return next(self._chunks, None)

    def _walk(self, blocks: Iterator[Block]) -> Iterator[Chunk]:
        turn = to_lsn = 0
        draft = _Draft(self._plan, self._arenas[turn])
        for block in blocks:
            for entry in block.entries:
                if draft.chunk.n_entries == REFERENCE_ROWS or entry.lsn > to_lsn:
                    if draft.chunk.n_entries:
                        yield draft.finish()
                        turn = 1 - turn
                    draft = _Draft(self._plan, self._arenas[turn])
                    to_lsn = next_split(self._splits, entry.lsn - 1)
                draft.add(entry, entry.lsn > self._decisions_position)
        if draft.chunk.n_entries:
            yield draft.finish()


class _Draft:
    """A chunk in the making."""

    def __init__(self, plan: Plan, arena: Arena) -> None:
        self.chunk = Chunk(arena)
        self._plan = plan
        self._numbers: list[dict[str, int]] = [{} for _ in plan.kinds]
        self._first_rows: list[list[int]] = [[] for _ in plan.kinds]

    def add(self, entry: Entry, with_record: bool) -> None:
        chunk = self.chunk
        if entry.kind == TX:
            self._add_transaction(entry, decode_body(entry.body), with_record)
        else:
            chunk.others.append((chunk.n_rows, entry))
        chunk.n_entries += 1
        chunk.last_lsn = entry.lsn

    def _add_transaction(self, entry: Entry, tx: Transaction, with_record: bool) -> None:
        chunk = self.chunk
        numbers = []
        for entity, known, first_rows in zip(journaled_entities(self._plan, tx), self._numbers, self._first_rows, strict=True):
            if entity is None:
                numbers.append(-1)
                continue
            number = known.setdefault(entity, len(known))
            if number == len(first_rows):
                first_rows.append(chunk.n_rows)
            numbers.append(number)
        chunk.arena.put(chunk.n_rows, entry.lsn, numbers, encode(tx, self._plan.currencies))
        if with_record:
            stored = decode_outcome(entry.lsn, entry.body, entry.decision)
            chunk.records[tx.event_id.encode()] = encode_stored(stored)
        chunk.n_rows += 1

    def finish(self) -> Chunk:
        self.chunk.new_ids = [list(numbers) for numbers in self._numbers]
        self.chunk.numbers = [np.arange(len(numbers)) for numbers in self._numbers]
        self.chunk.first_rows = [np.array(rows, dtype=np.int64) for rows in self._first_rows]
        return self.chunk


def next_split(splits: Sequence[int], lsn: int) -> int:
    """The first of `splits` above `lsn`: an entry beyond it belongs into another chunk. Above any LSN if there is none."""
    return next((split for split in splits if split > lsn), 1 << 63)
