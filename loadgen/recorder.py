"""What came back, row by row, and what it adds up to: latencies in HDR histograms, counts, and on what it was measured.

Invariant: a row is `scored` or `failed` at most once, so scored + failed + not sent = rows. The hot path only appends
to arrays; histograms are filled afterwards (recording one value costs 1.4 µs in Python, appending it 0.05).
"""

import math
import time
from array import array
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from loadgen.features import Features

LATENCY_US_MAX = 3_600_000_000  # µs; one hour, far past every deadline
DIGITS = 3  # significant digits kept: every percentile is within 0.1 %
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}


class Latencies:
    """Latencies of one client. `add` takes µs; `merged` makes the histogram of many clients."""

    def __init__(self) -> None:
        self.values_us = array("q")
        self.add = self.values_us.append

    def histogram(self) -> HdrHistogram:
        histogram = HdrHistogram(1, LATENCY_US_MAX, DIGITS)
        clipped = np.clip(np.frombuffer(self.values_us, dtype=np.int64), 0, LATENCY_US_MAX)
        values, counts = np.unique(clipped, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            histogram.record_value(value, count)
        return histogram

    @staticmethod
    def merged(clients: list["Latencies"]) -> HdrHistogram:
        total = HdrHistogram(1, LATENCY_US_MAX, DIGITS)
        for client in clients:
            if client.values_us:
                part = client.histogram()
                largest = max(total.max_value, part.max_value)
                total.add(part)
                total.max_value = largest  # add rounds it up to the end of its cell
        return total


class LatencySummary(msgspec.Struct):
    """µs, from an HDR histogram with 3 significant digits; `max` is the exact largest value, all 0 when n is 0."""

    n: int
    mean: float
    p50: int
    p90: int
    p95: int
    p99: int
    p99_9: int
    max: int


def summarise(histogram: HdrHistogram) -> LatencySummary:
    n = int(histogram.get_total_count())
    if n == 0:
        return LatencySummary(0, 0.0, 0, 0, 0, 0, 0, 0)
    # A percentile is the top of its HDR cell, which may lie above the largest value seen.
    largest = int(histogram.max_value)
    at = {name: min(int(histogram.get_value_at_percentile(q)), largest) for name, q in PERCENTILES.items()}
    return LatencySummary(n=n, mean=round(float(histogram.get_mean_value()), 1), max=largest, **at)


def percentile_curve(histogram: HdrHistogram, points_per_decade: int = 12) -> list[tuple[float, int]]:
    """(1 / (1 - quantile), µs) from the median to the last quantile that the number of values supports."""
    n = int(histogram.get_total_count())
    if n == 0:
        return []
    decades = max(math.log10(n), math.log10(2.0))
    steps = np.linspace(math.log10(2.0), decades, max(2, int(decades * points_per_decade)))
    largest = int(histogram.max_value)
    return [(float(x), min(int(histogram.get_value_at_percentile(100.0 * (1.0 - 1.0 / x))), largest)) for x in 10.0**steps]


class Words:
    """Words as small integers, in order of first use."""

    def __init__(self, *words: str) -> None:
        self.words = list(words)
        self._codes = {word: code for code, word in enumerate(words)}

    def code(self, word: str) -> int:
        code = self._codes.get(word)
        if code is None:
            code = self._codes[word] = len(self.words)
            self.words.append(word)
        return code


class ErrorCount(msgspec.Struct):
    """How often one kind of error came, and its first example."""

    kind: str
    count: int
    example: str


class Recorder:
    """State of one run over `n_rows` rows. `clock` gives seconds; `mark` starts and stops the time that counts."""

    def __init__(self, n_rows: int, n_clients: int, clock: Any = time.perf_counter) -> None:
        self.n_rows = n_rows
        self.score = np.full(n_rows, np.nan, dtype=np.float32)
        self.lsn = np.zeros(n_rows, dtype=np.int64)
        self.latency_us = np.full(n_rows, -1, dtype=np.int64)
        self.outcome = np.full(n_rows, -1, dtype=np.int16)  # code of `outcomes`; -1: not scored
        self.degraded = np.zeros(n_rows, dtype=np.int16)  # code of `degradations`; 0: not degraded
        self.replayed = np.zeros(n_rows, dtype=np.bool_)
        self.outcomes = Words("approve", "review", "decline")
        self.degradations = Words("")
        self.features = Features(n_rows)
        self.requests = [Latencies() for _ in range(n_clients)]
        self.lags = [Latencies() for _ in range(n_clients)]
        self.models: Counter[str] = Counter()
        self.per_second: Counter[int] = Counter()
        self.n_scored = self.n_failed = self.n_retries = self.n_labels = 0
        self._errors: dict[str, ErrorCount] = {}
        self._clock = clock
        self._active_since: float | None = None
        self._active_before = 0.0

    def active_s(self) -> float:
        """Seconds in which requests could be under way: pauses for encoding the next rows are left out."""
        running = 0.0 if self._active_since is None else self._clock() - self._active_since
        return float(self._active_before + running)

    def mark(self, active: bool) -> None:
        if active and self._active_since is None:
            self._active_since = self._clock()
        elif not active:
            self._active_before = self.active_s()
            self._active_since = None

    def scored(self, row: int, score: float, outcome: str, lsn: int, replayed: bool, degraded: str, latency_us: int) -> None:
        self.score[row] = score
        self.outcome[row] = self.outcomes.code(outcome)
        self.lsn[row] = lsn
        self.latency_us[row] = latency_us
        if replayed:
            self.replayed[row] = True
        if degraded:
            self.degraded[row] = self.degradations.code(degraded)
        self.n_scored += 1

    def answered(self, n_rows: int, model: str) -> None:
        """A request with `n_rows` decisions has come back now."""
        self.per_second[int(self.active_s())] += n_rows
        self.models[model] += n_rows

    def failed(self, n_rows: int, kind: str, example: str) -> None:
        self.n_failed += n_rows
        self.error(n_rows, kind, example)

    def error(self, count: int, kind: str, example: str) -> None:
        """Count an error that may belong to no row (a label, a read of the tiers)."""
        known = self._errors.setdefault(kind, ErrorCount(kind, 0, example[:400]))
        known.count += count

    def errors(self) -> list[ErrorCount]:
        return sorted(self._errors.values(), key=lambda e: (-e.count, e.kind))

    def outcome_counts(self) -> dict[str, int]:
        return _counts(self.outcome[self.outcome >= 0], self.outcomes.words)

    def degraded_counts(self) -> dict[str, int]:
        return _counts(self.degraded[self.degraded > 0], self.degradations.words)


def _counts(codes: npt.NDArray[np.int16], words: list[str]) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(words))
    return {word: int(count) for word, count in zip(words, counts, strict=True) if count}
