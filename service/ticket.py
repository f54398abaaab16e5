"""A ticket: rows that are looked up, scored and answered together, on their way through the pipeline.

The rows of one request are one ticket, because they keep their order. Requests of one row each that came in the same turn of
the loop share one too, as far as nothing holds them up; who has to wait for a profile, or behind an earlier ticket with the
same card, goes on in a ticket of its own.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.decide import Decision
from service.errors import WeirError
from service.fetch import Miss
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
        if isinstance(answers, Replies):
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


class Wait:
    """A row that waits for profiles: told of each as it arrives. The ticket is known once the whole request was looked up."""

    __slots__ = ("n_missing", "row", "ticket")

    def __init__(self, row: int) -> None:
        self.row = row
        self.n_missing = 0
        self.ticket: Ticket | None = None

    def arrived(self, miss: Miss) -> None:
        """A profile that the row waits for has its slot."""
        assert self.ticket is not None, "profiles arrive in a later turn"
        self.ticket.arrived(self.ticket, self.row, miss)


class Ticket:
    """Rows with their slots, int64 (rows, kinds), -1 = absent, or not here yet while n_missing is above 0.

    n_ahead: earlier tickets that it waits behind. degraded: by row, the levels that could not be asked. sources: where a
    profile came from, by row and kind, if it was not in L1. seen: when each profile saw its last event, if traces are wanted.
    started: perf_counter when it was looked up; times: of its batch, see Batch, empty until that is in the journal.
    """

    __slots__ = (
        "arrived", "degraded", "followers", "is_enqueued", "is_pinned", "lookup_seconds", "n_ahead", "n_missing", "rows",
        "seen", "sink", "slots", "sources", "started", "times", "wanted",
    )  # fmt: skip

    def __init__(self, rows: Rows, slots: npt.NDArray[np.int64], sink: Sink, wanted: int) -> None:
        self.rows = rows
        self.slots = slots
        self.sink = sink
        self.wanted = wanted
        self.n_missing = 0
        self.n_ahead = 0
        self.is_enqueued = False
        self.is_pinned = False
        self.followers: list[Ticket] = []
        self.degraded: dict[int, tuple[str, ...]] = {}
        self.sources: dict[tuple[int, int], str] = {}
        self.seen: list[list[int]] = []
        self.started = self.lookup_seconds = 0.0
        self.times: Sequence[float] = ()
        self.arrived: Callable[[Ticket, int, Miss], None] = _never

    def wait_behind(self, earlier: "Ticket | None") -> None:
        """Do not start before `earlier`, which shares a card or a stream with this one."""
        if earlier is not None and not earlier.is_enqueued and earlier is not self and self not in earlier.followers:
            earlier.followers.append(self)
            self.n_ahead += 1

    def degrade(self, row: int, levels: Iterable[str]) -> None:
        """These levels could not be asked for one of the row's profiles."""
        known = self.degraded.get(row, ())
        if new := tuple(level for level in levels if level not in known):
            self.degraded[row] = known + new


def _never(ticket: Ticket, row: int, miss: Miss) -> None:
    raise AssertionError("a ticket that misses nothing hears of no arrival")


def resolve(future: "asyncio.Future[Sequence[Answer]]", answers: Sequence[Answer]) -> None:
    """Deliver answers to a future. Its owner may have hung up, which must not keep the others of a batch from theirs."""
    if not future.done():  # what was journaled stays journaled
        future.set_result(answers)
