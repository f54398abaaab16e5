"""Finding the profiles that L1 lacks: bytes still waiting in write-behind, the Bloom filter, then each level in turn.

All misses of one turn of the loop share one round trip per level, and two transactions that miss on the same profile share
one read (single flight). A profile that was found is copied into its L1 slot; a new one begins in an all-zero slot; one that
a level could not be asked for begins there too, flagged partial, and is completed later (partials). A level that still lacks
changes of a profile is not asked for it. A profile is in L1, or waiting, or neither, never in both. A tombstone never gets into
L1: whoever meets one has found a new entity.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

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
from service.tiers.sieve import NONE

log = structlog.get_logger(__name__)

L1_HIT, WAITING, BLOOM_NEW, NEW, UNKNOWN = "l1", "write_behind", "bloom", "new", "unknown"


class Miss:
    """A profile being looked for. In the end `slot` is where it is, `source` says where it came from, `degraded` which levels
    did not answer."""

    __slots__ = ("degraded", "entity", "is_erased", "key", "kind", "slot", "source", "waiters")

    def __init__(self, kind: int, entity: str, key: bytes) -> None:
        self.kind = kind
        self.entity = entity
        self.key = key
        self.source = ""
        self.slot = NONE
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


class Below(NamedTuple):
    """What became of look-ups below L1. slots: -1 where it has to be waited for; sources: "" there; misses: those, by place."""

    slots: list[int]
    sources: list[str]
    misses: list[tuple[int, Miss]]


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
        self.on_arrived: Callable[[], None] = _nobody_cares  # after the waiters of all profiles that came together

    def find(self, kind: int, entity: str, waiter: Callable[[Miss], None]) -> tuple[int, str]:
        """(slot, source), the slot pinned; or (-1, "") if `waiter` will be called once the profile has a slot.

        The waiter must pin with l1.pin, at once.
        """
        slot = self._l1.find(kind, entity)
        if slot >= 0:
            return slot, L1_HIT
        below = self.find_below(kind, [entity])
        for _, miss in below.misses:
            miss.waiters.append(waiter)
        return below.slots[0], below.sources[0]

    def find_below(self, kind: int, entities: Sequence[str]) -> Below:
        """Distinct profiles of a kind that L1 was asked for and does not hold. Those that are found have one pin.

        The caller adds a waiter to every miss.
        """
        self.n_misses += len(entities)
        prefix = entity_key(self._plan.kinds[kind].name, "")
        below = Below([NONE] * len(entities), [""] * len(entities), [])
        found: dict[int, Found] = {}
        asked: dict[int, bytes] = {}
        for place, entity in enumerate(entities):
            key = prefix + entity.encode()
            miss = self._flying.get(key)
            if miss is not None:
                below.misses.append((place, miss))
                continue
            profile = self._waiting.waiting(key)
            if profile is not None:
                # A tombstone goes on waiting: the levels must have it.
                found[place] = Found(None, NEW) if is_tombstone(profile) else Found(profile, WAITING)
                if not is_tombstone(profile):
                    self._waiting.take_waiting(key)
            elif self.bloom is not None and not self.bloom.maybe_has(key):
                self.bloom.add(key)
                found[place] = Found(None, BLOOM_NEW)
            else:
                asked[place] = key
        if asked:
            known = self._read_now(list(asked.values()))
            for place, key in asked.items():
                if key in known:
                    found[place] = known[key]
                else:
                    below.misses.append((place, self._look_for(kind, entities[place], key)))
        self._claim_found(kind, entities, found, below)
        return below

    def _read_now(self, keys: Sequence[bytes]) -> dict[bytes, Found]:
        """What is known of these keys at once: without levels nothing is there, and the first one may be in this process."""
        if not self._levels:
            return dict.fromkeys(keys, Found(None, NEW))
        level = self._levels[0]
        lacking = level.lacks(keys)
        asked = [key for key in keys if key not in lacking] if lacking else keys
        known: dict[bytes, Found] = {}
        for key, profile in zip(asked, level.fill_now(asked), strict=False):
            if profile is not None and self._is_ours(key, profile):
                known[key] = Found(None, NEW) if is_tombstone(profile) else Found(profile, level.name)
            elif level.is_complete:
                known[key] = Found(None, NEW)
        if self.bloom is not None:
            for key, answer in known.items():
                if answer.source == NEW:
                    self.bloom.confirm_absent()
                self.bloom.add(key)
        return known

    def _claim_found(self, kind: int, entities: Sequence[str], found: Mapping[int, Found], below: Below) -> None:
        """Slots for what was found at once, new ones empty."""
        places = [place for place, answer in found.items() if answer.profile is not None]
        profiles = [answer.profile for answer in found.values() if answer.profile is not None]
        new = [place for place, answer in found.items() if answer.profile is None]
        for place, answer in found.items():
            below.sources[place] = answer.source
        if places:
            _put_at(below.slots, places, self._place(kind, [entities[place] for place in places], profiles))
        if new:
            _put_at(below.slots, new, self._l1.claim_many(kind, [entities[place] for place in new]))

    def _look_for(self, kind: int, entity: str, key: bytes) -> Miss:
        miss = self._flying[key] = Miss(kind, entity, key)
        if not self._next:
            asyncio.get_running_loop().call_soon(self._start)
        self._next.append(miss)
        return miss

    async def pin_all(self, rows: Sequence[Sequence[str | None]]) -> npt.NDArray[np.int64]:
        """int64 (rows, kinds): the slots of every entity, found or fetched, and pinned; -1 where a row has None."""
        slots = np.full((len(rows), len(self._plan.kinds)), NONE, dtype=np.int64)
        arrived = asyncio.Event()
        n_missing = 0

        def put(kind: int, places: Sequence[int], slot: int) -> None:
            slots[places, kind] = slot
            self._l1.pin_slot(kind, slot, len(places) - 1)

        def arrive(places: Sequence[int], miss: Miss) -> None:
            nonlocal n_missing
            self._l1.pin_slot(miss.kind, miss.slot)
            put(miss.kind, places, miss.slot)
            n_missing -= 1
            if not n_missing:
                arrived.set()

        for kind in range(len(self._plan.kinds)):
            places = places_of([entities[kind] for entities in rows])
            names = list(places)
            found = self._l1.find_many(kind, names).tolist()
            absent = [name for name, slot in zip(names, found, strict=True) if slot < 0]
            below = self.find_below(kind, absent)
            for name, slot in chain(zip(names, found, strict=True), zip(absent, below.slots, strict=True)):
                if slot >= 0:
                    put(kind, places[name], slot)
            n_missing += len(below.misses)
            for _, miss in below.misses:
                miss.waiters.append(functools.partial(arrive, places[miss.entity]))
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
        async for step in self._read_steps(keys, trusted):
            for found in step:
                yield found

    async def _read_steps(
        self, keys: Sequence[bytes], trusted: Sequence[Level] | None = None
    ) -> AsyncIterator[list[tuple[bytes, Found]]]:
        """`read_levels`, with all that is known at a time."""
        missing: dict[bytes, list[str]] = {key: [] for key in keys}
        for level in self._levels:
            asked = list(missing)
            if trusted is None:
                lacking = level.lacks(asked)
                asked = [key for key in asked if key not in lacking] if lacking else asked
            elif level not in trusted:
                asked = []
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
            step: list[tuple[bytes, Found]] = []
            for key, profile in zip(asked, profiles, strict=True):
                if profile is not None and self._is_ours(key, profile):
                    step.append((key, Found(profile, level.name)))
                elif level.is_complete:
                    step.append((key, Found(None, NEW)))
            for key, _ in step:
                del missing[key]
            if step:
                yield step
        if missing:
            yield [(key, Found(None, UNKNOWN if degraded else NEW, degraded)) for key, degraded in missing.items()]

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

    def _place(self, kind: int, entities: Sequence[str], profiles: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Slots, pinned, with these profiles."""
        for entity, profile in zip(entities, profiles, strict=True):
            if is_partial(profile):
                self.partial.setdefault((kind, entity), [UNKNOWN])
        return self._l1.claim_many(kind, entities, profiles)

    def _start(self) -> None:
        misses, self._next = self._next, []
        task = asyncio.get_running_loop().create_task(self._fetch(misses))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, misses: list[Miss]) -> None:
        by_key = {miss.key: miss for miss in misses}
        try:
            async for step in self._read_steps(list(by_key)):
                self._finish([(by_key.pop(key), found) for key, found in step])
        except Exception:  # a task's top: whatever it was, nobody may wait for ever
            log.exception("look-up failed", profiles=len(by_key))
        left = [miss for miss in by_key.values() if self._flying.get(miss.key) is miss]
        if left:
            self._finish([(miss, Found(None, UNKNOWN, [UNKNOWN])) for miss in left])

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

    def _finish(self, arrived: Sequence[tuple[Miss, Found]]) -> None:
        """Give the profiles their slots and wake everybody who waits for them, in the order in which they were asked for."""
        for kind in range(len(self._plan.kinds)):
            found: list[Miss] = []
            profiles: list[bytes] = []
            new: list[Miss] = []
            for miss, answer in arrived:
                if miss.kind != kind:
                    continue
                profile = self._settle(miss, answer)
                if profile is None:
                    new.append(miss)
                else:
                    found.append(miss)
                    profiles.append(profile)
            if found:
                slots = self._place(kind, [miss.entity for miss in found], profiles)
                for miss, slot in zip(found, slots.tolist(), strict=True):
                    miss.slot = slot
            if new:
                self._begin(kind, new)
        for miss, _ in arrived:
            for waiter in miss.waiters:
                waiter(miss)
            self._l1.pin_slot(miss.kind, miss.slot, -1)
        self.on_arrived()

    def _settle(self, miss: Miss, found: Found) -> bytes | None:
        """What is known in the end: the profile, or None where a new one begins. The search is over."""
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
        return found.profile

    def _begin(self, kind: int, misses: Sequence[Miss]) -> None:
        """Empty slots for those that nobody has, partial where somebody could not be asked."""
        slab = self._l1.slabs[kind]
        for miss, slot in zip(misses, self._l1.claim_many(kind, [miss.entity for miss in misses]).tolist(), strict=True):
            miss.slot = slot
            if miss.source == UNKNOWN:
                slab.flat_words[slot * (slab.kind.size >> 3)] = PARTIAL_FLAG
                self.partial[kind, miss.entity] = miss.degraded


def places_of(entities: Sequence[str | None]) -> dict[str, list[int]]:
    """Where each of the entities stands, in the order in which they come; None and "" are nobody."""
    places: dict[str, list[int]] = {}
    for place, entity in enumerate(entities):
        if entity:
            places.setdefault(entity, []).append(place)
    return places


def _put_at(values: list[int], places: Sequence[int], slots: npt.NDArray[np.int64]) -> None:
    for place, slot in zip(places, slots.tolist(), strict=True):
        values[place] = slot


def _nobody_cares() -> None:
    """Nobody waits for more than one profile."""
