"""The keeper of the local store: moves decisions into RocksDB and makes everything in it durable, then trims the journal.

RocksDB's own log is off. What was put is durable once its memtables are flushed; only then do positions move: of the profiles
(L2.flush) and of the decisions, which is a record beside them under a key that no event_id can have.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from service.decisions import Decisions
from service.errors import TierUnavailable
from service.journal import Journal, JournalError
from service.tiers.base import pack_lsn, unpack_lsn
from service.tiers.l2 import L2, Column, RocksStore

log = structlog.get_logger(__name__)

DECISIONS_POSITION_KEY = b"\x00position"  # event ids are printable
TRIM_INTERVAL_S = 60.0
TAKE_RECORDS = 512  # records encoded between two turns of the loop: about 1 ms


class Keeper:
    """One task. `low_position` gives the lowest position of every other consumer of the journal."""

    def __init__(
        self, store: RocksStore, column: Column, l2: L2 | None, decisions: Decisions, journal: Journal,
        interval_ms: int, keep_hours: int, low_position: Callable[[], int],
    ) -> None:  # fmt: skip
        self._store = store
        self._column = column
        self._l2 = l2
        self._decisions = decisions
        self._journal = journal
        self._interval_s = interval_ms / 1000
        self._keep_s = keep_hours * 3600.0
        self._low_position = low_position
        self._position = read_decisions_position(column)
        self._trim_at = time.monotonic() + TRIM_INTERVAL_S
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Flush once more. What cannot be flushed is still in the journal."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self.flush()
        except (TierUnavailable, JournalError) as error:
            log.error("the local store could not be flushed; the journal has the rest", problem=str(error))

    async def flush(self) -> None:
        """Decisions and puts of this moment become durable, then their positions. Raises TierUnavailable, JournalError."""
        seen_lsn = self._journal.last_lsn
        if seen_lsn <= self._position and (self._l2 is None or await self._l2.read_position() >= seen_lsn):
            return
        await self._journal.sync_to(seen_lsn)
        # Those that are added meanwhile queue up behind these.
        for _ in range(-(-len(self._decisions) // TAKE_RECORDS)):
            await self._column.put_many(self._decisions.take(TAKE_RECORDS))
            self._decisions.taken()
            await asyncio.sleep(0)
        await self._column.put_many({DECISIONS_POSITION_KEY: pack_lsn(seen_lsn)})
        if self._l2 is not None:
            await self._l2.flush()
        else:
            await self._store.flush(0)
        self._position = seen_lsn

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.flush()
                if time.monotonic() >= self._trim_at:
                    self._trim_at = time.monotonic() + TRIM_INTERVAL_S
                    await self._trim()
            except Exception:  # a task's top loop: the next round tries again, the journal keeps everything
                log.exception("flush of the local store failed")

    async def _trim(self) -> None:
        low = min(self._position, self._low_position())
        if self._l2 is not None:
            low = min(low, await self._l2.read_position())
        freed = await asyncio.to_thread(self._journal.trim, low + 1, self._keep_s)
        if freed:
            log.info("journal trimmed", below_lsn=low + 1, bytes=freed)


def read_decisions_position(column: Column) -> int:
    """Every decision up to this LSN is durably in the column; 0 if it is empty. Raises TierUnavailable."""
    packed = column.get(DECISIONS_POSITION_KEY)
    return 0 if packed is None else unpack_lsn(packed)
