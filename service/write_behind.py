"""Write-behind: dirty profiles travel from L1 to each level, coalesced, at a capped rate, once their entries are durable.

Each level is a consumer with its own map of what it lacks and its own pace (consumer.py). The position stored with the data
is the lowest LSN that the level may still lack, minus one. Bytes of a dirty profile that leaves L1 wait here until a level that
keeps them has them (at most `profiles_max`: beyond that no transaction is taken), and no level is asked for a profile that it
has an old copy of. A partial profile is shipped nowhere: partials.py makes it whole first. With every level off nothing waits.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence

import numpy as np
import numpy.typing as npt
import structlog

from features.plan import Plan
from features.profile import is_partial, lsn_of
from service.applied import Applied
from service.catch_up import missed_portions
from service.consumer import PROBE_INTERVAL_S, Consumer
from service.errors import TierUnavailable
from service.fetch import Fetcher, entity_key, split_key
from service.journal import EPOCH_SHIFT, Journal, JournalError
from service.l1_keys import L1Keys
from service.levels import CATCHING_UP, DOWN, OFF, ON, Level
from service.tiers.base import CLAIM_KEY, claim, read_reach
from service.tiers.l1 import L1
from service.touched import Touched

log = structlog.get_logger(__name__)

JOURNAL_RETRY_S = 30.0  # before a level is met again that cannot catch up because the journal is damaged
CHUNK_KEYS = 1_000  # keys given at a time: 1 ms
RECOVERY_SEE_S = 0.5  # in recovery, what was touched is looked at twice a second: all of it is touched again at once
RECOVERY_INTERVAL_S = 0.05  # between two full batches in recovery: what a kill makes it do again is some seconds' work


class WriteBehind:
    """Owns the consumers and the bytes that wait."""

    def __init__(
        self, plan: Plan, touched: Touched, journal: Journal, applied: Applied,
        interval_ms: int, batch_max: int, profiles_max: int,
    ) -> None:  # fmt: skip
        self.consumers: list[Consumer] = []
        self.n_written: dict[str, int] = {}
        self._plan = plan
        self._touched = touched
        self._journal = journal
        self._applied = applied
        self._interval_s = interval_ms / 1000
        self._batch_max = batch_max
        self._profiles_max = profiles_max
        self._waiting: dict[bytes, bytes] = {}
        self._seen_lsn, self._see_at = 0, 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def attach(self, l1: L1, fetcher: Fetcher, levels: Sequence[Level], positions: Sequence[int]) -> None:
        """Give it the stops that need it themselves; before `start`."""
        self._l1 = l1
        self._fetcher = fetcher
        self._l1_keys = L1Keys(self._plan, l1)
        self.consumers = [Consumer(level, position, self._l1_keys) for level, position in zip(levels, positions, strict=True)]
        self.n_written = {level.name: 0 for level in levels}
        self._touched.attach(l1)

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

    def drop(self, kind: int, entity: str) -> None:
        """There is no profile of this entity, whatever the journal said of it: nobody lacks it."""
        key = entity_key(self._plan.kinds[kind].name, entity)
        slot = self._l1.slot_of(kind, entity)
        if slot >= 0:
            self._touched.forget(kind, slot)
        for consumer in self.consumers:
            consumer.dirty.discard(key)

    def completable(self) -> list[Consumer]:
        """Those whose copies, old or not, the journal can make new: what each lacks is known, and the journal has it."""
        self._see()
        return [c for c in self.consumers if _is_written(c.level) and (c.is_live or not c.needs_complete)]

    def on_evict(self, kind: int, entities: Sequence[str], slots: npt.NDArray[np.int64]) -> None:
        """L1 is about to reuse these slots of a kind: keep the bytes that no level has for sure."""
        self._touched.leave(kind, entities, slots)
        prefix = entity_key(self._plan.kinds[kind].name, "")
        keys = [prefix + entity.encode() for entity in entities]
        for consumer in self.consumers:
            consumer.dirty.leave(kind, slots, keys)
        touched, is_stateless = self._touched.gone(kind), self._is_stateless()
        for key, entity, profile in zip(keys, entities, self._l1.copies(kind, slots), strict=True):
            if profile is None:
                continue
            if is_stateless:
                self._fetcher.partial.pop((kind, entity), None)  # to be looked for in the journal when a level is back
            elif entity in touched or is_partial(profile) or self._must_wait(key):
                self._waiting[key] = profile
                continue
            self._waiting.pop(key, None)

    def lags(self) -> dict[str, int]:
        """Dirty profiles per level."""
        return {c.level.name: c.n_dirty for c in self.consumers}

    @property
    def n_waiting(self) -> int:
        """Profiles whose only copy is here."""
        return len(self._waiting)

    @property
    def fullness(self) -> str:
        """Why nothing more can be taken, empty while it can."""
        if len(self._waiting) < self._profiles_max:
            return ""
        down = ", ".join(c.level.name for c in self.consumers if c.level.state not in (ON, OFF)) or "the levels"
        return f"{len(self._waiting)} profiles wait for {down}, write_behind.profiles_max is {self._profiles_max}"

    async def known_keys(self) -> AsyncGenerator[list[bytes]]:
        """The keys, as of the first step, of all profiles in L1 or waiting, and of all that some level is known to lack."""
        self._see()
        entities = [(kind.name, entity) for kind in self._plan.kinds for entity in self._l1.entities(kind.number)]
        keys = [*self._waiting, *self._partial_keys(), *(key for c in self.consumers for key in c.unwritten_below_l1())]
        for start in range(0, len(keys), CHUNK_KEYS):
            yield keys[start : start + CHUNK_KEYS]
            await asyncio.sleep(0)
        for start in range(0, len(entities), CHUNK_KEYS):
            yield [entity_key(name, entity) for name, entity in entities[start : start + CHUNK_KEYS]]
            await asyncio.sleep(0)

    async def trim_positions(self) -> dict[str, int]:
        """Up to where no level needs the journal. One that is off does only if no complete level could give it everything."""
        needed = [c for c in self.consumers if c.level.state != OFF]
        if not any(c.level.is_complete for c in needed):
            needed = self.consumers
        return {c.level.name: await self._stored_position(c) for c in needed}

    async def lowest_position(self) -> int:
        """Every level, those that are off too, has every change up to here."""
        return min([await self._stored_position(c) for c in self.consumers], default=0)

    def is_unwritten(self, key: bytes, lsn: int) -> bool:
        """Whether some level may lack a change of `key` up to `lsn`."""
        self._see()
        return any((first := c.first_unwritten(key)) is not None and first <= lsn for c in self.consumers)

    def lacked_by(self, level: Level, keys: Sequence[bytes]) -> set[bytes]:
        """Those of which the level is known to lack the newest change."""
        self._see()
        return set(level.lacks(keys))

    async def flush(self, consumer: Consumer) -> None:
        """Write everything that the level lacks now. Stops at the first failure."""
        self._see()
        target = self._seen_lsn
        async with consumer.turn:
            while _is_written(consumer.level) and consumer.dirty and consumer.dirty.first_lsn() <= target:
                n_before = len(consumer.dirty)
                await self._write(consumer)
                if len(consumer.dirty) >= n_before:  # only partial profiles are left
                    break
            if _is_written(consumer.level) and not consumer.dirty:
                await self._write(consumer)

    async def turn_off(self, consumer: Consumer) -> None:
        """The level gets what it lacks, the others what only it could still give them; then it is left alone."""
        for other in self.consumers:
            if other is not consumer:
                await self.flush(other)
        await self.flush(consumer)
        async with consumer.turn:
            consumer.level.state, consumer.level.reason = OFF, ""
            consumer.forget()
        self._sweep_waiting()

    def turn_on(self, consumer: Consumer) -> None:
        """As if the level had been unreachable until now: it is met, catches up, and is read again."""
        if consumer.level.state == OFF:
            consumer.level.state, consumer.level.reason = DOWN, "turned on"
            consumer.probe_at_once()

    async def _run(self, consumer: Consumer) -> None:
        while True:
            n_written, start = 0, time.monotonic()
            try:
                async with consumer.turn:
                    if consumer.level.state == DOWN:
                        if not consumer.level.is_local:
                            consumer.forget()
                        await self._probe(consumer)
                    if _is_written(consumer.level):
                        n_written = await self._write(consumer)
            except Exception:  # a task's top loop: whatever it was, the next round tries again
                log.exception("write-behind failed", level=consumer.level.name)
            await asyncio.sleep(self._pause_s(consumer, n_written, time.monotonic() - start))

    def _pause_s(self, consumer: Consumer, n_written: int, took_s: float) -> float:
        if n_written and not consumer.is_live:
            return 0
        fullness = len(self._waiting) / self._profiles_max
        if n_written < self._batch_max:
            return self._interval_s
        if self._applied.is_recovering:
            return 0 if fullness > 1 / 2 else min(self._interval_s, RECOVERY_INTERVAL_S)
        return min(self._interval_s, hurried_pause_s(fullness, took_s))

    def _see(self) -> None:
        """Hand what was touched since the last time to every consumer."""
        self._seen_lsn, self._see_at = self._applied.lsn, time.monotonic() + min(RECOVERY_SEE_S, 10 * self._interval_s)
        live = [consumer for consumer in self.consumers if consumer.is_live]
        for kind, marked in zip(self._plan.kinds, self._touched.take(), strict=True):
            keys = [entity_key(kind.name, entity) for entity in marked.by_entity]
            for consumer in live:
                consumer.dirty.add_many(keys, marked.by_entity.values())
                consumer.dirty.mark(kind.number, marked.slots, marked.lsns)
        for consumer in live:
            consumer.marked_lsn = max(consumer.marked_lsn, self._seen_lsn)

    async def _write(self, consumer: Consumer) -> int:
        """One batch to one level, and the position that is true once it is there. Returns the number of profiles."""
        level = consumer.level
        if self._applied.is_recovering and not consumer.is_live:
            return 0  # what it missed may be in entries that are not applied yet
        try:
            if not consumer.is_live:
                await self._read_on(consumer)
            self._l1.settle()  # else a copy could have changes of a batch that is not durable yet
            if not self._applied.is_recovering or time.monotonic() >= self._see_at:
                self._see()
            seen_lsn = self._seen_lsn
            keys = consumer.take(self._batch_max, self._partial_keys())
            profiles, missing = self._copies(keys)
            if missing:
                profiles |= await self._from_other_levels(level, missing)
                self._note_lost([key for key in missing if key not in profiles], level)
            consumer.give_back([key for key in keys if key not in profiles])
            position = consumer.position_after_flight()
            if profiles or position > consumer.position:
                await self._claim(consumer)
                await self._journal.sync_to(seen_lsn)
                start = time.perf_counter()
                await level.tier.put(profiles, position)
                consumer.write_seconds.observe(time.perf_counter() - start)
                consumer.in_flight = {}
                consumer.position = position
        except TierUnavailable as error:
            level.fail(error)
            consumer.wait_before_probe(JOURNAL_RETRY_S if isinstance(error.__cause__, JournalError) else PROBE_INTERVAL_S)
            log.warning("level unavailable", level=level.name, detail=error.detail)
            return 0
        finally:  # whatever ended it, a cancellation too: what did not arrive is still to be written
            consumer.give_back(list(consumer.in_flight))
        self.n_written[level.name] += len(profiles)
        self._forget_waiting(level, profiles)
        return len(profiles)

    async def _read_on(self, consumer: Consumer) -> None:
        """The next of what a level missed; once there is no more it is live, and read again. Raises TierUnavailable."""
        while consumer.missed is not None and len(consumer.dirty) < self._batch_max:
            try:
                keys, consumer.marked_lsn = await anext(consumer.missed)
            except StopAsyncIteration:  # and nothing has been awaited since the journal's end was seen
                consumer.missed = None
                self._see()  # what is marked now was in the journal: only for the others
                consumer.is_live, consumer.marked_lsn = True, self._seen_lsn
                self._touched.forget_all()
                consumer.level.state, consumer.level.reason = ON, ""
                log.info("level caught up", level=consumer.level.name, dirty=len(consumer.dirty))
                self._sweep_waiting()
            except JournalError as error:
                raise TierUnavailable(consumer.level.name, f"cannot catch up: {error}") from error
            else:
                for key, lsn in keys.items():
                    consumer.add(key, lsn)

    async def _claim(self, consumer: Consumer) -> None:
        """Before a run's first write to a store: whoever reads it begins above our LSNs, even if our position never moves."""
        if not (consumer.has_claimed or consumer.level.is_local):
            await consumer.level.tier.put({CLAIM_KEY: claim(self._journal.next_lsn >> EPOCH_SHIFT << EPOCH_SHIFT)}, 0)
            consumer.has_claimed = True

    def _copies(self, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """The newest bytes of each key that is in RAM and whole, and the keys that are not in RAM."""
        profiles, missing = {}, []
        for kind in self._plan.kinds:
            of_kind = self._l1_keys.of_kind(kind.number, keys)
            slots = self._l1_keys.find_many(kind.number, of_kind)
            here = slots[slots >= 0]
            self._touched.forget_many(kind.number, here)
            copies = iter(self._l1.copies(kind.number, here))
            for key, slot in zip(of_kind, slots.tolist(), strict=True):
                profile = next(copies) if slot >= 0 else None
                profile = profile or self._waiting.get(key)
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
            if self._l1.slot_of(kind, entity) < 0 and key not in self._waiting:
                self._fetcher.partial.setdefault((kind, entity), [level.name])

    def _split(self, key: bytes) -> tuple[int, str]:
        return split_key(self._plan, key)

    def _partial_keys(self) -> set[bytes]:
        return {entity_key(self._plan.kinds[kind].name, entity) for kind, entity in self._fetcher.partial}

    def _is_stateless(self) -> bool:
        """True if every level is off: nothing is kept below L1, and the journal has it all."""
        return bool(self.consumers) and all(consumer.level.state == OFF for consumer in self.consumers)

    def _must_wait(self, key: bytes) -> bool:
        """True unless every level has the newest bytes of `key`, or one that keeps what it was given can be asked for them.

        Its profile is not in L1.
        """
        is_behind = not self.consumers
        for consumer in self.consumers:
            if consumer.level.state == OFF:
                continue
            if consumer.level.state != ON or consumer.holds_left(key):
                is_behind = True
            elif consumer.level.keeps:
                return False
        return is_behind

    def _forget_waiting(self, level: Level, written: dict[bytes, bytes]) -> None:
        """Bytes that a readable level has need not wait here, unless they have changed since."""
        if level.state != ON or not self._waiting:
            return
        have = [(key, waiting, profile) for key, profile in written.items() if (waiting := self._waiting.get(key)) is not None]
        self._let_go([key for key, waiting, profile in have if lsn_of(waiting) <= lsn_of(profile) and not is_partial(waiting)])

    def _sweep_waiting(self) -> None:
        """The same for everything that waits, after a level has become readable or was turned off."""
        self._let_go([key for key, profile in self._waiting.items() if not is_partial(profile)])

    def _let_go(self, keys: Sequence[bytes]) -> None:
        """These need not wait any more, but for those of which somebody still lacks a change."""
        for kind in self._plan.kinds:
            of_kind, touched = self._l1_keys.of_kind(kind.number, keys), self._touched.gone(kind.number)
            n, slots = len(kind.name) + 1, self._l1_keys.find_many(kind.number, of_kind).tolist()
            for key, slot in zip(of_kind, slots, strict=True):
                # One in L1 has begun anew beside its tombstone, which waits until there is nothing new of it.
                is_lacked = self._must_wait(key) if slot < 0 else any(c.holds(key) for c in self.consumers)
                # In recovery what waits may hold a change that no consumer has heard of: each will lack it as soon as it has.
                entity = key[n:].decode()
                if not (is_lacked or entity in touched or (slot >= 0 and self._touched.has(kind.number, entity))):
                    del self._waiting[key]

    async def _stored_position(self, consumer: Consumer) -> int:
        """What the level durably has: a local one has flushed less than it was given."""
        return (
            min(consumer.position, await consumer.level.tier.read_position()) if consumer.level.is_local else consumer.position
        )

    async def _probe(self, consumer: Consumer) -> None:
        """Is the level there again? Then it is met anew: it may be another store, or the same with less in it."""
        if not consumer.may_probe():
            return
        level = consumer.level
        try:
            position, reach = await read_reach(level.tier)
        except TierUnavailable as error:
            level.reason = error.detail
            return
        if reach >= self._journal.next_lsn:
            # Its profiles would ignore our entries, which have lower LSNs. A start with the store there begins above it.
            level.reason = f"it knows LSN {reach}, beyond this journal; restart the service to begin above it"
            log.error("level belongs to a later journal", level=level.name, reach=reach)
            return
        if not (level.is_local and consumer.is_live):  # what was put into a local one is still there
            if position < consumer.position:
                log.warning("level went back", level=level.name, position=position, expected=consumer.position)
            self.meet(consumer, position)
        level.state, level.reason = (ON, "") if consumer.is_live else (CATCHING_UP, "")

    def meet(self, consumer: Consumer, position: int, from_complete: bool = False) -> None:
        """Let the level catch up from `position`; `from_complete`: the journal lacks entries that another level has."""
        complete = next((c.level for c in self.consumers if c.level.is_complete and c is not consumer), None)
        from_complete = from_complete or position < max(self._journal.trimmed_lsn, self._journal.lost_lsn)
        portions = missed_portions(
            self._plan, self._journal, position, complete if from_complete else None, self._profiles_max // 2 + 1
        )
        consumer.meet(position, portions, from_complete)


def hurried_pause_s(fullness: float, took_s: float) -> float:
    """Between two writes of a level: their share of the time rises from none, while half of what can wait does, to all.

    Flat out from half on, what a burst had left took half of the loop from the requests that came after it.
    """
    share = min(2 * fullness - 1, 1)
    return took_s * (1 - share) / share if share > 0 else math.inf


def _is_written(level: Level) -> bool:
    return level.state in (ON, CATCHING_UP)
