"""The live feed behind GET /v1/events: once an interval, what happened in it. Works only while somebody listens.

With the first listener a task starts and the pipeline gets its onlooker; with the last one both are gone. Each message is made
and encoded once for all. A listener's queue is bounded: one that does not read loses the oldest messages, and hears how many.
"""

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from service.codec import encode
from service.errors import Overloaded
from service.metrics import Histogram, Metrics
from service.settings import ConsoleSettings
from service.sightings import Sightings

if TYPE_CHECKING:
    from service.engine import Engine

QUEUED_MAX: Final = 8  # messages of one listener that wait to be written
ROUTES: Final = ("score", "score_batch", "score_stream")
PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class Listener:
    """Who follows the feed. `queue` gives messages, None at the end; n_lost: messages that it was too slow for."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_MAX)
        self.n_lost = 0

    def put(self, message: bytes | None) -> None:
        """Add a message; the oldest makes room."""
        if self.queue.full():
            self.queue.get_nowait()
            self.n_lost += 1
        self.queue.put_nowait(message)


class Feed:
    """The feed of one service."""

    def __init__(self, engine: "Engine", metrics: Metrics, settings: ConsoleSettings) -> None:
        self._engine = engine
        self._metrics = metrics
        self._clients_max = settings.feed_clients_max
        self._interval_s = settings.feed_interval_ms / 1000
        self._listeners: set[Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._sightings: Sightings | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._listeners)

    def join(self) -> Listener:
        """Follow the feed. Raises Overloaded if there is no room."""
        if len(self._listeners) >= self._clients_max or self._is_closed:
            limit = f"console.feed_clients_max = {self._clients_max}"
            raise Overloaded(f"{len(self._listeners)} follow the feed already, {limit}; close one", retry_after_s=10)
        listener = Listener()
        self._listeners.add(listener)
        if self._task is None:
            if self._sightings is None:
                self._sightings = Sightings(self._engine.plan, self._engine.clock)
            self._engine.pipeline.onlooker = self._sightings
            self._task = asyncio.get_running_loop().create_task(self._run())
        return listener

    def leave(self, listener: Listener) -> None:
        """Follow it no more."""
        self._listeners.discard(listener)
        if not self._listeners and self._task is not None:
            self._engine.pipeline.onlooker = None
            self._task.cancel()
            self._task = None

    def close(self) -> None:
        """The service stops: end every stream."""
        self._is_closed = True
        for listener in list(self._listeners):
            listener.put(None)
            self.leave(listener)

    def trace_of(self, event_id: str) -> dict[str, Any] | None:
        """How the event was decided, if somebody was listening then."""
        return None if self._sightings is None else self._sightings.trace_of(event_id)

    def forget(self) -> None:
        """Keep nothing of single decisions: an entity was erased."""
        if self._sightings is not None:
            self._sightings.forget()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        before = Sample(self._engine, self._metrics, loop.time())
        due = loop.time()
        while True:
            due = max(due + self._interval_s, loop.time())
            await asyncio.sleep(due - loop.time())
            now = Sample(self._engine, self._metrics, loop.time())
            assert self._sightings is not None
            self._tell("stats", self._stats(before, now))
            if decisions := self._sightings.take():
                self._tell("decisions", decisions)
            before = now

    def _tell(self, event: str, data: object) -> None:
        message = b"event: %b\ndata: %b\n\n" % (event.encode(), encode(data))
        for listener in self._listeners:
            listener.put(message)

    def _stats(self, before: "Sample", now: "Sample") -> dict[str, Any]:
        engine, seconds = self._engine, now.at - before.at
        outcomes = {name: n - before.outcomes.get(name, 0) for name, n in now.outcomes.items()}
        problem = "" if engine.is_started else engine.reason
        return {
            "ts": engine.now_ms(),
            "interval_s": round(seconds, 3),
            "ready": engine.ready[0],
            "problem": problem or engine.ready[1],
            "events_per_s": round(sum(outcomes.values()) / seconds, 1),
            "outcomes": outcomes,
            "replayed": now.n_replayed - before.n_replayed,
            "refused": now.n_refused - before.n_refused,
            "latency_ms": latency(before.requests, now.requests),
            "loop_lag_ms": latency(before.lag, now.lag),
            "lookups": lookups(before.lookups, now.lookups),
            "tiers": engine.tiers(),
            "consumers": engine.consumers(),
            "warnings": engine.warnings(),
            "queue": engine.pipeline.n_waiting,
            "scorer": engine.pipeline.scorer.name,
            "model": engine.pipeline.model_name,
            "listeners": len(self._listeners),
        }


class Sample:
    """Counters at one moment."""

    def __init__(self, engine: "Engine", metrics: Metrics, at: float) -> None:
        self.at = at
        self.outcomes = dict(engine.pipeline.outcomes)
        self.n_replayed = engine.pipeline.n_replayed
        self.n_refused = sum(metrics.refused.values())
        self.requests = _added(metrics.request_seconds[route,] for route in ROUTES)
        self.lag = _added([metrics.loop_lag[()]])
        self.lookups = {
            "l1": (engine.l1.n_hits + engine.fetcher.n_misses, engine.l1.n_hits),
            "bloom": (engine.bloom.lookups, engine.bloom.negatives),
            **{level.name: (level.n_lookups, level.n_hits) for level in engine.levels},
        }


def _added(histograms: Iterable[Histogram]) -> Histogram:
    """Their counts together."""
    parts = list(histograms)
    total = Histogram(parts[0].bounds)
    total.counts = [sum(column) for column in zip(*(part.counts for part in parts), strict=True)]
    return total


def latency(before: Histogram, now: Histogram) -> dict[str, float | None]:
    """How many values came between two states of a histogram of seconds, and their percentiles in ms, None of none.

    Within a bound of the histogram values count as evenly spread, so a percentile is off by at most the width of its bound.
    """
    counts = [after - earlier for earlier, after in zip(before.counts, now.counts, strict=True)]
    n = sum(counts)
    found: dict[str, float | None] = {"n": n}
    edges = list(pairwise((0.0, *now.bounds, now.bounds[-1])))
    for name, share in PERCENTILES.items():
        found[name] = None
        left = share * n
        for count, (low, high) in zip(counts, edges, strict=True):
            if n and count and left <= count:
                found[name] = round((low + (high - low) * left / count) * 1e3, 4)
                break
            left -= count
    return found


def lookups(before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    """Profiles asked of each tier in between, and those that it answered (the Bloom filter: "exists nowhere")."""
    shown = {}
    for tier, (asked, answered) in now.items():
        asked_before, answered_before = before.get(tier, (0, 0))
        shown[tier] = {"asked": asked - asked_before, "answered": answered - answered_before}
    return shown
