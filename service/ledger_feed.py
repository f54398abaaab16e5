"""The ledger's feeder: follows the journal and appends to the ledger, position and rows in one transaction.

It never holds up scoring: what it has not written yet is in the journal. Only durable entries are shipped.
"""

import asyncio

import structlog

from service.decisions import decode_body
from service.errors import TierUnavailable
from service.journal import Block, Journal, JournalError
from service.ledger import Ledger, LedgerRow
from service.records import LABEL, TX, decode_label, decode_outcome
from service.stepwise import stepwise

log = structlog.get_logger(__name__)

ROWS_MAX = 2_000  # rows in one transaction
RETRY_S = 1.0  # after a failure
JOURNAL_RETRY_S = 10.0  # after one of the journal: each attempt reads it from the ledger's position on


class LedgerFeed:
    """One task that follows the journal. `position` is what the ledger has."""

    def __init__(self, ledger: Ledger, journal: Journal, position: int, interval_ms: int) -> None:
        self.position = position
        self.state = "on"
        self._is_met = False  # its position has been read and fits this journal
        self._ledger = ledger
        self._journal = journal
        self._interval_s = interval_ms / 1000
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
                await asyncio.sleep(self._interval_s)
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
        await self._ledger.append(rows, position, labels, after=self.position)
        self.position = position


def _row(lsn: int, body: bytes, packed: bytes) -> LedgerRow:
    tx, made = decode_body(body), decode_outcome(lsn, body, packed)
    return LedgerRow(
        lsn, tx.event_id, tx.ts, tx.card_id, tx.merchant_id, tx.amount, tx.currency,
        made.score, made.outcome, made.model, made.scorer, made.reasons, body,
    )  # fmt: skip
