"""Dirty profiles of one level: what it lacks, with the first LSN of each, and a lower bound of all those.

Who stands in L1 is marked by slot, in 8 bytes, since at stream rates nearly all of L1 is dirty for every level; a dict of keys
took 300 bytes an entity. Slots are gone through in a circle, so that each has its turn. Who is not in L1 is kept by key, the
oldest first, and has up to three quarters of a write. An entity may be in both for a while: it is then written once more.

The bound is kept by counting per span of LSNs: looking at each of 400,000 keys took 16 ms on the event loop. It is exact where
few are left, so that a position which can reach the end does.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from service.l1_keys import L1Keys

SPAN_BITS = 14  # LSNs per count: 16,384, a quarter of a second at the fastest; a count for each is looked at
EXACT_MAX = 1_000  # keys up to which the first LSN is looked for
WINDOW_SLOTS = 8_192  # slots in which marks are looked for at a time: 4 µs

Int64s = npt.NDArray[np.int64]


class Dirty:
    """The first change that the level lacks, by key or by slot of L1."""

    def __init__(self, l1_keys: L1Keys) -> None:
        self._l1_keys = l1_keys
        self._lsns: dict[bytes, int] = {}
        self._marks: list[Int64s] = [np.zeros(n, dtype=np.int64) for n in l1_keys.capacities]  # 0 = not dirty
        self._n_marks = [0] * len(self._marks)
        self._tops = [0] * len(self._marks)  # no slot from here on was ever marked
        self._hands = [0] * len(self._marks)
        self._counts: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._lsns) + sum(self._n_marks)

    def __contains__(self, key: bytes) -> bool:
        return self.lsn_of(key) is not None

    def lsn_of(self, key: bytes) -> int | None:
        """The first change of `key` that the level lacks, or None."""
        kind, slot = self._l1_keys.find(key) if any(self._n_marks) else (0, -1)
        marked = int(self._marks[kind][slot]) if slot >= 0 else 0
        lsn = self._lsns.get(key)
        return (marked or None) if lsn is None else min(lsn, marked or lsn)

    def kept_by_key(self) -> Collection[bytes]:
        """The keys of those who are not in L1."""
        return self._lsns.keys()

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Keys with their LSNs: those that are kept by key first, the oldest first."""
        yield from self._lsns.items()
        for kind, marks in enumerate(self._marks):
            slots = np.flatnonzero(marks[: self._tops[kind]])
            yield from zip(self._l1_keys.names(kind, slots), marks[slots].tolist(), strict=True)

    def add(self, key: bytes, lsn: int) -> None:
        """A change of `key`; an earlier one that is still unwritten stays the first."""
        if key not in self._lsns:
            self._lsns[key] = lsn
            self._counts[lsn >> SPAN_BITS] += 1

    def add_many(self, keys: Iterable[bytes], lsns: Iterable[int]) -> None:
        """`add` for distinct keys: 0.2 µs each."""
        known = self._lsns
        fresh = {key: lsn for key, lsn in zip(keys, lsns, strict=True) if key not in known}
        known |= fresh
        self._counts.update([lsn >> SPAN_BITS for lsn in fresh.values()])

    def mark(self, kind: int, slots: Int64s, lsns: Int64s) -> None:
        """`add` for who has these distinct slots of L1: 20 ns each."""
        marks = self._marks[kind]
        fresh = np.flatnonzero(marks[slots] == 0)
        if not len(fresh):
            return
        slots, lsns = slots[fresh], lsns[fresh]
        marks[slots] = lsns
        self._n_marks[kind] += len(slots)
        self._tops[kind] = max(self._tops[kind], int(slots.max()) + 1)
        for span, n in zip(*map(np.ndarray.tolist, np.unique(lsns >> SPAN_BITS, return_counts=True)), strict=True):
            self._counts[span] += n

    def leave(self, kind: int, slots: Int64s, keys: Sequence[bytes]) -> None:
        """Entities give up their slots: from now on they are kept by key."""
        lsns = self._marks[kind][slots]
        places = np.flatnonzero(lsns)
        self._marks[kind][slots] = 0
        self._n_marks[kind] -= len(places)
        for place, lsn in zip(places.tolist(), lsns[places].tolist(), strict=True):
            known = self._lsns.get(keys[place])
            self._lsns[keys[place]] = lsn if known is None else min(lsn, known)
            if known is not None:
                self._uncount({max(lsn, known) >> SPAN_BITS: 1})

    def among(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of the keys that are here."""
        found = self._lsns.keys() & keys if self._lsns else set()
        for kind, n in enumerate(self._n_marks):
            of_kind = self._l1_keys.of_kind(kind, keys) if n else []
            if of_kind:
                slots = self._l1_keys.find_many(kind, of_kind)
                places = np.flatnonzero(slots >= 0)
                found.update(of_kind[place] for place in places[self._marks[kind][slots[places]] > 0].tolist())
        return found

    def put_back(self, lsns: Mapping[bytes, int]) -> None:
        """Keys that `take` gave, with the LSNs they had, at the end: those that cannot be written keep no other from it."""
        for key in lsns:
            self._discard_key(key)
        self.add_many(lsns.keys(), lsns.values())

    def take(self, n_max: int, but: Collection[bytes] = ()) -> dict[bytes, int]:
        """Take out up to `n_max` keys, none of `but`: by key, the oldest first; at least a quarter from the slots."""
        n_marks = sum(self._n_marks)
        n_keys = max(n_max - n_marks, n_max * 3 // 4)
        keys = list(islice((key for key in self._lsns if key not in but) if but else self._lsns, n_keys))
        taken = dict(zip(keys, map(self._lsns.pop, keys), strict=True))
        self._uncount(Counter([lsn >> SPAN_BITS for lsn in taken.values()]))
        n_left = n_max - len(taken)
        for kind, n_of_kind in enumerate(self._n_marks.copy()):
            n = -(-n_of_kind * n_left // n_marks) if n_marks else 0  # each kind its share
            for key, lsn in self._take_marked(kind, min(n, n_max - len(taken)), but):
                taken[key] = min(lsn, taken.get(key, lsn))
        return taken

    def discard(self, key: bytes) -> None:
        """Forget the key, if it is here."""
        self._discard_key(key)
        if any(self._n_marks):
            kind, slot = self._l1_keys.find(key)
            if slot >= 0 and self._marks[kind][slot]:
                self._unmark(kind, np.array([slot]))

    def first_lsn(self) -> int:
        """No key here has a lower LSN. There is one."""
        if len(self) > EXACT_MAX:
            return min(self._counts) << SPAN_BITS
        lowest = list(self._lsns.values())
        for kind, n in enumerate(self._n_marks):
            if n:
                marks = self._marks[kind][: self._tops[kind]]
                lowest.append(int(marks[marks > 0].min()))
        return min(lowest)

    def _take_marked(self, kind: int, n: int, but: Collection[bytes]) -> Iterable[tuple[bytes, int]]:
        """Up to `n` keys with their LSNs, from the hand on, once round at most."""
        marks, top = self._marks[kind], self._tops[kind]
        start = at = self._hands[kind] % max(top, 1)
        found: list[tuple[bytes, int]] = []
        is_round = False
        while len(found) < n and not (is_round and at >= start):
            end = min(at + WINDOW_SLOTS, start if is_round else top)
            room = n - len(found)
            slots = at + np.flatnonzero(marks[at:end])[:room]
            keys, lsns = self._l1_keys.names(kind, slots), marks[slots].tolist()
            free = [place for place, key in enumerate(keys) if key not in but] if but else range(len(keys))
            found += [(keys[place], lsns[place]) for place in free]
            self._unmark(kind, slots[list(free)])
            at = int(slots[-1]) + 1 if len(slots) == room else end
            if at >= top and not is_round:
                at, is_round = 0, True
        self._hands[kind] = at
        return found

    def _unmark(self, kind: int, slots: Int64s) -> None:
        self._uncount(Counter((self._marks[kind][slots] >> SPAN_BITS).tolist()))
        self._marks[kind][slots] = 0
        self._n_marks[kind] -= len(slots)

    def _discard_key(self, key: bytes) -> None:
        lsn = self._lsns.pop(key, None)
        if lsn is not None:
            self._uncount({lsn >> SPAN_BITS: 1})

    def _uncount(self, counts: Mapping[int, int]) -> None:
        for span, n in counts.items():
            self._counts[span] -= n
            if not self._counts[span]:
                del self._counts[span]
