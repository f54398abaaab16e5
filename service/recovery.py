"""Recovery: the journal is fed to the engine again, in LSN order, from the lowest position on.

Each profile ignores what it already has (LSN guard), so it does not matter how much of a crash's last seconds had reached which
store: afterwards the bytes are those of a fresh engine fed the whole journal.
"""

import time

import structlog

from features.advance_one import label_one
from features.columns import encode
from features.plan import Plan
from features.transaction import Transaction, is_blank
from models.arena import Arena
from models.scorer import Scorer
from service.clock import Clock
from service.decisions import Decisions, decode_body
from service.erasure import Erasures
from service.fetch import Fetcher
from service.journal import Entry, Journal
from service.lists import ListChange, Lists
from service.records import (
    ERASURE,
    LABEL,
    LIST,
    TX,
    decode_erasure,
    decode_label,
    decode_list_change,
    decode_outcome,
    journaled_entities,
)
from service.stepwise import stepwise
from service.tiers.l1 import L1
from service.touched import Touched

log = structlog.get_logger(__name__)

BATCH_ROWS = 256
PROGRESS_S = 2.0


class Recovery:
    """Feeds the journal to L1. Used once, before the service opens."""

    def __init__(
        self, plan: Plan, l1: L1, fetcher: Fetcher, scorer: Scorer, decisions: Decisions, lists: Lists,
        journal: Journal, touched: Touched, clock: Clock, erasures: Erasures,
    ) -> None:  # fmt: skip
        self._erasures = erasures
        self.n_entries = 0
        self.list_changes: list[ListChange] = []  # which the store of the lists may lack
        self._plan = plan
        self._l1 = l1
        self._fetcher = fetcher
        self._scorer = scorer
        self._decisions = decisions
        self._lists = lists
        self._journal = journal
        self._touched = touched
        self._clock = clock
        self._arena = Arena(plan, l1.slabs, BATCH_ROWS)
        self._rows: list[tuple[int, Transaction]] = []

    async def run(self, position: int, decisions_position: int) -> None:
        """Apply every entry above `position` (profiles) and `decisions_position` (decisions, labels, lists).

        Raises JournalCorrupt, and what the scorer raises.
        """
        start = progress = time.monotonic()
        async for block in stepwise(self._journal.read(min(position, decisions_position) + 1)):
            for entry in block.entries:
                self.n_entries += 1
                if entry.kind == TX:
                    tx = decode_body(entry.body)
                    self._clock.note(tx.ts)
                    if entry.lsn > decisions_position:
                        self._decisions.add(tx.event_id, decode_outcome(entry.lsn, entry.body, entry.decision))
                    if entry.lsn > position:
                        self._rows.append((entry.lsn, tx))
                        if len(self._rows) == BATCH_ROWS:
                            await self._advance()
                elif entry.kind == LABEL:
                    await self._label(entry.lsn, entry.body, position, decisions_position)
                elif entry.kind == LIST:
                    change = decode_list_change(entry.body)
                    self._lists.apply(change, entry.lsn)
                    self.list_changes.append(change)
                elif entry.kind == ERASURE:
                    await self._erase(entry, position)
            if time.monotonic() - progress > PROGRESS_S:
                progress = time.monotonic()
                log.info("recovering", entries=self.n_entries, lsn=block.last_lsn, of=self._journal.last_lsn)
        await self._advance()
        self._note_newest()
        if self.n_entries:
            seconds = round(time.monotonic() - start, 3)
            log.info("recovered", entries=self.n_entries, seconds=seconds, lsn=self._journal.last_lsn)

    def _note_newest(self) -> None:
        """The stream clock goes on where it stopped, about: at the last entries, if none of them had to be applied again."""
        for block in self._journal.read(self._journal.last_lsn):
            for entry in block.entries:
                if entry.kind == TX:
                    self._clock.note(decode_body(entry.body).ts)
                elif entry.kind == LABEL:
                    self._clock.note(decode_body(decode_label(entry.body).body).ts)

    async def _advance(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        entities = [journaled_entities(self._plan, tx) for _, tx in rows]
        slots = await self._fetcher.pin_all(entities)
        for row, ((lsn, tx), entity_slots) in enumerate(zip(rows, slots.tolist(), strict=True)):
            self._arena.put(row, lsn, entity_slots, encode(tx, self._plan.currencies))
        self._scorer.advance(self._arena, len(rows))
        for (lsn, _), found in zip(rows, entities, strict=True):
            self._touched.mark_all(found, lsn)
        self._l1.unpin_all(slots.tolist())
        self._l1.trim()

    async def _erase(self, entry: Entry, position: int) -> None:
        """What is applied before it is forgotten. An entry with a blank id is of an erasure that was finished."""
        erasure = decode_erasure(entry.body)
        if is_blank(erasure.id):
            return
        await self._advance()
        self._erasures.apply(erasure.kind, erasure.id, entry.lsn, to_profile=entry.lsn > position)

    async def _label(self, lsn: int, body: bytes, position: int, decisions_position: int) -> None:
        record = decode_label(body)
        if lsn > decisions_position:
            stored = self._decisions.find(record.event_id)
            if stored is not None:
                self._decisions.label(record.event_id, stored, record.label, lsn)
        if lsn <= position or not record.delta:
            return
        await self._advance()
        tx = decode_body(record.body)
        slots = await self._fetcher.pin_all([journaled_entities(self._plan, tx)])
        for kind in self._plan.kinds:
            slot = int(slots[0, kind.number])
            if slot >= 0 and kind.keeps_frauds:
                label_one(self._l1.slabs[kind.number], slot, tx.ts, record.delta, lsn)
                if self._l1.slabs[kind.number].words[slot, 0]:
                    self._touched.mark(kind.number, getattr(tx, kind.id_field), lsn)
        self._l1.unpin_all(slots.tolist())
        self._l1.trim()
