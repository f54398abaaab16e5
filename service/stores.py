"""Opening what lies below L1: RocksDB, Redis, Postgres, the ledger; their positions, and whether they fit the journal."""

from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import structlog

from service.errors import StartError, TierUnavailable
from service.keeper import read_decisions_position
from service.ledger import Ledger
from service.levels import CATCHING_UP, DOWN, Level
from service.settings import Settings
from service.tiers.l2 import L2, Column, RocksStore
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

log = structlog.get_logger(__name__)

COMPLETE_KEY = b"complete"  # in `meta`: L2 has been there from the first event on, so a miss in it is a new entity
EPOCH_SHIFT = 48


class Stores(msgspec.Struct):
    """What was opened. positions[i] belongs to levels[i]; a store that did not answer has position 0 and is down."""

    rocks: RocksStore
    decisions: Column
    lists: Column
    decisions_position: int
    l2: L2 | None
    levels: list[Level]
    positions: list[int]
    ledger: Ledger | None
    ledger_position: int
    postgres: PostgresTier | None

    @property
    def highest_position(self) -> int:
        """The highest LSN that any of them knows."""
        return max([self.decisions_position, self.ledger_position, *self.positions])

    def replay_position(self) -> int:
        """Profiles above this LSN have to be built again: L2's position, or the lowest of the levels where there is no L2."""
        if self.l2 is not None:
            return self.positions[0]
        known = [p for level, p in zip(self.levels, self.positions, strict=True) if level.state != DOWN]
        return min(known, default=0)


async def open_stores(settings: Settings, directory: Path, stack: AsyncExitStack) -> Stores:
    """Open everything that the settings name. A remote store that does not answer is down, not an error. Raises StartError."""
    rocks = RocksStore(directory / "l2", settings.l2.cache_bytes)
    stack.callback(rocks.close)
    levels: list[Level] = []
    positions: list[int] = []
    ledger, ledger_position, postgres = None, 0, None
    if settings.redis.enabled and settings.redis.url:
        s = settings.redis
        redis = RedisTier(s.url or "", s.deadline_ms, concurrency_max=s.concurrency_max, namespace=s.namespace)
        stack.push_async_callback(redis.close)
        await _add(levels, positions, Level(redis, is_complete=False, keeps=False))
    if settings.postgres.enabled and settings.postgres.url:
        pool = PostgresPool(settings.postgres.url, settings.postgres.pool_max)
        stack.push_async_callback(pool.close)
        postgres = PostgresTier(pool, settings.postgres.deadline_ms)
        await _add(levels, positions, Level(postgres, is_complete=True))
        ledger = Ledger(pool)
        try:
            ledger_position = await ledger.read_position()
        except TierUnavailable as error:
            log.warning("ledger unavailable at start", problem=error.detail)
    l2 = None
    if settings.l2.enabled:
        l2 = L2(rocks)
        # A store that did not answer may hold anything.
        is_first = max([ledger_position, *positions], default=0) == 0 and all(level.state != DOWN for level in levels)
        is_complete = _note_completeness(rocks, is_first)
        levels.insert(0, Level(l2, is_complete, is_local=True))
        positions.insert(0, rocks.read_position())
    decisions = Column(rocks, "decisions")
    return Stores(
        rocks, decisions, Column(rocks, "lists"), read_decisions_position(decisions), l2, levels, positions,
        ledger, ledger_position, postgres,
    )  # fmt: skip


async def _add(levels: list[Level], positions: list[int], level: Level) -> None:
    levels.append(level)
    try:
        positions.append(await level.tier.read_position())
    except TierUnavailable as error:
        log.warning("tier unavailable at start", tier=level.name, problem=error.detail)
        positions.append(0)
        level.fail(error)


def _note_completeness(rocks: RocksStore, is_first: bool) -> bool:
    """L2 is complete if it was begun when no other store knew anything, and has been in use ever since."""
    known = rocks.get("meta", [COMPLETE_KEY])[0]
    if known is None:
        known = b"1" if is_first and rocks.read_position() == 0 else b"0"
        if not rocks.try_write("meta", [(COMPLETE_KEY, known)]):
            raise StartError("RocksDB does not take writes")
    return known == b"1"


def check_against_journal(stores: Stores, last_lsn: int, trimmed_lsn: int, accept_loss: bool) -> None:
    """Refuse a journal that ends before a store's position, or begins after it. Raises StartError, not with `accept_loss`.

    A new data directory beside an L3 that is in use is no loss: its journal has never held anything.
    """
    local = [stores.decisions_position, *([stores.positions[0]] if stores.l2 is not None else [])]
    known = max(local) if last_lsn == 0 else stores.highest_position
    if known > last_lsn and not accept_loss:
        raise StartError(
            f"the journal ends at LSN {last_lsn}, but a store has everything up to LSN {known}: entries from {last_lsn + 1} on"
            " are missing here; restore the journal, or start with --accept-loss to go on without them"
        )
    if stores.replay_position() < trimmed_lsn and stores.l2 is not None and not accept_loss:
        raise StartError(
            f"the journal begins after LSN {trimmed_lsn}, but L2 only has everything up to LSN {stores.replay_position()}:"
            f" entries from {stores.replay_position() + 1} on are missing; --accept-loss goes on without them"
        )


def mark_behind(stores: Stores, replayed_from: int, last_lsn: int) -> list[tuple[int, bool]]:
    """The levels that lack more than the replay gives them: written, but not read until they have caught up.

    (index, whether only a complete level can tell what it lacks, because this journal was begun after that).
    """
    behind = []
    complete = max((p for level, p in zip(stores.levels, stores.positions, strict=True) if level.is_complete), default=0)
    for number, (level, position) in enumerate(zip(stores.levels, stores.positions, strict=True)):
        is_beyond_journal = not level.keeps and position < complete and complete > last_lsn
        if level.state != DOWN and (position < replayed_from or is_beyond_journal):
            level.state = CATCHING_UP
            behind.append((number, is_beyond_journal))
    return behind
