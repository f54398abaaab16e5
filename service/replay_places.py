"""Where the entities of a replay are: their numbers, their slots in L1, and which of them are marked already.

The journal names the same entities over and over. Looked up by name a thousand times they cost more than all the rest of
recovery; by number a look-up of all entities in a chunk is one step in numpy.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.tiers.l1 import L1
from service.touched import Touched

Int64s = npt.NDArray[np.int64]

NONE = -1
SIZE_MIN = 1 << 12


class Places:
    """One kind's numbers. What leaves L1 has to be told (`forget_slots`)."""

    def __init__(self, kind: int, l1: L1, touched: Touched) -> None:
        self._kind = kind
        self._l1 = l1
        self._touched = touched
        self.names: list[str] = []  # by number
        self._slots = np.full(SIZE_MIN + 1, NONE, dtype=np.int64)  # by number; the last place is for the number -1
        self._marked_in = np.zeros(SIZE_MIN + 1, dtype=np.int64)  # by number: after how many takes, plus 1
        self._numbers = np.full(SIZE_MIN, NONE, dtype=np.int64)  # by slot

    def learn(self, names: Sequence[str], *, anew: bool) -> None:
        """These have the next numbers; with `anew` those from 0 on."""
        if anew:
            self.names = []
            self._slots[:], self._marked_in[:], self._numbers[:] = NONE, 0, NONE
        self.names += names
        if len(self.names) >= len(self._slots):
            more = max(len(self._slots), len(self.names))
            self._slots = np.concatenate((self._slots, np.full(more, NONE)))
            self._marked_in = np.concatenate((self._marked_in, np.zeros(more, dtype=np.int64)))

    def pin(self, numbers: Int64s) -> Int64s:
        """The slots of these distinct entities, pinned; -1 for what L1 does not have."""
        slots = self._slots[numbers]
        self._l1.pin_many(self._kind, slots[slots >= 0])
        unknown = np.flatnonzero(slots < 0)
        if len(unknown):
            names = [self.names[number] for number in numbers[unknown].tolist()]
            slots[unknown] = self._l1.find_many(self._kind, names)
            known = unknown[slots[unknown] >= 0]
            self.put(numbers[known], slots[known])
        return slots

    def put(self, numbers: Int64s, slots: Int64s) -> None:
        """These entities have these slots now."""
        if not len(slots):
            return
        highest = int(slots.max())
        if highest >= len(self._numbers):
            more = max(len(self._numbers), highest)
            self._numbers = np.concatenate((self._numbers, np.full(more, NONE)))
        self._slots[numbers] = slots
        self._numbers[slots] = numbers

    def slots_of(self, numbers: Int64s) -> Int64s:
        """The slots of pinned entities, -1 for the number -1."""
        return self._slots[numbers]

    def mark(self, numbers: Int64s, lsns: Int64s) -> None:
        """They were changed, each first by the entry with its LSN; told to Touched once between two of its takes."""
        now = self._touched.n_takes + 1
        fresh = np.flatnonzero(self._marked_in[numbers] != now)
        if len(fresh):
            names = [self.names[number] for number in numbers[fresh].tolist()]
            self._touched.mark_many(self._kind, names, lsns[fresh].tolist())
            self._marked_in[numbers[fresh]] = now

    def forget_slots(self, slots: Sequence[int]) -> None:
        """Who was there is no longer in L1."""
        for slot in slots:
            if slot < len(self._numbers):
                number = self._numbers[slot]
                if number != NONE:
                    self._slots[number] = self._numbers[slot] = NONE
