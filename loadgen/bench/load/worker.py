"""A worker of the load generator, a process of its own: sends its part of the schedule and times every reply.

The schedule of an open loop is made beforehand, and latency counts from the time that a request was due, whoever made it wait:
a server that stalls is charged for all that it kept from being sent. `lag` is how late the generator itself looked at a request
that was due; a wait for a free connection after that is the server's doing, and no lag. A failure counts as a latency of
`deadline_s`. Hot path: a format, a write, a parse, a check and three appends, about 12 µs.

Run as a script: a `LoadJob` as a line on stdin; "ready" comes back when all connections stand; then "go T0" (perf_counter), and
at the end an `Outcome`.
"""

import asyncio
import gc
import os
import sys
import time
from array import array
from collections import deque

import msgspec
import numpy as np
import numpy.typing as npt
import uvloop

from loadgen.bench.load.job import LoadJob, Outcome, Second
from loadgen.bench.load.requests import open_requests
from loadgen.bench.load.timer import Timer
from loadgen.recorder import ErrorCount, Latencies
from loadgen.schedule import constant, poisson
from loadgen.sender import DeadlinePassed, Reply, SendError, Target, Wire

TICK_S = 0.05  # s between looks for requests that are past their deadline
RECONNECT_S = 0.1  # s before a lost connection is made again
SPARE_CONNECTIONS = 16  # that an open loop opens before it begins; more when they are needed

_clock = time.perf_counter


class Lane:
    """One connection, and the request that is under way on it."""

    __slots__ = ("due", "is_busy", "load", "number", "wire")

    def __init__(self, load: "Load", wire: Wire) -> None:
        self.load, self.wire = load, wire
        self.due, self.number, self.is_busy = 0.0, 0, False
        wire.on_reply, wire.on_lost = self._replied, self._lost

    def send(self, request: bytes, number: int, due: float) -> None:
        self.due, self.number, self.is_busy = due, number, True
        self.wire.send(request)

    def _replied(self, reply: Reply) -> None:
        now, load = _clock(), self.load
        self.is_busy = False
        wrong = load.requests.check(self.number, reply)
        if wrong is None:
            load.dues.append(self.due)
            load.latencies.append(now - self.due)
        else:
            load.failed(self.due, wrong, f"{reply.status} {reply.body[:300]!r}")
        load.free(self, now)

    def _lost(self, error: SendError) -> None:
        self.is_busy = False
        self.load.failed(self.due, error.word, str(error))
        self.load.reconnect(self)


