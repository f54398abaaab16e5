"""Which profiles have changed since write-behind last looked, and the first LSN that changed each of them.

At stream rates nearly every profile that changes is dirty for every level already, and to say so again changes nothing. So
each slot of L1 has a flag, "known": its entity is marked here, or dirty for all who are told of changes. Who is in L1 is marked
by slot, and gets its name only when write-behind looks, or as it leaves.

Slots of rows are noted as they are, and marked when some thousands have come or somebody asks: NumPy's fixed cost is a third of
that of a batch of 64 rows.
"""

from collections import deque
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.tiers.l1 import L1

NOTED_ROWS_MAX = 2_048  # that are not marked yet: marking them takes 0.2 ms


class Marked(NamedTuple):
    """Profiles of a kind that were changed, each with the LSN of its first change: by entity, and by slot of L1, int64 (n,)."""

    by_entity: dict[str, int]
    slots: npt.NDArray[np.int64]
    lsns: npt.NDArray[np.int64]


class Touched:
    """Per kind: the LSN of the first change that write-behind has not seen, by slot or by entity."""

    def __init__(self, n_kinds: int) -> None:
        self.n_takes = 0
        self._by_entity: list[dict[str, int]] = [{} for _ in range(n_kinds)]
        self._by_slot: list[dict[int, int]] = [{} for _ in range(n_kinds)]
        self._known: list[bytearray] = []
        self._noted: list[tuple[npt.NDArray[np.int64], int]] = []  # rows that are not marked yet, and their first LSN
        self._n_noted = 0

    def attach(self, l1: L1) -> None:
        """Whose slots they are; before the first row."""
        self._l1 = l1
        self.forget_all()

    def __len__(self) -> int:
        self._mark_noted()
        return sum(map(len, self._by_entity)) + sum(map(len, self._by_slot))

    def mark(self, kind: int, entity: str, lsn: int) -> None:
        """The profile was changed by the entry with this LSN."""
        self._by_entity[kind].setdefault(entity, lsn)

    def mark_many(self, kind: int, entities: Iterable[str], lsns: Iterable[int]) -> None:
        """`mark` each of the entities of a kind, with its LSN: 0.1 µs each."""
        deque(map(self._by_entity[kind].setdefault, entities, lsns), maxlen=0)

    def mark_rows(self, rows: npt.NDArray[np.int64], first_lsn: int) -> None:
        """The profiles in these slots, int64 (rows, kinds), -1 = none, were changed by the entries from `first_lsn` on.

        The array is kept; nobody may change it.
        """
        self._noted.append((rows, first_lsn))
        self._n_noted += len(rows)
        if self._n_noted >= NOTED_ROWS_MAX:
            self._mark_noted()

    def _mark_noted(self) -> None:
        if not self._noted:
            return
        noted, self._noted, self._n_noted = self._noted, [], 0
        columns = np.concatenate([rows for rows, _ in noted]).T
        lsns = np.concatenate([np.arange(first_lsn, first_lsn + len(rows)) for rows, first_lsn in noted])
        for known, marked, slots in zip(self._known, self._by_slot, columns, strict=True):
            flags = np.frombuffer(known, dtype=np.uint8)
            fresh = np.flatnonzero(flags[slots] == 0)
            if len(fresh):
                flags[slots[fresh]] = 1
                deque(map(marked.setdefault, slots[fresh].tolist(), lsns[fresh].tolist()), maxlen=0)

    def has(self, kind: int, entity: str) -> bool:
        """Whether the entity was changed since write-behind last looked."""
        self._mark_noted()
        return entity in self.gone(kind) or self._l1.slot_of(kind, entity) in self._by_slot[kind]

    def gone(self, kind: int) -> Container[str]:
        """Those of a kind who were changed since then and had no slot, or have given it up."""
        return self._by_entity[kind].keys()

    def leave(self, kind: int, entities: Sequence[str], slots: npt.NDArray[np.int64]) -> None:
        """The entities give up their slots, int64 (entities,)."""
        self.forget_many(kind, slots)
        by_slot, by_entity = self._by_slot[kind], self._by_entity[kind]
        for entity, slot in zip(entities, slots.tolist(), strict=True):
            lsn = by_slot.pop(slot, None)
            if lsn is not None:
                by_entity[entity] = min(lsn, by_entity.get(entity, lsn))

    def forget(self, kind: int, slot: int) -> None:
        """The next change has to be marked: a copy of the profile is on its way down, or the slot changes hands."""
        self._mark_noted()
        self._known[kind][slot] = 0

    def forget_many(self, kind: int, slots: npt.NDArray[np.int64]) -> None:
        """`forget` for many slots of a kind."""
        self._mark_noted()
        np.frombuffer(self._known[kind], dtype=np.uint8)[slots] = 0

    def forget_all(self) -> None:
        """The same for all: somebody is told of changes from now on who was not."""
        self._mark_noted()
        # The last one is for the slot -1: nothing to mark.
        self._known = [bytearray(slab.capacity) + b"\x01" for slab in self._l1.slabs]

    def take(self) -> list[Marked]:
        """Everything marked since the last call, by kind."""
        self._mark_noted()
        self.n_takes += 1
        taken = [
            Marked(by_entity, *(np.fromiter(found, np.int64, len(by_slot)) for found in (by_slot.keys(), by_slot.values())))
            for by_entity, by_slot in zip(self._by_entity, self._by_slot, strict=True)
        ]
        self._by_entity, self._by_slot = [{} for _ in taken], [{} for _ in taken]
        return taken
