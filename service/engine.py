"""The engine: what the HTTP handlers call. It joins the stops; each of them does its own work."""

import asyncio
import functools
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from features.plan import Plan
from features.profile import describe, is_tombstone, lsn_of
from service.applied import Applied
from service.audit import Audit, digest
from service.clock import Clock
from service.codec import MSGPACK, Label, LabelReply, ModelBody, decode_packed, decode_transaction
from service.compare import Comparisons
from service.decisions import Decisions, StoredDecision
from service.dry_run import DryRun
from service.erasure import Erasures
from service.errors import JournalUnavailable, NotFound, NotReady, TierUnavailable, WeirError
from service.fetch import Fetcher, entity_key
from service.inference import Inference
from service.journal import Journal, JournalError
from service.labels import Labels
from service.ledger_feed import LedgerFeed
from service.levels import OFF, Level, hit_ratio
from service.list_store import ListStore
from service.lists import LIST_NAMES, ListChange, Lists
from service.model_switch import ModelSwitch
from service.pipeline import Pipeline
from service.records import LIST, encode_list_change
from service.recovery_progress import RecoveryProgress
from service.scorer_switch import ScorerSwitch
from service.shadow import Shadow
from service.sizes import Sizes
from service.ticket import REPLIES, Answer, resolve
from service.tier_switch import TierSwitch
from service.tiers.bloom import MaybeSet
from service.tiers.l1 import L1
from service.tracing import current
from service.write_behind import WriteBehind

PARTS_AHEAD = 2  # of a long request that are under way at once: one is decoded while the other is scored


