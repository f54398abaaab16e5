"""Spans over OTLP/HTTP, by the OpenTelemetry SDK: the extra `otel`. Imported only where otel.endpoint is set.

Spans are made whole, when all of a request is known: the SDK's own way to make one (a sampler, limits, a lock, the context)
takes 30 µs, this one 7. A thread of the SDK sends them in batches; what its queue has no room for is dropped, and an endpoint
that is gone is told in the log. Headers for the endpoint (tokens) come from OTEL_EXPORTER_OTLP_HEADERS, further resource
attributes from OTEL_RESOURCE_ATTRIBUTES.
"""

import random
import time
from typing import NamedTuple, cast

from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace.status import Status, StatusCode

from service.correlation import Parent
from service.settings import OtelSettings
from service.tracing import Attributes, Trace

SEND_INTERVAL_MS = 1_000
SEND_DEADLINE_S = 5.0
BATCH_SPANS_MAX = 512
SERVER_ERROR = 500  # from this status on a span is an error of ours
_SAMPLED = api.TraceFlags(api.TraceFlags.SAMPLED)
_FAILED, _FINE = Status(StatusCode.ERROR), Status(StatusCode.UNSET)


class _OneResource(Resource):
    """The SDK's sender groups spans by their resource, whose own hash is of the text of all its attributes: 7 µs a span."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class OtelExporter:
    """See Exporter in service/tracing.py."""

    def __init__(self, settings: OtelSettings, version: str) -> None:
        told = Resource.create({"service.name": settings.service_name, "service.version": version})
        self._resource = _OneResource(told.attributes, told.schema_url)
        self._scope = InstrumentationScope("weir", version)
        # What is sampled is decided before a span is made.
        self._processor = BatchSpanProcessor(
            OTLPSpanExporter(endpoint=settings.endpoint, timeout=SEND_DEADLINE_S),
            max_queue_size=settings.queue_spans_max,
            schedule_delay_millis=SEND_INTERVAL_MS,
            max_export_batch_size=min(BATCH_SPANS_MAX, settings.queue_spans_max),
        )

    def open(self, trace: Trace, status: int) -> tuple[str, object]:
        """See Exporter."""
        parent = None if trace.parent is None else _remote(trace.parent, trace.tracestate)
        root = _Root(_context(parent), parent, status)
        return f"00-{root.own.trace_id:032x}-{root.own.span_id:016x}-01", root

    def finish(self, root: object, trace: Trace, ended: float) -> None:
        """See Exporter."""
        own, parent, status = cast("_Root", root)
        epoch_ns = time.time_ns() - round(time.perf_counter() * 1e9)  # of perf_counter, now
        for stop in trace.stops(ended):
            times = epoch_ns + round(stop.start * 1e9), epoch_ns + round(stop.end * 1e9)
            self._send(stop.name, _context(own), own, stop.attributes, times)
        times = epoch_ns + round(trace.started * 1e9), epoch_ns + round(ended * 1e9)
        is_error = status >= SERVER_ERROR
        self._send(
            f"{trace.method} {trace.route}",
            own,
            parent,
            trace.attributes(status),
            times,
            api.SpanKind.SERVER,
            is_error=is_error,
        )

    def close(self) -> None:
        """See Exporter."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK leaves it untyped

    def _send(
        self, name: str, own: api.SpanContext, parent: api.SpanContext | None, attributes: Attributes, times: tuple[int, int],
        kind: api.SpanKind = api.SpanKind.INTERNAL, *, is_error: bool = False,
    ) -> None:  # fmt: skip
        """times: UNIX ns of start and end."""
        span = ReadableSpan(
            name, own, parent, self._resource, attributes, kind=kind, status=_FAILED if is_error else _FINE,
            start_time=times[0], end_time=times[1], instrumentation_scope=self._scope,
        )  # fmt: skip
        self._processor.on_end(span)


class _Root(NamedTuple):
    """The request's span as far as it is known when the reply is written."""

    own: api.SpanContext
    parent: api.SpanContext | None
    status: int


def _context(parent: api.SpanContext | None) -> api.SpanContext:
    """Of a new span below `parent`; of a new trace, if there is none."""
    trace_id = (random.getrandbits(128) or 1) if parent is None else parent.trace_id
    state = None if parent is None else parent.trace_state
    return api.SpanContext(trace_id, random.getrandbits(64) or 1, False, _SAMPLED, state)


def _remote(parent: Parent, tracestate: str | None) -> api.SpanContext:
    state = api.TraceState.from_header([tracestate]) if tracestate else None
    return api.SpanContext(parent.trace_id, parent.span_id, True, _SAMPLED, state)
