"""Erasure: an entity is forgotten, at once for whoever asks, and after a while in every place that holds its id.

`begin` journals it and leaves a tombstone in the place of the profile, which write-behind takes to every level like a
profile; from then on the entity is a new one. The rest is done in the background, survives a restart, and waits for what is
down or off:

    decisions   ids in the decisions are blanked, in RAM and in RocksDB
    ledger      the same in Postgres, once the feed has written everything that the erasure found
    journal     the same in the segments, once nobody needs the entries before the erasure any more; its own entry comes last
    tombstones  removed, since no writer is left that could bring older bytes
    files       RocksDB's files are rewritten without what was overwritten and deleted

What stays: an entry of a deny or allow list (it has its own DELETE), a bit in the Bloom filter, hashes of the id in profiles of
other entities until their rings have moved on, and pages that Postgres, Redis and the file system have not reused yet.
"""

import asyncio
import contextlib
import struct

import msgspec
import structlog

from features.plan import Plan
from features.profile import tombstone
from features.transaction import blank, is_blank
from service.decisions import Decisions, StoredDecision, decode_stored, encode_stored
from service.errors import JournalUnavailable, TierUnavailable
from service.fetch import Fetcher, entity_key
from service.journal import Entry, Journal, JournalError
from service.journal_format import BadBlock
from service.journal_scrub import scrub_segment
from service.keeper import Keeper
from service.labels import Labels
from service.ledger import Ledger
from service.ledger_feed import LedgerFeed
from service.levels import ON
from service.records import ERASURE, ErasureRecord, encode_erasure
from service.scrub import Scrubber
from service.tiers.l2 import Column, RocksStore
from service.write_behind import WriteBehind

log = structlog.get_logger(__name__)

STEPS = ("decisions", "ledger", "journal", "tombstones", "files")
RETRY_S = 0.5  # between two looks at what an erasure waits for
PENDING_PREFIX = b"\x00erasure"  # + LSN, in the column of the decisions: event ids are printable
RESERVED_KEYS = b"\x00"  # keys that begin with it are no event's


class Erasure(msgspec.Struct, array_like=True):
    """One that is under way: what is to be forgotten, the LSN of its entry, the steps that are done.

    Its record is the last place that holds the id: that is blanked before the last step.
    """

    kind: str
    id: str
    lsn: int
    done: list[str]

    @property
    def open_steps(self) -> list[str]:
        """What is left to do."""
        return [step for step in STEPS if step not in self.done]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Erasure).decode


