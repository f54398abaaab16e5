"""Labels: "this event was fraud / legit", days later. Journaled like transactions; a label changes the tile of its event's ts.

One label per event: the same again is a no-op, another one applies the difference. Labels are applied in steps, one step at a
time; numbering, applying and appending happen in one go of the loop, with pre-images, so a step counts everywhere or nowhere.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from features.advance_one import label_one
from features.plan import Plan
from features.transaction import Transaction
from models.images import Images
from service.codec import Label, LabelReply
from service.decisions import Decisions, StoredDecision
from service.errors import JournalUnavailable
from service.fetch import Fetcher
from service.journal import Journal, JournalError
from service.records import LABEL, LabelRecord, encode_label, journaled_entities
from service.tiers.l1 import L1
from service.touched import Touched

FRAUD = "fraud"
STEP_LABELS = 128  # labels applied at a time: about 1 ms on the loop


class _Change(msgspec.Struct):
    """A label that changes something: the decision before and with it, the profiles that `delta` frauds are added to."""

    before: StoredDecision
    stored: StoredDecision
    record: LabelRecord
    tx: Transaction
    slots: npt.NDArray[np.int64]
    lsn: int


class Labels:
    """Applies labels to decisions and profiles. `turn` is held from reading decisions until they are changed.

    blanked: a decision without the ids that are being erased. applied: is told of each label that changed something: the
    decision before it, the label, the LSN of its entry.
    """

    def __init__(
        self, plan: Plan, l1: L1, fetcher: Fetcher, decisions: Decisions, journal: Journal, touched: Touched,
        blanked: Callable[[StoredDecision], StoredDecision], applied: Callable[[StoredDecision, str, int], None],
    ) -> None:  # fmt: skip
        self.turn = asyncio.Lock()
        self._plan = plan
        self._l1 = l1
        self._fetcher = fetcher
        self._decisions = decisions
        self._journal = journal
        self._touched = touched
        self._blanked = blanked
        self._applied = applied
        self._tasks: set[asyncio.Task[list[LabelReply]]] = set()
        self.n_results: Counter[str] = Counter({"applied": 0, "unchanged": 0, "unknown_event": 0})

    async def apply(self, labels: Sequence[Label]) -> list[LabelReply]:
        """Apply labels in order. Raises JournalUnavailable; then the step at fault and those after it did not happen.

        Whoever waits may hang up: what has begun is applied, and its pins are given back.
        """
        task = asyncio.get_running_loop().create_task(self._apply_all(labels))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _apply_all(self, labels: Sequence[Label]) -> list[LabelReply]:
        replies: list[LabelReply] = []
        for start in range(0, len(labels), STEP_LABELS):
            async with self.turn:
                replies += await self._apply_step(labels[start : start + STEP_LABELS])
        if self._journal.is_synced_before_reply:
            try:
                await self._journal.sync_to(self._journal.last_lsn)
            except JournalError as error:
                raise JournalUnavailable(f"{error}; applied, but not known to be durable") from None
        return replies

    async def _apply_step(self, labels: Sequence[Label]) -> list[LabelReply]:
        """Find decisions and profiles first, then change everything at once. Nobody else changes labels meanwhile."""
        stored = await self._decisions.find_many([label.event_id for label in labels])
        found = [None if decision is None else self._blanked(decision) for decision in stored]
        txs = [None if stored is None else stored.transaction() for stored in found]
        touched = {label.event_id for label in labels if label.label == FRAUD}
        touched |= {label.event_id for label, stored in zip(labels, found, strict=True) if stored and stored.label == FRAUD}
        # A first "legit" changes no profile: it needs none.
        wanted = [tx if label.event_id in touched else None for label, tx in zip(labels, txs, strict=True)]
        slots = await self._fetcher.pin_all([self._entities(tx) for tx in wanted])
        try:
            return self._change_all(labels, found, txs, slots)
        finally:
            self._l1.unpin_rows(slots)
            self._l1.trim()

    def _entities(self, tx: Transaction | None) -> tuple[str | None, ...]:
        """The entities of `tx` whose profiles keep frauds."""
        known = journaled_entities(self._plan, tx) if tx else (None,) * len(self._plan.kinds)
        return tuple(entity if kind.keeps_frauds else None for kind, entity in zip(self._plan.kinds, known, strict=True))

    def _change_all(
        self,
        labels: Sequence[Label],
        found: Sequence[StoredDecision | None],
        txs: Sequence[Transaction | None],
        slots: npt.NDArray[np.int64],
    ) -> list[LabelReply]:
        self._l1.settle()
        first_lsn = self._journal.next_lsn
        images = Images(self._l1.slabs, slots)
        newest = {label.event_id: stored for label, stored in zip(labels, found, strict=True)}
        changes: list[_Change] = []
        replies: list[LabelReply] = []
        for label, tx, row in zip(labels, txs, slots, strict=True):
            stored = newest[label.event_id]  # an earlier label of this step may have changed it
            if stored is None or tx is None:
                replies.append(LabelReply(label.event_id, "unknown_event", None))
            elif stored.label == label.label:
                replies.append(LabelReply(label.event_id, "unchanged", stored.label_lsn))
            else:
                change = self._apply_one(label, stored, tx, row, first_lsn + len(changes))
                newest[label.event_id] = change.stored
                changes.append(change)
                replies.append(LabelReply(label.event_id, "applied", change.lsn))
        if changes:
            self._commit(changes, images)
        self.n_results.update(reply.status for reply in replies)
        return replies

    def _apply_one(
        self, label: Label, stored: StoredDecision, tx: Transaction, slots: npt.NDArray[np.int64], lsn: int
    ) -> _Change:
        delta = int(label.label == FRAUD) - int(stored.label == FRAUD)
        if delta:
            for kind in self._plan.kinds:
                if kind.keeps_frauds and slots[kind.number] >= 0:
                    label_one(self._l1.slabs[kind.number], int(slots[kind.number]), tx.ts, delta, lsn)
        record = LabelRecord(label.event_id, label.label, label.ts, delta, stored.body, stored.lsn)
        return _Change(stored, msgspec.structs.replace(stored, label=label.label, label_lsn=lsn), record, tx, slots, lsn)

    def _commit(self, changes: Sequence[_Change], images: Images) -> None:
        try:
            self._journal.append([(LABEL, encode_label(change.record), b"") for change in changes])
        except (JournalError, OSError) as error:
            images.restore()
            raise JournalUnavailable(f"{error}; these labels were not applied") from None
        for change in changes:
            self._decisions.change(change.record.event_id, change.stored)
            self._applied(change.before, change.record.label, change.lsn)
            if not change.record.delta:
                continue
            for kind in self._plan.kinds:
                slot = change.slots[kind.number]
                # An entity that every store has lost has no profile to be written; an empty partial one gets the label later.
                if kind.keeps_frauds and slot >= 0 and self._l1.slabs[kind.number].words[slot, 0]:
                    self._touched.mark(kind.number, getattr(change.tx, kind.id_field), change.lsn)
