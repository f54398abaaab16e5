"""Scoring without commitment (`?commit=false`): copies of the profiles are advanced in slabs of their own and thrown away."""

import time

import numpy as np

from features.columns import encode
from features.plan import W_LSN, Plan
from features.slab import Slab
from features.transaction import InvalidTransaction, Transaction
from models.scorer import Batch, Scorer
from service.clock import Clock
from service.decide import Decision, Policy, decide
from service.errors import InvalidEvent
from service.fetch import Fetcher
from service.lists import Lists
from service.ticket import ABSENT
from service.trace import last_seen, trace


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

    async def score(self, tx: Transaction, with_trace: bool = False) -> Decision:
        """Raises InvalidEvent, and what the scorer raises."""
        start = time.perf_counter()
        self._clock.check(tx.ts)
        try:
            columns = encode(tx, self._plan.currencies)
        except InvalidTransaction as error:
            raise InvalidEvent(str(error), error.field) from None
        slabs = [Slab(kind, 1) for kind in self._plan.kinds]
        slots = [-1] * len(slabs)
        sources = [ABSENT] * len(slabs)
        degraded: list[str] = []
        for kind, slab in zip(self._plan.kinds, slabs, strict=True):
            entity = getattr(tx, kind.id_field)
            if entity is None:
                continue
            found = await self._fetcher.read(kind.number, entity)
            if found.profile is not None:
                slab.put(0, found.profile)
            degraded += [level for level in found.degraded if level not in degraded]
            slots[kind.number], sources[kind.number] = 0, found.source
        seen = last_seen(slabs, slots)
        lsn = max(int(slab.words[0, W_LSN]) for slab in slabs) + 1  # above what every profile already has
        looked_up = time.perf_counter()
        scored = self._scorer.score(slabs, Batch(np.array([slots]), np.array([columns]), np.array([lsn])))
        risk = float(scored.risk[0])
        now_ms = self._clock.now_ms()
        outcome, reasons = decide(tx, columns[1], risk, bool(degraded), self._policy, self._lists, now_ms)
        decision = Decision(tx.event_id, risk, outcome, self._model_name, self._scorer.name, 0, False, tuple(degraded), reasons)
        if with_trace:
            us = {"lookup": (looked_up - start) * 1e6, "score": (time.perf_counter() - looked_up) * 1e6}
            decision.trace = trace(self._plan, sources, seen, now_ms, scored.vectors[0].tolist(), us)
        return decision
