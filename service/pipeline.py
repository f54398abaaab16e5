"""The spine: the way of transactions, each stop called once and in this order.

    submit → decode → fetch (l1, write-behind, Bloom, levels) → scorer → decide → journal → reply; write-behind takes over

What is ready in one turn of the event loop is scored in one call; no timer holds a lone transaction back, and one whose
profiles are all in L1 never awaits anything. A ticket is scored in its own order, and tickets that share a card in order of
arrival: one that still misses a profile holds back only those. From numbering to journal nobody else numbers, or touches a
slab: a batch is one step, profiles advance and the journal takes it, or neither (Scorer.undo). Requests about which there is
nothing to find out go by express, all stops up to the journal in one call (service/express.py). A large batch is scored on a
thread of the Go core, while the loop decodes and looks up the next one; whoever needs the slabs meanwhile ends it first
(`settle`).
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import structlog

from features.plan import Plan
from models.arena import Arena
from models.scorer import AsideScorer, CoreScorer, Scorer
from service.admission import Admission, answer_again
from service.batch import Aside, Batch, Onlooker
from service.clock import Clock
from service.codec import JSON
from service.decide import BY_SCORE, Conclusion, Places, Policy, decide_rows
from service.decisions import Decisions, decode_stored
from service.errors import JournalUnavailable, NotReady, Overloaded, ScoringFailed, WeirError
from service.express import ROWS_MAX, Express
from service.fetch import L1_HIT, Fetcher
from service.in_flight import InFlight, Twin
from service.journal import Journal, JournalError
from service.lists import Lists
from service.lookup import LookUp
from service.reasons import Explainer
from service.row_codec import Encoded, Refused, RowCodec
from service.row_codec_go import GoCodec
from service.rows import Rows
from service.tally import STOPS, BatchTally
from service.ticket import DECISIONS, REPLIES, TRACES, Answer, EachSink, Request, RequestSink, Sink, Ticket
from service.tiers.l1 import L1
from service.touched import Touched
from service.trace import ABSENT, last_seen, trace
from service.watch import Watch

log = structlog.get_logger(__name__)

LOG_INTERVAL_S = 10.0  # between two records of appends that failed
APPROVED = np.zeros(ROWS_MAX, dtype=np.uint8)  # the classes of rows that were encoded by express
ASIDE_ROWS = 256  # from here on a batch is scored on the core's thread: handing it over costs about 40 µs


class Pipeline:
    """Scores transactions. Everything is called on the event loop's thread and blocks it for one batch at most."""

    def __init__(
        self, plan: Plan, l1: L1, fetcher: Fetcher, scorer: Scorer, model_name: str, policy: Policy, lists: Lists,
        decisions: Decisions, journal: Journal, touched: Touched, clock: Clock, codec: RowCodec,
        events_max: int, batch_max: int,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.scorer = scorer
        self.model_name = model_name
        self.policy = policy
        self.explainer: Explainer | None = None
        self.watch: Watch | None = None
        self.is_open = False
        self.n_batches = self.n_rows = self.n_waves = self.n_failed_batches = 0
        self.n_held = 0  # transactions that the fast lane holds for a later turn
        self.tally = BatchTally()
        self.outcomes: dict[str, int] = {"approve": 0, "review": 0, "decline": 0}
        self.onlooker: Onlooker | None = None  # while somebody looks
        self.touched = touched
        self.batch_max = batch_max
        self._l1 = l1
        self._fetcher = fetcher
        self._lists = lists
        self._decisions = decisions
        self._journal = journal
        self._clock = clock
        self._codec = codec
        self._events_max = events_max
        self._arena = Arena(plan, l1.slabs, batch_max)
        self._in_flight = InFlight()
        self._admission = Admission(decisions, self._in_flight, clock)
        self._express = Express(codec, self._arena) if isinstance(codec, GoCodec) else None
        self._lookup = LookUp(plan, l1, fetcher, self._enqueue)
        self._offered: list[bytes] = []  # bodies of requests that came in this turn, in `_form`
        self._calls: list[Callable[[Answer], object]] = []
        self._form = JSON
        self._ready: deque[Ticket] = deque()
        self._running: Batch | None = None  # on the core's thread
        self._aside = Aside(self.settle)
        l1.settle = self.settle
        self._turn_is_due = False
        self._free = 0  # requests that may surely be offered before the next turn: what is left of it then counts again
        self._n_unlogged, self._log_at = 0, 0.0
        self._background: set[asyncio.Task[None]] = set()

    @property
    def n_waiting(self) -> int:
        """Transactions that were accepted for scoring and have no answer yet."""
        return len(self._in_flight) + len(self._offered) + self.n_held

    @property
    def n_replayed(self) -> int:
        """Stored decisions that were given again."""
        return self._admission.n_replayed

    @property
    def n_twins(self) -> int:
        """Events that were sent again while they were being scored, and got the same answer."""
        return self._admission.n_twins

    def offer(self, body: bytes, form: int, answered: Callable[[Answer], object]) -> None:
        """A request of one transaction. `answered` gets the JSON reply, for MSGPACK a Decision, or the error.

        Raises WeirError if there is no room.
        """
        if len(self._offered) >= self._free or not self.is_open:
            self._check_room(1)
        if form != self._form and self._offered:
            self._take_offered()
        self._form = form
        self._offered.append(body)
        self._calls.append(answered)
        self._call_turn()

    def submit(
        self, bodies: Sequence[bytes], form: int, deliver: Callable[[Sequence[Answer]], object], *,
        wanted: int = REPLIES, after: Ticket | None = None,
    ) -> Ticket | None:  # fmt: skip
        """A request of at most batch_max transactions, scored in their order; `deliver` gets all answers, errors in place.

        They are scored after those of the ticket `after`. Returns what a later part has to come after. Raises WeirError if
        there is no room.
        """
        assert 0 < len(bodies) <= self.batch_max
        self._check_room(len(bodies))
        self._free -= len(bodies)
        rows, refused = self._codec.decode(bodies, form)
        request = Request(len(bodies), deliver)
        places: Sequence[int] = range(len(bodies))
        if refused:
            request.put(refused.keys(), list(refused.values()))
            places = [place for place in places if place not in refused]
        rows, sink = self._admission.admit(rows, RequestSink(request, places), wanted)
        if not len(rows):
            return after
        ticket = self._lookup.look_up(rows, sink, wanted, alone=False, after=after)
        if ticket is not None and ticket.is_enqueued:
            self._enqueue(ticket)
        return ticket

    async def drain(self, deadline_s: float) -> None:
        """Wait until everything that was submitted is answered, at most `deadline_s`."""
        stop_at = time.monotonic() + deadline_s
        while (self.n_waiting or self._background) and time.monotonic() < stop_at:  # noqa: ASYNC110  # once, at the stop
            await asyncio.sleep(0.005)
        if self.n_waiting:
            log.error("transactions were left without an answer", rows=self.n_waiting)
        self._aside.close()

    def use(self, scorer: Scorer, model_name: str, policy: Policy, explainer: Explainer | None) -> None:
        """Score with another model from the next batch on; one under way ends with the model that it began with."""
        self.settle()
        self.scorer, self.model_name, self.policy, self.explainer = scorer, model_name, policy, explainer

    def check_open(self) -> None:
        """Raise NotReady before the start is done and once the stop has begun."""
        if not self.is_open:
            raise NotReady("the service is starting or stopping; try again")

    def settle(self) -> None:
        """End the batch that is on the core's thread, if there is one: wait for its scores, then do all that follows."""
        batch, self._running = self._running, None
        if batch is None:
            return
        self._call_turn()
        try:
            self._aside.wait()
        except Exception as error:  # whatever a scorer raises, the batch must leave no trace
            self._fail_scoring(batch, error)
        else:
            self._conclude(batch)

    def _check_room(self, n_rows: int) -> None:
        self.check_open()
        if self.n_waiting + n_rows > self._events_max:
            raise Overloaded(f"the queue holds {self.n_waiting} of queue.events_max = {self._events_max} transactions")
        fullness = self._fetcher.fullness
        if fullness:
            raise Overloaded(fullness)

    def _call_turn(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _enqueue(self, ticket: Ticket) -> None:
        """It can be scored; until then nobody may take its slots."""
        self._pin(ticket)
        self._ready.append(ticket)
        self._call_turn()

    def _pin(self, ticket: Ticket) -> None:
        if not ticket.is_pinned:
            self._l1.pin_rows(ticket.slots)
            ticket.is_pinned = True

    def _turn(self) -> None:
        """Take what was offered, score what is ready, at most one batch; the rest has the next turn, after everybody else's."""
        self._turn_is_due = False
        self._take_offered()
        self._free = 0 if self._fetcher.fullness else self._events_max - len(self._in_flight)
        if self._running is not None:  # its end calls the next turn
            return
        tickets: list[Ticket] = []
        n_rows = 0
        while self._ready and (not tickets or n_rows + len(self._ready[0].rows) <= self.batch_max):
            tickets.append(self._ready.popleft())
            n_rows += len(tickets[-1].rows)
        if self._ready:
            self._call_turn()
        if tickets:
            self._score(tickets)

    def _take_offered(self) -> None:
        """Requests of one transaction become tickets; the last ones that nothing holds up are scored at once."""
        while self._offered:
            bodies, self._offered = self._offered[: self.batch_max], self._offered[self.batch_max :]
            sink: Sink = EachSink(self._calls[: self.batch_max])
            self._calls = self._calls[self.batch_max :]
            wanted = REPLIES if self._form == JSON else DECISIONS
            if self._may_go_by_express(len(bodies)):
                passed = self._go_by_express(bodies, sink, wanted)
                if passed is None:
                    continue
                rows, refused = passed
            else:
                rows, refused = self._codec.decode(bodies, self._form)
            if refused:
                for place, error in refused.items():
                    sink.answer(place, error)
                sink = sink.only([place for place in range(len(bodies)) if place not in refused])
            rows, sink = self._admission.admit(rows, sink, wanted)
            if not len(rows):
                continue
            ticket = self._lookup.look_up(rows, sink, wanted, alone=True)
            if ticket is None:
                continue
            if self._ready or self._running is not None or self._offered:
                self._enqueue(ticket)
            else:
                self._score([ticket])

    def _may_go_by_express(self, n_rows: int) -> bool:
        """Nobody is before these rows, looks on, or decides but the score."""
        is_clear = not (self._ready or self._running is not None or self._offered or self._lists) and self._lookup.is_clear
        return is_clear and self.onlooker is None and self._express is not None and self._express.takes(self.scorer, n_rows)

    def _go_by_express(self, bodies: Sequence[bytes], sink: Sink, wanted: int) -> tuple[Rows, Refused] | None:
        """All stops at once; those rows back that have to take them one by one, as they were decoded."""
        assert self._express is not None
        first_lsn, scorer = self._journal.next_lsn, cast("CoreScorer", self.scorer)
        try:
            passed = self._express.run(scorer, bodies, self._form, first_lsn, self._clock, self.policy, self.model_name)
        except Exception as error:  # whatever it is, the batch must leave no trace
            self._journal.burn(len(bodies))
            scorer.undo(self._arena, first_lsn)
            self.n_failed_batches += 1
            sink.answer_all([_failed(error, len(bodies))] * len(bodies))
            return None
        rows = passed.rows
        if not passed.is_scored:
            return rows, passed.refused
        self._in_flight.enter(rows)
        ticket = self._lookup.found(rows, sink, wanted, passed.lookup_seconds)
        batch = Batch([ticket], self._arena, first_lsn, scorer, passed.times)
        if passed.encoded is None:
            self._conclude(batch)
            return None
        if self.explainer is not None:
            self.explainer.passed(batch.n_rows)
        self._write_down(batch, passed.encoded, APPROVED[: batch.n_rows], BY_SCORE)
        return None

    def _score(self, tickets: Sequence[Ticket]) -> None:
        """One micro-batch, all or nothing."""
        batch = Batch(tickets, self._arena, self._journal.next_lsn, self.scorer)
        if batch.wanted & TRACES:
            for ticket in tickets:
                ticket.seen = [last_seen(self._l1.slabs, slots) for slots in ticket.slots.tolist()]
        if self.onlooker is not None:
            self.onlooker.before(batch)
        try:
            if batch.n_rows >= ASIDE_ROWS and hasattr(batch.scorer, "submit"):
                for ticket in tickets:
                    self._pin(ticket)
                loop = asyncio.get_running_loop()
                self._aside.start(cast("AsideScorer", batch.scorer), self._arena, batch.n_rows, loop.add_reader)
                self._running = batch
                return
            batch.waves = batch.scorer.score(self._arena, batch.n_rows)
        except Exception as error:  # whatever a scorer raises, the batch must leave no trace
            self._fail_scoring(batch, error)
        else:
            self._conclude(batch)

    def _conclude(self, batch: Batch) -> None:
        """Decide, and what follows. Nothing is awaited."""
        batch.times.append(time.perf_counter())
        if batch.wanted & TRACES:
            batch.vectors = self._arena.vectors[: batch.n_rows].copy()
        try:
            risks, rows, lists = self._arena.risk[: batch.n_rows], batch.rows, self._lists
            classes, conclusions = decide_rows(rows, risks, batch.degraded, self.policy, lists, self._clock.now_ms())
            if self.explainer is not None:
                classes, conclusions = self.explainer.explain(batch, classes, conclusions)
            encoded = self._codec.encode(rows, batch.first_lsn, risks, classes, conclusions, self.model_name, batch.scorer.name)
        except Exception as error:
            self._fail_scoring(batch, error)
            return
        batch.times.append(time.perf_counter())
        self._write_down(batch, encoded, classes, conclusions)

    def _write_down(self, batch: Batch, encoded: Encoded, classes: Places, conclusions: Sequence[Conclusion]) -> None:
        """Journal, commit, reply. Nothing counts until the journal has it. classes: the place of each row's conclusion."""
        try:
            self._journal.append_encoded(encoded.entries, batch.n_rows)
        except Exception as error:  # nor must what stands in no list of errors
            if self._journal.next_lsn == batch.first_lsn:
                self._journal.burn(batch.n_rows)
            self._log_failed_append(error)
            self._fail(batch, JournalUnavailable(f"{error}; nothing was changed"))
            return
        batch.times.append(time.perf_counter())
        self._count(classes.tobytes() if classes.itemsize == 1 else classes.tolist(), conclusions)
        self._commit(batch, encoded)
        if self.onlooker is not None:
            self.onlooker.after(batch, encoded, classes)
        if self._journal.is_synced_before_reply:
            self._in_background(self._reply_when_durable(batch, encoded))
        else:
            self._reply(batch, encoded)

    def _commit(self, batch: Batch, encoded: Encoded) -> None:
        """The batch is in the journal: what was prepared counts now."""
        rows = batch.rows
        if self.watch is not None:
            self.watch.look(batch)
        is_remembered = rows.suspects is not None
        self._decisions.add_batch(rows.event_id_lines, encoded.stored, batch.first_lsn, batch.last_lsn, is_remembered)
        self.touched.mark_rows(batch.slots, batch.first_lsn)
        self._clock.note(rows.times[1])
        self._unpin(batch)
        self.n_batches += 1
        self.n_rows += batch.n_rows
        self.n_waves += batch.waves
        self.tally.note(batch)
        for ticket in batch.tickets:
            ticket.times = batch.times

    def _count(self, classes: bytes | list[int], conclusions: Sequence[Conclusion]) -> None:
        n_first = classes.count(0)  # nearly always all: approved by their score
        self.outcomes[conclusions[0].outcome] += n_first
        if n_first < len(classes):
            others = classes.replace(b"\0", b"") if isinstance(classes, bytes) else filter(None, classes)
            for place, n_rows in Counter(others).items():
                self.outcomes[conclusions[place].outcome] += n_rows

    def _reply(self, batch: Batch, encoded: Encoded) -> None:
        rows, stored = batch.rows, encoded.stored

        def answer_twin(place: int, twin: Twin) -> None:
            twin.sink.answer(twin.number, answer_again(rows.event_ids[place], decode_stored(stored[place]), twin.wanted))

        self._in_flight.leave(rows, answer_twin)
        at = 0
        for ticket in batch.tickets:
            end = at + len(ticket.rows)
            if ticket.wanted == REPLIES:
                ticket.sink.answer_all(encoded.replies[at:end])
            else:
                ticket.sink.answer_all(self._decisions_of(batch, ticket, at, stored[at:end]))
            at = end

    def _decisions_of(self, batch: Batch, ticket: Ticket, at: int, records: Sequence[bytes]) -> list[Answer]:
        """The answers of a ticket, whose rows begin at `at`, as Decisions, with traces if those are wanted."""
        answers: list[Answer] = []
        for row, record in enumerate(records):
            decision = decode_stored(record).decision(ticket.rows.event_ids[row])
            decision.replayed = False
            if ticket.wanted & TRACES:
                decision.trace = self._trace(batch, ticket, row, at + row)
            answers.append(decision)
        return answers

    def _trace(self, batch: Batch, ticket: Ticket, row: int, place: int) -> dict[str, Any]:
        us = {"lookup": ticket.lookup_seconds * 1e6}
        us |= {stop: (after - before) * 1e6 for stop, (before, after) in zip(STOPS, pairwise(batch.times), strict=True)}
        slots = ticket.slots[row].tolist()
        sources = [ticket.sources.get((row, kind), L1_HIT) if slot >= 0 else ABSENT for kind, slot in enumerate(slots)]
        assert batch.vectors is not None
        vector = batch.vectors[place].tolist()
        return trace(self.plan, sources, ticket.seen[row], self._clock.now_ms(), vector, us)

    async def _reply_when_durable(self, batch: Batch, encoded: Encoded) -> None:
        """journal.sync = group: the reply waits for the fsync that everybody shares."""
        try:
            await self._journal.sync_to(batch.last_lsn)
        except (JournalError, OSError) as error:
            log.critical("journal sync failed", problem=str(error))
            self._answer_all(batch, JournalUnavailable(f"{error}; accepted, but not known to be durable"))
            return
        self._reply(batch, encoded)

    def _fail_scoring(self, batch: Batch, error: Exception) -> None:
        self._journal.burn(batch.n_rows)
        self._fail(batch, _failed(error, batch.n_rows))

    def _fail(self, batch: Batch, error: WeirError) -> None:
        batch.scorer.undo(self._arena, batch.first_lsn)
        self.n_failed_batches += 1
        self._unpin(batch)
        self._answer_all(batch, error)

    def _log_failed_append(self, error: Exception) -> None:
        """Not each: a full disk fails thousands of batches a second, and the log may be on it."""
        self._n_unlogged += 1
        if time.monotonic() >= self._log_at:
            log.error("journal append failed", batches=self._n_unlogged, problem=str(error))
            self._n_unlogged, self._log_at = 0, time.monotonic() + LOG_INTERVAL_S

    def _answer_all(self, batch: Batch, error: WeirError) -> None:
        self._in_flight.leave(batch.rows, lambda _, twin: twin.sink.answer(twin.number, error))
        for ticket in batch.tickets:
            ticket.sink.answer_all([error] * len(ticket.rows))

    def _unpin(self, batch: Batch) -> None:
        for ticket in batch.tickets:
            if ticket.is_pinned:
                self._l1.unpin_rows(ticket.slots)
        self._l1.trim()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _failed(error: Exception, n_rows: int) -> ScoringFailed:
    log.error("scoring failed", rows=n_rows, exc_info=error)
    return ScoringFailed(f"{type(error).__name__} while scoring; nothing was changed")
