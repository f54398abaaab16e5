"""Blocks of the journal to rows of the ledger, by the core: the bytes of a COPY weir_ledger FROM STDIN (FORMAT binary).

What the core does not take it leaves, a whole block at a time, and whoever asked goes on with the reference, which is
service/ledger_feed.py. Cost: 0.4 µs a row, without the GIL, and nothing a row in Python.
"""

import struct
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gocore.binding import Core

MORE, FULL, BEYOND, LEFT = 0, 1, 2, 3
_HEADER: Final = struct.pack(">11sII", b"PGCOPY\n\xff\r\n\0", 0, 0)  # no flags, no extension
_TRAILER: Final = struct.pack(">h", -1)


class Made(NamedTuple):
    """`taken` bytes of blocks are done, the last of them with the LSN `before`. `state` says why it ended there."""

    taken: int
    before: int
    state: int


class LedgerRows:
    """Memory for `out_bytes` of rows, about `rows_max` of them. One call at a time. Raises GoCoreError."""

    def __init__(self, core: Core, rows_max: int, out_bytes: int) -> None:
        self.n_rows = 0
        self.rows_max = rows_max
        self._core = core
        self._out = np.empty(len(_HEADER) + out_bytes + len(_TRAILER), dtype=np.uint8)
        self._out[: len(_HEADER)] = np.frombuffer(_HEADER, dtype=np.uint8)
        self._end = len(_HEADER)
        self._job: Any = core.new_job("weir_ledger_job", {})

    def begin(self) -> None:
        """Forget the rows: what `finish` gave is overwritten."""
        self.n_rows, self._end = 0, len(_HEADER)

    def add(self, blocks: npt.NDArray[np.uint8], before_lsn: int, from_lsn: int, to_lsn: int) -> Made:
        """Rows above `from_lsn` of whole blocks in `blocks`, the first of which follows `before_lsn`; none ends above `to_lsn`.

        FULL where there is no room for a block, or it would be more rows than rows_max, but for the first block of a call.
        """
        job, out = self._job, self._out[self._end : len(self._out) - len(_TRAILER)]
        pointers = self._core.bytes_in(blocks), self._core.bytes_in(out)
        job.blocks, job.out = pointers
        job.blocks_size, job.out_size = blocks.size, out.size
        job.before_lsn, job.from_lsn, job.to_lsn = before_lsn, from_lsn, to_lsn
        job.rows_max = max(self.rows_max - self.n_rows, 1)
        self._core.ledger_rows(job)
        self.n_rows += int(job.rows)
        self._end += int(job.out_end)
        return Made(int(job.taken), int(job.before_lsn), int(job.state))

    def finish(self) -> memoryview:
        """All rows since `begin`, with header and trailer; a view that is valid until the next `begin`."""
        self._out[self._end : self._end + len(_TRAILER)] = np.frombuffer(_TRAILER, dtype=np.uint8)
        return self._out.data[: self._end + len(_TRAILER)]
