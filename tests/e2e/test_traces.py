"""Traces of a real `weir serve`, received by a real OTLP/HTTP endpoint that decodes them; both lanes."""

import gzip
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from features.transaction import Transaction

service_pb2 = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="pip install 'weir[otel]'")
pytest.importorskip("opentelemetry.sdk", reason="pip install 'weir[otel]'")

pytestmark = pytest.mark.e2e

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
SERVER_KIND, ERROR_STATUS = 2, 2
RECEIVE_S = 20.0
STOPS = ["lookup", "score", "decide", "journal", "reply"]


class Receiver:
    """An OTLP/HTTP endpoint for traces."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.headers.append({"path": self.path, **dict(self.headers.items())})
                receiver.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def exports(self) -> list[Any]:
        return [service_pb2.ExportTraceServiceRequest.FromString(body) for body in list(self.bodies)]

    def spans(self) -> list[Any]:
        """All spans so far."""
        return [s for e in self.exports() for r in e.resource_spans for scope in r.scope_spans for s in scope.spans]

    def trace(self, trace_id: str) -> tuple[Any, list[Any]]:
        """The root span of a trace and its children in order of time, once the root has come: it is ended last."""
        deadline = time.monotonic() + RECEIVE_S
        while True:
            spans = [span for span in self.spans() if span.trace_id.hex() == trace_id]
            roots = [span for span in spans if span.kind == SERVER_KIND]
            if roots:
                assert len(roots) == 1
                children = [span for span in spans if span is not roots[0]]
                return roots[0], sorted(children, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))
            assert time.monotonic() < deadline, [span.name for span in self.spans()]
            time.sleep(0.05)


def attributes(span: Any) -> dict[str, Any]:
    """Of a span, as Python values."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """One for all tests here; traces are told apart by their ids."""
    one = Receiver()
    yield one
    one.close()


@pytest.fixture(scope="module", params=["fast", "aiohttp"])
def traced(request: pytest.FixtureRequest, make_one: Any, receiver: Receiver, tmp_path_factory: Any) -> Iterator[Any]:
    """A service that traces every request."""
    settings = [f"otel.endpoint={receiver.url}", "otel.share=1", "otel.service_name=weir-test", "otel.traces_per_s_max=1000"]
    directory: Path = tmp_path_factory.mktemp(request.param) / "data"
    yield from make_one(directory, [*settings, f"server.fast_lane={str(request.param == 'fast').lower()}"])


def score(weir: Any, tx: Transaction, **headers: str) -> Any:
    """One transaction, with these headers (a_b becomes a-b)."""
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return weir.call("POST", "/v1/score", msgspec.json.encode(tx), sent)


def own_parent(number: int) -> tuple[str, str]:
    """A trace id of its own, and the traceparent of a sampled caller."""
    trace_id = f"{time.time_ns():024x}{number:08x}"
    return trace_id, f"00-{trace_id}-{SPAN}-01"


def test_request_has_a_span_and_one_for_each_stop(traced: Any, receiver: Receiver, stream: list[Transaction]) -> None:
    """The caller is the parent, the reply names our span, stops lie one after the other inside it, and no id is anywhere."""
    trace_id, parent = own_parent(1)
    started = time.time_ns()
    reply = score(traced, stream[0], traceparent=parent, tracestate="vendor=1,other=2", X_Request_Id="req-77")
    assert (reply.status, reply.headers["x-request-id"]) == (200, "req-77")
    root, children = receiver.trace(trace_id)
    assert reply.headers["traceparent"] == f"00-{trace_id}-{root.span_id.hex()}-01"
    assert (root.name, root.parent_span_id.hex(), root.trace_state) == ("POST /v1/score", SPAN, "vendor=1,other=2")
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": "/v1/score",
        "http.response.status_code": 200,
        "weir.rows": 1,
        "weir.request_id": "req-77",
    }
    assert [span.name for span in children if span.name != "wait"] == STOPS
    assert {span.parent_span_id for span in children} == {root.span_id}
    assert started <= root.start_time_unix_nano < root.end_time_unix_nano <= time.time_ns()
    ends = [root.start_time_unix_nano - 1_000_000]  # each is converted by itself; the clocks differ by a little
    for span in children:
        assert ends[-1] - 1_000_000 <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano + 1_000_000
        ends.append(span.end_time_unix_nano)
    lookup = attributes(children[0])
    assert sum(n for name, n in lookup.items() if name.startswith("weir.from.")) > 0  # a first payment: all is new
    for resource in (r for e in receiver.exports() for r in e.resource_spans):
        assert {"service.name": "weir-test"}.items() <= attributes(resource.resource).items()


def test_reply_is_the_same_with_and_without_a_trace(traced: Any, stream: list[Transaction]) -> None:
    """In JSON and MessagePack, but for the LSN; and the stored decision is given again."""
    for number, content_type in enumerate(("application/json", "application/x-msgpack")):
        encode = msgspec.json.encode if number == 0 else msgspec.msgpack.encode
        decode: Callable[[bytes], Any] = msgspec.json.decode if number == 0 else msgspec.msgpack.decode
        replies = []
        for place, parent in enumerate((SAMPLED, UNSAMPLED)):
            tx = msgspec.structs.replace(stream[5], event_id=f"same-{number}-{place}", card_id=f"same-{number}-{place}")
            headers = {"Content-Type": content_type, "traceparent": parent}
            reply = traced.call("POST", "/v1/score", encode(tx), headers)
            again = traced.call("POST", "/v1/score", encode(tx), headers)
            assert decode(again.body)["replayed"] is True
            assert ("traceparent" in reply.headers) == (parent == SAMPLED)
            replies.append(decode(reply.body))
        assert list(replies[0]) == list(replies[1])
        same = [{k: v for k, v in r.items() if k not in ("event_id", "lsn", "score", "reasons")} for r in replies]
        assert same[0] == same[1]


def test_batch_and_stream_have_the_stops_of_each_part(traced: Any, receiver: Receiver, stream: list[Transaction]) -> None:
    """A batch has one ticket, with its rows; a stream some, at least one."""
    trace_id, parent = own_parent(2)
    reply = traced.call("POST", "/v1/score/batch", msgspec.json.encode(stream[10:60]), {"traceparent": parent})
    assert reply.status == 200
    root, children = receiver.trace(trace_id)
    assert (root.name, attributes(root)["weir.rows"]) == ("POST /v1/score/batch", 50)
    assert [span.name for span in children if span.name != "wait"] == STOPS
    assert attributes(children[0])["weir.rows"] == 50
    trace_id, parent = own_parent(3)
    lines = b"".join(msgspec.json.encode(tx) + b"\n" for tx in stream[60:160])
    reply = traced.call("POST", "/v1/score/stream", lines, {"traceparent": parent, "Content-Type": "application/x-ndjson"})
    assert reply.body.count(b"\n") == 100
    root, children = receiver.trace(trace_id)
    assert attributes(root)["weir.rows"] == 100
    assert {span.name for span in children} - {"wait"} == set(STOPS)


def test_refused_request_has_its_status_and_no_stops(traced: Any, receiver: Receiver) -> None:
    """The problem carries the request's id; without a key nothing is traced, whatever the caller wants."""
    trace_id, parent = own_parent(4)
    reply = traced.call("POST", "/v1/score", b'{"event_id": 7}', {"traceparent": parent, "X-Request-Id": "bad-1"})
    assert (reply.status, reply.json["request_id"], reply.headers["x-request-id"]) == (422, "bad-1", "bad-1")
    root, children = receiver.trace(trace_id)
    assert (attributes(root)["http.response.status_code"], children) == (422, [])
    assert root.status.code != ERROR_STATUS
    refused_id, parent = own_parent(5)
    reply = traced.call("POST", "/v1/score", b"{}", {"traceparent": parent, "Authorization": "", "X-Request-Id": "bad-2"})
    assert (reply.status, reply.json["request_id"]) == (401, "bad-2")
    assert "traceparent" not in reply.headers
    assert refused_id not in {span.trace_id.hex() for span in receiver.spans()}


