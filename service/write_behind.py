"""Write-behind: dirty profiles travel from L1 to each level, coalesced, at a capped rate, once their entries are durable.

Each level has its own dirty map (key -> first LSN that it lacks) and its own pace; a level that is down only grows its map. The
position that is stored with the data is the lowest LSN that the level may still lack, minus one. Bytes of a dirty profile
that leaves L1 wait here until the first level has them, so no level can be asked for a profile that it has an old copy of.
A partial profile is shipped nowhere: it is merged with the stored one as soon as every level answers again.
"""

import asyncio
import time
from collections.abc import Sequence

import structlog

from features.plan import Plan
from features.profile import is_partial, lsn_of, merge, without_partial_flag
from service.catch_up import keys_that_changed
from service.errors import TierUnavailable
from service.fetch import Fetcher, entity_key
from service.journal import Journal, JournalError
from service.levels import CATCHING_UP, DOWN, ON, Level
from service.tiers.l1 import L1
from service.touched import Touched

log = structlog.get_logger(__name__)

PROBE_INTERVAL_S = 1.0  # between two attempts to reach a level that is down


class Consumer:
    """What one level still lacks. `position` is what the level has stored."""

    def __init__(self, level: Level, position: int) -> None:
        self.level = level
        self.position = position
        self.dirty: dict[bytes, int] = {}
        self.in_flight: dict[bytes, int] = {}
        self.probe_at = 0.0

    def add(self, key: bytes, lsn: int) -> None:
        """`key` was changed by the entry `lsn`; an earlier change that is still unwritten stays the first."""
        self.dirty.setdefault(key, lsn)

    def take(self, n_max: int) -> list[bytes]:
        """Move up to n_max keys, the oldest first, into flight."""
        keys = [key for key, _ in zip(self.dirty, range(n_max), strict=False)]
        self.in_flight = {key: self.dirty.pop(key) for key in keys}
        return keys

    def give_back(self, keys: Sequence[bytes]) -> None:
        """These keys of the flight were not written: they are dirty again, with their first LSN, at the front."""
        again = {key: self.in_flight.pop(key) for key in keys}
        again.update((key, lsn) for key, lsn in self.dirty.items() if key not in again)
        self.dirty = again

    def position_after_flight(self, seen_lsn: int) -> int:
        """The level's position once the flight is written: everything up to `seen_lsn` is in one of the maps."""
        return min(self.dirty.values(), default=seen_lsn + 1) - 1

    def holds(self, key: bytes) -> bool:
        """True while the level may lack the newest bytes of `key`."""
        return key in self.dirty or key in self.in_flight


