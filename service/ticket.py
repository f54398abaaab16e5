"""A ticket: rows that are looked up, scored and answered together, on their way through the pipeline.

The rows of one request are one ticket, because they keep their order. Requests of one row each that came in the same turn of
the loop share one too, as far as nothing holds them up; those that have to wait for a profile, or behind an earlier row with
the same card, share another, of which each part goes on as soon as it can.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.decide import Decision
from service.errors import WeirError
from service.pieces import Replies
from service.rows import Rows

Answer = bytes | Decision | WeirError  # bytes: the JSON reply
REPLIES = 0  # what is wanted of a ticket: JSON replies, or Decisions, with any of
DECISIONS, TRACES, REASONS = 1, 2, 4  # Decisions, traces, reasons of rows that are approved too


class Sink(Protocol):
    """Where the answers of rows go. A number is a row's place in the request."""

    def answer(self, number: int, answer: Answer) -> None:
        """One answer."""

    def answer_all(self, answers: Sequence[Answer]) -> None:
        """The answers of all rows, in order."""

    def only(self, numbers: Sequence[int]) -> "Sink":
        """A sink for these rows, numbered anew in this order."""


class EachSink:
    """A row is a request: its answer goes to a callable of its own."""

    __slots__ = ("_calls",)

    def __init__(self, calls: Sequence[Callable[[Answer], object]]) -> None:
        self._calls = calls

    def answer(self, number: int, answer: Answer) -> None:
        """See Sink."""
        self._calls[number](answer)

    def answer_all(self, answers: Sequence[Answer]) -> None:
        """See Sink."""
        if type(answers) is Replies:  # isinstance of an abstract class costs 0.5 µs
            answers = answers.as_list()
        for call, answer in zip(self._calls, answers, strict=True):
            call(answer)

    def only(self, numbers: Sequence[int]) -> "EachSink":
        """See Sink."""
        return EachSink([self._calls[number] for number in numbers])


class Request:
    """Collects the answers to `n_rows` rows; `deliver` gets them all, in order, once they are there.

    Answers that come all at once are handed on as they are.
    """

    __slots__ = ("_answers", "_deliver", "_n_open", "_n_rows")

    def __init__(self, n_rows: int, deliver: Callable[[Sequence[Answer]], object]) -> None:
        self._answers: list[Answer | None] = []
        self._n_rows = self._n_open = n_rows
        self._deliver = deliver

    def put(self, places: Iterable[int], answers: Sequence[Answer]) -> None:
        """Answers for these places; the last of them delivers all."""
        if len(answers) == self._n_rows:  # a request's rows are in their order
            self._n_open = 0
            self._deliver(answers)
            return
        if not self._answers:
            self._answers = [None] * self._n_rows
        for place, answer in zip(places, answers, strict=True):
            self._answers[place] = answer
        self._n_open -= len(answers)
        if self._n_open == 0:
            self._deliver([answer for answer in self._answers if answer is not None])


class RequestSink:
    """Rows of one request, at these places of it."""

    __slots__ = ("_places", "_request")

    def __init__(self, request: Request, places: Sequence[int]) -> None:
        self._request = request
        self._places = places

    def answer(self, number: int, answer: Answer) -> None:
        """See Sink."""
        self._request.put((self._places[number],), (answer,))

    def answer_all(self, answers: Sequence[Answer]) -> None:
        """See Sink."""
        self._request.put(self._places, answers)

    def only(self, numbers: Sequence[int]) -> "RequestSink":
        """See Sink."""
        return RequestSink(self._request, [self._places[number] for number in numbers])


class Unit:
    """What of a ticket waits together: `row`, or for None all rows.

    n_needs: profiles, and units before it, that are still missing. followers: units that wait for it, because they share a card
    or a stream.
    """

    __slots__ = ("followers", "n_needs", "row", "ticket")

    def __init__(self, ticket: "Ticket", row: int | None) -> None:
        self.ticket = ticket
        self.row = row
        self.n_needs = 0
        self.followers: list[Unit] = []

    def wait_behind(self, earlier: "Unit | None") -> None:
        """Do not start before `earlier`, which has not started."""
        if earlier is not None and earlier is not self and self not in earlier.followers[-1:]:
            earlier.followers.append(self)
            self.n_needs += 1


class Ticket:
    """Rows with their slots, int64 (rows, kinds), -1 = absent, or not here yet.

    unit: what it waits in as a whole, until it is enqueued. degraded: by row, the levels that could not be asked. sources:
    where a profile came from, by row and kind, if it was not in L1. seen: when each saw its last event, if traces are wanted.
    started: perf_counter when it was looked up; times: of its batch, see Batch, empty until that is in the journal.
    """

    __slots__ = (
        "degraded", "is_enqueued", "is_pinned", "lookup_seconds", "rows", "seen", "sink", "slots", "sources", "started",
        "times", "unit", "wanted",
    )  # fmt: skip

    def __init__(self, rows: Rows, slots: npt.NDArray[np.int64], sink: Sink, wanted: int) -> None:
        self.rows = rows
        self.slots = slots
        self.sink = sink
        self.wanted = wanted
        self.is_enqueued = False
        self.is_pinned = False
        self.unit: Unit | None = None
        self.degraded: dict[int, tuple[str, ...]] = {}
        self.sources: dict[tuple[int, int], str] = {}
        self.seen: list[list[int]] = []
        self.started = self.lookup_seconds = 0.0
        self.times: Sequence[float] = ()

    def degrade(self, row: int, levels: Iterable[str]) -> None:
        """These levels could not be asked for one of the row's profiles."""
        known = self.degraded.get(row, ())
        if new := tuple(level for level in levels if level not in known):
            self.degraded[row] = known + new


def resolve(future: "asyncio.Future[Sequence[Answer]]", answers: Sequence[Answer]) -> None:
    """Deliver answers to a future. Its owner may have hung up, which must not keep the others of a batch from theirs."""
    if not future.done():  # what was journaled stays journaled
        future.set_result(answers)
