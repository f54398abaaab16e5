"""Finding the profiles that L1 lacks: bytes still waiting in write-behind, the Bloom filter, then each level in turn.

All misses of one turn of the loop share one round trip per level, and two transactions that miss on the same profile share
one read (single flight). A profile that was found is copied into its L1 slot; a new one begins in an all-zero slot; one that
a level could not be asked for begins there too, flagged partial, and is completed later (partials). A level that still lacks
changes of a profile is not asked for it. A profile is in L1, or waiting, or neither, never in both. A tombstone never gets into
L1: whoever meets one has found a new entity.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from features.advance_one import PARTIAL_FLAG
from features.plan import Plan
from features.profile import UnknownProfileVersion, check, is_partial, is_tombstone
from service.errors import TierUnavailable
from service.levels import Level
from service.tiers.l1 import L1

log = structlog.get_logger(__name__)

L1_HIT, WAITING, BLOOM_NEW, NEW, UNKNOWN = "l1", "write_behind", "bloom", "new", "unknown"


class Miss:
    """A profile being looked for. `source` says in the end where it came from; `degraded` which levels did not answer."""

    __slots__ = ("degraded", "entity", "is_erased", "key", "kind", "source", "waiters")

    def __init__(self, kind: int, entity: str, key: bytes) -> None:
        self.kind = kind
        self.entity = entity
        self.key = key
        self.source = ""
        self.is_erased = False  # meanwhile: what is found is a thing of the past
        self.degraded: list[str] = []
        self.waiters: list[Callable[[Miss], None]] = []


class WaitingBytes(Protocol):
    """Dirty profiles that left L1 and are not in a level yet."""

    def waiting(self, key: bytes) -> bytes | None:
        """The newest bytes of `key`, or None."""

    def take_waiting(self, key: bytes) -> bytes | None:
        """The same, for good: the caller puts them into L1."""

    @property
    def fullness(self) -> str:
        """Why no more can wait, empty while it can."""


class MaybeProfiles(Protocol):
    """A filter over entity keys that never says no wrongly."""

    def maybe_has(self, key: bytes) -> bool:
        """False: surely nowhere below."""

    def add(self, key: bytes) -> None:
        """Remember `key`."""

    def confirm_absent(self) -> None:
        """A key that it let through was not there."""


class Found(msgspec.Struct, gc=False):
    """What the levels say of one profile: its bytes, None if there are none; where from; which levels did not answer."""

    profile: bytes | None
    source: str
    degraded: list[str] = []


def entity_key(kind_name: str, entity: str) -> bytes:
    """The key of an entity in every tier below L1."""
    return f"{kind_name}:{entity}".encode()


def split_key(plan: Plan, key: bytes) -> tuple[int, str]:
    """Inverse of `entity_key`: kind number and id."""
    name, _, entity = key.decode().partition(":")
    return next(kind.number for kind in plan.kinds if kind.name == name), entity


class Fetcher:
    """Looks up what L1 lacks. `waiting` and `bloom` answer at once, levels are awaited."""

    def __init__(self, plan: Plan, l1: L1, levels: Sequence[Level], bloom: MaybeProfiles | None, waiting: WaitingBytes) -> None:
        self._plan = plan
        self._kinds = {kind.name.encode(): kind for kind in plan.kinds}
        self._l1 = l1
        self._levels = levels
        self.bloom = bloom
        self._waiting = waiting
        self._flying: dict[bytes, Miss] = {}
        self._next: list[Miss] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.partial: dict[tuple[int, str], list[str]] = {}  # entities with a partial profile -> levels that did not answer
        self.n_misses = self.n_unknown = 0

    def find(self, kind: int, entity: str, waiter: Callable[[Miss], None]) -> tuple[int, str]:
        """(slot, source), the slot pinned; or (-1, "") if `waiter` will be called once the profile has a slot.

        The waiter must pin with l1.pin, at once.
        """
        slot = self._l1.find(kind, entity)
        return (slot, L1_HIT) if slot >= 0 else self.find_below(kind, entity, waiter)

    def find_below(self, kind: int, entity: str, waiter: Callable[[Miss], None]) -> tuple[int, str]:
        """`find` for a profile that L1 was asked for and does not hold."""
        self.n_misses += 1
        key = entity_key(self._plan.kinds[kind].name, entity)
        flying = self._flying.get(key)
        if flying is not None:
            flying.waiters.append(waiter)
            return -1, ""
        profile = self._waiting.waiting(key)
        if profile is not None:
            return self._claim_waiting(kind, entity, key, profile)
        if self.bloom is not None and not self.bloom.maybe_has(key):
            self.bloom.add(key)
            return self._l1.claim(kind, entity), BLOOM_NEW
        if not self._levels:
            return self._l1.claim(kind, entity), NEW
        miss = self._flying[key] = Miss(kind, entity, key)
        miss.waiters.append(waiter)
        if not self._next:
            asyncio.get_running_loop().call_soon(self._start)
        self._next.append(miss)
        return -1, ""

    async def pin_all(self, rows: Sequence[Sequence[str | None]]) -> npt.NDArray[np.int64]:
        """int64 (rows, kinds): the slots of every entity, found or fetched, and pinned; -1 where a row has None."""
        slots = np.full((len(rows), len(self._plan.kinds)), -1, dtype=np.int64)
        arrived = asyncio.Event()
        n_missing = 0

        def arrive(row: int, miss: Miss) -> None:
            nonlocal n_missing
            slots[row, miss.kind] = self._l1.pin(miss.kind, miss.entity)
            n_missing -= 1
            if not n_missing:
                arrived.set()

        for row, entities in enumerate(rows):
            for kind, entity in enumerate(entities):
                if entity is not None:
                    slots[row, kind], _ = self.find(kind, entity, functools.partial(arrive, row))
                    n_missing += slots[row, kind] < 0
        if n_missing:
            await arrived.wait()
        return slots

    async def read(self, kind: int, entity: str) -> Found:
        """The newest bytes of a profile, without touching L1 or the filter."""
        key = entity_key(self._plan.kinds[kind].name, entity)
        degraded = self.partial.get((kind, entity), [])
        profile = self._l1.peek(kind, entity)
        if profile is not None:
            return Found(profile, L1_HIT, degraded)
        profile = self._waiting.waiting(key)
        if profile is not None:
            return Found(None, NEW) if is_tombstone(profile) else Found(profile, WAITING, degraded)
        if self.bloom is not None and not self.bloom.maybe_has(key):
            return Found(None, BLOOM_NEW)
        found = await self._read_one(key)
        return Found(None, NEW) if found.profile is not None and is_tombstone(found.profile) else found

    def settle(self) -> None:
        """See L1."""
        self._l1.settle()

    def erase(self, kind: int, entity: str) -> None:
        """The entity is new from now on: its slot is empty, and what is being read of it counts for nothing."""
        self.partial.pop((kind, entity), None)
        flying = self._flying.get(entity_key(self._plan.kinds[kind].name, entity))
        if flying is not None:
            flying.is_erased = True
        self._l1.clear(kind, entity)

    async def read_levels(
        self, keys: Sequence[bytes], trusted: Sequence[Level] | None = None
    ) -> AsyncIterator[tuple[bytes, Found]]:
        """Ask level after level for what is still missing: (key, what was found), each key once, as soon as it is known.

        A miss in a complete level, or in all levels, is a new entity. With `trusted` those levels alone are asked, and their
        copies are taken even where they lack changes: for a caller who applies those himself. A tombstone is given as it is.
        """
        missing: dict[bytes, list[str]] = {key: [] for key in keys}
        for level in self._levels:
            if trusted is None:
                asked = [key for key in missing if not level.lacks(key)]
            else:
                asked = list(missing) if level in trusted else []
            for key in missing.keys() - asked:
                missing[key].append(level.name)
            if not asked:
                continue
            try:
                profiles = await level.fill(asked, even_old=trusted is not None)
            except TierUnavailable as error:
                log.warning("tier unavailable", tier=level.name, detail=error.detail, profiles=len(asked))
                for key in asked:
                    missing[key].append(level.name)
                continue
            for key, profile in zip(asked, profiles, strict=True):
                if profile is not None and self._is_ours(key, profile):
                    del missing[key]
                    yield key, Found(profile, level.name)
                elif level.is_complete:
                    del missing[key]
                    yield key, Found(None, NEW)
        for key, degraded in missing.items():
            yield key, Found(None, UNKNOWN if degraded else NEW, degraded)

    @property
    def fullness(self) -> str:
        """Why no transaction can be taken, empty while one can: what leaves L1 has to wait, and there is a limit to it."""
        return self._waiting.fullness

    @property
    def n_fetching(self) -> int:
        """Profiles that are being looked for now."""
        return len(self._flying)

    async def close(self) -> None:
        """Wait for the reads that are under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _place(self, kind: int, entity: str, profile: bytes) -> int:
        slot = self._l1.claim(kind, entity)
        self._l1.slabs[kind].put(slot, profile)
        if is_partial(profile):
            self.partial.setdefault((kind, entity), [UNKNOWN])
        return slot

    def _claim_waiting(self, kind: int, entity: str, key: bytes, profile: bytes) -> tuple[int, str]:
        """A slot with the bytes that waited. A tombstone goes on waiting: the levels must have it."""
        if is_tombstone(profile):
            return self._l1.claim(kind, entity), NEW
        self._waiting.take_waiting(key)
        return self._place(kind, entity, profile), WAITING

    def _start(self) -> None:
        misses, self._next = self._next, []
        task = asyncio.get_running_loop().create_task(self._fetch(misses))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, misses: list[Miss]) -> None:
        by_key = {miss.key: miss for miss in misses}
        try:
            async for key, found in self.read_levels(list(by_key)):
                self._finish(by_key.pop(key), found)
        except Exception:  # a task's top: whatever it was, nobody may wait for ever
            log.exception("look-up failed", profiles=len(by_key))
        for miss in by_key.values():
            if self._flying.get(miss.key) is miss:
                self._finish(miss, Found(None, UNKNOWN, [UNKNOWN]))

    async def _read_one(self, key: bytes) -> Found:
        async for _, found in self.read_levels([key]):
            return found
        raise AssertionError("every key is answered")

    def _is_ours(self, key: bytes, profile: bytes) -> bool:
        try:
            check(self._kinds[key.partition(b":")[0]], profile)
        except UnknownProfileVersion as error:
            log.error("profile refused", problem=str(error))
            return False
        return True

    def _finish(self, miss: Miss, found: Found) -> None:
        """Give the profile its slot and wake everybody who waits for it, in the order in which they came."""
        # Somebody may have put it together meanwhile (partials); the levels do not have that yet.
        waiting = self._waiting.waiting(miss.key)
        if waiting is not None:
            found = Found(waiting, WAITING, self.partial.get((miss.kind, miss.entity), []))
        if miss.is_erased or (found.profile is not None and is_tombstone(found.profile)):
            found = Found(None, NEW)
        elif waiting is not None:
            self._waiting.take_waiting(miss.key)
        miss.source, miss.degraded = found.source, found.degraded
        del self._flying[miss.key]
        if self.bloom is not None:
            if found.source == NEW:
                self.bloom.confirm_absent()
            self.bloom.add(miss.key)
        self.n_unknown += found.source == UNKNOWN
        if found.profile is not None:
            slot = self._place(miss.kind, miss.entity, found.profile)
        else:
            slot = self._l1.claim(miss.kind, miss.entity)
            if found.source == UNKNOWN:
                slab = self._l1.slabs[miss.kind]
                slab.flat_words[slot * (slab.kind.size >> 3)] = PARTIAL_FLAG
                self.partial[miss.kind, miss.entity] = miss.degraded
        for waiter in miss.waiters:
            waiter(miss)
        self._l1.unpin(miss.kind, slot)
