"""Sends a stream to a running service and records what comes back: closed loop (N clients) or open loop (a schedule).

Invariants: a card's transactions go through one client, one after the other, in the order of the stream; a label is
posted after its transaction was answered and, in the closed loop, before any transaction of equal or later ts is sent.
The open loop never waits for anybody: latency counts from the scheduled time, so a stalled server is charged for the
requests that it kept from being sent. A repeat after a lost connection is safe: the service knows event ids.
"""

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from loadgen.features import Trace
from loadgen.recorder import Recorder
from loadgen.replay_stream import Exchange, StreamClient
from loadgen.schedule import STAGE_ROWS_MAX, Stage, constant, groups, owners, poisson, stages
from loadgen.sender import (
    ATTEMPTS_MAX,
    BACKOFF_S,
    Client,
    ConnectionLost,
    Reply,
    SendError,
    Target,
    Unreachable,
    pause_after,
)
from loadgen.source import Stream

LABELS_PER_REQUEST_MAX = 1_000  # labels
SPIN_S = 0.002  # s; uvloop's timers have a resolution of 1 ms, so the last bit before a scheduled send is polled
FAILED_FIRST_MAX = 1_000  # rows; when the first 1,000 all fail, so will the rest
STREAM_STEP_S = 0.001  # of an open loop's stream: what is due within one is one write
PATHS = {"http": "/v1/score", "batch": "/v1/score/batch", "stream": "/v1/score/stream"}
TICK_S = 0.5  # s between calls of on_tick


class ReplayStopped(Exception):
    """The run could not start or go on; the message is for the user."""


class Options(msgspec.Struct, frozen=True):
    """How to send. `rate` (transactions per second) makes it an open loop over `clients` connections; `trace` asks for
    the feature vectors. `batch_rows` go in one request (batch) or one write (stream)."""

    mode: Literal["http", "batch", "stream"] = "http"
    clients: int = 1
    rate: float | None = None
    arrivals: Literal["constant", "poisson"] = "constant"
    seed: int = 1
    batch_rows: int = 256
    labels: bool = False
    label_every_ms: int = 0
    deadline_s: float = 30.0
    trace: bool = False


class Answer(msgspec.Struct, gc=False):
    """A decision, or in its place a problem (then `score` is None). Fields that we do not use are skipped."""

    event_id: str = ""
    score: float | None = None
    outcome: str = ""
    model: str = ""
    lsn: int = 0
    replayed: bool = False
    degraded: list[str] = []
    trace: Trace | None = None
    status: int = 0
    title: str = ""
    detail: str = ""
    field: str | None = None


class TierCount(msgspec.Struct):
    """One entry of GET /v1/tiers, as far as a replay uses it. Fields a server leaves out are 0."""

    name: str
    enabled: bool | None = None
    state: str = ""
    lookups: int = 0
    hits: int = 0
    misses: int = 0
    unavailable: int = 0


class _Tiers(msgspec.Struct):
    tiers: list[TierCount]


class _LabelAnswer(msgspec.Struct):
    event_id: str = ""
    status: str = ""


class _LabelAnswers(msgspec.Struct):
    labels: list[_LabelAnswer] = []


_answer = msgspec.json.Decoder(Answer)
_answers = msgspec.json.Decoder(list[Answer])
_tiers = msgspec.json.Decoder(_Tiers)
_labels = msgspec.json.Decoder(_LabelAnswers)


async def read_tiers(target: Target, deadline_s: float) -> list[TierCount] | None:
    """The tiers' counters; None if the server does not tell them to this key. Raises ReplayStopped."""
    client = Client(target, deadline_s)
    try:
        reply = await client.request(target.encode("GET", "/v1/tiers"))
    except SendError as error:
        raise ReplayStopped(str(error)) from error
    finally:
        client.close()
    if reply.status == 401:
        raise ReplayStopped("the server does not accept this key (401); `weir keys add` makes one")
    if reply.status != 200:
        return None
    try:
        return _tiers.decode(reply.body).tiers
    except msgspec.DecodeError:
        return None


