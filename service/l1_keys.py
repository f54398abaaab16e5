"""The keys, in every tier below, of the profiles that stand in L1's slots."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.plan import Plan
from service.fetch import entity_key, split_key
from service.tiers.l1 import L1

Int64s = npt.NDArray[np.int64]


class L1Keys:
    """From key to slot and back."""

    def __init__(self, plan: Plan, l1: L1) -> None:
        self.capacities = [slab.capacity for slab in l1.slabs]
        self._plan = plan
        self._l1 = l1
        self._prefixes = [entity_key(kind.name, "") for kind in plan.kinds]

    def find(self, key: bytes) -> tuple[int, int]:
        """Kind and slot of the profile; -1 if it is not there: 2 µs."""
        kind, entity = split_key(self._plan, key)
        return kind, self._l1.slot_of(kind, entity)

    def find_many(self, kind: int, keys: Sequence[bytes]) -> Int64s:
        """int64 (keys,): the slots of profiles of one kind, -1 for each that is not there."""
        n = len(self._prefixes[kind])
        return self._l1.indexes[kind].find([key[n:].decode() for key in keys])

    def of_kind(self, kind: int, keys: Sequence[bytes]) -> list[bytes]:
        """Those of a kind, in their order."""
        prefix = self._prefixes[kind]
        return [key for key in keys if key.startswith(prefix)]

    def names(self, kind: int, slots: Int64s) -> list[bytes]:
        """The keys of whoever has these slots."""
        prefix = self._prefixes[kind]
        return [prefix + entity.encode() for entity in self._l1.indexes[kind].ids(slots)]
