"""The keeper of the local store: moves decisions into RocksDB and makes everything in it durable, then trims the journal.

RocksDB's own log is off. What was put is durable once its memtables are flushed; only then do positions move: of the profiles
(L2.flush) and of the decisions, which is a record beside them under a key that no event_id can have.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from service.applied import Applied
from service.decisions import Decisions
from service.errors import TierUnavailable
from service.journal import Journal, JournalError
from service.tiers.base import pack_lsn, unpack_lsn
from service.tiers.l2 import L2, Column, is_disk_full

log = structlog.get_logger(__name__)

DECISIONS_POSITION_KEY = b"\x00position"  # event ids are printable
TRIM_INTERVAL_S = 60.0
LOG_INTERVAL_S = 10.0  # between two records of flushes that failed
LOOK_INTERVAL_S = 0.25  # between two looks at the journal's size: 25 MB at 100 MB/s, journal.bytes_max leaves two segments
TAKE_RECORDS = 512  # records encoded between two turns of the loop: about 1 ms


class Keeper:
    """One task. `low_positions` gives the position of every other consumer that needs the journal, by name.

    position: every decision up to this LSN is durably in the column. turn: held while decisions are on their way there.
    """

    def __init__(
        self, column: Column, l2: L2, decisions: Decisions, journal: Journal, applied: Applied,
        interval_ms: int, keep_hours: int, low_positions: Callable[[], Awaitable[Mapping[str, int]]],
    ) -> None:  # fmt: skip
        self.position = read_decisions_position(column)
        self.turn = asyncio.Lock()
        self._column = column
        self._l2 = l2
        self._decisions = decisions
        self._journal = journal
        self._applied = applied
        self._interval_s = interval_ms / 1000
        self._keep_s = keep_hours * 3600.0
        self._low_positions = low_positions
        self._flush_at = self._trim_at = 0.0
        self._is_holding = False  # of all consumers the local store needs the oldest segment
        self._is_disk_full = False
        self._log_at = 0.0
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
        async with self.turn:
            await self._flush()

    async def _flush(self) -> None:
        seen_lsn = max(self._applied.lsn, self.position)
        if seen_lsn <= self.position and not self._l2.has_unflushed:
            return
        await self._journal.sync_to(seen_lsn)
        # Those that are added meanwhile are not durable yet: if a power failure took them from the journal, an event that never
        # happened would be known here.
        while records := self._decisions.take(TAKE_RECORDS, seen_lsn):
            await self._column.put_many(records)
            self._decisions.taken()
            await asyncio.sleep(0)
        position = max(self.position, self._decisions.position_below(seen_lsn))
        await self._column.put_many({DECISIONS_POSITION_KEY: pack_lsn(position)})
        await self._l2.flush()
        self.position = position

    async def _run(self) -> None:
        self._flush_at, self._trim_at = time.monotonic() + self._interval_s, time.monotonic() + TRIM_INTERVAL_S
        while True:
            await asyncio.sleep(min(self._interval_s, LOOK_INTERVAL_S))
            is_crowded = self._journal.excess_bytes > 0
            try:
                if time.monotonic() >= self._flush_at or (is_crowded and self._is_holding):
                    self._flush_at = time.monotonic() + self._interval_s
                    await self._try_flush()
                if time.monotonic() >= self._trim_at or is_crowded or self._is_disk_full:
                    self._trim_at = time.monotonic() + TRIM_INTERVAL_S
                    await self._trim()
            except Exception:  # a task's top loop: the next round tries again, the journal keeps everything
                log.exception("the local store or the journal could not be kept")

    async def _try_flush(self) -> None:
        """On a full disk trimming goes on, for it may be what makes room."""
        self._is_disk_full = False
        try:
            await self.flush()
        except (TierUnavailable, JournalError) as error:
            self._is_disk_full = isinstance(error, TierUnavailable) and is_disk_full(error)
            if time.monotonic() >= self._log_at:
                self._log_at = time.monotonic() + LOG_INTERVAL_S
                log.error("flush of the local store failed; the journal has the rest", problem=str(error))

    async def _trim(self) -> None:
        positions = {"l2": self.position, **await self._low_positions()}
        positions["l2"] = min(self.position, positions["l2"])
        holder, low = min(positions.items(), key=lambda item: item[1])
        bytes_min = max(self._journal.excess_bytes, self._journal.room_bytes if self._is_disk_full else 0)
        self._is_disk_full = False
        async with self.turn:  # nobody rewrites a segment that is being deleted
            freed = await asyncio.to_thread(self._journal.trim, low + 1, self._keep_s, bytes_min)
        self._is_holding = holder == "l2"
        self._journal.holder = f"{holder}, which has everything up to LSN {low},"
        if freed:
            log.info("journal trimmed", below_lsn=low + 1, bytes=freed, crowded=bytes_min > 0)


def read_decisions_position(column: Column) -> int:
    """Every decision up to this LSN is durably in the column; 0 if it is empty. Raises TierUnavailable."""
    packed = column.get(DECISIONS_POSITION_KEY)
    return 0 if packed is None else unpack_lsn(packed)
