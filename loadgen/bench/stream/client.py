"""The client process of `weir bench stream`: sockets and one selector, no event loop, about half a microsecond per event.

Each connection has one POST /v1/score/stream in chunks, or one batch after the other. The client always reads; it writes what
the socket takes, so the server holds it back by not reading. In an open loop it writes what is due. Run as a script: a `Job` on
stdin, an `Outcome` on stdout.
"""

import selectors
import socket
import sys
import time
from collections import deque

import msgspec

from loadgen.bench.payloads import DRAWS, Draws
from loadgen.bench.rows import Rows
from loadgen.bench.stream.job import Job, Outcome
from loadgen.bench.stream.replies import BadReply, Lines, Replies
from loadgen.recorder import Latencies, summarise
from loadgen.sender import Target

RECEIVE_BYTES = 1 << 18
DRAWS_MAX = 1 << 20
STEP_S = 0.005  # of an open loop: what is due within one is one chunk
IDLE_S = 0.25  # s between looks at the deadline


class Stopped(Exception):
    """The pass cannot go on; the message is for the user."""


class Connection:
    """One stream, or one row of batches, over events first..stop."""

    def __init__(self, job: Job, rows: Rows, first: int, stop: int) -> None:
        self.lines = Lines(first)
        self.chunks = Latencies()
        self.next = first
        self.done = False
        self.n_sent = self.n_received = 0
        self._job = job
        self._rows = rows
        self.lines_first = self._first = first
        self._stop = stop
        self._replies = Replies(self.lines)
        self._due: deque[tuple[int, float]] = deque()  # number of lines after a chunk's last reply, when it was written
        self._out: memoryview = memoryview(b"")
        self._ended = False
        target = Target(job.host, job.port, "", job.key)
        self._head = target.head("POST", f"/v1/score/{job.mode}").replace(b"application/json\r\nAccept", _TYPE)
        self.socket = socket.create_connection((job.host, job.port), timeout=5.0)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if job.mode == "stream":
            self._out = memoryview(self._head.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n\r\n"))

    def wants_to_write(self, due: int) -> bool:
        """Whether there is something to write when `due` events of this connection have come up."""
        if self._out:
            return True
        if self.next == self._stop:
            return self._job.mode == "stream" and not self._ended
        return self._free() and self.next - self._first + self._size(self.next) <= due

    def write(self) -> None:
        """Write until the socket takes no more or one chunk has gone."""
        if not self._out:
            self._out = memoryview(self._next_chunk())
        n = 0
        try:
            n = self.socket.send(self._out)
        except BlockingIOError:
            return
        self.n_sent += n
        self._out = self._out[n:]
        if not self._out and self.next > self._first:
            self._due.append((self.next - self._first, time.perf_counter()))

    def read(self) -> None:
        """Raises BadReply, Stopped."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise Stopped(f"the server closed the connection after {self.lines.n:,} replies")
        self.n_received += len(data)
        self._replies.feed(data)
        now = time.perf_counter()
        while self._due and self._due[0][0] <= self.lines.n:
            self.chunks.add(int((now - self._due.popleft()[1]) * 1e6))
        if self._job.mode == "stream":
            self.done = self._replies.whole == 1
            if self.done and not self._ended:
                raise Stopped(f"the server ended the stream after {self.lines.n:,} replies")
        else:
            self.done = self.lines.n == self._stop - self._first
        if self.done and self.lines.unfinished():
            raise BadReply(f"the reply ends in the middle of a line: {self.lines.unfinished()[:80]!r}")

    def _free(self) -> bool:
        """A batch waits for the one before it."""
        return self._job.mode == "stream" or self.lines.n == self.next - self._first

    def _size(self, number: int) -> int:
        return min(self._job.chunk_rows, self._stop - number)

    def _next_chunk(self) -> bytes:
        if self.next == self._stop:
            self._ended = True
            return b"0\r\n\r\n"
        n, now_ms = self._size(self.next), time.time_ns() // 1_000_000
        if self._job.each_card:
            rows = self._rows.each_card(self.next, self.next - self._job.first, n, now_ms)
        else:
            rows = self._rows.make(self.next, n, now_ms)
        self.next += n
        if self._job.mode == "stream":
            return b"%x\r\n%b\r\n" % (rows.nbytes, rows.tobytes())
        return b"%s%d\r\n\r\n%b" % (self._head, rows.nbytes, rows.tobytes())


_TYPE = b"application/x-ndjson\r\nAccept"


def run(job: Job) -> Outcome:
    """One pass."""
    n_draws = DRAWS
    while n_draws < min(job.cards, DRAWS_MAX):
        n_draws *= 2
    rows = Rows(Draws.make(job.cards, job.zipf, job.seed, n_draws))
    per = -(-job.events // job.connections)
    bounds = [(job.first + at, job.first + min(at + per, job.events)) for at in range(0, job.events, per)]
    problem, late_s = "", 0.0
    connections: list[Connection] = []
    started, cpu = time.perf_counter(), time.process_time()
    try:
        connections = [Connection(job, rows, *bound) for bound in bounds]
        late_s = _loop(job, connections, started)
    except (Stopped, BadReply, OSError) as error:
        problem = str(error)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    for connection in connections:
        connection.socket.close()
    return Outcome(
        replies=sum(c.lines.n for c in connections),
        errors=sum(c.lines.errors for c in connections),
        error_example=next((c.lines.error_example for c in connections if c.lines.errors), ""),
        checked=sum(c.lines.checked for c in connections),
        seconds=round(seconds, 4),
        cpu_s=round(cpu, 4),
        chunk_us=summarise(Latencies.merged([c.chunks for c in connections])),
        late_s=round(late_s, 3),
        bytes_sent=sum(c.n_sent for c in connections),
        bytes_received=sum(c.n_received for c in connections),
        problem=problem,
    )


def _loop(job: Job, connections: list[Connection], started: float) -> float:
    """Until every connection is done; the seconds that an open loop was late at most. Raises Stopped, BadReply, OSError."""
    selector = selectors.DefaultSelector()
    masks: dict[Connection, int] = {}
    for connection in connections:
        masks[connection] = selectors.EVENT_READ
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    running, late_s = len(connections), 0.0
    last_reply, n_lines = started, 0
    while running:
        now = time.perf_counter()
        due = job.events if job.rate is None else int((now - started) * job.rate / len(connections))
        for connection, mask in masks.items():
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_to_write(due) else 0)
            if wanted != mask and not connection.done:
                masks[connection] = wanted
                selector.modify(connection.socket, wanted, connection)
        if job.rate is not None:
            sent = min(c.next - c.lines_first for c in connections if not c.done)
            late_s = max(late_s, (min(due, job.events // len(connections)) - sent) / job.rate * len(connections))
        for key, events in selector.select(IDLE_S if job.rate is None else STEP_S / 2):
            connection = key.data
            if events & selectors.EVENT_READ:
                connection.read()
                if connection.done:
                    selector.unregister(connection.socket)
                    running -= 1
                    continue
            if events & selectors.EVENT_WRITE:
                connection.write()
        received = sum(c.lines.n for c in connections)
        if received != n_lines:
            last_reply, n_lines = now, received
        elif now - last_reply > job.deadline_s:
            raise Stopped(f"no reply for {job.deadline_s:g} s after {received:,} of {job.events:,}")
    return late_s


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    if job.rate is not None:
        rows = max(1, int(job.rate * STEP_S / job.connections))
        job = msgspec.structs.replace(job, chunk_rows=min(job.chunk_rows, rows))
    sys.stdout.buffer.write(msgspec.json.encode(run(job)))


if __name__ == "__main__":
    main()
