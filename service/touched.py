"""Which profiles have changed since write-behind last looked, and the first LSN that changed each of them.

At stream rates nearly every profile that changes is dirty for every level already, and to say so again changes nothing. So
each slot of L1 has a flag, "known": its entity is marked here, or dirty for all who are told of changes.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

FEW_ROWS = 24  # up to here a loop costs less than NumPy's indexing


class Touched:
    """One dict per kind: id -> LSN of the first change that write-behind has not seen."""

    def __init__(self, n_kinds: int) -> None:
        self.n_takes = 0
        self.by_kind: list[dict[str, int]] = [{} for _ in range(n_kinds)]
        self._known = [bytearray(b"\x01") for _ in range(n_kinds)]  # the last one is for the slot -1: nothing to mark

    def reserve(self, n_slots: Sequence[int]) -> None:
        """How many slots L1 has of each kind. All flags are cleared."""
        self._known = [bytearray(n) + b"\x01" for n in n_slots]

    def mark(self, kind: int, entity: str, lsn: int) -> None:
        """The profile was changed by the entry with this LSN."""
        self.by_kind[kind].setdefault(entity, lsn)

    def mark_many(self, kind: int, entities: Iterable[str], lsns: Iterable[int]) -> None:
        """`mark` each of the entities of a kind, with its LSN: 0.1 µs each."""
        deque(map(self.by_kind[kind].setdefault, entities, lsns), maxlen=0)

    def mark_rows(self, kind: int, entities: Sequence[str], slots: npt.NDArray[np.int64], first_lsn: int) -> None:
        """`mark` one entity per row, unless that is known. slots: int64 (rows,), -1 = no entity. LSNs begin at `first_lsn`."""
        known, marked = self._known[kind], self.by_kind[kind]
        if len(entities) <= FEW_ROWS:
            for row, slot in enumerate(slots.tolist()):
                if not known[slot]:
                    known[slot] = 1
                    marked.setdefault(entities[row], first_lsn + row)
            return
        flags = np.frombuffer(known, dtype=np.uint8)
        fresh = np.flatnonzero(flags[slots] == 0)
        if len(fresh):
            flags[slots[fresh]] = 1
            for row in fresh.tolist():
                marked.setdefault(entities[row], first_lsn + row)

    def forget(self, kind: int, slot: int) -> None:
        """The next change has to be marked: the slot has another entity, or a copy of its profile is on its way down."""
        self._known[kind][slot] = 0

    def forget_all(self) -> None:
        """The same for all: somebody is told of changes from now on who was not."""
        self.reserve([len(known) - 1 for known in self._known])

    def take(self) -> list[dict[str, int]]:
        """Everything marked since the last call."""
        self.n_takes += 1
        taken, self.by_kind = self.by_kind, [{} for _ in self.by_kind]
        return taken
