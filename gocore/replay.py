"""Blocks of the journal, taken apart by the core for recovery: rows into an arena, numbers for ids, ready records of decisions.

What the core does not understand it leaves (LEFT), and whoever asked goes on with the reference (service/replay.py), which also
finds the words for what is wrong. Cost: 0.6 µs an event in the core, without the GIL, and 0.4 µs for the objects made here.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gocore.binding import ArenaMemory, Core

MORE, FULL, BEYOND, LEFT = 0, 1, 2, 3
IDS_MAX: Final = 1 << 19  # ids of a kind that have numbers: past it they are given anew. 40 bytes each in the core
ID_BYTES: Final = 64  # room for new ids of a kind, per row; longer ones end a call earlier
ID_BYTES_MIN: Final = 1 << 12  # bytes; the longest id has 512
RECORD_BYTES: Final = 1 << 10  # the same for records
RECORD_BYTES_MIN: Final = 1 << 16
OTHER_WORDS: Final = 5
OTHERS_MAX: Final = 256  # entries that are no transactions, in one call

Int64s = npt.NDArray[np.int64]


class Taken(NamedTuple):
    """What a call took. `size` bytes of blocks are done, the last of them with the LSN `before`; entries go up to `last_lsn`.

    In the arena's slots stand numbers of ids. By kind: new_ids, whose numbers follow those given before, or, with `forgot`,
    begin at 0; numbers, distinct, of the entities in the rows, and first_rows, in which each comes first. others: (row that it
    stands before, LSN, kind, body). `state` says why it ended.
    """

    n_rows: int
    n_entries: int
    size: int
    before: int
    last_lsn: int
    state: int
    forgot: bool
    new_ids: list[list[str]]
    numbers: list[Int64s]
    first_rows: list[Int64s]
    records: dict[bytes, bytes]
    others: list[tuple[int, int, int, bytes]]


class Splitter:
    """Numbers for ids, and memory for what comes out of one call. Raises GoCoreError."""

    def __init__(self, core: Core, plan: int, rows_max: int, n_kinds: int, ids_max: int) -> None:
        self._core = core
        self._handle = core.open_replay(plan, ids_max)
        core.release_with(self, "weir_replay_close", self._handle)
        self._ids = np.zeros((n_kinds, max(rows_max * ID_BYTES, ID_BYTES_MIN)), dtype=np.uint8)
        self._id_ends, self._n_new, self._n_distinct = np.zeros((3, n_kinds), dtype=np.int64)
        self._numbers, self._first_rows = np.zeros((2, n_kinds, rows_max), dtype=np.int64)
        self._records = np.zeros(max(rows_max * RECORD_BYTES, RECORD_BYTES_MIN), dtype=np.uint8)
        self._record_ends = np.zeros((rows_max, 2), dtype=np.int64)
        self._others = np.zeros((OTHERS_MAX, OTHER_WORDS), dtype=np.int64)
        memory: dict[str, npt.NDArray[Any]] = {
            "ids": self._ids, "id_ends": self._id_ends, "n_new": self._n_new, "n_distinct": self._n_distinct,
            "numbers": self._numbers, "first_rows": self._first_rows, "records": self._records,
            "record_ends": self._record_ends, "others": self._others,
        }  # fmt: skip
        self._rows_max = rows_max
        self._job: Any = core.replay_job(memory)
        self._record_pointer, self._nothing = self._job.records, core.replay_job({}).records
        self._job.id_bytes, self._job.records_size = self._ids.shape[1], self._records.size
        self._job.others_max = OTHERS_MAX

    def take(
        self, arena: ArenaMemory, blocks: npt.NDArray[np.uint8], before: int, from_lsn: int, to_lsn: int, with_records: bool
    ) -> Taken:
        """As much as fits of `blocks`, which begin with one that follows the LSN `before`, into a bound arena of rows_max rows.

        Entries up to `from_lsn` are passed over, none above `to_lsn` is taken.
        """
        assert arena.rows_max == self._rows_max
        job = self._job
        job.blocks, job.blocks_size = self._core.replay_job({"blocks": blocks}).blocks, blocks.size
        job.before_lsn, job.from_lsn, job.to_lsn = before, from_lsn, to_lsn
        job.records = self._record_pointer if with_records else self._nothing
        self._core.replay(self._handle, arena, job)
        n_rows, n_distinct = int(job.rows), self._n_distinct.tolist()
        return Taken(
            n_rows,
            int(job.entries),
            int(job.taken),
            int(job.before_lsn),
            int(job.last_lsn),
            int(job.state),
            bool(job.forgot),
            [self._new_ids(kind) for kind in range(len(n_distinct))],
            [numbers[:n].copy() for numbers, n in zip(self._numbers, n_distinct, strict=True)],
            [rows[:n].copy() for rows, n in zip(self._first_rows, n_distinct, strict=True)],
            self._records_of(n_rows) if with_records else {},
            [
                (row, lsn, kind, blocks[at : at + n_bytes].tobytes())
                for row, lsn, kind, at, n_bytes in self._others[: int(job.n_others)].tolist()
            ],
        )

    def _new_ids(self, kind: int) -> list[str]:
        text = self._ids[kind, : int(self._id_ends[kind])].tobytes().decode()
        return text.split("\n")[:-1]  # one ends each of them

    def _records_of(self, n_rows: int) -> dict[bytes, bytes]:
        if not n_rows:
            return {}
        ends = self._record_ends[:n_rows]
        starts = [0, *ends[:-1, 1].tolist()]
        middles, stops = ends[:, 0].tolist(), ends[:, 1].tolist()
        cut = self._records[: stops[-1]].tobytes().__getitem__
        return dict(zip(map(cut, map(slice, starts, middles)), map(cut, map(slice, middles, stops)), strict=True))
