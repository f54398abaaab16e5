"""Write-behind: dirty profiles travel from L1 to each level, coalesced, at a capped rate, once their entries are durable.

Each level has its own dirty map (key -> first LSN that it lacks) and its own pace; a level that is down only grows its map. The
position that is stored with the data is the lowest LSN that the level may still lack, minus one. Bytes of a dirty profile
that leaves L1 wait here until a level that keeps them has them, and no level is asked for a profile that it has an old copy of.
A partial profile is shipped nowhere: partials.py makes it whole first.
"""

import asyncio
import time
from collections.abc import Container, Sequence
from itertools import islice

import structlog

from features.plan import Plan
from features.profile import is_partial, lsn_of
from service.catch_up import keys_that_changed
from service.errors import TierUnavailable
from service.fetch import Fetcher, entity_key
from service.journal import Journal
from service.levels import CATCHING_UP, DOWN, ON, Level
from service.tiers.l1 import L1
from service.touched import Touched

log = structlog.get_logger(__name__)

PROBE_INTERVAL_S = 1.0  # between two attempts to reach a level that is down


class Consumer:
    """What one level still lacks. `position` is what the level has stored; `is_known` is False before it has told."""

    def __init__(self, level: Level, position: int) -> None:
        self.level = level
        self.position = position
        self.is_known = level.state != DOWN
        self.dirty: dict[bytes, int] = {}
        self.in_flight: dict[bytes, int] = {}
        self.probe_at = 0.0
        level.lacks = self.holds

    def add(self, key: bytes, lsn: int) -> None:
        """`key` was changed by the entry `lsn`; an earlier change that is still unwritten stays the first."""
        self.dirty.setdefault(key, lsn)

    def take(self, n_max: int, but: Container[bytes] = ()) -> list[bytes]:
        """Move up to n_max keys, the oldest first, into flight."""
        assert not self.in_flight, "a flight that is forgotten is a lost update"
        keys = list(islice((key for key in self.dirty if key not in but), n_max))
        self.in_flight = {key: self.dirty.pop(key) for key in keys}
        return keys

    def give_back(self, keys: Sequence[bytes]) -> None:
        """These keys of the flight were not written: they are dirty again, with their first LSN.

        They go to the end, so that those which cannot be written for now do not keep all others from it.
        """
        for key in keys:
            self.dirty.pop(key, None)
            self.dirty[key] = self.in_flight.pop(key)

    def position_after_flight(self, seen_lsn: int) -> int:
        """The level's position once the flight is written: everything up to `seen_lsn` is in one of the maps."""
        return min(self.dirty.values(), default=seen_lsn + 1) - 1

    def holds(self, key: bytes) -> bool:
        """True while the level may lack the newest bytes of `key`."""
        return key in self.dirty or key in self.in_flight


