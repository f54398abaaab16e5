"""Rows: transactions of one request, stream chunk or turn of the loop, decoded, column by column.

Everything on the way of a transaction works on Rows, so that Python touches a column, not a row. Ids stand in lines, bodies one
behind the other in one block of bytes; lists of str are made of ids only where somebody asks for them, which nobody does for an
event of known entities.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from features.plan import COLUMNS, TS

Int64s = npt.NDArray[np.int64]

_NO_COLUMNS = np.zeros((0, len(COLUMNS)), dtype=np.int64)

FEW_ROWS = 32  # up to here a list costs less than NumPy


class Rows:
    """Checked transactions. event_id_lines and, by kind of the plan, entity_lines: an id per row, empty where the transaction
    names none, each with a line feed after it.

    columns: int64 (rows, len(COLUMNS)), see features.columns. bodies: canonical MessagePack; ends: int64 (rows,), where each
    ends. slots: int64 (rows, kinds), where L1 had the profiles as the rows were decoded, -1 where there is no id and for those
    that it had not, of which there are n_missing; None if nobody has looked. suspects: the numbers of rows whose event may be
    known, or comes a second time; then all events are remembered as known from now on. None if nobody has looked.
    """

    __slots__ = (
        "_entities", "_entity_lines", "_event_ids", "_times", "bodies", "columns", "ends", "event_id_lines", "n_missing",
        "slots", "suspects",
    )  # fmt: skip

    def __init__(
        self, event_id_lines: bytes, entity_lines: Sequence[bytes], columns: Int64s, bodies: bytes, ends: Int64s,
        slots: Int64s | None = None, n_missing: int = 0, suspects: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.event_id_lines = event_id_lines
        self.columns = columns
        self.bodies = bodies
        self.ends = ends
        self.slots = slots
        self.n_missing = n_missing
        self.suspects = suspects
        self._entity_lines: Sequence[bytes] = entity_lines
        self._times: tuple[int, int] | None = None
        self._event_ids: list[str] | None = None
        self._entities: list[list[str]] | None = None

    @classmethod
    def scored(cls, event_id_lines: bytes, bodies: bytes, ends: Int64s, slots: Int64s, last_ts: int) -> "Rows":
        """Rows that were scored as they were decoded, all of them new: they have no columns, and no entities but slots."""
        rows = cls(event_id_lines, (), _NO_COLUMNS, bodies, ends, slots, 0, ())
        rows._times = last_ts, last_ts
        return rows

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def times(self) -> tuple[int, int]:
        """The earliest and the latest ts, ms UTC. There is a row."""
        if self._times is None:
            column = self.columns[:, TS]
            times = column.tolist() if len(column) <= FEW_ROWS else (column.min().item(), column.max().item())
            self._times = min(times), max(times)
        return self._times

    @property
    def event_ids(self) -> list[str]:
        """One per row."""
        if self._event_ids is None:
            self._event_ids = from_lines(self.event_id_lines)
        return self._event_ids

    @property
    def entities(self) -> list[list[str]]:
        """A list per kind of the plan, "" where a transaction names none."""
        if self._entities is None:
            self._entities = [from_lines(lines) for lines in self._entity_lines]
        return self._entities

    def body(self, row: int) -> bytes:
        """The canonical body of a row."""
        return self.bodies[int(self.ends[row - 1]) if row else 0 : int(self.ends[row])]

    def entities_of(self, row: int) -> list[str]:
        """The ids of a row, one per kind, "" where it has none."""
        return [ids[row] for ids in self.entities]

    def only(self, numbers: Sequence[int]) -> "Rows":
        """These rows, in this order."""
        event_ids = [self.event_ids[number] for number in numbers]
        entities = [[ids[number] for number in numbers] for ids in self.entities]
        bodies = [self.body(number) for number in numbers]
        # A row alone, the usual case: views of what nobody changes.
        places: slice | list[int] = slice(numbers[0], numbers[0] + 1) if len(numbers) == 1 else list(numbers)
        slots, n_missing = None, 0
        if self.slots is not None:
            slots = self.slots[places]
            n_missing = int(np.count_nonzero(slots < 0)) - sum(ids.count("") for ids in entities)
        suspects = None if self.suspects is None else ()
        ends = ends_of(bodies)
        rows = Rows(to_lines(event_ids), (), self.columns[places], b"".join(bodies), ends, slots, n_missing, suspects)
        rows._event_ids, rows._entities = event_ids, entities
        return rows


def concat(parts: Sequence[Rows]) -> Rows:
    """All rows, part after part; their slots are left behind, and which are suspects."""
    offsets = np.cumsum([0, *(len(rows.bodies) for rows in parts[:-1])])
    joined = Rows(
        b"".join([rows.event_id_lines for rows in parts]),
        (),
        np.concatenate([rows.columns for rows in parts]),
        b"".join([rows.bodies for rows in parts]),
        np.concatenate([rows.ends + offset for rows, offset in zip(parts, offsets.tolist(), strict=True)]),
        suspects=None if any(rows.suspects is None for rows in parts) else (),
    )
    joined._event_ids = list(chain.from_iterable(rows.event_ids for rows in parts))
    if any(rows._entities is None for rows in parts):
        joined._entity_lines = [b"".join(of_kind) for of_kind in zip(*(_entity_lines(rows) for rows in parts), strict=True)]
    else:
        joined._entities = [
            list(chain.from_iterable(of_kind)) for of_kind in zip(*(rows.entities for rows in parts), strict=True)
        ]
    return joined


def _entity_lines(rows: Rows) -> Sequence[bytes]:
    return rows._entity_lines or [to_lines(ids) for ids in rows.entities]


def ends_of(bodies: Sequence[bytes]) -> Int64s:
    """int64 (rows,): where each body ends when they stand one behind the other."""
    if len(bodies) == 1:
        return np.array([len(bodies[0])], dtype=np.int64)
    return np.fromiter(map(len, bodies), dtype=np.int64, count=len(bodies)).cumsum()


def to_lines(ids: Sequence[str]) -> bytes:
    """The ids, a line feed after each."""
    return ("\n".join(ids) + "\n").encode() if ids else b""


def from_lines(lines: bytes) -> list[str]:
    """Inverse of `to_lines`."""
    return lines[:-1].decode().split("\n") if lines else []
