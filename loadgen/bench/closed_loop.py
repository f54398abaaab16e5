"""The closed loop of the benchmarks: a number of connections, each sends its next request when the last is answered.

Driven by callbacks on bare `Wire`s, no task or future per request: about 10 µs of CPU each, so that the server is
the bottleneck. Latency runs from the write to the whole reply; making the next request is not part of it.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec

from loadgen.bench.children import BenchError, Child
from loadgen.recorder import Latencies, LatencySummary, summarise
from loadgen.sender import Reply, SendError, Target, Wire

DRAIN_S = 30.0  # s for the last replies after the end of the measurement


class Sample(msgspec.Struct):
    """One measurement. `rows` counts transactions: requests × rows per request. `stolen_share`: see steal.py."""

    seconds: float
    requests: int
    requests_per_s: float
    rows_per_s: float
    latency_us: LatencySummary
    server_cpu_us_per_request: float
    server_cpu_share: float
    client_cpu_share: float
    errors: int
    error_example: str
    stolen_share: float = 0.0


class _Lane:
    def __init__(self, loop: "ClosedLoop", wire: Wire) -> None:
        self._loop = loop
        self._wire = wire
        self._sent = 0.0
        wire.on_reply = self._replied
        wire.on_lost = loop.lost

    def send(self) -> None:
        request = self._loop.make()
        self._sent = time.perf_counter()
        self._wire.send(request)

    def _replied(self, reply: Reply) -> None:
        loop = self._loop
        if loop.recording:
            loop.latencies.add(int((time.perf_counter() - self._sent) * 1e6))
        if reply.status != 200 or b'"status":' in reply.body:
            loop.failed(reply)
        if loop.sending:
            self.send()
        else:
            loop.lane_done()


class ClosedLoop:
    """One measurement against one server: `run` connects, warms up, measures, drains, closes."""

    def __init__(self, target: Target, make: Callable[[], bytes], connections: int, rows_per_request: int = 1) -> None:
        self.make = make
        self.latencies = Latencies()
        self.recording = False
        self.sending = True
        self._target = target
        self._connections = connections
        self._rows_per_request = rows_per_request
        self._running = connections
        self._errors = 0
        self._error_example = ""
        self._lost: SendError | None = None
        self._drained = asyncio.Event()

    async def run(self, warm_s: float, measure_s: float, server: Child) -> Sample:
        """Raises BenchError if a connection is lost or the server does not answer."""
        try:
            wires = [await Wire.connect(self._target) for _ in range(self._connections)]
        except SendError as error:
            raise BenchError(f"{server.name}: {error}") from error
        for lane in [_Lane(self, wire) for wire in wires]:
            lane.send()
        await asyncio.sleep(warm_s)
        started, server_cpu, own_cpu = time.perf_counter(), server.cpu_s(), time.process_time()
        self.recording = True
        await asyncio.sleep(measure_s)
        self.recording = self.sending = False
        seconds = time.perf_counter() - started
        server_cpu, own_cpu = server.cpu_s() - server_cpu, time.process_time() - own_cpu
        try:
            await asyncio.wait_for(self._drained.wait(), DRAIN_S)
        except TimeoutError:
            raise BenchError(f"{server.name}: no reply within {DRAIN_S:.0f} s") from None
        finally:
            for wire in wires:
                wire.on_lost = _closing
                wire.close()
        if self._lost is not None:
            raise BenchError(f"{server.name}: {self._lost}")
        latency = summarise(self.latencies.histogram())
        return Sample(
            seconds=round(seconds, 4),
            requests=latency.n,
            requests_per_s=round(latency.n / seconds, 1),
            rows_per_s=round(latency.n * self._rows_per_request / seconds, 1),
            latency_us=latency,
            server_cpu_us_per_request=round(server_cpu / latency.n * 1e6, 1) if latency.n else 0.0,
            server_cpu_share=round(server_cpu / seconds, 3),
            client_cpu_share=round(own_cpu / seconds, 3),
            errors=self._errors,
            error_example=self._error_example,
        )

    def failed(self, reply: Reply) -> None:
        self._errors += 1
        if not self._error_example:
            at = max(0, reply.body.find(b'"status":') - 150)
            self._error_example = f"{reply.status}: {reply.body[at : at + 400].decode('utf-8', 'replace')}"

    def lost(self, error: SendError) -> None:
        self._lost = self._lost or error
        self.sending = False
        self.lane_done()

    def lane_done(self) -> None:
        self._running -= 1
        if self._running == 0:
            self._drained.set()


def _closing(_: SendError) -> None:
    """Our own close after the last reply is no loss."""