class WriteBehind:
    """Owns the consumers and the bytes that wait."""

    def __init__(
        self, plan: Plan, touched: Touched, journal: Journal, interval_ms: int, batch_max: int, profiles_max: int
    ) -> None:
        self.consumers: list[Consumer] = []
        self.n_written: dict[str, int] = {}
        self._plan = plan
        self._kind_numbers = {kind.name: kind.number for kind in plan.kinds}
        self._touched = touched
        self._journal = journal
        self._interval_s = interval_ms / 1000
        self._batch_max = batch_max
        self._profiles_max = profiles_max
        self._waiting: dict[bytes, bytes] = {}
        self._seen_lsn = 0
        self._tasks: list[asyncio.Task[None]] = []

    def attach(self, l1: L1, fetcher: Fetcher, levels: Sequence[Level], positions: Sequence[int]) -> None:
        """Give it the stops that need it themselves; before `start`."""
        self._l1 = l1
        self._fetcher = fetcher
        self.consumers = [Consumer(level, position) for level, position in zip(levels, positions, strict=True)]
        self.n_written = {level.name: 0 for level in levels}

    def start(self) -> None:
        """Start one task per level."""
        self._tasks = [asyncio.get_running_loop().create_task(self._run(c)) for c in self.consumers]

    async def stop(self, deadline_s: float) -> None:
        """Write what is dirty, as far as the levels take it within the deadline."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(deadline_s):
                for consumer in self.consumers:
                    await self.flush(consumer)
        except TimeoutError:
            log.warning("write-behind stopped with dirty profiles; the journal has them", lag=self.lags())

    def waiting(self, key: bytes) -> bytes | None:
        """The newest bytes of a profile that left L1 before a level had them."""
        return self._waiting.get(key)

    def take_waiting(self, key: bytes) -> bytes | None:
        """The same for somebody who puts them into L1: a second copy here would soon be an old one."""
        return self._waiting.pop(key, None)

    def keep(self, kind: int, entity: str, profile: bytes, lsn: int) -> None:
        """The whole profile of an entity that is not in L1; its first change that no level has is `lsn`."""
        self._waiting[entity_key(self._plan.kinds[kind].name, entity)] = profile
        self._touched.mark(kind, entity, lsn)

    def first_unwritten(self, key: bytes) -> int | None:
        """The first LSN that changed `key` and that some level may lack; None if all have everything."""
        self._see()
        return min((maps[key] for c in self.consumers for maps in (c.dirty, c.in_flight) if key in maps), default=None)

    def on_evict(self, kind: int, entity: str, slot: int) -> None:
        """L1 is about to reuse a slot: keep its bytes if no level has them for sure."""
        profile = self._l1.slabs[kind].get(slot)
        key = entity_key(self._plan.kinds[kind].name, entity)
        if profile[0] and (self._is_unseen(kind, entity) or is_partial(profile) or self._must_wait(key)):
            self._waiting[key] = profile

    def lags(self) -> dict[str, int]:
        """Dirty profiles per level."""
        return {c.level.name: len(c.dirty) + len(c.in_flight) for c in self.consumers}

    @property
    def n_waiting(self) -> int:
        """Profiles whose only copy is here."""
        return len(self._waiting)

    async def flush(self, consumer: Consumer) -> None:
        """Write everything that the level lacks now. Stops at the first failure."""
        self._see()
        target = self._seen_lsn
        while consumer.level.state != DOWN and consumer.dirty and min(consumer.dirty.values()) <= target:
            n_before = len(consumer.dirty)
            await self._write(consumer)
            if len(consumer.dirty) >= n_before:  # only partial profiles are left
                break
        if consumer.level.state != DOWN and not consumer.dirty:
            await self._write(consumer)

    async def _run(self, consumer: Consumer) -> None:
        while True:
            n_written = 0
            try:
                if consumer.level.state == DOWN:
                    await self._probe(consumer)
                else:
                    n_written = await self._write(consumer)
            except Exception:  # a task's top loop: whatever it was, the next round tries again
                log.exception("write-behind failed", level=consumer.level.name)
            hurried = n_written == self._batch_max and len(consumer.dirty) > self._profiles_max // 2
            await asyncio.sleep(0 if hurried else self._interval_s)

    def _see(self) -> None:
        """Hand what was touched since the last time to every consumer."""
        self._seen_lsn = self._journal.last_lsn
        for kind, entities in zip(self._plan.kinds, self._touched.take(), strict=True):
            for entity, lsn in entities.items():
                key = entity_key(kind.name, entity)
                for consumer in self.consumers:
                    consumer.add(key, lsn)

    async def _write(self, consumer: Consumer) -> int:
        """One batch to one level, and the position that is true once it is there. Returns the number of profiles."""
        self._see()
        level, seen_lsn = consumer.level, self._seen_lsn
        keys = consumer.take(self._batch_max, self._partial_keys())
        profiles, missing = self._copies(keys)
        try:
            if missing:
                profiles |= await self._from_other_levels(level, missing)
                self._note_lost([key for key in missing if key not in profiles], level)
            consumer.give_back([key for key in keys if key not in profiles])
            position = consumer.position_after_flight(seen_lsn)
            if profiles or position > consumer.position:
                await self._journal.sync_to(seen_lsn)
                await level.tier.put(profiles, position)
                consumer.in_flight = {}
                consumer.position = max(consumer.position, position)
        except TierUnavailable as error:
            level.fail(error)
            consumer.probe_at = time.monotonic() + PROBE_INTERVAL_S
            log.warning("level unavailable", level=level.name, detail=error.detail)
            return 0
        finally:  # whatever ended it, a cancellation too: what did not arrive is still to be written
            consumer.give_back(list(consumer.in_flight))
        self.n_written[level.name] += len(profiles)
        self._forget_waiting(level, profiles)
        if level.state == CATCHING_UP and not consumer.dirty.keys() - self._partial_keys():
            level.state, level.reason = ON, ""
            log.info("level caught up", level=level.name)
            self._sweep_waiting()
        return len(profiles)

    def _copies(self, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """The newest bytes of each key that is in RAM and whole, and the keys that are not in RAM."""
        profiles, missing = {}, []
        for key in keys:
            kind, entity = self._split(key)
            profile = self._l1.peek(kind, entity) or self._waiting.get(key)
            if profile is None:
                missing.append(key)
            elif not is_partial(profile):
                profiles[key] = profile
        return profiles, missing

    async def _from_other_levels(self, level: Level, keys: list[bytes]) -> dict[bytes, bytes]:
        """Bytes of profiles that left L1 once a level had them: from the first other level that has every change."""
        found: dict[bytes, bytes] = {}
        for consumer in self.consumers:
            if consumer.level is level or consumer.level.state != ON:
                continue
            left = [key for key in keys if key not in found and not consumer.holds(key)]
            if left:
                try:
                    profiles = await consumer.level.tier.fill(left)
                except TierUnavailable as error:
                    consumer.level.fail(error)
                    continue
                found |= {key: p for key, p in zip(left, profiles, strict=True) if p is not None}
        return found

    def _note_lost(self, keys: Sequence[bytes], level: Level) -> None:
        """No level has the newest bytes of these any more (a store went back): to be put together again from the journal."""
        for key in keys:
            kind, entity = self._split(key)
            if entity not in self._l1.index[kind] and key not in self._waiting:
                self._fetcher.partial.setdefault((kind, entity), [level.name])

    def _partial_keys(self) -> set[bytes]:
        return {entity_key(self._plan.kinds[kind].name, entity) for kind, entity in self._fetcher.partial}

    def _split(self, key: bytes) -> tuple[int, str]:
        kind, _, entity = key.decode().partition(":")
        return self._kind_numbers[kind], entity

    def _is_unseen(self, kind: int, entity: str) -> bool:
        """Changed, and no consumer knows of it yet."""
        return entity in self._touched.by_kind[kind]

    def _must_wait(self, key: bytes) -> bool:
        """True unless every level has the newest bytes of `key`, or one that keeps what it was given can be asked for them."""
        is_behind = not self.consumers
        for consumer in self.consumers:
            if consumer.level.state != ON or consumer.holds(key):
                is_behind = True
            elif consumer.level.keeps:
                return False
        return is_behind

    def _forget_waiting(self, level: Level, written: dict[bytes, bytes]) -> None:
        """Bytes that a readable level has need not wait here, unless they have changed since."""
        if level.state != ON or not self._waiting:
            return
        for key, profile in written.items():
            have = self._waiting.get(key)
            if have is not None and lsn_of(have) <= lsn_of(profile) and not is_partial(have) and not self._must_wait(key):
                del self._waiting[key]

    def _sweep_waiting(self) -> None:
        """The same for everything that waits, after a level has become readable."""
        for key, profile in list(self._waiting.items()):
            if not is_partial(profile) and not self._is_unseen(*self._split(key)) and not self._must_wait(key):
                del self._waiting[key]

    async def _probe(self, consumer: Consumer) -> None:
        """Is the level there again, and has it kept what it had? If not, everything since its position is written again."""
        if time.monotonic() < consumer.probe_at:
            return
        consumer.probe_at = time.monotonic() + PROBE_INTERVAL_S
        level = consumer.level
        try:
            position = await level.tier.read_position()
        except TierUnavailable:
            return
        if position >= self._journal.next_lsn:
            # Its profiles would ignore our entries, which have lower LSNs. A start with the store there begins above it.
            level.reason = f"it knows LSN {position}, beyond this journal; restart the service to begin above it"
            log.error("level belongs to a later journal", level=level.name, position=position)
            return
        if not level.is_local and (position < consumer.position or not consumer.is_known):
            if consumer.is_known:
                log.warning("level went back", level=level.name, position=position, expected=consumer.position)
            # Known again only when every key is marked: a failure in between must not make the level look whole.
            consumer.is_known, consumer.position = False, position
            await self.catch_up(consumer)
            consumer.is_known = True
        level.state = CATCHING_UP

    async def catch_up(self, consumer: Consumer, from_complete: bool = False) -> None:
        """Mark every profile that changed after the level's position as dirty for it, or all that a complete level has."""
        complete = next((c.level for c in self.consumers if c.level.is_complete and c is not consumer), None)
        async for key, lsn in keys_that_changed(self._plan, self._journal, consumer.position, complete, from_complete):
            consumer.dirty[key] = min(lsn, consumer.dirty.get(key, lsn))
        consumer.dirty = dict(sorted(consumer.dirty.items(), key=lambda item: item[1]))
