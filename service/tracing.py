"""Which requests are traced, and what a trace is: one span for the request, one for each stop of each of its tickets.

Off (`otel.endpoint` not set) there is no Tracing, and nothing is asked. On, a request costs a random number; one that is traced
is scored in a ticket of its own and costs some 50 µs more of the loop, after its reply, and 150 of the sender: so at most
`otel.traces_per_s_max`. Whoever sends a traceparent decides, within that, whether its request is traced. Stops keep their times
anyway (Ticket.times); spans are made of them at the end. No ids of entities or events are in a span.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Final, NamedTuple, Protocol

from service.correlation import Parent, loggable, parse_traceparent
from service.metrics import Counts
from service.tally import LOOKUP, STOPS
from service.ticket import Ticket

TICKETS_MAX: Final = 32  # of one request that have spans: of a long stream the first ones
_QUEUED_S: Final = 20e-6  # less than that between look-up and scoring is no wait

Attributes = dict[str, str | int | float | bool]


class Stop(NamedTuple):
    """A stop's span; start and end: seconds of perf_counter."""

    name: str
    start: float
    end: float
    attributes: Attributes


class Trace:
    """A request that is traced. tickets: its rows on their way through the pipeline."""

    __slots__ = ("method", "parent", "request_id", "route", "started", "tickets", "tracestate")

    def __init__(
        self, parent: Parent | None, tracestate: str | None, method: str, route: str, request_id: str | None, started: float
    ) -> None:
        self.parent = parent
        self.tracestate = tracestate
        self.method = method
        self.route = route
        self.request_id = request_id
        self.started = started
        self.tickets: list[Ticket] = []

    def note(self, ticket: Ticket | None) -> None:
        """One more ticket of the request; None for rows that needed none."""
        if ticket is not None and len(self.tickets) < TICKETS_MAX:
            self.tickets.append(ticket)

    def attributes(self, status: int) -> Attributes:
        """Of the request's span."""
        found: Attributes = {
            "http.request.method": self.method,
            "http.route": self.route,
            "http.response.status_code": status,
            "weir.rows": sum(len(ticket.rows) for ticket in self.tickets),
        }
        request_id = loggable(self.request_id)
        return found | ({"weir.request_id": request_id} if request_id else {})

    def stops(self, ended: float) -> Iterator[Stop]:
        """The stops of every ticket that was scored, in the order of time; the reply ends at `ended`."""
        for ticket in self.tickets:
            looked_up = ticket.started + ticket.lookup_seconds
            rows: Attributes = {"weir.rows": len(ticket.rows)}
            sources = Counter(ticket.sources.values())
            yield Stop(LOOKUP, ticket.started, looked_up, rows | {f"weir.from.{name}": n for name, n in sources.items()})
            times = ticket.times
            if not times:
                continue
            if times[0] - looked_up > _QUEUED_S:
                degraded = sorted({level for levels in ticket.degraded.values() for level in levels})
                yield Stop("wait", looked_up, times[0], {"weir.degraded": ",".join(degraded)} if degraded else {})
            for place, name in enumerate(STOPS):
                yield Stop(name, times[place], times[place + 1], rows)
            if ticket is self.tickets[-1]:
                yield Stop("reply", times[-1], ended, {})


class Exporter(Protocol):
    """Where spans go."""

    def open(self, trace: Trace, status: int) -> tuple[str, object]:
        """The request's span: its traceparent, and what `finish` takes."""

    def finish(self, root: object, trace: Trace, ended: float) -> None:
        """The spans of its stops, and its own end."""

    def close(self) -> None:
        """Send what is left; blocks for some seconds at most."""


class Tracing:
    """One service's. `share`: of requests without a traceparent. counts: traced, left_out."""

    def __init__(
        self, exporter: Exporter, share: float, per_s_max: int, counts: Counts,
        draw: Callable[[], float] = random.random, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._counts = counts
        self._exporter = exporter
        self._share = share
        self._per_s_max = per_s_max
        self._draw = draw
        self._monotonic = monotonic
        self._second, self._n_of_second = 0, 0

    def begin(
        self, traceparent: str | None, tracestate: str | None, method: str, route: str, request_id: str | None, started: float
    ) -> Trace | None:
        """A trace, if this request is to be traced. started: perf_counter."""
        parent = None if traceparent is None else parse_traceparent(traceparent)
        if not (parent.is_sampled if parent is not None else self._draw() < self._share):
            return None
        second = int(self._monotonic())
        if second != self._second:
            self._second, self._n_of_second = second, 0
        if self._n_of_second >= self._per_s_max:
            self._counts["left_out",] += 1
            return None
        self._n_of_second += 1
        self._counts["traced",] += 1
        return Trace(parent, tracestate if parent is not None else None, method, route, request_id, started)

    def end(self, trace: Trace, status: int) -> str:
        """The request is answered with this status. Returns the traceparent for the reply; the rest is made after it."""
        ended = time.perf_counter()
        traceparent, root = self._exporter.open(trace, status)
        asyncio.get_running_loop().call_soon(self._exporter.finish, root, trace, ended)
        return traceparent

    def close(self) -> None:
        """See Exporter; on another thread."""
        self._exporter.close()


CURRENT: ContextVar[Trace | None] = ContextVar("weir_trace", default=None)  # of the handler that runs
current: Final = CURRENT.get