class Erasures:
    """Owns the erasures that are under way. `n_done` counts those that are finished."""

    def __init__(
        self, plan: Plan, journal: Journal, fetcher: Fetcher, write_behind: WriteBehind, decisions: Decisions,
        column: Column, rocks: RocksStore,
    ) -> None:  # fmt: skip
        self.pending: list[Erasure] = []
        self.n_done = 0
        self._plan = plan
        self._journal = journal
        self._fetcher = fetcher
        self._write_behind = write_behind
        self._decisions = decisions
        self._column = column
        self._rocks = rocks
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Those that were under way when the process ended."""
        async with contextlib.aclosing(self._column.keys_chunks()) as chunks:  # an open iterator keeps old versions alive
            async for keys in chunks:
                mine = [key for key in keys if key.startswith(PENDING_PREFIX)]
                found = await self._column.get_many(mine)
                self.pending += [_decode(packed) for packed in found if packed is not None]
                if not keys[-1].startswith(RESERVED_KEYS):
                    return

    def start(self, keeper: Keeper, labels: Labels, feed: LedgerFeed | None, ledger: Ledger | None) -> None:
        """Start working. `feed` and `ledger` are None without a ledger."""
        self._keeper, self._labels, self._feed, self._ledger = keeper, labels, feed, ledger
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """What is not done is done after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def begin(self, kind: str, entity: str) -> Erasure:
        """Journal it; from here on the entity is a new one. Raises JournalUnavailable; then nothing was changed."""
        self._fetcher.settle()
        try:
            lsn = self._journal.append([(ERASURE, encode_erasure(ErasureRecord(kind, entity)), b"")])
        except (JournalError, OSError) as error:
            raise JournalUnavailable(f"{error}; nothing was erased") from None
        return self.apply(kind, entity, lsn)

    def apply(self, kind: str, entity: str, lsn: int, *, to_profile: bool = True) -> Erasure:
        """What a journaled erasure does at once, now or in recovery. `to_profile`: unless every level has its tombstone."""
        number = next(k.number for k in self._plan.kinds if k.name == kind)
        if to_profile:
            self._fetcher.erase(number, entity)
            self._write_behind.keep(number, entity, tombstone(self._plan.kinds[number], lsn), lsn)
        known = next((erasure for erasure in self.pending if erasure.lsn == lsn), None)
        if known is not None:  # in recovery, which has brought back what was blanked in the decisions: all steps again
            known.done.clear()
            return known
        erasure = Erasure(kind, entity, lsn, [])
        self.pending.append(erasure)
        self._column.put_soon({_key(erasure): _encode(erasure)})
        self._wake.set()
        return erasure

    def blanked(self, stored: StoredDecision) -> StoredDecision:
        """The decision as it will be once every erasure is done."""
        for erasure in self.pending:
            if stored.lsn < erasure.lsn:
                stored = self._scrubber(erasure).stored(stored) or stored
        return stored

    async def wait(self, erasure: Erasure, deadline_s: float) -> list[str]:
        """Until it is done, at most `deadline_s`; the steps that are left then."""
        try:
            async with asyncio.timeout(deadline_s), self._changed:
                await self._changed.wait_for(lambda: erasure not in self.pending)
        except TimeoutError:
            pass
        return erasure.open_steps

    async def _run(self) -> None:
        while True:
            for erasure in list(self.pending):
                try:
                    await self._go_on(erasure)
                except (TierUnavailable, JournalError, BadBlock, OSError) as error:
                    log.warning("erasure waits", lsn=erasure.lsn, step=erasure.open_steps[0], problem=str(error))
                except Exception:  # a task's top loop
                    log.exception("erasure failed", lsn=erasure.lsn)
            self._wake.clear()
            if not self.pending:
                await self._wake.wait()
            else:
                await asyncio.sleep(RETRY_S)

    async def _go_on(self, erasure: Erasure) -> None:
        """Every step whose time has come, in their order; the ledger may be late without holding up the others."""
        scrubber = self._scrubber(erasure)
        if "decisions" not in erasure.done:
            await self._column.put_many({_key(erasure): _encode(erasure)})  # the store may have stalled before
            await self._scrub_decisions(scrubber, erasure.lsn)
            await self._note(erasure, "decisions")
        if "ledger" not in erasure.done and await self._scrub_ledger(scrubber, erasure.lsn):
            await self._note(erasure, "ledger")
        if "journal" not in erasure.done and await self._is_past(erasure):
            await self._scrub_journal(scrubber, erasure.lsn)
            await self._note(erasure, "journal")
        if "journal" in erasure.done and "tombstones" not in erasure.done:
            await self._bury(erasure)
            await self._note(erasure, "tombstones")
        if erasure.open_steps == ["files"]:
            if not is_blank(erasure.id):
                erasure.id = blank(erasure.id)
                await self._column.put_many({_key(erasure): _encode(erasure)})
            for family in ("decisions", "profiles"):
                await self._rocks.compact(family)
            erasure.done.append("files")
            await self._column.delete([_key(erasure)])
            self.n_done += 1
            log.info("erased", kind=erasure.kind, lsn=erasure.lsn)
            async with self._changed:
                self.pending.remove(erasure)
                self._changed.notify_all()

    async def _note(self, erasure: Erasure, step: str) -> None:
        erasure.done.append(step)
        await self._column.put_many({_key(erasure): _encode(erasure)})

    async def _scrub_decisions(self, scrubber: Scrubber, lsn: int) -> None:
        """With the keeper's turn: nothing is on its way from RAM to RocksDB meanwhile."""

        def blanked(stored: StoredDecision) -> StoredDecision | None:
            return scrubber.stored(stored) if stored.lsn < lsn else None

        async with self._keeper.turn:
            async with contextlib.aclosing(self._column.keys_chunks()) as chunks:  # an open iterator keeps the store open
                async for keys in chunks:
                    values = await self._column.get_many(keys)
                    found = {
                        key: new
                        for key, packed in zip(keys, values, strict=True)
                        if packed is not None and scrubber.needle in packed and not key.startswith(RESERVED_KEYS)
                        if (new := blanked(decode_stored(packed))) is not None
                    }
                    if found:
                        await self._column.put_many({key: encode_stored(new) for key, new in found.items()})
            # Last: labels may have read a decision before it was blanked, and then it is here.
            async with self._labels.turn:
                self._decisions.change_recent(blanked, scrubber.needle)

    async def _scrub_ledger(self, scrubber: Scrubber, lsn: int) -> bool:
        if self._ledger is None or self._feed is None:
            return True
        if self._feed.position < lsn:
            return False
        await self._ledger.scrub(scrubber, lsn)
        return True

    async def _is_past(self, erasure: Erasure) -> bool:
        """Nobody reads the journal before it any more, and every store has been given the tombstone."""
        if self._write_behind.is_unwritten(entity_key(erasure.kind, erasure.id), erasure.lsn):
            return False
        await self._keeper.flush()  # the sooner
        positions = [self._keeper.position, await self._write_behind.lowest_position()]
        if self._feed is not None:
            positions.append(self._feed.position)
        return min(positions) >= erasure.lsn

    async def _scrub_journal(self, scrubber: Scrubber, lsn: int) -> None:
        def blanked(entry: Entry) -> Entry | None:
            return scrubber.entry(entry) if entry.lsn <= lsn else None

        await self._journal.sync_to(self._journal.last_lsn)
        async with self._keeper.turn:  # nothing is trimmed meanwhile
            for segment in self._journal.finished_segments(lsn + 1):
                await asyncio.to_thread(scrub_segment, segment, scrubber.needle, blanked)

    async def _bury(self, erasure: Erasure) -> None:
        tombstones = {entity_key(erasure.kind, erasure.id): erasure.lsn}
        for consumer in self._write_behind.consumers:
            if consumer.level.state != ON:
                raise TierUnavailable(consumer.level.name, f"it is {consumer.level.state}")
            await consumer.level.tier.bury(tombstones)  # type: ignore[attr-defined]  # each is a Graveyard too

    def _scrubber(self, erasure: Erasure) -> Scrubber:
        return Scrubber(next(kind for kind in self._plan.kinds if kind.name == erasure.kind), erasure.id)


def _key(erasure: Erasure) -> bytes:
    return PENDING_PREFIX + struct.pack(">Q", erasure.lsn)
