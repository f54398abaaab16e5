"""The engine without tiers: every profile in RAM, grown as needed. For training matrices, tests and proofs.

It runs the very code that the service's onnx scorer runs, so a training matrix and a served vector cannot differ, and "a fresh
engine fed the journal in LSN order" is this class.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.advance import advance
from features.advance_one import label_one
from features.columns import encode_many
from features.plan import Plan
from features.slab import Slab
from features.transaction import Transaction, is_blank
from features.vector import VectorBuilder

FIRST_CAPACITY = 1024


class MemoryEngine:
    """Profiles of every kind by entity id. LSNs count from 1 unless they are given."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.slabs = [Slab(kind, FIRST_CAPACITY) for kind in plan.kinds]
        self.index: list[dict[str, int]] = [{} for _ in plan.kinds]
        self.lsn = 0
        self._builder = VectorBuilder(plan)

    def vectors(self, txs: Sequence[Transaction], first_lsn: int | None = None) -> npt.NDArray[np.float32]:
        """Advance by `txs` in order; float32 (len(txs), n_features), each event included in its own windows.

        LSNs are consecutive from `first_lsn` (default: after the last one). Raises InvalidTransaction (currency).
        """
        if not txs:
            return np.empty((0, self.plan.n_features), dtype=np.float32)
        columns = encode_many(txs, self.plan)
        first = self.lsn + 1 if first_lsn is None else first_lsn
        lsns = np.arange(first, first + len(txs), dtype=np.int64)
        slots = np.full((len(txs), len(self.plan.kinds)), -1, dtype=np.int64)
        for kind in self.plan.kinds:
            ids = [getattr(tx, kind.id_field) for tx in txs]
            slots[:, kind.number] = [-1 if i is None or is_blank(i) else self._slot(kind.number, i) for i in ids]
        raw, _ = advance(self.plan, self.slabs, slots, columns, lsns)
        self.lsn = first + len(txs) - 1
        return self._builder.build(raw)

    def label(self, tx: Transaction, delta: int, lsn: int | None = None) -> None:
        """Add `delta` (+1 fraud, -1 taken back) to every profile of `tx` that keeps frauds."""
        self.lsn = self.lsn + 1 if lsn is None else lsn
        for kind in self.plan.kinds:
            entity = getattr(tx, kind.id_field)
            slot = self.index[kind.number].get(entity) if entity is not None else None
            if slot is not None and kind.keeps_frauds:
                label_one(self.slabs[kind.number], slot, tx.ts, delta, self.lsn)

    def erase(self, kind_name: str, entity: str) -> None:
        """Forget an entity: its next event is its first."""
        number = self._number(kind_name)
        slot = self.index[number].get(entity)
        if slot is not None:
            self.slabs[number].clear(slot)

    def profile(self, kind_name: str, entity: str) -> bytes | None:
        """The profile's bytes, or None for an entity that was never seen, or not since it was erased."""
        number = self._number(kind_name)
        slot = self.index[number].get(entity)
        profile = None if slot is None else self.slabs[number].get(slot)
        return profile if profile is not None and profile[0] else None

    def _number(self, kind_name: str) -> int:
        return next(k.number for k in self.plan.kinds if k.name == kind_name)

    def _slot(self, number: int, entity: str) -> int:
        index = self.index[number]
        slot = index.get(entity)
        if slot is None:
            slot = index[entity] = len(index)
            if slot == self.slabs[number].capacity:
                self._grow(number)
        return slot

    def _grow(self, number: int) -> None:
        old = self.slabs[number]
        new = Slab(old.kind, old.capacity * 2)
        new.rows[: old.capacity] = old.rows
        new.late_dropped = old.late_dropped
        self.slabs[number] = new
