"""Labels: "this event was fraud / legit", days later. Journaled like transactions; a label changes the tile of its event's ts.

One label per event: the same again is a no-op, another one applies the difference. Numbering, applying and appending happen
in one step of the loop, with pre-images, so a label either counts everywhere or nowhere.
"""

import asyncio
from collections.abc import Sequence

import numpy as np
import structlog

from features.advance_one import label_one
from features.plan import Plan
from features.transaction import Transaction
from service.codec import Label, LabelReply
from service.decisions import Decisions, StoredDecision
from service.errors import JournalUnavailable
from service.fetch import Fetcher, Miss
from service.images import Images
from service.journal import Journal, JournalError
from service.records import LABEL, LabelRecord, encode_label
from service.tiers.l1 import L1
from service.touched import Touched

log = structlog.get_logger(__name__)

FRAUD = "fraud"


class Labels:
    """Applies labels to decisions and profiles."""

    def __init__(self, plan: Plan, l1: L1, fetcher: Fetcher, decisions: Decisions, journal: Journal, touched: Touched) -> None:
        self._kinds = [kind for kind in plan.kinds if kind.keeps_frauds]
        self._n_kinds = len(plan.kinds)
        self._l1 = l1
        self._fetcher = fetcher
        self._decisions = decisions
        self._journal = journal
        self._touched = touched

    async def apply(self, labels: Sequence[Label]) -> list[LabelReply]:
        """Apply each label in order. Raises JournalUnavailable; then the one at fault and those after it did not happen."""
        replies = []
        for label in labels:
            replies.append(await self._apply_one(label))
        if self._journal.is_synced_before_reply:
            await self._journal.sync_to(self._journal.last_lsn)
        return replies

    async def _apply_one(self, label: Label) -> LabelReply:
        stored = self._decisions.find(label.event_id)
        if stored is None:
            return LabelReply(label.event_id, "unknown_event", None)
        slots = np.full((1, self._n_kinds), -1, dtype=np.int64)
        if _delta(stored, label.label):
            tx = stored.transaction()
            await self._pin(tx, slots)
        # What was awaited may have let another label for the same event through.
        stored = self._decisions.find(label.event_id) or stored
        try:
            if stored.label == label.label:
                return LabelReply(label.event_id, "unchanged", stored.label_lsn)
            return LabelReply(label.event_id, "applied", self._commit(stored, label, slots))
        finally:
            for kind in self._kinds:
                if slots[0, kind.number] >= 0:
                    self._l1.unpin(kind.number, int(slots[0, kind.number]))
            self._l1.trim()

    def _commit(self, stored: StoredDecision, label: Label, slots: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> int:
        delta = _delta(stored, label.label)
        tx = stored.transaction()
        images = Images(self._l1.slabs, slots)
        lsn = self._journal.next_lsn
        for kind in self._kinds:
            slot = int(slots[0, kind.number])
            if slot >= 0 and delta:
                label_one(self._l1.slabs[kind.number], slot, tx.ts, delta, lsn)
        record = LabelRecord(label.event_id, label.label, label.ts, delta, stored.body, stored.lsn)
        try:
            self._journal.append([(LABEL, encode_label(record), b"")])
        except (JournalError, OSError) as error:
            images.restore()
            raise JournalUnavailable(f"{error}; the label was not applied") from None
        for kind in self._kinds:
            if slots[0, kind.number] >= 0 and delta:
                self._touched.mark(kind.number, getattr(tx, kind.id_field), lsn)
        self._decisions.label(label.event_id, stored, label.label, lsn)
        return lsn

    async def _pin(self, tx: Transaction, slots: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> None:
        """Have the profiles that a label changes in L1, pinned."""
        arrived = asyncio.Event()
        missing = 0

        def found(miss: Miss) -> None:
            nonlocal missing
            slots[0, miss.kind] = self._l1.find(miss.kind, miss.entity)
            missing -= 1
            if not missing:
                arrived.set()

        for kind in self._kinds:
            entity = getattr(tx, kind.id_field)
            if entity is not None:
                slot, _ = self._fetcher.find(kind.number, entity, found)
                slots[0, kind.number] = slot
                missing += slot < 0
        if missing:
            await arrived.wait()


def _delta(stored: StoredDecision, label: str) -> int:
    """What the label changes in the number of frauds."""
    return int(label == FRAUD) - int(stored.label == FRAUD)
