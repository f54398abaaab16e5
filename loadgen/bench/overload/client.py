"""The client process of `weir bench overload`: an open loop that sends far more than the server can answer, at 2 to 3 µs each.

Every millisecond what is due is written to the connections in turn, in bursts of one write, and what came back is counted by
its status lines: replies on a connection come in the order of its requests, so a queue of times tells each one's latency.
Bodies are not read. Run as a script: an `OverloadJob` on stdin, an `OverloadOutcome` on stdout.
"""

import os
import re
import selectors
import socket
import sys
import time
from collections import Counter, deque

import msgspec
import numpy as np
from hdrh.histogram import HdrHistogram

from loadgen.bench.overload.job import Answers, OverloadJob, OverloadOutcome
from loadgen.bench.payloads import BODY, Draws
from loadgen.bench.rows import Rows
from loadgen.recorder import DIGITS, LATENCY_US_MAX, summarise
from loadgen.sender import Target

TICK_S = 0.001
RECEIVE_BYTES = 1 << 17
AHEAD = 4_096  # requests made at a time
STATUS, STATUS_BYTES = re.compile(rb"HTTP/1\.1 (\d{3})"), 12
RETRY_AFTER, RETRY_AFTER_BYTES = re.compile(rb"\r\nretry-after: \d", re.IGNORECASE), 16


class Tally:
    """Latencies by status, in histograms, and replies by second."""

    def __init__(self) -> None:
        self.by_status: dict[bytes, HdrHistogram] = {}
        self.seconds: dict[bytes, Counter[int]] = {}
        self.late = HdrHistogram(1, LATENCY_US_MAX, DIGITS)

    def add(self, status: bytes, latency_us: int, second: int, n: int = 1) -> None:
        histogram = self.by_status.get(status)
        if histogram is None:
            histogram = self.by_status[status] = HdrHistogram(1, LATENCY_US_MAX, DIGITS)
            self.seconds[status] = Counter()
        histogram.record_value(max(latency_us, 1), n)
        self.seconds[status][second] += n


class Connection:
    """Requests under way, in the order in which they were written: how many were due at which time."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=5.0)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.under_way: deque[list[float]] = deque()  # [due, number]
        self.n_under_way = 0
        self.out = b""
        self.n_retry_after = 0
        self._tail = b""

    def put(self, request: bytes, due: float, n: int) -> bool:
        """Write `n` requests, or as much as goes. False if some of it has to wait."""
        self.under_way.append([due, n])
        self.n_under_way += n
        self.out += request
        return self.flush()

    def flush(self) -> bool:
        if self.out:
            try:
                self.out = self.out[self.socket.send(self.out) :]
            except BlockingIOError:
                return False
        return not self.out

    def read(self) -> list[bytes]:
        """The statuses of replies that have come. Raises OSError."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError("the server closed a connection")
        # What a mark cut by the end needs of this part, and too little to find a whole one twice.
        whole, n_before = self._tail + data, len(self._tail)
        self._tail = whole[1 - RETRY_AFTER_BYTES :]
        if b"429" in whole:
            self.n_retry_after += len(RETRY_AFTER.findall(whole))
        return STATUS.findall(whole, max(0, n_before + 1 - STATUS_BYTES))


def run(job: OverloadJob) -> OverloadOutcome:
    """The whole load. Raises OSError if no connection can be made."""
    target = Target(job.host, job.port, "", job.key)
    head = b"%s%d\r\n\r\n" % (target.head("POST", "/v1/score"), len(BODY % ((0,) * 7)))
    rows = Rows(Draws.make(job.cards), prefix=head, suffix=b"")
    connections = [Connection(job.host, job.port) for _ in range(job.connections)]
    loop = _Loop(job, rows, connections)
    started, cpu = time.perf_counter(), time.process_time()
    problem = ""
    try:
        loop.run(started)
    except OSError as error:
        problem = f"the load ended early: {error}"
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    for connection in connections:
        connection.socket.close()
    return loop.outcome(min(seconds, job.seconds), cpu, problem)


