"""Opening what lies below L1: RocksDB, Redis, Postgres, the ledger; their positions, and whether they fit the journal."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import structlog

from service.errors import StartError, TierUnavailable
from service.keeper import read_decisions_position
from service.ledger import Ledger
from service.levels import CATCHING_UP, DOWN, OFF, ON, Level
from service.settings import Settings
from service.store_url import with_password
from service.tiers.base import read_reach
from service.tiers.l2 import L2, Column, RocksStore
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

log = structlog.get_logger(__name__)

COMPLETE_KEY = b"complete"  # in `meta`: L2 has been there from the first event on, so a miss in it is a new entity


class Stores(msgspec.Struct):
    """What was opened. positions[i] belongs to levels[i]; a store that did not answer has position 0 and is down.

    highest_lsn: no LSN up to here may be given out again. L2 is the first level, whether it is on or not.
    """

    rocks: RocksStore
    decisions: Column
    lists: Column
    decisions_position: int
    l2: L2
    levels: list[Level]
    positions: list[int]
    highest_lsn: int
    ledger: Ledger | None
    ledger_position: int
    postgres: PostgresTier | None

    @property
    def highest_position(self) -> int:
        """The highest LSN up to which any of them has everything."""
        return max([self.decisions_position, self.ledger_position, *self.positions])

    def lacks_for_good(self, number: int, last_lsn: int) -> bool:
        """A complete level has entries that this level lacks, and the journal, which ends at `last_lsn`, cannot give it.

        So after a directory was restored from a copy. A level that holds nothing, as L2 in a new directory, has nothing old.
        """
        complete = max((p for level, p in zip(self.levels, self.positions, strict=True) if level.is_complete), default=0)
        is_empty = self.levels[number].keeps and self.positions[number] == 0
        return self.positions[number] < complete and complete > last_lsn and not is_empty

    def replay_position(self, trimmed_lsn: int, last_lsn: int) -> int:
        """Profiles above this LSN have to be built again.

        L2's position; or, where L2 is off or the journal cannot give it what it lacks, the lowest of those that can be read.
        """
        known = [p for level, p in zip(self.levels, self.positions, strict=True) if level.state not in (DOWN, OFF)]
        if self.levels[0].state == OFF or not known:
            return min(known, default=0)
        others = [p for p in known[1:] if p >= trimmed_lsn]
        is_refilled = any(
            level.is_complete and level.state == ON and p >= trimmed_lsn
            for level, p in zip(self.levels[1:], self.positions[1:], strict=True)
        )
        is_lost = known[0] < trimmed_lsn or self.lacks_for_good(0, last_lsn)
        return min(others) if is_lost and is_refilled else known[0]


async def open_stores(settings: Settings, directory: Path, enabled: Mapping[str, bool], stack: AsyncExitStack) -> Stores:
    """Open everything that the settings name. A remote store that does not answer is down, not an error. Raises StartError.

    `enabled`: which tiers are on. One that is off is opened all the same, so that it can be turned on.
    """
    rocks = RocksStore(directory / "l2", settings.l2.cache_bytes)
    stack.callback(rocks.close)
    levels: list[Level] = []
    positions: list[int] = []
    reaches: list[int] = []

    async def add(level: Level) -> None:
        levels.append(level)
        position = reach = 0
        try:
            position, reach = await read_reach(level.tier)
        except TierUnavailable as error:
            log.warning("tier unavailable at start", tier=level.name, problem=error.detail)
            level.fail(error)
        positions.append(position)
        reaches.append(reach)

    ledger, ledger_position, postgres = None, 0, None
    if settings.redis.url:
        s = settings.redis
        url = with_password(s.url or "", s.password_file, "redis")
        redis = RedisTier(url, s.deadline_ms, concurrency_max=s.concurrency_max, namespace=s.namespace)
        stack.push_async_callback(redis.close)
        await add(Level(redis, is_complete=False, keeps=False))
    if settings.postgres.url:
        url = with_password(settings.postgres.url, settings.postgres.password_file, "postgres")
        pool = PostgresPool(url, settings.postgres.pool_max)
        stack.push_async_callback(pool.close)
        postgres = PostgresTier(pool, settings.postgres.deadline_ms)
        await add(Level(postgres, is_complete=True))
        ledger = Ledger(pool)
        try:
            ledger_position = await ledger.read_position()
        except TierUnavailable as error:
            log.warning("ledger unavailable at start", problem=error.detail)
    # A store that did not answer may hold anything.
    is_first = max([ledger_position, *reaches], default=0) == 0 and all(level.state == ON for level in levels)
    l2 = L2(rocks)
    levels.insert(0, Level(l2, await _note_completeness(rocks, is_first), is_local=True))
    positions.insert(0, rocks.read_position())
    for level in levels:
        if not enabled[level.name]:
            level.state, level.reason = OFF, ""
    decisions = Column(rocks, "decisions")
    decisions_position = read_decisions_position(decisions)
    highest_lsn = max([decisions_position, ledger_position, positions[0], *reaches])
    return Stores(
        rocks, decisions, Column(rocks, "lists"), decisions_position, l2, levels, positions, highest_lsn,
        ledger, ledger_position, postgres,
    )  # fmt: skip


async def _note_completeness(rocks: RocksStore, is_first: bool) -> bool:
    """L2 is complete if it was begun when no other store knew anything; what it missed while it was off it catches up."""
    known = rocks.get("meta", [COMPLETE_KEY])[0]
    if known is None:
        known = b"1" if is_first and rocks.read_position() == 0 else b"0"
        try:
            await rocks.write("meta", [(COMPLETE_KEY, known)])
            # At once: a kill before the first flush would lose it, and by then the other stores hold something.
            await rocks.flush_meta()
        except TierUnavailable as error:
            raise StartError(f"the local store takes no writes: {error.detail}") from None
    return known == b"1"


def check_against_journal(stores: Stores, last_lsn: int, trimmed_lsn: int, accept_loss: bool) -> None:
    """Refuse a journal that ends before a store's position, or begins after it. Raises StartError, not with `accept_loss`.

    A new data directory beside an L3 that is in use is no loss: its journal has never held anything.
    """
    known = max(stores.decisions_position, stores.positions[0]) if last_lsn == 0 else stores.highest_position
    if known > last_lsn and not accept_loss:
        raise StartError(
            f"the journal ends at LSN {last_lsn}, but a store has everything up to LSN {known}: entries from {last_lsn + 1} on"
            " are missing here; restore the journal, or start with --accept-loss to go on without them"
        )
    position = stores.replay_position(trimmed_lsn, last_lsn)
    if position < trimmed_lsn and last_lsn and not accept_loss:
        raise StartError(
            f"the journal begins after LSN {trimmed_lsn}, but the tiers only have everything up to LSN {position}:"
            f" entries from {position + 1} on are missing; --accept-loss goes on without them"
        )


def mark_behind(stores: Stores, replayed_from: int, last_lsn: int) -> list[tuple[int, bool]]:
    """The levels that lack more than the replay gives them: written, but not read until they have caught up.

    (index, whether only a complete level can tell what it lacks, because this journal was begun after that).
    """
    behind = []
    for number, (level, position) in enumerate(zip(stores.levels, stores.positions, strict=True)):
        is_beyond_journal = stores.lacks_for_good(number, last_lsn)
        if level.state not in (DOWN, OFF) and (position < replayed_from or is_beyond_journal):
            behind.append((number, is_beyond_journal))
    for number, _ in behind:
        stores.levels[number].state = CATCHING_UP
    return behind
