"""Scoring without commitment (`?commit=false`): copies of the profiles are advanced in slabs of their own and thrown away."""

import numpy as np

from features.columns import encode
from features.plan import Plan
from features.profile import is_partial
from features.slab import Slab
from features.transaction import InvalidTransaction, Transaction
from models.scorer import Batch, Scorer
from service.clock import Clock
from service.decide import Decision, Policy, decide
from service.errors import InvalidEvent
from service.fetch import Fetcher
from service.lists import Lists


class DryRun:
    """Answers what the transaction would be answered now, with LSN 0. Nothing is stored, counted or pinned."""

    def __init__(
        self, plan: Plan, fetcher: Fetcher, scorer: Scorer, model_name: str, policy: Policy, lists: Lists, clock: Clock
    ) -> None:
        self._plan = plan
        self._fetcher = fetcher
        self._scorer = scorer
        self._model_name = model_name
        self._policy = policy
        self._lists = lists
        self._clock = clock

    async def score(self, tx: Transaction) -> Decision:
        """Raises InvalidEvent, and what the scorer raises."""
        self._clock.check(tx.ts)
        try:
            columns = encode(tx, self._plan.currencies)
        except InvalidTransaction as error:
            raise InvalidEvent(str(error), error.field) from None
        slabs = [Slab(kind, 1) for kind in self._plan.kinds]
        slots = np.full((1, len(slabs)), -1, dtype=np.int64)
        degraded: list[str] = []
        newest = 0
        for kind, slab in zip(self._plan.kinds, slabs, strict=True):
            entity = getattr(tx, kind.id_field)
            if entity is None:
                continue
            profile, unanswered = await self._fetcher.read(kind.number, entity)
            if profile is not None:
                slab.put(0, profile)
                newest = max(newest, int(slab.words[0, 2]))
                if is_partial(profile):
                    unanswered = unanswered or ["unknown"]
            degraded += [level for level in unanswered if level not in degraded]
            slots[0, kind.number] = 0
        batch = Batch(slots, np.array([columns], dtype=np.int64), np.array([newest + 1], dtype=np.int64))
        risk = float(self._scorer.score(slabs, batch).risk[0])
        now_ms = self._clock.now_ms()
        outcome, reasons = decide(tx, columns[1], risk, bool(degraded), self._policy, self._lists, now_ms)
        return Decision(tx.event_id, risk, outcome, self._model_name, self._scorer.name, 0, False, degraded, reasons)
