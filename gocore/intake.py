"""Bodies of transactions to columns, a chunk at a time, by the core.

What the core takes, service.codec.decode_transaction and features.columns.encode take too, with the same result. What it does
not understand it leaves (`Taken.left`), and whoever asked decodes that body by those two: they may take it, and have the words
for what is wrong. Cost, a row of 13 fields: 0.6 µs in the core, without the GIL, 0.3 for the objects made here; alone 6 µs.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from gocore.binding import Core
from gocore.errors import BadArgument
from gocore.filter import GoFilter
from gocore.index import GoIndex

JSON, MSGPACK = 0, 1
N_COLUMNS: Final = 11
ID_BYTES_MAX: Final = 513  # of an id with its line feed: 128 characters of 4 bytes
BODY_GROWTH_MAX: Final = 16  # bytes by which a canonical body is longer than the one that came: lat and lon as small integers
TEXT_BYTES_MIN: Final = 1 << 16  # room for text; it grows in powers of two

Int64s = npt.NDArray[np.int64]


class Taken(NamedTuple):
    """What became of a chunk of n bodies. A row that was left has columns of 0, an empty body and empty ids.

    left: their numbers, rising. columns: int64 (n, 11). bodies: canonical MessagePack, back to back, body_ends int64 (n,) says
    where each ends. event_ids and, by kind of the plan, ids: one per row, empty where it has none, each with a line feed after
    it. slots: int64 (n, kinds), where the entities are in the indexes, -1 where they are not; n_missing counts ids that are not
    there. suspects: numbers of the rows whose event id may be in a filter, also by an earlier row. None where there are none to
    look in.
    """

    left: list[int]
    columns: Int64s
    bodies: bytes
    body_ends: Int64s
    event_ids: bytes
    ids: list[bytes]
    slots: Int64s | None
    n_missing: int
    suspects: list[int] | None


class Intake:
    """Memory for chunks of up to `rows_max` rows of one plan, of which `n_kinds` has to be the number of kinds.

    The plan's handle has to outlive it. One call at a time. `indexes`: one per kind, in which ids are looked up. Raises
    GoCoreError.
    """

    def __init__(self, core: Core, plan: int, rows_max: int, n_kinds: int, indexes: Sequence[GoIndex] = ()) -> None:
        self._core, self.plan = core, plan
        self._rows_max, self._n_lists = rows_max, 1 + n_kinds
        self._ends, self._body_ends = np.zeros((2, rows_max), dtype=np.int64)
        self._status = np.zeros(rows_max, dtype=np.uint8)
        self._columns = np.zeros((rows_max, N_COLUMNS), dtype=np.int64)
        self._id_ends = np.zeros(self._n_lists, dtype=np.int64)
        self.job: Any = core.new_job("weir_intake_job", {
            "ends": self._ends, "body_ends": self._body_ends, "status": self._status, "columns": self._columns,
            "id_ends": self._id_ends,
        })  # fmt: skip
        self.job.rows_max = rows_max
        self._indexes = indexes
        self._slots = np.zeros((rows_max, len(indexes)), dtype=np.int64)
        if indexes:
            self._handles = np.array([index.handle for index in indexes], dtype=np.uint64)
            core.point(self.job, {"indexes": self._handles, "slots": self._slots})
            self.job.n_indexes = len(indexes)
        self._filters: Sequence[GoFilter] = ()
        self._suspects = np.zeros(rows_max, dtype=np.uint8)
        core.point(self.job, {"suspects": self._suspects})
        self._text_bytes = 0
        self._reserve(TEXT_BYTES_MIN)

    def take(self, bodies: Sequence[bytes | msgspec.Raw], fmt: int, filters: Sequence[GoFilter] = ()) -> Taken:
        """Decode and check `bodies`; `fmt` is JSON or MSGPACK. Event ids are looked up in `filters` and added to the first.

        Raises BadArgument above rows_max, never for what they hold.
        """
        self.prepare(bodies, fmt, filters)
        status = self._core.call_intake(self.plan, self.job)
        if status:
            self._core.check(status)
        return self.taken()

    def prepare(self, bodies: Sequence[bytes | msgspec.Raw], fmt: int, filters: Sequence[GoFilter]) -> int:
        """Set up `job` for what `take` says; returns its size in bytes. Raises BadArgument above rows_max."""
        n_rows, job = len(bodies), self.job
        if n_rows > self._rows_max:
            raise BadArgument(f"{n_rows} bodies in one chunk, there is room for {self._rows_max}")
        text = b"".join(bodies)
        self._ends[:n_rows] = np.fromiter(accumulate(map(len, bodies)), np.int64, n_rows)
        if len(text) > self._text_bytes:
            self._reserve(len(text))
        self._text[: len(text)] = text  # a pointer to `text` itself costs 1 µs
        job.text_size, job.rows, job.format = len(text), n_rows, fmt
        if filters != self._filters:
            self._filters = filters
            self._filter_handles = np.array([known.handle for known in filters], dtype=np.uint64)
            self._core.point(job, {"filters": self._filter_handles})
            job.n_filters = len(filters)
        return len(text)

    def taken(self) -> Taken:
        """What the last call has made of its bodies."""
        job = self.job
        n_rows = job.rows
        body_ends = self._body_ends[:n_rows].copy()
        ids = [view[:size].tobytes() for view, size in zip(self._lists, self._id_ends.tolist(), strict=True)]
        return Taken(
            np.flatnonzero(self._status[:n_rows]).tolist() if job.n_left else [],
            self._columns[:n_rows].copy(),
            self._body_bytes[: body_ends.item(-1) if n_rows else 0].tobytes(),
            body_ends,
            ids[0],
            ids[1:],
            self._slots[:n_rows].copy() if self._indexes else None,
            job.n_missing,
            None if not self._filters else np.flatnonzero(self._suspects[:n_rows]).tolist() if job.n_suspects else [],
        )

    def scored(self) -> tuple[bytes, bytes, Int64s, Int64s]:
        """Of what `taken` gives, event ids, bodies, their ends and slots. Only with indexes, and where no row was left."""
        n_rows = self.job.rows
        body_ends = self._body_ends[:n_rows].copy()
        event_ids, bodies = self._lists[0][: self._id_ends.item(0)], self._body_bytes[: body_ends.item(-1)]
        return event_ids.tobytes(), bodies.tobytes(), body_ends, self._slots[:n_rows].copy()

    def _reserve(self, text_bytes: int) -> None:
        """Room for whatever that much text can become. What is not written to costs no memory."""
        self._text_bytes = 1 << (text_bytes - 1).bit_length()
        id_bytes = min(self._text_bytes + self._rows_max, ID_BYTES_MAX * self._rows_max)
        bodies = np.empty(self._text_bytes + BODY_GROWTH_MAX * self._rows_max, dtype=np.uint8)
        ids = np.empty(self._n_lists * id_bytes, dtype=np.uint8)
        text = np.empty(self._text_bytes, dtype=np.uint8)
        self._text = text.data
        self._core.point(self.job, {"text": text, "bodies": bodies, "ids": ids})
        self.job.bodies_size, self.job.id_bytes = bodies.size, id_bytes
        self._body_bytes = bodies.data
        self._lists = [ids[start : start + id_bytes].data for start in range(0, ids.size, id_bytes)]
