"""Where the profiles of one kind are in L1: entity to slot and back. The Go core's index where the core is there, else a dict.

They are equal but for their cost: the core's takes 40 bytes an entity instead of 160, and looks whole chunks up while it
decodes them (gocore.intake); a look-up of one entity costs 1 µs in it, in the dict 0.1.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gocore.binding import usable_core
from gocore.index import GoIndex

NONE = -1

Int64s = npt.NDArray[np.int64]


class Index(Protocol):
    """Entities are not empty; one has one slot."""

    def find(self, entities: Sequence[str]) -> Int64s:
        """int64 (entities,): the slot of each, -1 for what is not here, and for ""."""

    def put(self, entities: Sequence[str], slots: Int64s) -> None:
        """Give entities that are not here slots that nobody has, int64 (entities,)."""

    def remove(self, slots: Int64s) -> list[str]:
        """Take out who has these slots, and return who that was."""

    def ids(self, slots: Sequence[int] | Int64s) -> list[str]:
        """Who has these slots; "" where nobody does."""


class DictIndex:
    """See Index."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._ids: dict[int, str] = {}

    def find(self, entities: Sequence[str]) -> Int64s:
        """See Index."""
        return np.fromiter(map(self._slots.get, entities, repeat(NONE)), dtype=np.int64, count=len(entities))

    def put(self, entities: Sequence[str], slots: Int64s) -> None:
        """See Index."""
        for entity, slot in zip(entities, slots.tolist(), strict=True):
            assert entity not in self._slots
            assert slot not in self._ids
            self._slots[entity], self._ids[slot] = slot, entity

    def remove(self, slots: Int64s) -> list[str]:
        """See Index."""
        entities = [self._ids.pop(slot) for slot in slots.tolist()]
        for entity in entities:
            del self._slots[entity]
        return entities

    def ids(self, slots: Sequence[int] | Int64s) -> list[str]:
        """See Index."""
        return [self._ids.get(int(slot), "") for slot in slots]


def open_index() -> Index:
    """An empty index."""
    core = usable_core()
    return DictIndex() if core is None else GoIndex(core)
