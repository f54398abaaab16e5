"""The ledger's feeder: follows the journal and appends to the ledger, position and rows in one transaction.

It never holds up scoring: what it has not written yet is in the journal. Only durable entries are shipped. Two ways lead to the
same rows: the reference decodes every block here, and where the Go core is there, it makes the rows of whole blocks on another
thread (service/ledger_chunks.py) and leaves to the reference what it does not take.
Cost: 6 µs a row by the reference, on the loop; by the core 1.0 µs, of which 0.3 on the loop (tests/bench/bench_ledger.py).
"""

import asyncio
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import structlog

from features.transaction import is_blank
from gocore.errors import GoCoreError
from service.decisions import decode_body
from service.errors import TierUnavailable
from service.journal import Block, Journal, JournalError
from service.journal_cursor import Misfit, Place
from service.ledger import Ledger, LedgerRow
from service.ledger_chunks import Chunk, ChunkMaker
from service.metrics import LATENCY_BOUNDS, Histogram
from service.records import LABEL, TX, decode_label, decode_outcome
from service.stepwise import stepwise

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

ROWS_MAX = 2_000  # rows in one transaction
RETRY_S = 1.0  # after a failure
BEHIND_ENTRIES = 4_000  # with more than these to ship there is no pause
SEGMENTS_MAX = 16  # of the journal that one chunk may span
JOURNAL_RETRY_S = 10.0  # after one of the journal: each attempt reads it from the ledger's position on


class LedgerFeed:
    """One task that follows the journal. `position` is what the ledger has. Without a `maker` all goes the reference's way.

    While transactions wait to be scored (`is_busy`) it takes half of the time at most: what it does not ship now it does later.
    """

    def __init__(
        self, ledger: Ledger, journal: Journal, position: int, interval_ms: int, maker: ChunkMaker | None = None,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.position = position
        self.state = "on"
        self.write_seconds = Histogram(LATENCY_BOUNDS)  # of transactions that succeeded
        self._is_met = False  # its position has been read and fits this journal
        self._ledger = ledger
        self._journal = journal
        self._interval_s = interval_ms / 1000
        self._maker = maker
        self._is_busy = is_busy
        self._place: Place | None = None  # where the journal is read on
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start following."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self, deadline_s: float) -> None:
        """Ship what is left, within the deadline."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(deadline_s):
                await self.ship()
        except (TimeoutError, TierUnavailable, JournalError) as error:
            log.warning("ledger is behind; the journal has the rest", position=self.position, problem=str(error))

    async def ship(self) -> None:
        """Append everything that the journal holds now, and nothing that came after its fsync. Raises TierUnavailable."""
        if not self._is_met:
            await self._meet()
        if self._journal.last_lsn <= self.position:
            return
        await self._journal.sync_to(self._journal.last_lsn)
        durable_lsn = self._journal.durable_lsn
        if self._maker is not None:
            await self._ship_chunks(self._maker, durable_lsn)
        await self._ship_blocks(durable_lsn)

    async def _ship_chunks(self, maker: ChunkMaker, durable_lsn: int) -> None:
        """As far as that goes: what the journal's bytes or the core have against it is for `_ship_blocks`."""
        while self.position < durable_lsn:
            start = time.monotonic()
            segments = self._journal.segments_from(self.position + 1, SEGMENTS_MAX)
            try:
                chunk = await _on_thread(maker.make, segments, self._place, self.position, durable_lsn)
            except Misfit as misfit:
                log.info("the ledger is fed by the reference for once", problem=str(misfit), position=self.position)
                return
            except GoCoreError as error:
                log.warning("the ledger is fed by the reference from now on", problem=str(error))
                self._maker = None
                return
            if chunk.position <= self.position:
                return
            await self._append_chunk(chunk)
            if self._is_busy():
                await asyncio.sleep(time.monotonic() - start)

    async def _append_chunk(self, chunk: Chunk) -> None:
        if chunk.blocks:
            await self._append(chunk.blocks)
        else:  # an append that succeeded unnoticed may have gone further than we know: then from there on, in another chunk
            start = time.perf_counter()
            self.position = await self._ledger.append_encoded(chunk.rows, chunk.position, chunk.labels, self.position)
            self.write_seconds.observe(time.perf_counter() - start)
        self._place = chunk.place  # not used if it is of another position

    async def _ship_blocks(self, durable_lsn: int) -> None:
        if self.position >= durable_lsn:
            return
        blocks: list[Block] = []
        n_entries = 0
        async for block in stepwise(self._journal.read(self.position + 1)):
            if block.last_lsn > durable_lsn:  # appended during the fsync: a power failure may still take it back
                continue
            blocks.append(block)
            n_entries += len(block.entries)
            if n_entries >= ROWS_MAX:
                await self._append(blocks)
                blocks, n_entries = [], 0
        if blocks:
            await self._append(blocks)

    async def _run(self) -> None:
        while True:
            try:
                await self.ship()
                self.state = "on"
                is_behind = self._journal.last_lsn - self.position > BEHIND_ENTRIES
                await asyncio.sleep(0 if is_behind else self._interval_s)
            except TierUnavailable as error:
                if self.state == "on":
                    log.warning("ledger unavailable", problem=error.detail)
                self.state = "down"
                self._is_met = False
                await asyncio.sleep(RETRY_S)
            except JournalError as error:  # damage that only a restored or repaired journal ends, or a full disk
                if self.state == "on":
                    log.error("the ledger cannot be fed from the journal", problem=str(error), position=self.position)
                self.state = "down"
                await asyncio.sleep(JOURNAL_RETRY_S)
            except Exception:  # a task's top loop
                log.exception("ledger feed failed")
                await asyncio.sleep(RETRY_S)

    async def _meet(self) -> None:
        """Take over the ledger's own position. Raises TierUnavailable, also for one that this journal cannot continue."""
        position = await self._ledger.read_position()
        if position >= self._journal.next_lsn:
            raise TierUnavailable(
                "ledger", f"it has everything up to LSN {position}, beyond this journal; restart the service to begin above it"
            )
        self.position = position
        self._is_met = True

    async def _append(self, blocks: list[Block]) -> None:
        rows: list[LedgerRow] = []
        labels: dict[int, int] = {}
        for block in blocks:
            for entry in block.entries:
                if entry.kind == TX:
                    rows.append(_row(entry.lsn, entry.body, entry.decision))
                elif entry.kind == LABEL:
                    record = decode_label(entry.body)
                    labels[record.tx_lsn] = int(record.label == "fraud")
        position = blocks[-1].last_lsn
        start = time.perf_counter()
        await self._ledger.append(rows, position, labels, after=self.position)
        self.write_seconds.observe(time.perf_counter() - start)
        self.position = position


def _row(lsn: int, body: bytes, packed: bytes) -> LedgerRow:
    tx, made = decode_body(body), decode_outcome(lsn, body, packed)
    # What was erased while the ledger had it, and comes again because that was restored, has no text that Postgres takes.
    card_id, merchant_id = ["" if is_blank(entity) else entity for entity in (tx.card_id, tx.merchant_id)]
    return LedgerRow(
        lsn, tx.event_id, tx.ts, card_id, merchant_id, tx.amount, tx.currency,
        made.score, made.outcome, made.model, made.scorer, made.reasons, body,
    )  # fmt: skip


async def _on_thread(call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """On a worker thread, which is done before this ends even where it is cancelled: its memory is used again."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *arguments, **named))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