class _Loop:
    def __init__(self, job: OverloadJob, rows: Rows, connections: list[Connection]) -> None:
        self._job = job
        self._rows = rows
        self._connections = connections
        self._tally = Tally()
        self._selector = selectors.DefaultSelector()
        self._masks = dict.fromkeys(connections, selectors.EVENT_READ)
        for connection in connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._made = memoryview(b"")
        self._n_made = self._n_sent = self._n_blocked = self._turn = 0
        self._n_total = int(job.rate * job.seconds)

    def run(self, started: float) -> None:
        job = self._job
        deadline = started + job.seconds + job.drain_s
        next_tick = started
        while True:
            now = time.perf_counter()
            if now >= next_tick and self._n_sent < self._n_total and now < started + job.seconds + TICK_S:
                self._send(started, now)
                next_tick = max(next_tick + TICK_S, now)
            ended = now >= started + job.seconds
            if ended and (now > deadline or not any(c.n_under_way for c in self._connections)):
                return
            for key, events in self._selector.select(max(0.0, next_tick - now) if not ended else 0.05):
                if events & selectors.EVENT_WRITE and key.data.flush():
                    self._watch(key.data, write=False)
                if events & selectors.EVENT_READ:
                    self._received(key.data, started)

    def _send(self, started: float, now: float) -> None:
        """What is due, spread over the connections."""
        job, connections = self._job, self._connections
        due = min(int((now - started) * job.rate), self._n_total)
        n = due - self._n_sent
        if n < job.burst and due < self._n_total:  # the next tick has the whole of it
            return
        burst = max(job.burst, -(-n // len(connections)))
        full = 0
        while n > 0 and full < len(connections):
            connection = connections[self._turn % len(connections)]
            self._turn += 1
            room = burst if not job.depth else min(burst, job.depth - connection.n_under_way)
            if room <= 0:
                full += 1
                continue
            m = min(room, n)
            due_at = started + (self._n_sent + m / 2) / job.rate
            late_us = int((now - due_at) * 1e6)
            self._tally.late.record_value(max(late_us, 1), m)
            if not connection.put(self._requests(m), due_at, m):
                self._n_blocked += 1
                self._watch(connection, write=True)
            self._n_sent += m
            n -= m

    def _requests(self, n: int) -> bytes:
        width = self._rows.width
        if len(self._made) < n * width:
            count = max(AHEAD, n)
            fresh = self._rows.make(self._job.first + self._n_made, count, time.time_ns() // 1_000_000)
            self._n_made += count
            self._made = memoryview(bytes(self._made) + fresh.tobytes())
        requests = bytes(self._made[: n * width])
        self._made = self._made[n * width :]
        return requests

    def _received(self, connection: Connection, started: float) -> None:
        statuses = connection.read()
        now = time.perf_counter()
        second = int(now - started)
        connection.n_under_way -= len(statuses)
        oldest = connection.under_way
        for status in statuses:
            if not oldest:
                raise ConnectionResetError("a reply came that nobody had asked for")
            self._tally.add(status, int((now - oldest[0][0]) * 1e6), second)
            oldest[0][1] -= 1
            if oldest[0][1] == 0:
                oldest.popleft()

    def _watch(self, connection: Connection, *, write: bool) -> None:
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)
        if self._masks[connection] != mask:
            self._masks[connection] = mask
            self._selector.modify(connection.socket, mask, connection)

    def outcome(self, seconds: float, cpu_s: float, problem: str) -> OverloadOutcome:
        tally = self._tally
        answers = []
        for status, histogram in sorted(tally.by_status.items()):
            per_second = tally.seconds[status]
            series = [per_second[second] for second in range(max(per_second) + 1)]
            answers.append(Answers(int(status), sum(series), summarise(histogram), series))
        return OverloadOutcome(
            due=self._n_total,
            sent=self._n_sent,
            lost=sum(c.n_under_way for c in self._connections),
            answers=answers,
            retry_after=sum(c.n_retry_after for c in self._connections),
            late_us=summarise(tally.late),
            blocked=self._n_blocked,
            seconds=round(seconds, 4),
            cpu_s=round(cpu_s, 4),
            problem=problem,
        )


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=OverloadJob)
    if job.core is not None:
        os.sched_setaffinity(0, {job.core})
    np.seterr(all="raise")
    sys.stdout.buffer.write(msgspec.json.encode(run(job)))


if __name__ == "__main__":
    main()
