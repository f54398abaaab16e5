"""Admission: which decoded rows are to be scored. The others are answered here: what was decided before, is under way, or comes
too early or too late.

Nearly always all rows are new, and that is found out column by column; only rows that may be known are looked at one by one.
"""

from features.plan import TS
from service.clock import Clock
from service.codec import encode_decision
from service.decisions import Decisions, StoredDecision
from service.errors import Conflict, TierUnavailable, WeirError
from service.in_flight import InFlight, Twin
from service.rows import Rows
from service.scrub import is_same_event
from service.ticket import REPLIES, Answer, Sink


class Admission:
    """Answers what needs no scoring. `n_replayed` counts stored decisions that were given again, `n_twins` events sent again
    while they were being scored."""

    def __init__(self, decisions: Decisions, in_flight: InFlight, clock: Clock) -> None:
        self.n_replayed = self.n_twins = 0
        self._decisions = decisions
        self._in_flight = in_flight
        self._clock = clock

    def admit(self, rows: Rows, sink: Sink, wanted: int) -> tuple[Rows, Sink]:
        """The rows that are left to be scored, which are in flight from here on, and where their answers go."""
        suspects = rows.suspects
        if suspects is None:
            event_ids = rows.event_ids
            if len(set(event_ids)) == len(rows) and self._in_flight.has_none_of(event_ids):
                suspects = self._decisions.suspects(event_ids)
            else:
                suspects = range(len(rows))
        refused = self._clock.refused(rows.columns[:, TS]) if len(rows) and not self._clock.takes(*rows.times) else {}
        if not suspects and not refused:
            self._in_flight.enter(rows)
            return rows, sink
        event_ids = rows.event_ids
        gone: set[int] = set()
        # Of each event the first row, or, where that is not to be scored, the one that is.
        places = dict(zip(reversed(event_ids), range(len(rows) - 1, -1, -1), strict=True))
        for number in suspects:
            event_id = event_ids[number]
            earlier = places[event_id]
            if earlier < number and earlier not in gone and earlier not in refused:
                body: bytes | None = rows.body(earlier)
            else:
                body = self._in_flight.body(event_id)
            if body is None:
                answer = self._known(rows, number, wanted) or refused.get(number)
                if answer is None:
                    places[event_id] = number
                    continue
                sink.answer(number, answer)
            elif body == rows.body(number):
                self.n_twins += 1
                self._in_flight.add_twin(event_id, Twin(sink, number, wanted))
            else:
                sink.answer(number, _conflict())
            gone.add(number)
        for number, error in refused.items():
            if number not in gone:
                sink.answer(number, error)
                gone.add(number)
        return self._left(rows, sink, gone)

    def _left(self, rows: Rows, sink: Sink, gone: set[int]) -> tuple[Rows, Sink]:
        if gone:
            left = [number for number in range(len(rows)) if number not in gone]
            rows, sink = rows.only(left), sink.only(left)
        self._in_flight.enter(rows)
        return rows, sink

    def _known(self, rows: Rows, number: int, wanted: int) -> Answer | None:
        """The answer to an event that was decided before; None for a new one."""
        event_id = rows.event_ids[number]
        try:
            stored = self._decisions.find(event_id)
        except TierUnavailable as error:
            return error
        if stored is None:
            return None
        body = rows.body(number)
        if stored.body != body and not is_same_event(stored.body, body):
            return _conflict()
        self.n_replayed += 1
        return answer_again(event_id, stored, wanted)


def answer_again(event_id: str, stored: StoredDecision, wanted: int) -> Answer:
    """The answer to the same event and body sent again, in the form that is wanted."""
    decision = stored.decision(event_id)
    return encode_decision(decision) if wanted == REPLIES else decision


def _conflict() -> WeirError:
    return Conflict("event_id: it was accepted before with another body; an event_id names one transaction", "event_id")