class Load:
    """One run of one worker. Times are those of perf_counter."""

    def __init__(self, job: LoadJob) -> None:
        self.requests = open_requests(job)
        self.dues, self.latencies = array("d"), array("d")
        self.lag_dues, self.lags = array("d"), array("d")
        self.failures: array[float] = array("d")  # when each failed request was due
        self.connects = 0
        self.waited = array("d")  # when those were due that found no free connection
        self._job = job
        self._target = Target(job.host, job.port, job.base_path, job.key)
        self._lanes: list[Lane] = []
        self._idle: list[Lane] = []
        self._backlog: deque[float] = deque()
        self._errors: dict[str, tuple[ErrorCount, list[float]]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._ended = False
        self._share = _share(job.connections, job)
        self._schedule = np.zeros(0)
        self._at = 0
        self._timer: Timer | None = None

    async def connect(self) -> None:
        """Raises Unreachable."""
        n = self._share if self._job.rate is None else min(self._share, SPARE_CONNECTIONS)
        for _ in range(n):
            await self._connect()
        if self._job.rate is not None:
            self._schedule = schedule(self._job)

    async def _connect(self) -> None:
        wire = await Wire.connect(self._target)
        self.connects += 1
        lane = Lane(self, wire)
        self._lanes.append(lane)
        self._idle.append(lane)

    async def run(self, started: float) -> None:
        """Send from `started` on, for the warm-up and the measured time; then wait for what is under way."""
        self._started, self._end = started, started + self._job.warm_s + self._job.seconds
        await asyncio.sleep(started - _clock())
        if self._job.rate is None:
            for lane in self._idle[:]:
                self.free(lane, _clock())
        else:
            self._timer = Timer(self._send_due)
            self._timer.at(started)
        while not self._ended or self._is_busy():
            await asyncio.sleep(TICK_S)
            now = _clock()
            self._ended = self._ended or now >= self._end
            self._expire(now)
        if self._timer is not None:
            self._timer.close()
        for task in self._connecting:
            task.cancel()
        for lane in self._lanes:
            lane.wire.on_lost = _closing
            lane.wire.close()

    # What the lanes call

    def free(self, lane: Lane, now: float) -> None:
        """The lane has nothing under way: the next request of a closed loop, or the one that has waited longest."""
        if self._job.rate is None:
            if now < self._end and not self._ended:
                request, number = self.requests.make()
                lane.send(request, number, _clock())
            return
        if self._backlog:
            request, number = self.requests.make()
            lane.send(request, number, self._backlog.popleft())
        else:
            self._idle.append(lane)

    def failed(self, due: float, word: str, example: str) -> None:
        self.failures.append(due)
        _, dues = self._errors.setdefault(word, (ErrorCount(word, 0, example[:400]), []))
        dues.append(due)

    def reconnect(self, lane: Lane) -> None:
        """Give up the lane, and make a new one."""
        self._lanes.remove(lane)
        if self._ended and not self._backlog:
            return
        task = asyncio.get_running_loop().create_task(self._again())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _again(self) -> None:
        while not self._ended:
            try:
                await asyncio.sleep(RECONNECT_S)
                wire = await Wire.connect(self._target)
            except SendError as error:
                if self._job.rate is None:  # the user has tried, and was turned away
                    self.failed(_clock(), error.word, str(error))
                continue
            self.connects += 1
            lane = Lane(self, wire)
            self._lanes.append(lane)
            self.free(lane, _clock())
            return

    # The open loop

    def _send_due(self) -> None:
        due, at, n = self._schedule, self._at, len(self._schedule)
        now = _clock()
        while at < n:
            when = self._started + due[at]
            if when > now:
                now = _clock()
                if when > now:
                    break
            when = float(when)
            at += 1
            self.lag_dues.append(when)
            self.lags.append(now - when)
            if self._idle:
                request, number = self.requests.make()
                self._idle.pop().send(request, number, when)
            else:
                self._wait(when)
        self._at = at
        if at < n and self._timer is not None:
            self._timer.at(self._started + float(due[at]))

    def _wait(self, when: float) -> None:
        self._backlog.append(when)
        self.waited.append(when)
        if len(self._lanes) + len(self._connecting) < self._share and not self._ended:
            task = asyncio.get_running_loop().create_task(self._more())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _more(self) -> None:
        try:
            wire = await Wire.connect(self._target)
        except SendError:
            return  # those that wait are charged for it
        self.connects += 1
        lane = Lane(self, wire)
        self._lanes.append(lane)
        self.free(lane, _clock())

    # The end

    def _expire(self, now: float) -> None:
        limit = now - self._job.deadline_s
        for lane in [lane for lane in self._lanes if lane.is_busy and lane.due < limit]:
            lane.wire.abandon(DeadlinePassed(f"no reply within {self._job.deadline_s:g} s"))
        while self._backlog and self._backlog[0] < limit:
            self.failed(self._backlog.popleft(), "never sent", f"no free connection within {self._job.deadline_s:g} s")

    def _is_busy(self) -> bool:
        return bool(self._backlog) or any(lane.is_busy for lane in self._lanes)

    def outcome(self, cpu_s: float) -> Outcome:
        """What counts: in an open loop what was due in the measured time, in a closed one what ended in it."""
        job, start = self._job, self._started + self._job.warm_s
        dues, latencies, failed = _floats(self.dues), _floats(self.latencies), _floats(self.failures)
        by_due = dues if job.rate is not None else dues + latencies
        inside = (by_due >= start) & (by_due < self._end)
        good = latencies[inside]
        lost = (failed >= start) & (failed < self._end)
        done = dues + latencies
        answered = int(((done >= start) & (done < self._end)).sum())
        latency = _histogram(good, int(lost.sum()), job.deadline_s)
        lag_dues, lags = _floats(self.lag_dues), _floats(self.lags)
        lag = _histogram(lags[(lag_dues >= start) & (lag_dues < self._end)], 0, 0.0)
        return Outcome(
            due=int(((lag_dues >= start) & (lag_dues < self._end)).sum()),
            answered=answered,
            failed=int(lost.sum()),
            latency=_encoded(latency),
            latency_max_us=_largest(latency),
            lag=_encoded(lag),
            lag_max_us=_largest(lag),
            waited=sum(1 for when in self.waited if start <= when < self._end),
            connects=self.connects,
            cpu_s=round(cpu_s, 4),
            errors=self._counted(start),
            seconds=self._seconds(start, done, latencies, failed),
        )

    def _counted(self, start: float) -> list[ErrorCount]:
        found = []
        for count, dues in self._errors.values():
            n = sum(1 for due in dues if start <= due < self._end)
            if n:
                found.append(ErrorCount(count.kind, n, count.example))
        return found

    def _seconds(
        self, start: float, done: npt.NDArray[np.float64], latencies: npt.NDArray[np.float64], failed: npt.NDArray[np.float64]
    ) -> list[Second]:
        seconds = []
        for number in range(max(1, round(self._job.seconds))):
            left, right = start + number, min(start + number + 1, self._end)
            here = latencies[(done >= left) & (done < right)]
            n_failed = int(((failed >= left) & (failed < right)).sum())
            seconds.append(Second(len(here), n_failed, _encoded(_histogram(here, n_failed, self._job.deadline_s))))
        return seconds


def schedule(job: LoadJob) -> npt.NDArray[np.float64]:
    """Seconds after the start at which this worker's requests are due: every `workers`-th of the whole run's."""
    assert job.rate is not None
    total_s = job.warm_s + job.seconds
    if job.arrivals == "constant":
        due = constant(job.rate, int(job.rate * total_s))
    else:
        # Poisson arrivals of a fixed time, not of a fixed number: enough of them that the last ones lie behind the end.
        n = int(job.rate * total_s + 6 * (job.rate * total_s) ** 0.5) + 10
        due = poisson(job.rate, n, job.seed)
        due = due[due < total_s]
    return due[job.worker :: job.workers]


def _floats(values: "array[float]") -> npt.NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def _share(total: int, job: LoadJob) -> int:
    """Connections of this worker; together they have `total`."""
    return total // job.workers + (job.worker < total % job.workers)


def _histogram(seconds: npt.NDArray[np.float64], n_failed: int, deadline_s: float) -> Latencies:
    """µs, in whole ones; failures at the deadline."""
    found = Latencies()
    found.values_us.frombytes(np.rint(seconds * 1e6).astype(np.int64).tobytes())
    found.values_us.extend([int(deadline_s * 1e6)] * n_failed)
    return found


def _encoded(latencies: Latencies) -> str:
    return str(latencies.histogram().encode(), "ascii") if latencies.values_us else ""


def _largest(latencies: Latencies) -> int:
    return max(latencies.values_us, default=0)


def _closing(_: SendError) -> None:
    """Our own close is no loss."""


async def _main(job: LoadJob, *, is_realtime: bool) -> None:
    load = Load(job)
    try:
        await load.connect()
    except SendError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection would be charged to the server; a run makes few cycles
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    go = await asyncio.to_thread(sys.stdin.readline)
    if not go.startswith("go "):
        raise SystemExit(2)  # whoever started it is gone
    started = float(go.split()[1])
    cpu: list[float] = []
    loop = asyncio.get_running_loop()
    for at in (job.warm_s, job.warm_s + job.seconds):
        loop.call_later(max(0.0, started + at - _clock()), lambda: cpu.append(time.process_time()))
    await load.run(started)
    outcome = load.outcome(cpu[-1] - cpu[0])
    outcome.realtime = is_realtime
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    sys.stdout.flush()


def main() -> None:
    """One run."""
    job = msgspec.json.decode(sys.stdin.readline(), type=LoadJob)
    if job.core is not None:
        os.sched_setaffinity(0, {job.core})
    uvloop.run(_main(job, is_realtime=job.realtime and job.rate is not None and _go_first()))


def _go_first() -> bool:
    """Real-time priority: a schedule is kept whoever else wants the core. False where that is not permitted."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
