"""Spans over OTLP/HTTP, by the OpenTelemetry SDK: the extra `otel`. Imported only where otel.endpoint is set.

A thread of the SDK sends them in batches; what its queue has no room for is dropped, and an endpoint that is gone is told in
the log. Headers for the endpoint (tokens) come from OTEL_EXPORTER_OTLP_HEADERS, further resource attributes from
OTEL_RESOURCE_ATTRIBUTES.
"""

import time
from typing import cast

from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from service.correlation import Parent
from service.settings import OtelSettings
from service.tracing import Trace

SEND_INTERVAL_MS = 1_000
SEND_DEADLINE_S = 5.0
BATCH_SPANS_MAX = 512
SERVER_ERROR = 500  # from this status on a span is an error of ours


class OtelExporter:
    """See Exporter in service/tracing.py."""

    def __init__(self, settings: OtelSettings, version: str) -> None:
        resource = Resource.create({"service.name": settings.service_name, "service.version": version})
        # What is sampled is decided before a span is made.
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        sender = OTLPSpanExporter(endpoint=settings.endpoint, timeout=SEND_DEADLINE_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                sender, max_queue_size=settings.queue_spans_max, schedule_delay_millis=SEND_INTERVAL_MS,
                max_export_batch_size=min(BATCH_SPANS_MAX, settings.queue_spans_max),
            )
        )  # fmt: skip
        self._tracer = self._provider.get_tracer("weir", version)

    def open(self, trace: Trace, status: int) -> tuple[str, object]:
        """See Exporter."""
        context = None if trace.parent is None else api.set_span_in_context(_remote(trace.parent, trace.tracestate))
        span = self._tracer.start_span(
            f"{trace.method} {trace.route}", context, api.SpanKind.SERVER, trace.attributes(status),
            start_time=_ns(trace.started),
        )  # fmt: skip
        if status >= SERVER_ERROR:
            span.set_status(api.StatusCode.ERROR)
        own = span.get_span_context()
        return f"00-{own.trace_id:032x}-{own.span_id:016x}-01", span

    def finish(self, root: object, trace: Trace, ended: float) -> None:
        """See Exporter."""
        span = cast("api.Span", root)
        context = api.set_span_in_context(span)
        for stop in trace.stops(ended):
            child = self._tracer.start_span(stop.name, context, attributes=stop.attributes, start_time=_ns(stop.start))
            child.end(_ns(stop.end))
        span.end(_ns(ended))

    def close(self) -> None:
        """See Exporter."""
        self._provider.shutdown()


def _remote(parent: Parent, tracestate: str | None) -> api.Span:
    state = api.TraceState.from_header([tracestate]) if tracestate else None
    flags = api.TraceFlags(api.TraceFlags.SAMPLED)
    return api.NonRecordingSpan(api.SpanContext(parent.trace_id, parent.span_id, True, flags, state))


def _ns(moment: float) -> int:
    """perf_counter seconds as UNIX ns."""
    return time.time_ns() - round((time.perf_counter() - moment) * 1e9)
