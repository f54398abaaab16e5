"""The arena: memory that a scorer shares with its caller. Rows of events in, vectors and risk out, over the slabs of profiles.

It is made once and filled again for every batch, so that nothing is allocated, serialised or handed over per call: the caller
writes rows with `put`, a scorer reads them in place and leaves its results here until the next call.
"""

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.plan import COLUMNS, Plan
from features.slab import Slab

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


class Arena:
    """Room for `rows_max` events of `plan` over `slabs` (one per kind).

    lsns: int64 (rows_max,); slots: int64 (rows_max, kinds), -1 = absent; columns: int64 (rows_max, len(COLUMNS)), as
    features.columns: three views of one block, a row of it is an event. vectors: float32 (rows_max, n_features) and risk:
    float32 (rows_max,) are C-contiguous; what a score call has put there is valid until the next one.
    """

    def __init__(self, plan: Plan, slabs: Sequence[Slab], rows_max: int) -> None:
        assert rows_max > 0
        assert [slab.kind for slab in slabs] == list(plan.kinds)
        n_kinds = len(plan.kinds)
        width = 1 + n_kinds + len(COLUMNS)
        self.plan = plan
        self.slabs = list(slabs)
        self.rows_max = rows_max
        block = np.zeros((rows_max, width), dtype=np.int64)
        self.lsns: Int64s = block[:, 0]
        self.slots: Int64s = block[:, 1 : 1 + n_kinds]
        self.columns: Int64s = block[:, 1 + n_kinds :]
        self.vectors: Float32s = np.zeros((rows_max, plan.n_features), dtype=np.float32)
        self.risk: Float32s = np.zeros(rows_max, dtype=np.float32)
        self.handle = 0  # of the Go core, which binds an arena when it first meets it
        self._buffer = memoryview(block.reshape(-1)).cast("B")  # type: ignore[arg-type]  # numpy stubs hide the buffer protocol
        self._row = struct.Struct(f"<{width}q")

    def put(self, row: int, lsn: int, slots: Sequence[int], columns: Sequence[int]) -> None:
        """Write one event: its LSN, the slot of each kind's profile, its columns. 0.4 µs."""
        self._row.pack_into(self._buffer, row * self._row.size, lsn, *slots, *columns)
