"""The spine: the way of one transaction, each stop called once and in this order.

    submit → fetch (l1, write-behind, Bloom, levels) → scorer → decide → journal → reply; write-behind takes over

All transactions that are ready in one turn of the event loop are scored in one call; no timer holds a lone one back, and
one whose profiles are all in L1 never awaits anything. A ticket (the rows of one request) is scored in its own order, and
tickets that share a card in order of arrival: one that still misses a profile holds back only those. From numbering to
journal nothing is awaited, so a batch is one step: profiles advance and the journal takes it, or neither (pre-images).
"""

import asyncio
import functools
import math
import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import structlog

from features.columns import encode
from features.plan import Plan
from features.transaction import InvalidTransaction, Transaction
from models.arena import Arena
from models.scorer import Scorer
from service.clock import Clock
from service.decide import Decision, Policy, decide
from service.decisions import Decisions, StoredDecision, encode_body
from service.errors import (
    Conflict,
    InvalidEvent,
    JournalUnavailable,
    NotReady,
    Overloaded,
    ScoringFailed,
    TierUnavailable,
    WeirError,
)
from service.fetch import L1_HIT, Fetcher, Miss
from service.images import Images
from service.journal import Journal, JournalError
from service.lists import Lists
from service.metrics import LATENCY_BOUNDS, ROWS_BOUNDS, WAVES_BOUNDS, Histogram
from service.records import TX, encode_outcome
from service.scrub import is_same_event
from service.ticket import ABSENT, Row, Ticket, entities_getter
from service.tiers.l1 import L1
from service.touched import Touched
from service.trace import last_seen, trace

log = structlog.get_logger(__name__)

Answer = Decision | WeirError
STOPS = ("score", "decide", "journal")  # timed for each batch
LOG_INTERVAL_S = 10.0  # between two records of appends that failed


