"""Which requests are traced, and what spans are made of them."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.metrics import Metrics
from service.tracing import TICKETS_MAX, Trace, Tracing

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"


class _Kept:
    """An exporter that keeps what it is given."""

    def __init__(self) -> None:
        self.finished: list[tuple[Trace, float]] = []

    def open(self, trace: Trace, status: int) -> tuple[str, object]:
        return f"00-{status}", trace

    def finish(self, root: object, trace: Trace, ended: float) -> None:
        assert root is trace
        self.finished.append((trace, ended))

    def close(self) -> None:
        pass


def _tracing(share: float, per_s_max: int = 1000, **clocks: Any) -> tuple[Tracing, Metrics]:
    metrics = Metrics()
    return Tracing(_Kept(), share, per_s_max, metrics.traces, **clocks), metrics


def _begin(tracing: Tracing, traceparent: str | None = None) -> Trace | None:
    return tracing.begin(traceparent, None, "POST", "/v1/score", None, 0.0)


def test_share_decides_where_no_parent_does() -> None:
    """Drawn below the share: traced. A parent that is sampled is always, one that is not never; a broken one counts as none."""
    tracing, _ = _tracing(0.25, draw=lambda: 0.24)
    assert _begin(tracing) is not None
    assert _begin(tracing, PARENT + "0") is None
    assert _begin(tracing, "nonsense") is not None
    tracing, _ = _tracing(0.25, draw=lambda: 0.25)
    assert _begin(tracing) is None
    assert _begin(tracing, "nonsense") is None
    trace = _begin(tracing, PARENT + "1")
    assert trace is not None
    assert trace.parent is not None
    assert trace.parent.span_id == 0x00F067AA0BA902B7


def test_traces_of_a_second_are_bounded() -> None:
    """Whatever callers want; the next second has its own, and what was left out is counted."""
    now = 10.0
    tracing, metrics = _tracing(1.0, 3, monotonic=lambda: now)
    assert [_begin(tracing, PARENT + "1") is not None for _ in range(5)] == [True, True, True, False, False]
    now = 11.0
    assert _begin(tracing) is not None
    assert metrics.traces == {("traced",): 4, ("left_out",): 2}


def _ticket(times: list[float], **fields: Any) -> Any:
    made = {"rows": [1, 2], "sources": {}, "degraded": {}, "started": 1.0, "lookup_seconds": 0.001, "times": times}
    return SimpleNamespace(**(made | fields))


def test_stops_of_a_ticket_follow_each_other() -> None:
    """From the look-up to the reply without a gap; a wait says what was missing."""
    trace = Trace(None, None, "POST", "/v1/score/batch", "r-1", 0.9)
    trace.note(None)
    sources, degraded = {(0, 1): "redis", (1, 1): "redis", (1, 2): "new"}, {0: ("l2", "redis")}
    trace.note(cast(Any, _ticket([1.5, 1.6, 1.7, 1.8], sources=sources, degraded=degraded)))
    stops = list(trace.stops(2.0))
    assert [stop.name for stop in stops] == ["lookup", "wait", "score", "decide", "journal", "reply"]
    assert [stop.start for stop in stops[1:]] == [stop.end for stop in stops[:-1]]
    assert (stops[0].start, stops[-1].end) == (1.0, 2.0)
    assert stops[0].attributes == {"weir.rows": 2, "weir.from.redis": 2, "weir.from.new": 1}
    assert stops[1].attributes == {"weir.degraded": "l2,redis"}
    assert trace.attributes(200)["weir.rows"] == 2
    assert trace.attributes(200)["weir.request_id"] == "r-1"


def test_ticket_that_was_not_scored_has_a_look_up_only() -> None:
    """A batch that was taken back left no times."""
    trace = Trace(None, None, "POST", "/v1/score", None, 0.9)
    trace.note(cast(Any, _ticket([])))
    assert [stop.name for stop in trace.stops(2.0)] == ["lookup"]


def test_tickets_of_a_long_stream_are_bounded() -> None:
    """The first ones have spans."""
    trace = Trace(None, None, "POST", "/v1/score/stream", None, 0.9)
    for _ in range(TICKETS_MAX + 10):
        trace.note(cast(Any, _ticket([1.0, 1.1, 1.2, 1.3])))
    assert len(trace.tickets) == TICKETS_MAX


@pytest.mark.parametrize("status", [200, 503])
async def test_spans_are_made_after_the_reply(status: int) -> None:
    """The traceparent is there at once, the rest in the loop's next turn."""
    tracing, _ = _tracing(1.0)
    exporter = cast(_Kept, tracing._exporter)
    trace = _begin(tracing)
    assert trace is not None
    assert tracing.end(trace, status) == f"00-{status}"
    assert exporter.finished == []
    await asyncio.sleep(0)
    ((finished, ended),) = exporter.finished
    assert finished is trace
    assert ended <= time.perf_counter()