def test_other_routes_are_traced_and_unsampled_ones_are_not(traced: Any, receiver: Receiver) -> None:
    """A route has its template as a name; health and metrics, which are open, are never traced."""
    trace_id, parent = own_parent(6)
    assert traced.call("GET", "/v1/decisions/nobody-knows", headers={"traceparent": parent}).status == 404
    root, _ = receiver.trace(trace_id)
    assert root.name == "GET /v1/decisions/{event_id}"
    for path in ("/livez", "/metrics"):
        open_id, parent = own_parent(7)
        assert "traceparent" not in traced.call("GET", path, headers={"traceparent": parent}).headers
    unsampled_id = "ab" * 16
    reply = traced.call("GET", "/v1/tiers", headers={"traceparent": f"00-{unsampled_id}-{SPAN}-00"})
    assert "traceparent" not in reply.headers
    trace_id, parent = own_parent(8)
    traced.call("GET", "/v1/tiers", headers={"traceparent": parent})
    receiver.trace(trace_id)
    assert {unsampled_id, open_id}.isdisjoint(span.trace_id.hex() for span in receiver.spans())


def test_no_id_leaves_with_the_spans(traced: Any, receiver: Receiver, stream: list[Transaction]) -> None:
    """Neither an event, nor an entity, nor a key is in any byte that was sent."""
    trace_id, parent = own_parent(9)
    rows = stream[200:260]
    traced.call("POST", "/v1/score/batch?trace=1&explain=1", msgspec.json.encode(rows), {"traceparent": parent})
    receiver.trace(trace_id)
    sent = b"".join(receiver.bodies)
    ids = {getattr(tx, field) for tx in rows for field in ("event_id", "merchant_id", "device_id", "ip")}
    found = [text for text in (*ids, traced.key) if text and len(text) > 3 and text.encode() in sent]
    assert found == []


def test_metrics_count_traces(traced: Any) -> None:
    """As many as were made here, none left out."""
    text = traced.call("GET", "/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith('weir_traces_total{result="traced"}')]
    assert float(line.split()[1]) >= 5
    assert 'weir_traces_total{result="left_out"} 0.0' in text


def test_endpoint_that_is_gone_harms_nothing(make_one: Any, tmp_path: Path, stream: Sequence[Transaction]) -> None:
    """Requests are answered, the log says what is wrong without a password, and the stop takes seconds."""
    settings = ["otel.endpoint=http://127.0.0.1:9/v1/traces", "otel.share=1"]
    for weir in make_one(tmp_path / "data", settings):
        for tx in stream[:20]:
            assert score(weir, tx).status == 200
        weir.stop()


def test_traces_are_off_by_default(make_one: Any, tmp_path: Path, stream: Sequence[Transaction]) -> None:
    """A sampled caller gets no traceparent back, and the SDK is not even loaded."""
    for weir in make_one(tmp_path / "data", []):
        reply = score(weir, stream[0], traceparent=SAMPLED)
        assert reply.status == 200
        assert "traceparent" not in reply.headers
        maps = Path(f"/proc/{weir._process.pid}/maps").read_text()
        assert "protobuf" not in maps
        assert json.loads(reply.body)["event_id"] == stream[0].event_id
