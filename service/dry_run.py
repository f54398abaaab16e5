"""Scoring without commitment (`?commit=false`): copies of the profiles are advanced in slabs of their own and thrown away."""

import time
from collections.abc import Sequence

from features.columns import encode
from features.plan import W_LSN, KindPlan, Plan
from features.slab import Slab
from features.transaction import InvalidTransaction, Transaction
from models.arena import Arena
from models.scorer import Scorer
from service.clock import Clock
from service.decide import Decision, Policy, decide
from service.errors import InvalidEvent
from service.fetch import Fetcher, Found
from service.lists import Lists
from service.reasons import Explainer, is_by_list, is_by_score
from service.ticket import DECISIONS, REASONS, TRACES
from service.trace import ABSENT, last_seen, trace


class DryRun:
    """Answers what the transaction would be answered now, with LSN 0. Nothing is stored, counted or pinned."""

    def __init__(
        self, plan: Plan, fetcher: Fetcher, scorer: Scorer, model_name: str, policy: Policy, lists: Lists, clock: Clock
    ) -> None:
        self._plan = plan
        self._fetcher = fetcher
        self.use(scorer, model_name, policy, None)
        self._lists = lists
        self._clock = clock
        self._arena = Arena(plan, [Slab(kind, 1) for kind in plan.kinds], 1)

    def use(self, scorer: Scorer, model_name: str, policy: Policy, explainer: Explainer | None) -> None:
        """Score with another model from now on."""
        self.scorer, self._model_name, self._policy, self._explainer = scorer, model_name, policy, explainer

    async def score(self, tx: Transaction, wanted: int = DECISIONS) -> Decision:
        """`wanted` as in a ticket. Raises InvalidEvent, and what the scorer raises."""
        start = time.perf_counter()
        self._clock.check(tx.ts)
        try:
            columns = encode(tx, self._plan.currencies)
        except InvalidTransaction as error:
            raise InvalidEvent(str(error), error.field) from None
        found = [await self._read(kind, tx) for kind in self._plan.kinds]
        degraded = tuple(dict.fromkeys(level for profile in found if profile for level in profile.degraded))
        # From here to the trace nothing is awaited: the arena is everybody's.
        arena = self._arena
        slots = self._place(found)
        seen = last_seen(arena.slabs, slots)
        lsn = max(int(slab.words[0, W_LSN]) for slab in arena.slabs) + 1  # above what every profile already has
        arena.put(0, lsn, slots, columns)
        looked_up = time.perf_counter()
        self.scorer.score(arena, 1)
        us = {"lookup": (looked_up - start) * 1e6, "score": (time.perf_counter() - looked_up) * 1e6}
        risk = float(arena.risk[0])
        now_ms = self._clock.now_ms()
        entities = [getattr(tx, kind.id_field) for kind in self._plan.kinds]
        outcome, reasons = decide(entities, columns[1], risk, bool(degraded), self._policy, self._lists, now_ms)
        if self._explainer is not None and ((wanted & REASONS and not is_by_list(reasons)) or is_by_score(reasons)):
            reasons += self._explainer.words(arena.vectors[:1], arena.risk[:1])[0]
        decision = Decision(tx.event_id, risk, outcome, self._model_name, self.scorer.name, 0, False, degraded, reasons)
        if wanted & TRACES:
            sources = [profile.source if profile else ABSENT for profile in found]
            decision.trace = trace(self._plan, sources, seen, now_ms, arena.vectors[0].tolist(), us)
        return decision

    async def _read(self, kind: KindPlan, tx: Transaction) -> Found | None:
        """What is stored of the transaction's entity of this kind; None if it names none."""
        entity = getattr(tx, kind.id_field)
        return None if entity is None else await self._fetcher.read(kind.number, entity)

    def _place(self, found: Sequence[Found | None]) -> list[int]:
        """Fill the one slot of each slab; returns the slots, -1 where the transaction names no entity."""
        for slab, profile in zip(self._arena.slabs, found, strict=True):
            slab.clear(0)
            if profile is not None and profile.profile is not None:
                slab.put(0, profile.profile)
        return [-1 if profile is None else 0 for profile in found]
