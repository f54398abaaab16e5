"""L1: profiles in RAM, one slab per kind, an index from id to slot, eviction by SIEVE. Never blocks.

Scoring always works in these slabs. `bytes_max` bounds the profiles that rest here; slots that waiting transactions have pinned
may exceed it and are given back as soon as they are unpinned. Who leaves is told to `on_evict` first, so that a dirty profile
goes down before its slot is reused. Address space is reserved for the worst case; memory is committed when touched.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from features.plan import Plan
from features.slab import Slab
from service.tiers.index import Index, open_index
from service.tiers.sieve import NONE, Sieve

PIN = np.int32(1)  # of the counters' own type: NumPy adds others through a buffer, ten times slower
FEW_ROWS = 24  # up to here a loop costs less than NumPy's indexing
FEW_PINS = 12  # the same, where each place is counted
EVICTED_MAX = 256  # profiles of one kind that leave at once, so that kinds go on sharing the room

OnEvict = Callable[[int, list[str], npt.NDArray[np.int64]], None]  # kind, entities, the slots that they had


class L1:
    """`find` and `claim` pin the slot for the caller, who gives it back with `unpin`.

    pinned_max: how many slots of a kind can be pinned at once on top of what fits in `bytes_max`. huge_pages: see Slab.
    """

    def __init__(self, plan: Plan, bytes_max: int, pinned_max: int, on_evict: OnEvict, huge_pages: bool = False) -> None:
        self.plan = plan
        self.bytes_max = bytes_max
        self.slabs = [Slab(kind, bytes_max // kind.size + pinned_max, huge_pages) for kind in plan.kinds]
        self.indexes: list[Index] = [open_index() for _ in plan.kinds]
        self.sieves = [Sieve() for _ in plan.kinds]
        self.bytes_used = 0
        self.n_hits = 0
        self.n_evicted = [0] * len(plan.kinds)
        self._visited = [sieve.visited for sieve in self.sieves]
        self._pins = [sieve.pins for sieve in self.sieves]
        self._free: list[list[int]] = [[] for _ in plan.kinds]
        self._on_evict = on_evict
        # Ends the batch that is being scored on another thread. Who reads or writes profiles that may be in it calls this
        # first.
        self.settle: Callable[[], None] = _nothing_to_settle
        # Told kind and slots too, by who keeps slot numbers.
        self.on_leave: Callable[[int, Sequence[int]], None] | None = None

    def find(self, kind: int, entity: str) -> int:
        """The slot of a profile, pinned and marked as visited, or -1."""
        slot = self.slot_of(kind, entity)
        if slot >= 0:
            self.n_hits += 1
            self._visited[kind][slot] = 1
            self._pins[kind][slot] += 1
        return slot

    def slot_of(self, kind: int, entity: str) -> int:
        """The slot of a profile, or -1; neither pinned nor counted as a visit."""
        return self.indexes[kind].find((entity,)).item()

    def find_many(self, kind: int, entities: Sequence[str]) -> npt.NDArray[np.int64]:
        """`find` for distinct entities of a kind: int64 (entities,), -1 for each that is not here."""
        slots = self.indexes[kind].find(entities)
        self.pin_many(kind, slots[slots >= 0])
        return slots

    def pin_many(self, kind: int, slots: npt.NDArray[np.int64]) -> None:
        """Pin distinct slots whose profiles were looked up."""
        self.n_hits += len(slots)
        np.frombuffer(self._visited[kind], dtype=np.uint8)[slots] = 1
        np.frombuffer(self._pins[kind], dtype=np.int32)[slots] += 1

    def find_rows(self, entities: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
        """int64 (rows, kinds): the slots of one entity per row and kind, -1 for "" and for what is not here. Not pinned."""
        slots = [index.find(of_kind) for index, of_kind in zip(self.indexes, entities, strict=True)]
        return np.stack(slots, axis=1)

    def visit_rows(self, rows: npt.NDArray[np.int64]) -> None:
        """Slots that were looked up, int64 (rows, kinds), -1 = none: hits, and visits, which keep them from being evicted."""
        if len(rows) <= FEW_ROWS:
            for visited, column in zip(self._visited, rows.T.tolist(), strict=True):
                for slot in column:
                    if slot >= 0:
                        visited[slot] = 1
                self.n_hits += len(column) - column.count(NONE)
            return
        for visited, column in zip(self._visited, rows.T, strict=True):
            here = column[column >= 0]
            self.n_hits += len(here)
            np.frombuffer(visited, dtype=np.uint8)[here] = 1

    def pin_rows(self, rows: npt.NDArray[np.int64]) -> None:
        """Pin every slot in `rows`, int64 (rows, kinds), -1 = none, once for each time that it stands there."""
        self._add_pins(rows, PIN)

    def unpin_rows(self, rows: npt.NDArray[np.int64]) -> None:
        """Give back what `pin_rows` took."""
        self._add_pins(rows, -PIN)

    def _add_pins(self, rows: npt.NDArray[np.int64], n: np.int32) -> None:
        if len(rows) <= FEW_PINS:
            step = int(n)
            for counts, column in zip(self._pins, rows.T.tolist(), strict=True):
                for slot in column:
                    if slot >= 0:
                        counts[slot] += step
            return
        for pins, slots in zip(self._pins, rows.T, strict=True):
            np.add.at(np.frombuffer(pins, dtype=np.int32), slots[slots >= 0], n)

    def pin(self, kind: int, entity: str) -> int:
        """The slot of a profile that has just been placed here, pinned once more."""
        slot = self.slot_of(kind, entity)
        self._pins[kind][slot] += 1
        return slot

    def pin_slot(self, kind: int, slot: int, n: int = 1) -> None:
        """`n` more pins of a slot that somebody has pinned."""
        self._pins[kind][slot] += n

    def claim(self, kind: int, entity: str) -> int:
        """`claim_many` for one."""
        return self.claim_many(kind, (entity,)).item()

    def claim_many(self, kind: int, entities: Sequence[str], profiles: Sequence[bytes] | None = None) -> npt.NDArray[np.int64]:
        """Pinned slots, int64 (entities,), for distinct entities that are not here, with their profiles. Where there are none,
        the slots are all zero: the caller fills them or lets the scorer begin them.
        """
        sieve, slab, free, n = self.sieves[kind], self.slabs[kind], self._free[kind], len(entities)
        self._make_room(n * slab.kind.size)
        used = free[-n:]
        del free[-n:]
        fresh = [sieve.grow() for _ in range(n - len(used))]
        slots = np.array(used + fresh, dtype=np.int64)
        assert not fresh or fresh[-1] < slab.capacity
        if profiles is not None:
            slab.put_many(slots, profiles)
        elif used:
            slab.clear(slots[: len(used)])
        self.indexes[kind].put(entities, slots)
        for slot in used + fresh:
            sieve.insert(slot)
            sieve.pins[slot] = 1
        self.bytes_used += n * slab.kind.size
        return slots

    def unpin(self, kind: int, slot: int) -> None:
        """Give back one pin; trim() brings the memory back under its bound afterwards."""
        self.sieves[kind].pins[slot] -= 1

    def unpin_many(self, kind: int, slots: npt.NDArray[np.int64]) -> None:
        """Give back one pin of each of these distinct slots."""
        np.frombuffer(self._pins[kind], dtype=np.int32)[slots] -= 1

    def trim(self) -> None:
        """Evict what stands above `bytes_max`, as far as it is not pinned."""
        if self.bytes_used > self.bytes_max:
            self._make_room(0)

    def shrink(self, bytes_max: int, n_max: int) -> int:
        """Evict at most `n_max` profiles while more than `bytes_max` are used; how many left. A step of a long farewell."""
        n = n_left = 0
        while n < n_max and self.bytes_used > bytes_max and (n_left := self._evict(self.bytes_used - bytes_max, n_max - n)):
            n += n_left
        return n

    def peek(self, kind: int, entity: str) -> bytes | None:
        """A copy of the profile, or None; neither pinned nor counted as a visit. An empty slot is no profile."""
        slot = self.slot_of(kind, entity)
        return self.copy(kind, slot) if slot != NONE else None

    def copy(self, kind: int, slot: int) -> bytes | None:
        """A copy of the profile in a slot; None if it is empty."""
        self.settle()
        profile = self.slabs[kind].get(slot)
        return profile if profile[0] else None

    def copies(self, kind: int, slots: npt.NDArray[np.int64]) -> list[bytes | None]:
        """`copy` for many slots of a kind."""
        self.settle()
        return [profile if profile[0] else None for profile in self.slabs[kind].get_many(slots)]

    def clear(self, kind: int, entity: str) -> None:
        """Make the entity's slot empty, if it has one; whoever has it pinned begins a new profile in it."""
        self.settle()
        slot = self.slot_of(kind, entity)
        if slot != NONE:
            self.slabs[kind].clear(slot)

    def entities(self, kind: int) -> list[str]:
        """Everybody of a kind who is here: 0.1 µs each."""
        ids = self.indexes[kind].ids(range(len(self._visited[kind])))
        return [entity for entity in ids if entity]

    def __len__(self) -> int:
        return sum(len(sieve) for sieve in self.sieves)

    def _make_room(self, size: int) -> None:
        """Evict from the kind that holds the most bytes until `size` more fit, or until everything left is pinned."""
        while (excess := self.bytes_used + size - self.bytes_max) > 0 and self._evict(excess, EVICTED_MAX):
            pass

    def _evict(self, excess: int, n_max: int) -> int:
        """As many profiles of one kind as hold `excess` bytes, at most `n_max`; how many. 0: everything is pinned."""
        n_bytes = [len(sieve) * kind.size for sieve, kind in zip(self.sieves, self.plan.kinds, strict=True)]
        for kind in sorted(range(len(n_bytes)), key=n_bytes.__getitem__, reverse=True):
            size = self.plan.kinds[kind].size
            evicted = self.sieves[kind].evict_many(min(-(-excess // size), n_max))
            if evicted:
                break
        else:
            return 0
        slots = np.array(evicted, dtype=np.int64)
        self._on_evict(kind, self.indexes[kind].remove(slots), slots)
        if self.on_leave is not None:
            self.on_leave(kind, evicted)
        self._free[kind] += evicted
        self.bytes_used -= len(evicted) * size
        self.n_evicted[kind] += len(evicted)
        return len(evicted)


def _nothing_to_settle() -> None:
    """Nobody scores aside."""