class Replay:
    """One run. `run` returns at the end or after `stop`; `problem` then says why it ended early, if it did."""

    def __init__(self, target: Target, stream: Stream, options: Options, recorder: Recorder) -> None:
        self.recorder = recorder
        self.problem: str | None = None
        self._stream = stream
        self._options = options
        self._target = target
        path = PATHS[options.mode] + ("?trace=1" if options.trace else "")
        self._head = target.head("POST", path)
        self._label_head = target.head("POST", "/v1/labels")
        self._clients = [Client(target, options.deadline_s) for _ in range(options.clients)]
        self._label_client = Client(target, options.deadline_s)
        self._stop = asyncio.Event()
        self._streams = [self._stream_client(n, path) for n in range(options.clients)] if options.mode == "stream" else []
        self._late_labels: list[int] = []
        self._bodies: list[bytes] = []
        self._bodies_from = 0

    @property
    def connects(self) -> int:
        return sum(client.connects for client in (self._label_client, *self._clients)) + sum(s.connects for s in self._streams)

    def stop(self, problem: str | None = None) -> None:
        """Send nothing more; requests under way are waited for."""
        self.problem = self.problem or problem
        self._stop.set()

    async def run(self, on_tick: Callable[[], None]) -> None:
        """Send everything. `on_tick` is called now and then. Raises ReplayStopped if no connection can be made."""
        try:
            for client in self._streams or self._clients:  # now, so that no latency includes a connect
                await client.connect()
        except SendError as error:
            raise ReplayStopped(str(error)) from error
        ticker = asyncio.create_task(_tick(on_tick))
        try:
            await (self._closed_loop() if self._options.rate is None else self._open_loop(self._options.rate))
        finally:
            self.recorder.mark(active=False)
            ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticker
            for client in [*self._clients, self._label_client]:
                client.close()
            for stream in self._streams:
                await stream.close()
        on_tick()

    # The two loops

    async def _closed_loop(self) -> None:
        owner = owners(self._stream.dataset.card_ids, self._options.clients)
        for stage in self._stages():
            if self._stop.is_set():
                return
            self._encode_up_to(stage.start, STAGE_ROWS_MAX)
            self.recorder.mark(active=True)
            await self._post_labels(stage.label_rows.tolist())
            jobs = self._jobs(stage, owner)
            if len(jobs) == 1:
                await self._work(*jobs[0])
            else:
                async with asyncio.TaskGroup() as tasks:
                    for client_no, job in jobs:
                        tasks.create_task(self._work(client_no, job))

    async def _open_loop(self, rate: float) -> None:
        n_rows, options = self._stream.dataset.n_rows, self._options
        due_s = constant(rate, n_rows) if options.arrivals == "constant" else poisson(rate, n_rows, options.seed)
        owner = owners(self._stream.dataset.card_ids, options.clients)
        # Encoded as a whole: a pause in the middle of the schedule would be charged to the server.
        self._encode_up_to(0, n_rows)
        work: list[list[Sequence[int]]] = [[] for _ in range(options.clients)]
        planned = list(self._stages())
        for stage in planned:
            for client_no, job in self._jobs(stage, owner):
                work[client_no].extend(job)
        due_s = due_s + time.perf_counter()
        self.recorder.mark(active=True)
        async with asyncio.TaskGroup() as tasks:
            for client_no, job in enumerate(work):
                tasks.create_task(self._work(client_no, job, due_s))
            tasks.create_task(self._labels_when_due(planned, due_s))
        if not self._stop.is_set():
            await self._post_labels([])  # of rows that were under way when the last ones became due

    def _stages(self) -> list[Stage]:
        data = self._stream.dataset
        if not self._options.labels:
            return list(stages(data.ts))
        return list(stages(data.ts, data.labels, data.label_ts, label_every_ms=self._options.label_every_ms))

    def _jobs(self, stage: Stage, owner: npt.NDArray[np.int32]) -> list[tuple[int, list[Sequence[int]]]]:
        """The row groups of one stage for each client that has any; a group becomes one request."""
        size = 1 if self._options.mode == "http" else self._options.batch_rows
        if self._options.mode == "stream" and self._options.rate is not None:
            size = min(size, max(1, int(self._options.rate * STREAM_STEP_S)))
        if self._options.clients == 1:
            return [(0, groups(range(stage.start, stage.stop), size))]
        rows_of: dict[int, list[int]] = {}
        for row, client_no in enumerate(owner[stage.start : stage.stop].tolist(), stage.start):
            rows_of.setdefault(client_no, []).append(row)
        return [(client_no, groups(rows, size)) for client_no, rows in rows_of.items()]

    def _encode_up_to(self, start: int, n_rows: int) -> None:
        """Have the bodies of the rows from `start` on at hand. Nothing is in flight now: encoding delays no reply."""
        if start < self._bodies_from + len(self._bodies):
            return
        self.recorder.mark(active=False)
        self._bodies = self._stream.encode(start, min(start + n_rows, self._stream.dataset.n_rows))
        self._bodies_from = start
        # The bodies live until the next call: let the collector skip them, a full pass would cost 10 ms in flight.
        gc.collect()
        gc.freeze()

    # One client

    def _stream_client(self, client_no: int, path: str) -> StreamClient:
        add = self.recorder.requests[client_no].add

        def answered(row: int, line: bytes, latency_us: int) -> None:
            add(latency_us)
            self._record_line(row, line, latency_us)

        exchange = Exchange(answered, self._refused, self._lost, self._retried)
        return StreamClient(
            self._target,
            path,
            self._options.deadline_s,
            lambda row: self._bodies[row - self._bodies_from],
            exchange,
            self._stop,
        )

    async def _work(self, client_no: int, job: Sequence[Sequence[int]], due_s: npt.NDArray[np.float64] | None = None) -> None:
        if self._streams:
            await self._streams[client_no].send(job, lambda rows: self._due(client_no, rows, due_s))
            return
        clock = time.perf_counter
        for rows in job:
            due = await self._due(client_no, rows, due_s)
            started = clock() if due is None else due
            if self._stop.is_set():
                return
            try:
                reply = await self._exchange(self._clients[client_no], self._request(rows))
            except SendError as error:
                self._lost(len(rows), error)
                continue
            latency_us = int((clock() - started) * 1e6)
            self.recorder.requests[client_no].add(latency_us)
            self._record(rows, reply, latency_us)

    async def _due(self, client_no: int, rows: Sequence[int], due_s: npt.NDArray[np.float64] | None) -> float | None:
        """Wait until `rows` are due; the time that it was, None in a closed loop."""
        if due_s is None:
            return None
        due = float(due_s[rows[-1]])
        await self._wait_until(due)
        self.recorder.lags[client_no].add(max(0, int((time.perf_counter() - due) * 1e6)))
        return due

    async def _wait_until(self, due: float) -> None:
        left_s = due - time.perf_counter()
        while left_s > 0 and not self._stop.is_set():
            await asyncio.sleep(min(left_s - SPIN_S, 0.25) if left_s > SPIN_S else 0)
            left_s = due - time.perf_counter()

    def _request(self, rows: Sequence[int]) -> bytes:
        bodies, offset = self._bodies, self._bodies_from
        if self._options.mode == "http":
            body = bodies[rows[0] - offset]
        else:
            body = b"[" + b",".join([bodies[row - offset] for row in rows]) + b"]"
        return b"%s%d\r\n\r\n%s" % (self._head, len(body), body)

    async def _exchange(self, client: Client, payload: bytes) -> Reply:
        """Request and reply; repeats after a lost connection, a 429, or a 503 that says when. Raises SendError."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            final = attempt == ATTEMPTS_MAX or self._stop.is_set()
            try:
                reply = await client.request(payload)
            except (Unreachable, ConnectionLost):
                if final:
                    raise
                pause_s = BACKOFF_S * 2 ** (attempt - 1)
            else:
                wanted_s = pause_after(reply)
                if final or wanted_s is None:
                    return reply
                pause_s = wanted_s
            self._retried()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _retried(self) -> None:
        self.recorder.n_retries += 1

    def _lost(self, n_rows: int, error: SendError) -> None:
        self.recorder.failed(n_rows, error.word, str(error))
        if isinstance(error, Unreachable):
            self.stop(f"the server went away: {error}")

    # What came back

    def _record(self, rows: Sequence[int], reply: Reply, latency_us: int) -> None:
        if reply.status != 200:
            self._refused(rows, reply)
            return
        try:
            answers = [_answer.decode(reply.body)] if self._options.mode == "http" else _answers.decode(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.recorder.failed(len(rows), "unreadable reply", str(error))
            return
        if len(answers) != len(rows):
            self.recorder.failed(len(rows), "unreadable reply", f"{len(answers)} answers to {len(rows)} transactions")
            return
        self._record_answers(rows, answers, latency_us)

    def _record_line(self, row: int, line: bytes, latency_us: int) -> None:
        try:
            self._record_answers([row], [_answer.decode(line)], latency_us)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.recorder.failed(1, "unreadable reply", f"{error}: {line[:100]!r}")

    def _record_answers(self, rows: Sequence[int], answers: Sequence[Answer], latency_us: int) -> None:
        recorder, event_ids, n_scored = self.recorder, self._stream.event_ids, 0
        for row, answer in zip(rows, answers, strict=True):
            if answer.score is None:
                recorder.failed(1, str(answer.status), _describe(answer, event_ids[row]))
            elif answer.event_id != event_ids[row]:
                recorder.failed(1, "wrong event", f"asked for {event_ids[row]}, got {answer.event_id}")
            else:
                degraded = "+".join(answer.degraded)
                recorder.scored(row, answer.score, answer.outcome, answer.lsn, answer.replayed, degraded, latency_us)
                n_scored += 1
                if answer.trace is not None:
                    recorder.features.add(row, answer.trace.features)
                    recorder.features.add_sources(row, answer.trace.profiles)
        if n_scored:
            recorder.answered(n_scored, answers[0].model)
        self._give_up_if_all_fail()

    def _refused(self, rows: Sequence[int], reply: Reply) -> None:
        problem = _problem(reply)
        example = _describe(problem, self._stream.event_ids[rows[0]])
        self.recorder.failed(len(rows), str(reply.status), example)
        if reply.status in (401, 403):
            self.stop(f"the server refused the key ({reply.status}): {problem.detail or problem.title}")
        self._give_up_if_all_fail()

    def _give_up_if_all_fail(self) -> None:
        recorder = self.recorder
        if recorder.n_scored == 0 and recorder.n_failed >= FAILED_FIRST_MAX and not self._stop.is_set():
            first = recorder.errors()[0]
            hint = "; to replay history start the service with --set time.clock=stream" if "ts" in first.example else ""
            self.stop(f"none of the first {recorder.n_failed} transactions was scored: {first.example}{hint}")

    # Labels

    async def _labels_when_due(self, planned: list[Stage], due_s: npt.NDArray[np.float64]) -> None:
        for stage in planned:
            if len(stage.label_rows) == 0:
                continue
            await self._wait_until(float(due_s[stage.start]))
            if self._stop.is_set():
                return
            await self._post_labels(stage.label_rows.tolist())

    async def _post_labels(self, rows: list[int]) -> None:
        """Post the labels of scored rows; those of rows under way (open loop) wait for the next call."""
        recorder = self.recorder
        rows = self._late_labels + rows
        scored = [row for row in rows if recorder.outcome[row] >= 0]
        self._late_labels = [row for row in rows if recorder.outcome[row] < 0] if self._options.rate else []
        for part in groups(scored, LABELS_PER_REQUEST_MAX):
            body = self._stream.encode_labels(part)
            try:
                reply = await self._exchange(self._label_client, b"%s%d\r\n\r\n%s" % (self._label_head, len(body), body))
            except SendError as error:
                recorder.error(len(part), f"labels: {error.word}", str(error))
                if isinstance(error, Unreachable):
                    self.stop(f"the server went away: {error}")
                continue
            if 200 <= reply.status < 300:
                self._labelled(len(part), reply)
            else:
                recorder.error(len(part), f"labels: {reply.status}", _describe(_problem(reply), ""))

    def _labelled(self, n_labels: int, reply: Reply) -> None:
        """All were taken, except those of events that the service does not know: then it lost a decision."""
        unknown: list[str] = []
        with contextlib.suppress(msgspec.DecodeError):
            unknown = [a.event_id for a in _labels.decode(reply.body).labels if a.status == "unknown_event"]
        self.recorder.n_labels += n_labels - len(unknown)
        if unknown:
            self.recorder.error(len(unknown), "labels: unknown event", f"event {unknown[0]} was scored before")


def _problem(reply: Reply) -> Answer:
    """The problem+json of a reply, or its first characters where it is none (a proxy's page)."""
    try:
        return _answer.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Answer(status=reply.status, detail=reply.body[:200].decode("utf-8", "replace"))


def _describe(problem: Answer, event_id: str) -> str:
    text = problem.detail or problem.title or "no reason given"
    if problem.field and problem.field not in text:
        text = f"{problem.field}: {text}"
    return f"{text} (event {event_id})" if event_id else text


async def _tick(on_tick: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        on_tick()
