"""Bloom filters that spare look-ups: "this entity exists nowhere below", "this event_id is new".

They may say maybe wrongly, at most at rate fpp, and never no wrongly: until `cover` has been called, and whenever keys
had to be forgotten early, the answer is maybe. A positive is confirmed by the caller in the store, never acted upon.
Both grow by generations and are owned by the thread of the event loop.

Cost per look-up: rbloom 0.2 µs, pybloom 1.6 µs, more per further generation; memory 11 bits per key at 1 %, 1.44 more for each
halving of fpp.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import compress, count
from typing import Any, Literal, Protocol

import pybloom_live
import rbloom

from gocore.binding import Core
from gocore.filter import GoFilter

Backend = Literal["rbloom", "pybloom"]

GENERATION_FPP = 0.5  # share of what is left of fpp that a new generation gets: the sum never exceeds fpp
GENERATION_GROWTH = 2  # times the capacity of the generation before: 10 times the keys need 4 generations
ROTATIONS = 4  # generations per window of a RotatingMaybeSet: keys outlive their window by a quarter at most


class _Filter(Protocol):
    """What rbloom.Bloom and pybloom_live.BloomFilter have in common."""

    def add(self, key: bytes, /) -> object: ...

    def __contains__(self, key: bytes, /) -> bool: ...


class MaybeSet:
    """A set of keys that is exact about absence. `capacity` keys fit the first generation, more add another."""

    def __init__(self, capacity: int, fpp: float, backend: Backend = "rbloom") -> None:
        self.is_on = True  # off, it knows nothing: maybe
        self.covered = False
        self.n_keys = 0  # distinct ones, less the false positives among them
        self.lookups = 0
        self.negatives = 0
        self.false_positives = 0
        self._backend: Backend = backend
        self._capacity = capacity
        self._fpp = fpp
        self._reset()

    def maybe_has(self, key: bytes) -> bool:
        """False: `key` was never added. True: ask the store."""
        self.lookups += 1
        if not self.covered:
            return True
        for bloom in self._generations:
            if key in bloom:
                return True
        self.negatives += 1
        return False

    def add(self, key: bytes) -> None:
        """From now on `maybe_has(key)` is True."""
        if not self.is_on:
            return
        for bloom in self._generations:
            if key in bloom:  # counting a key twice would add generations for nothing
                return
        if self._room == 0:
            self._grow()
        self._generations[0].add(key)
        self._room -= 1
        self.n_keys += 1

    def add_many(self, keys: Iterable[bytes]) -> None:
        """`add` each; 0.3 µs a key with rbloom, so a few thousand at a time on the loop."""
        for key in keys:
            self.add(key)

    def cover(self) -> None:
        """The set now holds every key of the stores behind it: from here on absence counts."""
        self.covered = self.is_on

    def clear(self) -> None:
        """Forget all keys and stop covering, before a rebuild. Counters stay."""
        self.covered = False
        self.n_keys = 0
        self._reset()

    def confirm_absent(self) -> None:
        """The caller asked the store about a key that `maybe_has` let through, and it was not there."""
        if self.covered:
            self.false_positives += 1

    @property
    def n_bytes(self) -> int:
        """Memory of the bit arrays."""
        return sum(_n_bytes(bloom) for bloom in self._generations)

    @property
    def n_generations(self) -> int:
        """1 until more than `capacity` keys were added; each one costs every look-up another probe."""
        return len(self._generations)

    def _reset(self) -> None:
        self._generations: list[_Filter] = []  # newest and largest first: it holds most keys
        self._next_capacity = self._capacity
        self._fpp_left = self._fpp
        self._grow()

    def _grow(self) -> None:
        # The first generation gets half of fpp: 1.44 bits a key is the price of a bound that holds however many come.
        share = self._fpp_left * GENERATION_FPP
        self._generations.insert(0, new_filter(self._backend, self._next_capacity, share))
        self._room = self._next_capacity
        self._fpp_left -= share
        self._next_capacity *= GENERATION_GROWTH


class RotatingMaybeSet:
    """A MaybeSet whose keys expire: each stays for at least `window_ms` after it was added, and a little longer.

    Every generation takes keys for a quarter of the window or until it is full, and is dropped when its newest key is
    past the window. With `core` the filters are the core's, and Intake may look in them and fill them (`open`). If
    `generations_max` are full before that, the oldest is dropped early and the answer is maybe
    until its newest key would have expired: bounded memory, and still never a wrong no.
    """

    def __init__(
        self,
        window_ms: int,
        capacity: int,
        fpp: float,
        clock: Callable[[], int],
        backend: Backend = "rbloom",
        generations_max: int = 16,
        core: Core | None = None,
    ) -> None:
        self.covered = False
        self.lookups = 0
        self.negatives = 0
        self.false_positives = 0
        self._window_ms = window_ms
        self._capacity = max(1, capacity // ROTATIONS)
        self._fpp = fpp / (ROTATIONS + 1)  # a look-up probes that many generations; more only above capacity
        self._clock = clock  # ms, any origin
        self._newest_ms = clock()
        self._backend: Backend = backend
        self._core = core
        self._generations_max = generations_max
        self._generations: deque[_Generation] = deque()  # oldest first
        self._maybe_until_ms: int | None = None

    def suspects(self, keys: Sequence[bytes]) -> list[int]:
        """The places of keys that may have been added within the window: ask the store. 0.2 µs a key and generation."""
        if not self.is_sure:
            return self.noted(len(keys), [])
        found: set[int] = set()
        for generation in self._generations:
            found.update(_suspects(generation.bloom, keys))
        return self.noted(len(keys), sorted(found))

    def open(self, n_keys: int) -> list[GoFilter]:
        """The filters that hold all keys of the window, for somebody who looks `n_keys` up in all and adds them to the first.

        Then `noted`. There are some only with `core`.
        """
        if self._core is None:
            return []
        generation = self._open_generation(self._now_ms())
        generation.room -= n_keys  # a little more than its capacity may come
        generation.last_ms = self._newest_ms
        return [generation.bloom for generation in reversed(self._generations)]

    @property
    def is_sure(self) -> bool:
        """Whether a no counts."""
        return self.covered and not self._forgot()

    def noted(self, n_keys: int, found: list[int]) -> list[int]:
        """Of `n_keys` that were looked up these were found. The places of those that may be known: all, if it forgot some."""
        self.lookups += n_keys
        if not self.is_sure:
            return list(range(n_keys))
        self.negatives += n_keys - len(found)
        return found

    def add_many(self, keys: Iterable[bytes]) -> None:
        """From now on, for at least the window, they are suspects. 0.1 µs a key in a batch of 23. One that is in takes room
        again.
        """
        now_ms, left = self._now_ms(), list(keys)
        while left:
            generation = self._open_generation(now_ms)
            part, left = left[: generation.room], left[generation.room :]
            _update(generation.bloom, part)
            generation.room -= len(part)
            generation.last_ms = now_ms

    def cover(self) -> None:
        """The set now holds every key of the window: from here on absence counts."""
        self.covered = True

    def confirm_absent(self) -> None:
        """The caller asked the store about a key that `maybe_has` let through, and it was not there."""
        if self.is_sure:
            self.false_positives += 1

    @property
    def n_bytes(self) -> int:
        """Memory of the bit arrays."""
        return sum(_n_bytes(generation.bloom) for generation in self._generations)

    @property
    def n_generations(self) -> int:
        """Generations held, at most `generations_max`."""
        return len(self._generations)

    def _forgot(self) -> bool:
        return self._maybe_until_ms is not None and self._now_ms() <= self._maybe_until_ms

    def _now_ms(self) -> int:
        # The newest time that the clock has shown: one that steps back keeps keys longer, never shorter.
        self._newest_ms = max(self._newest_ms, self._clock())
        return self._newest_ms

    def _open_generation(self, now_ms: int) -> "_Generation":
        """The newest generation, or a new one where that is full or old."""
        generation = self._generations[-1] if self._generations else None
        if generation is None or generation.room <= 0 or now_ms - generation.first_ms >= self._window_ms // ROTATIONS:
            return self._rotate(now_ms)
        return generation

    def _rotate(self, now_ms: int) -> "_Generation":
        while self._generations and self._generations[0].last_ms + self._window_ms < now_ms:
            self._generations.popleft()
        if len(self._generations) >= self._generations_max:
            dropped = self._generations.popleft()
            self._maybe_until_ms = max(self._maybe_until_ms or 0, dropped.last_ms + self._window_ms)
        generation = _Generation(self._new_filter(), self._capacity, now_ms)
        self._generations.append(generation)
        return generation

    def _new_filter(self) -> Any:
        if self._core is not None:
            return GoFilter(self._core, self._capacity, self._fpp)
        return new_filter(self._backend, self._capacity, self._fpp)


class _Generation:
    __slots__ = ("bloom", "first_ms", "last_ms", "room")

    def __init__(self, bloom: Any, room: int, now_ms: int) -> None:
        self.bloom = bloom
        self.room = room
        self.first_ms = now_ms
        self.last_ms = now_ms


def new_filter(backend: Backend, capacity: int, fpp: float) -> _Filter:
    """An empty filter of one generation."""
    # rbloom: the built-in hash is enough, 64 bits of SipHash, keyed per process, and nothing is persisted. Measured on
    # a million keys at fpp 1 %: 1.02 % with it, 1.01 % with a 128-bit hash of our own, which takes 4 times as long.
    bloom: _Filter = rbloom.Bloom(capacity, fpp) if backend == "rbloom" else pybloom_live.BloomFilter(capacity, fpp)
    return bloom


def _suspects(bloom: Any, keys: Sequence[bytes]) -> Iterable[int]:
    if isinstance(bloom, GoFilter):
        return bloom.suspects(keys)
    return compress(count(), map(bloom.__contains__, keys))


def _update(bloom: Any, keys: list[bytes]) -> None:
    if isinstance(bloom, rbloom.Bloom | GoFilter):
        bloom.update(keys)
    else:
        for key in keys:
            bloom.add(key)


def _n_bytes(bloom: Any) -> int:
    if isinstance(bloom, GoFilter):
        return bloom.n_bytes
    n_bits: int = bloom.size_in_bits if isinstance(bloom, rbloom.Bloom) else bloom.num_bits
    return n_bits // 8
