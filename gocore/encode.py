"""Decided transactions to bytes, a chunk at a time, by the core: journal entries, records of the decisions, replies.

The bytes are those of service.journal_format, records.encode_outcome, decisions.encode_stored and codec.encode_decision. Rows
that were decided alike share a class (outcome, model, degraded, reasons), whose constant parts the caller has encoded once.
Cost: 0.2 µs a row in the core, without the GIL, 0.1 for the objects made here; a row alone 6 µs.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gocore.binding import Core
from gocore.errors import BadArgument

CLASSES_MAX: Final = 256
STORED_BYTES: Final = 26  # of a record around its body and the rest of its outcome, at most; an entry has 19
REPLY_BYTES: Final = 70  # of a reply around its event id and the parts of its class, at most: names, score, LSN
ESCAPED_BYTES_MAX: Final = 6  # of a byte of an event id in JSON
ROOM_MIN: Final = 1 << 16  # bytes; rooms grow in powers of two

_FLOAT32, _INT64, _UINT8 = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.uint8)

Int64s = npt.NDArray[np.int64]
Parts = tuple[tuple[bytes, bytes, bytes], ...]


class Encoded(NamedTuple):
    """entries: of a journal block, no head. stored, replies: of each row, back to back.

    bounds: where each of them begins, and where the last one ends.
    """

    entries: bytes
    stored: bytes
    stored_bounds: list[int]
    replies: bytes
    reply_bounds: list[int]


class Encoder:
    """Memory for chunks of up to `rows_max` rows. One call at a time. Raises GoCoreError."""

    def __init__(self, core: Core, rows_max: int) -> None:
        self._core, self._rows_max = core, rows_max
        self._stored_bounds, self._reply_bounds = np.zeros((2, rows_max + 1), dtype=np.int64)  # the first is always 0
        self.job: Any = core.new_job(
            "weir_encode_job",
            {
                "stored_ends": self._stored_bounds[1:],
                "reply_ends": self._reply_bounds[1:],
            },
        )
        self.job.rows_max = rows_max
        self._rooms: dict[str, memoryview] = {}
        for name in ("entries", "stored", "replies"):
            self._reserve(name, ROOM_MIN)
        self._parts: Parts | None = None

    def encode(
        self, first_lsn: int, risk: npt.NDArray[np.float32], bodies: bytes, body_ends: Int64s, event_id_blob: bytes,
        classes: bytes | npt.NDArray[np.uint8], parts: Parts, separator: bytes = b"\n",
    ) -> Encoded:  # fmt: skip
        """The bytes of n rows with the LSNs from `first_lsn` on.

        risk: float32 (n,), finite. bodies, body_ends and event_id_blob as in intake.Taken, of these rows alone. classes: uint8
        (n,), the place of each row in `parts`, which holds for each class the outcome's MessagePack after the score, then the
        reply's JSON between score and LSN, and after the LSN; the very tuple of the call before costs nothing. separator: one
        byte after each reply. Arrays without gaps. Raises BadArgument.
        """
        job, n_rows = self.job, len(risk)
        if len(body_ends) != n_rows or len(classes) != n_rows or len(separator) != 1:
            raise BadArgument(
                f"{n_rows} risks, {len(body_ends)} bodies, {len(classes)} classes, a separator of {len(separator)} bytes"
            )
        if risk.dtype != _FLOAT32 or body_ends.dtype != _INT64 or not (isinstance(classes, bytes) or classes.dtype == _UINT8):
            kinds = [getattr(array, "dtype", "bytes") for array in (risk, body_ends, classes)]
            raise BadArgument(f"risk, body_ends and classes are {kinds}, expected float32, int64 and uint8")
        self.prepare(n_rows, len(bodies), len(event_id_blob), parts)
        inputs = (
            self._core.floats_in(risk), self._core.bytes_in(bodies), self._core.words_in(body_ends),
            self._core.bytes_in(event_id_blob), self._core.bytes_in(classes),
        )  # fmt: skip
        job.risk, job.bodies, job.body_ends, job.event_ids, job.classes = inputs
        job.first_lsn, job.separator = first_lsn, separator[0]
        job.bodies_size, job.event_ids_size = len(bodies), len(event_id_blob)
        status = self._core.call_encode(job)
        if status:
            self._core.check(status)
        return self.encoded()

    def prepare(self, n_rows: int, body_bytes: int, event_id_bytes: int, parts: Parts) -> None:
        """Set up `job` for the classes, and for what comes out of rows that are no larger. Raises BadArgument."""
        if parts is not self._parts:
            self._keep(parts)
        self.job.rows, rooms = n_rows, self._rooms
        n_stored = body_bytes + n_rows * (STORED_BYTES + self._tail_max)  # entries need less
        n_replies = event_id_bytes * ESCAPED_BYTES_MAX + n_rows * (REPLY_BYTES + self._reply_max)
        if n_stored > len(rooms["stored"]):
            self._reserve("entries", n_stored)
            self._reserve("stored", n_stored)
        if n_replies > len(rooms["replies"]):
            self._reserve("replies", n_replies)

    def encoded(self) -> Encoded:
        """What the last call has made of its rows."""
        n_rows, rooms = self.job.rows, self._rooms
        stored, replies = self._stored_bounds[: n_rows + 1].tolist(), self._reply_bounds[: n_rows + 1].tolist()
        return Encoded(
            rooms["entries"][: self.job.entries_end].tobytes(),
            rooms["stored"][: stored[-1]].tobytes(),
            stored,
            rooms["replies"][: replies[-1]].tobytes(),
            replies,
        )

    def _keep(self, parts: Parts) -> None:
        """The parts of the classes, for this call and those that follow with the same."""
        if len(parts) > CLASSES_MAX:
            raise BadArgument(f"{len(parts)} classes, at most {CLASSES_MAX}")
        self._blob = b"".join(part for each in parts for part in each)
        self._part_ends = np.cumsum([len(part) for each in parts for part in each], dtype=np.int64)
        self._pointers = self._core.bytes_in(self._blob), self._core.words_in(self._part_ends)
        self.job.parts, self.job.part_ends = self._pointers
        self.job.parts_size, self.job.n_classes = len(self._blob), len(parts)
        self._tail_max = max((len(tail) for tail, _, _ in parts), default=0)
        self._reply_max = max((len(middle) + len(end) for _, middle, end in parts), default=0)
        self._parts = parts

    def _reserve(self, name: str, size: int) -> None:
        """Room for so many bytes of one output. What is not written to costs no memory."""
        room = np.empty(1 << (size - 1).bit_length(), dtype=np.uint8)
        self._core.point(self.job, {name: room})
        setattr(self.job, f"{name}_size", room.size)
        self._rooms[name] = room.data
