"""Finding the profiles that L1 lacks: bytes still waiting in write-behind, the Bloom filter, then each level in turn.

All misses of one turn of the loop share one round trip per level, and two transactions that miss on the same profile share
one read (single flight). A profile that was found is copied into its L1 slot; a new one begins in an all-zero slot; one that
a level could not be asked for begins there too, flagged partial, and is merged with the stored one later (write_behind).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from features.advance_one import PARTIAL_FLAG
from features.plan import Plan
from features.profile import UnknownProfileVersion, check, is_partial
from service.errors import TierUnavailable
from service.levels import Level
from service.tiers.l1 import L1

log = structlog.get_logger(__name__)

L1_HIT, WAITING, BLOOM_NEW, NEW, UNKNOWN = "l1", "write_behind", "bloom", "new", "unknown"


class Miss:
    """A profile being looked for. `source` says in the end where it came from; `degraded` which levels did not answer."""

    __slots__ = ("degraded", "entity", "key", "kind", "source", "waiters")

    def __init__(self, kind: int, entity: str, key: bytes) -> None:
        self.kind = kind
        self.entity = entity
        self.key = key
        self.source = ""
        self.degraded: list[str] = []
        self.waiters: list[Callable[[Miss], None]] = []


class WaitingBytes(Protocol):
    """Dirty profiles that left L1 and are not in a level yet."""

    def waiting(self, key: bytes) -> bytes | None:
        """The newest bytes of `key`, or None."""


class MaybeProfiles(Protocol):
    """A filter over entity keys that never says no wrongly."""

    def maybe_has(self, key: bytes) -> bool:
        """False: surely nowhere below."""

    def add(self, key: bytes) -> None:
        """Remember `key`."""

    def confirm_absent(self) -> None:
        """A key that it let through was not there."""


def entity_key(kind_name: str, entity: str) -> bytes:
    """The key of an entity in every tier below L1."""
    return f"{kind_name}:{entity}".encode()


class Fetcher:
    """Looks up what L1 lacks. `waiting` and `bloom` answer at once, levels are awaited."""

    def __init__(self, plan: Plan, l1: L1, levels: Sequence[Level], bloom: MaybeProfiles | None, waiting: WaitingBytes) -> None:
        self._plan = plan
        self._l1 = l1
        self._levels = levels
        self._bloom = bloom
        self._waiting = waiting
        self._flying: dict[bytes, Miss] = {}
        self._next: list[Miss] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.partial: dict[tuple[int, str], list[str]] = {}  # entities with a partial profile -> levels that did not answer
        self.n_lookups = self.n_hits = self.n_unknown = 0

    def find(self, kind: int, entity: str, waiter: Callable[[Miss], None]) -> tuple[int, str]:
        """(slot, source), the slot pinned; or (-1, "") if `waiter` will be called once the profile has a slot.

        The waiter must pin with l1.find, at once.
        """
        self.n_lookups += 1
        slot = self._l1.find(kind, entity)
        if slot >= 0:
            self.n_hits += 1
            return slot, L1_HIT
        key = entity_key(self._plan.kinds[kind].name, entity)
        flying = self._flying.get(key)
        if flying is not None:
            flying.waiters.append(waiter)
            return -1, ""
        profile = self._waiting.waiting(key)
        if profile is not None:
            return self._place(kind, entity, profile), WAITING
        if self._bloom is not None and not self._bloom.maybe_has(key):
            self._bloom.add(key)
            return self._l1.claim(kind, entity), BLOOM_NEW
        if not self._levels:
            return self._l1.claim(kind, entity), NEW
        miss = self._flying[key] = Miss(kind, entity, key)
        miss.waiters.append(waiter)
        if not self._next:
            asyncio.get_running_loop().call_soon(self._start)
        self._next.append(miss)
        return -1, ""

    async def read(self, kind: int, entity: str) -> tuple[bytes | None, list[str]]:
        """The newest bytes of a profile and the levels that did not answer, without touching L1 (for people and dry runs)."""
        key = entity_key(self._plan.kinds[kind].name, entity)
        profile = self._l1.peek(kind, entity) or self._waiting.waiting(key)
        if profile is not None or (self._bloom is not None and not self._bloom.maybe_has(key)):
            return profile, self.partial.get((kind, entity), [])
        return await self.read_levels(key)

    async def read_levels(self, key: bytes) -> tuple[bytes | None, list[str]]:
        """The newest stored bytes of `key`, and the levels that did not answer if those might have known more."""
        degraded: list[str] = []
        for level in self._levels:
            try:
                (profile,) = await level.fill([key])
            except TierUnavailable:
                degraded.append(level.name)
                continue
            if profile is not None or level.is_complete:
                return profile, []
        return None, degraded

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

    def _start(self) -> None:
        misses, self._next = self._next, []
        task = asyncio.get_running_loop().create_task(self._fetch(misses))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, misses: list[Miss]) -> None:
        """Ask level after level for what is still missing. A miss in a complete level, or in all levels, is a new entity."""
        missing = misses
        for level in self._levels:
            if not missing:
                break
            try:
                found = await level.fill([miss.key for miss in missing])
            except TierUnavailable as error:
                log.warning("tier unavailable", tier=level.name, detail=error.detail, profiles=len(missing))
                for miss in missing:
                    miss.degraded.append(level.name)
                continue
            left = []
            for miss, profile in zip(missing, found, strict=True):
                if profile is not None and self._is_ours(miss, profile):
                    miss.degraded.clear()
                    self._finish(miss, level.name, profile)
                elif level.is_complete:
                    miss.degraded.clear()
                    self._finish(miss, NEW, None)
                else:
                    left.append(miss)
            missing = left
        for miss in missing:
            self._finish(miss, UNKNOWN if miss.degraded else NEW, None)

    def _is_ours(self, miss: Miss, profile: bytes) -> bool:
        try:
            check(self._plan.kinds[miss.kind], profile)
        except UnknownProfileVersion as error:
            log.error("profile refused", problem=str(error))
            return False
        return True

    def _finish(self, miss: Miss, source: str, profile: bytes | None) -> None:
        """Give the profile its slot and wake everybody who waits for it, in the order in which they came."""
        miss.source = source
        del self._flying[miss.key]
        if source == NEW and self._bloom is not None:
            self._bloom.confirm_absent()
        self.n_unknown += source == UNKNOWN
        if self._bloom is not None:
            self._bloom.add(miss.key)
        if profile is not None:
            slot = self._place(miss.kind, miss.entity, profile)
        else:
            slot = self._l1.claim(miss.kind, miss.entity)
            if source == UNKNOWN:
                slab = self._l1.slabs[miss.kind]
                slab.flat_words[slot * (slab.kind.size >> 3)] = PARTIAL_FLAG
                self.partial[miss.kind, miss.entity] = miss.degraded
        for waiter in miss.waiters:
            waiter(miss)
        self._l1.unpin(miss.kind, slot)