class Pipeline:
    """Scores transactions. Everything is called on the event loop's thread and blocks it for one batch at most."""

    def __init__(
        self, plan: Plan, l1: L1, fetcher: Fetcher, scorer: Scorer, model_name: str, policy: Policy, lists: Lists,
        decisions: Decisions, journal: Journal, touched: Touched, clock: Clock, events_max: int, batch_max: int,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.scorer = scorer
        self.model_name = model_name
        self.policy = policy
        self.is_open = False
        self.n_batches = self.n_rows = self.n_waves = self.n_failed_batches = self.n_replayed = 0
        self.batch_rows, self.batch_waves = Histogram(ROWS_BOUNDS), Histogram(WAVES_BOUNDS)
        self.batch_seconds = {stop: Histogram(LATENCY_BOUNDS) for stop in STOPS}
        self.outcomes: dict[str, int] = {"approve": 0, "review": 0, "decline": 0}
        self._l1 = l1
        self._fetcher = fetcher
        self._lists = lists
        self._decisions = decisions
        self._journal = journal
        self.touched = touched
        self._clock = clock
        self._events_max = events_max
        self._batch_max = batch_max
        self._arena = Arena(plan, l1.slabs, batch_max)
        self._entities_of = entities_getter(plan.kinds)
        self._in_flight: dict[str, Row] = {}
        self._waiting_cards: dict[str, Ticket] = {}
        self._ready: deque[Ticket] = deque()
        self._turn_is_due = False
        self._n_unlogged, self._log_at = 0, 0.0
        self._background: set[asyncio.Task[None]] = set()

    @property
    def n_waiting(self) -> int:
        """Transactions that were accepted for scoring and have no answer yet."""
        return len(self._in_flight)

    def submit(self, tx: Transaction, *, trace: bool = False) -> asyncio.Future[Decision]:
        """Score one checked transaction and remember it. Raises WeirError at once for what needs no scoring to be refused."""
        self._admit(1)
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        ticket = Ticket(1, lambda answers: _resolve_one(future, answers[0]))
        error = self._take(ticket, 0, tx, trace)
        if error is not None:
            raise error
        self._look_up(ticket)
        return future

    async def submit_many(self, items: Sequence[Transaction | WeirError], *, trace: bool = False) -> list[Answer]:
        """Score `items` in order; errors stay in their places. More than a batch goes in steps, one after the other."""
        answers: list[Answer] = []
        for start in range(0, len(items), self._batch_max):
            part = items[start : start + self._batch_max]
            self._admit(len(part))
            future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
            ticket = Ticket(len(part), functools.partial(_resolve_many, future))
            for index, item in enumerate(part):
                error = item if isinstance(item, WeirError) else self._take(ticket, index, item, trace)
                if error is not None:
                    ticket.answer(index, error)
            self._look_up(ticket)
            answers += await future
        return answers

    async def drain(self, deadline_s: float) -> None:
        """Wait until everything that was submitted is answered, at most `deadline_s`."""
        stop_at = time.monotonic() + deadline_s
        while (self._in_flight or self._background) and time.monotonic() < stop_at:  # noqa: ASYNC110  # once, at the stop
            await asyncio.sleep(0.005)
        if self._in_flight:
            log.error("transactions were left without an answer", rows=len(self._in_flight))

    def check_open(self) -> None:
        """Raise NotReady before the start is done and once the stop has begun."""
        if not self.is_open:
            raise NotReady("the service is starting or stopping; try again")

    def _admit(self, n_rows: int) -> None:
        self.check_open()
        if len(self._in_flight) + n_rows > self._events_max:
            raise Overloaded(f"the queue holds {len(self._in_flight)} of queue.events_max = {self._events_max} transactions")
        fullness = self._fetcher.fullness
        if fullness:
            raise Overloaded(fullness)

    def _take(self, ticket: Ticket, index: int, tx: Transaction, trace: bool) -> WeirError | None:
        """Give the transaction its row, or answer it from an earlier one with the same event_id and body."""
        body = encode_body(tx)
        twin = self._in_flight.get(tx.event_id)
        if twin is not None:
            if twin.body != body:
                return _conflict(tx)
            twin.twins += ((ticket, index),)
            return None
        try:
            stored = self._decisions.find_recent(tx.event_id)
        except TierUnavailable as error:  # raised from here, it would leave the rows before it without an answer
            return error
        if stored is not None:
            if stored.body != body and not is_same_event(stored.body, tx):
                return _conflict(tx)
            ticket.answer(index, stored.decision(tx.event_id))
            self.n_replayed += 1
            return None
        try:
            self._clock.check(tx.ts)
            columns = encode(tx, self.plan.currencies)
        except InvalidTransaction as error:
            return InvalidEvent(str(error), error.field)
        except InvalidEvent as error:
            return error
        row = Row(ticket, index, tx, self._entities_of(tx), body, columns, trace)
        self._in_flight[tx.event_id] = row
        ticket.rows.append(row)
        return None

    def _look_up(self, ticket: Ticket) -> None:
        """Pin every profile of the ticket; those that L1 lacks arrive later. Then wait behind earlier tickets of a card."""
        start = time.perf_counter()
        find, partial = self._l1.find, self._fetcher.partial
        for row in ticket.rows:
            for kind, entity in enumerate(row.entities):
                if entity is None:
                    slot, source = -1, ABSENT
                else:
                    slot, source = find(kind, entity), L1_HIT
                    if slot < 0:
                        slot, source = self._fetcher.find_below(kind, entity, row.found)
                        if slot < 0:
                            ticket.n_missing += 1
                            ticket.when_complete = self._arrived
                    if partial:
                        row.degrade(partial.get((kind, entity), ()))
                row.slots.append(slot)
                row.sources.append(source)
            if self._waiting_cards:
                ticket.wait_behind(self._waiting_cards.get(row.tx.card_id))
        ticket.lookup_seconds = time.perf_counter() - start
        if ticket.n_missing or ticket.n_ahead:
            for row in ticket.rows:
                self._waiting_cards[row.tx.card_id] = ticket
        elif ticket.rows:
            self._enqueue(ticket)

    def _arrived(self, row: Row, miss: Miss) -> None:
        """A profile that `row` waited for has its slot now."""
        row.slots[miss.kind] = self._l1.pin(miss.kind, miss.entity)
        row.sources[miss.kind] = miss.source
        row.degrade(miss.degraded)
        row.ticket.n_missing -= 1
        self._release(row.ticket)

    def _release(self, ticket: Ticket) -> None:
        """Enqueue a ticket that has everything, and then those that waited only for it."""
        released = [ticket] if not (ticket.n_missing or ticket.n_ahead) else []
        while released:
            ticket = released.pop(0)
            for row in ticket.rows:
                if self._waiting_cards.get(row.tx.card_id) is ticket:
                    del self._waiting_cards[row.tx.card_id]
            self._enqueue(ticket)
            for follower in ticket.followers:
                follower.n_ahead -= 1
                # Only the last of those ahead releases it: once more, and it would be scored twice.
                if not (follower.n_ahead or follower.n_missing):
                    released.append(follower)
            ticket.followers.clear()

    def _enqueue(self, ticket: Ticket) -> None:
        self._ready.append(ticket)
        if not self._turn_is_due:
            self._turn_is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Score what is ready, at most one batch; what is left has the next turn, after the loop has served everybody else."""
        rows: list[Row] = []
        while self._ready and (not rows or len(rows) + len(self._ready[0].rows) <= self._batch_max):
            rows += self._ready.popleft().rows
        self._turn_is_due = bool(self._ready)
        if self._turn_is_due:
            asyncio.get_running_loop().call_soon(self._turn)
        if rows:
            self._score(rows)

    def _score(self, rows: list[Row]) -> None:
        """One micro-batch, all or nothing."""
        first_lsn = self._journal.next_lsn
        arena, n_rows = self._arena, len(rows)
        for number, row in enumerate(rows):
            arena.put(number, first_lsn + number, row.slots, row.columns)
            if row.trace:
                row.seen = last_seen(self._l1.slabs, row.slots)
        images = Images(self._l1.slabs, arena.slots[:n_rows])
        times = [time.perf_counter()]
        try:
            waves = self.scorer.score(arena, n_rows)
            risks = arena.risk[:n_rows].tolist()
            if not all(map(math.isfinite, risks)):
                raise FloatingPointError("the model gave a risk score that is no number")
            times.append(time.perf_counter())
            stored = self._decide(rows, risks, first_lsn)
            times.append(time.perf_counter())
        except Exception as error:  # whatever a scorer raises, the batch must leave no trace
            self._journal.burn(n_rows)
            log.exception("scoring failed", rows=n_rows)
            self._fail(rows, images, ScoringFailed(f"{type(error).__name__} while scoring; nothing was changed"))
            return
        try:
            self._journal.append([(TX, row.body, encode_outcome(record)) for row, record in zip(rows, stored, strict=True)])
        except Exception as error:  # nor must what stands in no list of errors
            if self._journal.next_lsn == first_lsn:
                self._journal.burn(len(rows))
            self._log_failed_append(error)
            self._fail(rows, images, JournalUnavailable(f"{error}; nothing was changed"))
            return
        times.append(time.perf_counter())
        for stop, (before, after) in zip(STOPS, pairwise(times), strict=True):
            self.batch_seconds[stop].observe(after - before)
        for number, row in enumerate(rows):
            if row.trace:
                row.vector = arena.vectors[number].tolist()
        self._commit(rows, stored, waves)
        if self._journal.is_synced_before_reply:
            self._in_background(self._reply_when_durable(rows, stored, times))
        else:
            self._reply(rows, stored, times)

    def _decide(self, rows: list[Row], risks: list[float], first_lsn: int) -> list[StoredDecision]:
        now_ms = self._clock.now_ms()
        model, scorer = self.model_name, self.scorer.name
        stored = []
        for number, (row, risk) in enumerate(zip(rows, risks, strict=True)):
            unknown = bool(row.degraded)
            outcome, reasons = decide(row.tx, row.columns[1], risk, unknown, self.policy, self._lists, now_ms)
            stored.append(StoredDecision(first_lsn + number, row.body, risk, outcome, model, scorer, row.degraded, reasons))
        return stored

    def _commit(self, rows: list[Row], stored: list[StoredDecision], waves: int) -> None:
        """The batch is in the journal: what was prepared counts now."""
        self._decisions.add_many([row.tx.event_id for row in rows], stored)
        for row, record in zip(rows, stored, strict=True):
            self.outcomes[record.outcome] += 1
            self.touched.mark_all(row.entities, record.lsn)
        self._clock.note(max(row.tx.ts for row in rows))
        self._unpin(rows)
        self.n_batches += 1
        self.n_rows += len(rows)
        self.n_waves += waves
        self.batch_rows.observe(len(rows))
        self.batch_waves.observe(waves)

    def _reply(self, rows: list[Row], stored: list[StoredDecision], times: list[float]) -> None:
        for row, record in zip(rows, stored, strict=True):
            event_id = row.tx.event_id
            del self._in_flight[event_id]
            answer = Decision(
                event_id, record.score, record.outcome, record.model, record.scorer, record.lsn, False,
                record.degraded, record.reasons,
                self._trace(row, times) if row.trace else None,
            )  # fmt: skip
            row.ticket.answer(row.index, answer)
            for ticket, index in row.twins:
                ticket.answer(index, record.decision(event_id))

    def _trace(self, row: Row, times: list[float]) -> dict[str, Any]:
        us = {"lookup": row.ticket.lookup_seconds * 1e6}
        us |= {stop: (after - before) * 1e6 for stop, (before, after) in zip(STOPS, pairwise(times), strict=True)}
        return trace(self.plan, row.sources, row.seen, self._clock.now_ms(), row.vector, us)

    async def _reply_when_durable(self, rows: list[Row], stored: list[StoredDecision], times: list[float]) -> None:
        """journal.sync = group: the reply waits for the fsync that everybody shares."""
        try:
            await self._journal.sync_to(stored[-1].lsn)
        except (JournalError, OSError) as error:
            log.critical("journal sync failed", problem=str(error))
            self._answer_all(rows, JournalUnavailable(f"{error}; accepted, but not known to be durable"))
            return
        self._reply(rows, stored, times)

    def _fail(self, rows: list[Row], images: Images, error: WeirError) -> None:
        images.restore()
        self.n_failed_batches += 1
        self._unpin(rows)
        self._answer_all(rows, error)

    def _log_failed_append(self, error: Exception) -> None:
        """Not each: a full disk fails thousands of batches a second, and the log may be on it."""
        self._n_unlogged += 1
        if time.monotonic() >= self._log_at:
            log.error("journal append failed", batches=self._n_unlogged, problem=str(error))
            self._n_unlogged, self._log_at = 0, time.monotonic() + LOG_INTERVAL_S

    def _answer_all(self, rows: list[Row], error: WeirError) -> None:
        for row in rows:
            del self._in_flight[row.tx.event_id]
            row.ticket.answer(row.index, error)
            for ticket, index in row.twins:
                ticket.answer(index, error)

    def _unpin(self, rows: list[Row]) -> None:
        self._l1.unpin_all(row.slots for row in rows)
        self._l1.trim()

    def _in_background(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _resolve_one(future: asyncio.Future[Decision], answer: Answer) -> None:
    if future.done():  # the client hung up; what was journaled stays journaled
        return
    if isinstance(answer, WeirError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _resolve_many(future: asyncio.Future[list[Answer]], answers: list[Answer]) -> None:
    if not future.done():
        future.set_result(answers)


def _conflict(tx: Transaction) -> Conflict:
    return Conflict("event_id: it was accepted before with another body; an event_id names one transaction", "event_id")
