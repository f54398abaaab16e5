"""Rows: transactions of one request, stream chunk or turn of the loop, decoded, column by column.

Everything on the way of a transaction works on Rows, so that Python touches a column, not a row. A column of text is a list
of str, since the indexes of the tiers are dicts; bodies stand one behind the other in one block of bytes.
"""

from collections.abc import Sequence
from itertools import chain

import msgspec
import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


class Rows(msgspec.Struct, gc=False):
    """Checked transactions. entities: a list per kind of the plan, "" where a transaction names none.

    columns: int64 (rows, len(COLUMNS)), see features.columns. bodies: canonical MessagePack; ends: int64 (rows,), where each
    ends.
    """

    event_ids: list[str]
    entities: list[list[str]]
    columns: Int64s
    bodies: bytes
    ends: Int64s

    def __len__(self) -> int:
        return len(self.event_ids)

    def body(self, row: int) -> bytes:
        """The canonical body of a row."""
        return self.bodies[int(self.ends[row - 1]) if row else 0 : int(self.ends[row])]

    def entities_of(self, row: int) -> list[str]:
        """The ids of a row, one per kind, "" where it has none."""
        return [ids[row] for ids in self.entities]

    def only(self, numbers: Sequence[int]) -> "Rows":
        """These rows, in this order."""
        bodies = [self.body(number) for number in numbers]
        return Rows(
            [self.event_ids[number] for number in numbers],
            [[ids[number] for number in numbers] for ids in self.entities],
            self.columns[list(numbers)],
            b"".join(bodies),
            ends_of(bodies),
        )


def concat(parts: Sequence[Rows]) -> Rows:
    """All rows, part after part."""
    offsets = np.cumsum([0, *(len(rows.bodies) for rows in parts[:-1])])
    return Rows(
        list(chain.from_iterable(rows.event_ids for rows in parts)),
        [list(chain.from_iterable(of_kind)) for of_kind in zip(*(rows.entities for rows in parts), strict=True)],
        np.concatenate([rows.columns for rows in parts]),
        b"".join([rows.bodies for rows in parts]),
        np.concatenate([rows.ends + offset for rows, offset in zip(parts, offsets, strict=True)]),
    )


def ends_of(bodies: Sequence[bytes]) -> Int64s:
    """int64 (rows,): where each body ends when they stand one behind the other."""
    return np.fromiter(map(len, bodies), dtype=np.int64, count=len(bodies)).cumsum()