class WriteBehind:
    """Owns the consumers and the bytes that wait. `flush_first` is what makes the first level's puts durable (L2's flush)."""

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
        """The newest bytes of a dirty profile that left L1."""
        return self._waiting.get(key)

    def on_evict(self, kind: int, entity: str, slot: int) -> None:
        """L1 is about to reuse a slot: keep its bytes if some level may lack them."""
        key = entity_key(self._plan.kinds[kind].name, entity)
        is_dirty = entity in self._touched.by_kind[kind] or any(c.holds(key) for c in self.consumers)
        profile = self._l1.slabs[kind].get(slot)
        if profile[0] and (is_dirty or not self.consumers or is_partial(profile)):
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
            try:
                if consumer.level.state == DOWN:
                    await self._probe(consumer)
                else:
                    await self._write(consumer)
                    if self._fetcher.partial:
                        await self._complete_partial()
            except Exception:  # a task's top loop: whatever it was, the next round tries again
                log.exception("write-behind failed", level=consumer.level.name)
            hurried = len(consumer.dirty) > self._profiles_max // 2 and consumer.level.state != DOWN
            await asyncio.sleep(0 if hurried else self._interval_s)

    def _see(self) -> None:
        """Hand what was touched since the last time to every consumer."""
        self._seen_lsn = self._journal.next_lsn - 1
        for kind, entities in zip(self._plan.kinds, self._touched.take(), strict=True):
            for entity, lsn in entities.items():
                key = entity_key(kind.name, entity)
                for consumer in self.consumers:
                    consumer.add(key, lsn)

    async def _write(self, consumer: Consumer) -> None:
        """One batch to one level, and the position that is true once it is there."""
        self._see()
        level = consumer.level
        seen_lsn = self._seen_lsn
        keys = consumer.take(self._batch_max)
        profiles, missing = self._copies(keys)
        try:
            if missing:
                profiles |= await self._from_levels_above(level, missing)
            held_back = [key for key in keys if key not in profiles]
            if held_back:
                consumer.give_back(held_back)
            position = consumer.position_after_flight(seen_lsn)
            if not profiles and position <= consumer.position:
                return
            await self._journal.sync_to(seen_lsn)
            await level.tier.put(profiles, position)
        except TierUnavailable as error:
            level.fail(error)
            consumer.give_back(list(consumer.in_flight))
            consumer.probe_at = time.monotonic() + PROBE_INTERVAL_S
            log.warning("level unavailable", level=level.name, detail=error.detail)
            return
        except JournalError:
            consumer.give_back(list(consumer.in_flight))
            raise
        consumer.in_flight = {}
        consumer.position = max(consumer.position, position)
        self.n_written[level.name] += len(profiles)
        self._forget_waiting(level, profiles)
        if level.state == CATCHING_UP and not consumer.dirty:
            level.state, level.reason = ON, ""
            log.info("level caught up", level=level.name)

    def _copies(self, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """The newest bytes of each key that is in RAM and whole, and the keys that are not in RAM."""
        profiles, missing = {}, []
        for key in keys:
            kind, _, entity = key.decode().partition(":")
            profile = self._l1.peek(self._kind_numbers[kind], entity) or self._waiting.get(key)
            if profile is None:
                missing.append(key)
            elif not is_partial(profile):
                profiles[key] = profile
        return profiles, missing

    async def _from_levels_above(self, level: Level, keys: list[bytes]) -> dict[bytes, bytes]:
        """Bytes of profiles that left L1 once a level had them: from the first other level that has every change."""
        found: dict[bytes, bytes] = {}
        for consumer in self.consumers:
            if consumer.level is level or consumer.level.state != ON:
                continue
            left = [key for key in keys if key not in found and not consumer.holds(key)]
            if left:
                profiles = await consumer.level.tier.fill(left)
                found |= {key: p for key, p in zip(left, profiles, strict=True) if p is not None}
        return found

    def _forget_waiting(self, level: Level, written: dict[bytes, bytes]) -> None:
        """Bytes that a readable level has need not wait here, unless they have changed since."""
        if level.state != ON or not self._waiting:
            return
        for key, profile in written.items():
            have = self._waiting.get(key)
            if have is not None and lsn_of(have) <= lsn_of(profile) and (level.is_complete or not self._is_held(key)):
                del self._waiting[key]

    def _is_held(self, key: bytes) -> bool:
        return any(consumer.dirty.get(key) is not None for consumer in self.consumers)

    async def _probe(self, consumer: Consumer) -> None:
        """Is the level there again, and has it kept what it had? If not, everything since its position is written again."""
        if time.monotonic() < consumer.probe_at:
            return
        consumer.probe_at = time.monotonic() + PROBE_INTERVAL_S
        try:
            position = await consumer.level.tier.read_position()
        except TierUnavailable:
            return
        consumer.level.state = CATCHING_UP
        if position < consumer.position:
            log.warning("level went back", level=consumer.level.name, position=position, expected=consumer.position)
            consumer.position = position
            await self.catch_up(consumer)

    async def catch_up(self, consumer: Consumer) -> None:
        """Mark every profile that changed after the level's position as dirty for it."""
        complete = next((c.level for c in self.consumers if c.level.is_complete and c is not consumer), None)
        async for key, lsn in keys_that_changed(self._plan, self._journal, consumer.position, complete):
            consumer.dirty[key] = min(lsn, consumer.dirty.get(key, lsn))
        consumer.dirty = dict(sorted(consumer.dirty.items(), key=lambda item: item[1]))

    async def _complete_partial(self) -> None:
        """Merge partial profiles with what the levels hold, for those where every level answers."""
        for (kind, entity), _ in list(self._fetcher.partial.items()):
            plan = self._plan.kinds[kind]
            key = entity_key(plan.name, entity)
            stored, degraded = await self._fetcher.read_levels(key)
            if degraded:
                return
            self._replace_partial(kind, entity, key, stored)

    def _replace_partial(self, kind: int, entity: str, key: bytes, stored: bytes | None) -> None:
        """Put the merged profile where the partial one is, in one step of the loop."""
        plan = self._plan.kinds[kind]
        partial = self._l1.peek(kind, entity) or self._waiting.get(key)
        if partial is not None:
            whole = without_partial_flag(partial)
            if stored is not None:
                whole = merge(plan, stored, whole)
            slot = self._l1.index[kind].get(entity)
            if slot is None:
                self._waiting[key] = whole
            else:
                self._l1.slabs[kind].put(slot, whole)
            self._touched.mark(kind, entity, lsn_of(whole))
        del self._fetcher.partial[kind, entity]