class Engine(msgspec.Struct):
    """Every stop of one running service. `reason` says why it is not ready; empty when it is.

    is_started: recovery is done, so what is stored may be shown and changed.
    """

    plan: Plan
    clock: Clock
    l1: L1
    bloom: MaybeSet
    levels: list[Level]
    fetcher: Fetcher
    pipeline: Pipeline
    dry_run: DryRun
    scorers: ScorerSwitch
    lists: Lists
    list_store: ListStore
    decisions: Decisions
    labels: Labels
    journal: Journal
    applied: Applied
    write_behind: WriteBehind
    ledger_feed: LedgerFeed | None
    erasures: Erasures
    tier_switch: TierSwitch
    audit: Audit
    models: ModelSwitch
    shadow: Shadow
    sizes: Sizes
    recovery: RecoveryProgress
    reason: str = "starting"
    is_started: bool = False
    inference: Inference | None = None  # set before is_started where there is HTTP
    comparisons: Comparisons | None = None  # the same

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether transactions are taken, and if not, why."""
        reason = self.reason or self.journal.problem
        return not reason, reason

    def check_started(self) -> None:
        """Raise NotReady, with the reason, until recovery is done."""
        if not self.is_started:
            raise NotReady(self.reason)

    def now_ms(self) -> int:
        """The clock's now."""
        return self.clock.now_ms()

    async def submit_many(self, bodies: Sequence[bytes], form: int, wanted: int = REPLIES) -> Sequence[Answer]:
        """Score the rows of one request in order, errors in place; a batch is decoded while the one before it is scored."""
        parts: deque[asyncio.Future[Sequence[Answer]]] = deque()
        answers: list[Answer] = []
        ticket, step, loop, trace = None, self.pipeline.batch_max, asyncio.get_running_loop(), current()
        for start in range(0, len(bodies), step):
            future: asyncio.Future[Sequence[Answer]] = loop.create_future()
            deliver = functools.partial(resolve, future)
            before, part = ticket, bodies[start : start + step]
            ticket = self.pipeline.submit(part, form, deliver, wanted=wanted, after=before)
            if trace is not None and ticket is not before:
                trace.note(ticket)
            parts.append(future)
            if len(parts) == PARTS_AHEAD:
                answers += await parts.popleft()
        if len(parts) == 1 and not answers:  # one part: as it came
            return await parts[0]
        for future in parts:
            answers += await future
        return answers

    async def try_many(self, bodies: Sequence[bytes], form: int, wanted: int = REPLIES) -> list[Answer]:
        """What each row would be answered now, errors in place; nothing is stored."""
        return [await self._try_one(body, form, wanted) for body in bodies]

    async def _try_one(self, body: bytes, form: int, wanted: int) -> Answer:
        await asyncio.sleep(0)  # a row takes 0.3 ms, and nothing else in it may wait
        try:
            tx = decode_packed(body) if form == MSGPACK else decode_transaction(body)
            return await self.dry_run.score(tx, wanted)
        except WeirError as error:
            return error

    async def label(self, labels: list[Label]) -> list[LabelReply]:
        """Apply labels in order. Raises JournalUnavailable."""
        self.pipeline.check_open()
        return await self.labels.apply(labels)

    async def decision(self, event_id: str) -> StoredDecision:
        """What was decided for an event, and its label. Raises NotFound."""
        stored = self.decisions.find(event_id)
        if stored is None:
            raise NotFound("no decision is stored for this event_id", "event_id")
        return self.erasures.blanked(stored)

    async def erase(self, kind: str, entity: str, who: str, deadline_s: float) -> dict[str, Any]:
        """Forget an entity; waits `deadline_s` at most until its id is gone everywhere. Raises NotReady, JournalUnavailable."""
        self.pipeline.check_open()
        erasure = self.erasures.begin(kind, entity)
        try:
            await self.journal.sync_to(erasure.lsn)
        except JournalError as error:
            raise JournalUnavailable(f"{error}; erased, but not known to be durable") from None
        await asyncio.to_thread(self.audit.note, who, "erase", kind=kind, id_digest=digest(kind, entity), lsn=erasure.lsn)
        left = await self.erasures.wait(erasure, deadline_s)
        listed = [name for name in LIST_NAMES if self.lists.get(name, kind, entity, self.now_ms()) is not None]
        state = "erasing" if left else "erased"
        return {"kind": kind, "id": entity, "lsn": erasure.lsn, "state": state, "left": left, "listed": listed}

    async def switch_tier(self, name: str, is_on: bool, reason: str, who: str) -> None:
        """Turn a tier on or off. What the audit cannot tell of does not happen. Raises NotFound, NotReady, OSError."""
        self.pipeline.check_open()
        note = functools.partial(self.audit.note, who, "tier", tier=name, enabled=is_on, reason=reason)
        await self.tier_switch.use(name, is_on, note)

    async def switch_scorer(self, name: str, reason: str, who: str) -> None:
        """Score with another engine. What the audit cannot tell of does not happen. Raises NotPossible, NotReady, OSError."""
        self.pipeline.check_open()
        before = self.pipeline.scorer.name
        note = functools.partial(self.audit.note, who, "scorer", scorer=name, before=before, reason=reason)
        await self.scorers.use(name, note)

    async def choose_model(self, body: ModelBody, role: str, who: str) -> None:
        """Another champion, or challenger. What the audit cannot tell of does not happen.

        Raises NotReady, NotFound, ModelRefused, NotPossible, OSError.
        """
        self.pipeline.check_open()

        def note(before: str | None, after: str | None) -> None:
            self.audit.note(who, "model", role=role, model=after, before=before, reason=body.reason)

        if body.rollback:
            await self.models.roll_back(note)
        elif role == "champion":
            assert isinstance(body.model, str)
            await self.models.set_champion(body.model, note)
        else:
            assert body.model is not msgspec.UNSET
            await self.models.set_challenger(body.model, note)

    async def entity(self, kind: str, entity: str) -> dict[str, Any]:
        """An entity's windows as of its last event, and the LSN that each tier holds.

        Raises NotFound, or TierUnavailable where nobody has it who could be asked, and somebody could not.
        """
        plan = next(k for k in self.plan.kinds if k.name == kind)
        key = entity_key(kind, entity)
        held = {"l1": self.l1.peek(plan.number, entity), "write_behind": self.write_behind.waiting(key)}
        unavailable = []
        for level in self.levels:
            if level.state == OFF:
                held[level.name] = None
                continue
            try:
                (held[level.name],) = await level.fill([key])
            except TierUnavailable:
                unavailable.append(level.name)
        newest = max((p for p in held.values() if p is not None), key=lsn_of, default=None)
        if newest is None and unavailable:
            raise TierUnavailable(unavailable[0], f"it could not be asked for this {kind}, and no other tier has it; ask again")
        if newest is None or is_tombstone(newest):
            raise NotFound(f"this {kind} is not known", "id")
        return {
            "kind": kind,
            "id": entity,
            **describe(plan, newest),
            "tiers": {name: lsn_of(p) if p is not None and not is_tombstone(p) else None for name, p in held.items()},
            "unavailable": unavailable,
        }

    async def put_list(self, list_name: str, kind: str, entity: str, reason: str, expires: int | None) -> None:
        """Put an entity on a list. Journaled first. Raises JournalUnavailable."""
        await self._change_list(ListChange(list_name, kind, entity, reason, expires))

    async def delete_list(self, list_name: str, kind: str, entity: str) -> None:
        """Take an entity off a list. Journaled first. Raises JournalUnavailable."""
        await self._change_list(ListChange(list_name, kind, entity, None, None))

    async def _change_list(self, change: ListChange) -> None:
        self.pipeline.check_open()
        self.l1.settle()
        try:
            lsn = self.journal.append([(LIST, encode_list_change(change), b"")])
        except (JournalError, OSError) as error:
            raise JournalUnavailable(f"{error}; the list was not changed") from None
        self.lists.apply(change, lsn)
        await self.list_store.put(change, self.lists, self.clock.now_ms())
        if self.journal.is_synced_before_reply:
            try:
                await self.journal.sync_to(lsn)
            except JournalError as error:
                raise JournalUnavailable(f"{error}; changed, but not known to be durable") from None

    def consumers(self) -> list[dict[str, object]]:
        """Everybody who follows the journal and how far: `lag` counts the entries of this run that it lacks."""
        found = [(c.level.name, c.level.state, c.position) for c in self.write_behind.consumers]
        if self.ledger_feed is not None:
            found.append(("ledger", self.ledger_feed.state, self.ledger_feed.position))
        lags = self.consumer_lags()
        return [{"name": name, "state": state, "position": p, "lag": int(lags[name])} for name, state, p in found]

    def consumer_lags(self) -> dict[str, float]:
        """Entries of this run that each consumer of the journal lacks."""
        lags = {c.level.name: float(self.journal.n_entries_after(c.position)) for c in self.write_behind.consumers}
        if self.ledger_feed is not None:
            lags["ledger"] = float(self.journal.n_entries_after(self.ledger_feed.position))
        return lags

    def warnings(self) -> list[str]:
        """What an analyst should know about the tiers as they are."""
        if all(level.state == OFF for level in self.levels):
            return ["no tier below L1 is on: what leaves L1 is found again only in the journal, which is not trimmed"]
        return []

    def tiers(self) -> list[dict[str, object]]:
        """State, hits and lag of every tier, in read order."""
        l1: dict[str, object] = {
            "name": "l1",
            "enabled": self.l1.bytes_max > 0,
            "state": "on" if self.l1.bytes_max else "off",
            "profiles": len(self.l1),
            "bytes": self.l1.bytes_used,
            "bytes_max": self.l1.bytes_max,
            "lookups": self.l1.n_hits + self.fetcher.n_misses,
            "hits": self.l1.n_hits,
            "misses": self.fetcher.n_misses,
            "hit_ratio": hit_ratio(self.l1.n_hits, self.l1.n_hits + self.fetcher.n_misses),
            "latency_s": self.shadow.l1_seconds.describe(),
            "evicted": sum(self.l1.n_evicted),
        }
        tiers = [l1, self._describe_bloom(self.bloom)]
        for consumer in self.write_behind.consumers:
            position = consumer.position
            lag = self.journal.n_entries_after(position)
            level = consumer.level
            size = self.sizes.of(level)
            tiers.append(
                level.describe()
                | {"profiles": size.keys if size else None, "bytes": size.bytes if size else None}
                | {"position": position, "dirty": consumer.n_dirty, "lag": lag}
                | {"shadow": self.shadow.tallies[level.name].describe() | {"share": self.shadow.share}}
            )
        return tiers

    def _describe_bloom(self, bloom: MaybeSet) -> dict[str, object]:
        return {
            "name": "bloom",
            "enabled": bloom.is_on,
            "state": ("on" if bloom.covered else "catching_up") if bloom.is_on else "off",
            "keys": bloom.n_keys,
            "bytes": bloom.n_bytes,
            "lookups": bloom.lookups,
            "hits": bloom.negatives,
            "misses": bloom.lookups - bloom.negatives,
            "hit_ratio": hit_ratio(bloom.negatives, bloom.lookups),
            "false_positives": bloom.false_positives,
        }
