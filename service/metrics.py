"""What the service counts, and its Prometheus exposition.

The hot path touches plain Python ints: `metrics.tx["approve",] += 1` costs 0.1 µs, a prometheus-client `inc()` about
1 µs. The numbers become metric families only when /metrics is scraped, a little per turn of the loop (`render_in_turns`).
Gauges are read at that moment from their owners, who register a function for them with `watch`. One event loop writes;
nothing here is locked. Every family is in docs/reference/metrics.md, which `make reference` writes.
"""

import asyncio
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from prometheus_client import CONTENT_TYPE_LATEST, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

Labels = tuple[str | int, ...]
Gauge = float | Mapping[Any, float]  # by the value of a label, or a tuple of several

# s; a request or tier read: from an L1 hit (10 µs) to a deadline (1 s), about 2.2 apart
LATENCY_BOUNDS: Final = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
ROWS_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)  # rows of a micro-batch
BEHIND_BOUNDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000)  # journal entries
L1_BOUNDS: Final = (2e-7, 5e-7, 1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 1e-3)  # s; the clock itself takes 50 ns of it
WAVES_BOUNDS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)  # waves of a micro-batch (an entity repeated in it)

PIECE_HISTOGRAMS: Final = 3  # label values of a histogram in one step of the exposition: 0.6 ms
TURN_S: Final = 0.001  # of the loop's time that a scrape takes between two turns
_HEAD: Final = re.compile(rb"^# [^\n]*\n", re.MULTILINE)

# gauge -> help, labels ("" for none, commas between). `watch` takes no other, so that dashboards can rely on the list.
GAUGES: Final[dict[str, tuple[str, str]]] = {
    "build": ("1, of this version of the service.", "version,python"),
    "ready": ("1 when the service takes transactions.", ""),
    "connections": ("Open HTTP connections: fast lane, aiohttp.", "lane"),
    "recovery_entries": ("Journal entries that this start has applied again.", ""),
    "recovery_share": ("Share of those that it has to, 0 to 1.", ""),
    "recovery_seconds": ("Time that it took so far.", ""),
    "recovery_cpu_seconds": ("CPU time of the process meanwhile.", ""),
    "queue_events": ("Transactions read and not scored yet.", ""),
    "queue_events_max": ("The most of them: beyond it 429.", ""),
    "profiles_fetching": ("Profiles that are being looked for below L1.", ""),
    "infer_waiting": ("Requests under /v2 that wait or run.", "model"),
    "l1_profiles": ("Profiles resting in L1, by kind of entity.", "kind"),
    "l1_bytes": ("Bytes of profiles resting in L1.", ""),
    "l1_bytes_max": ("Bytes that they may take, 0 where L1 is off.", ""),
    "bloom_keys": ("Entities in the Bloom filter.", ""),
    "bloom_covers": ("1 when it covers everything below it: until then it answers maybe.", ""),
    "journal_bytes": ("Bytes of all journal segments.", ""),
    "journal_bytes_max": ("Bytes that the journal may take, 0 for no limit.", ""),
    "journal_durable_lag": ("Journal entries appended and not yet fsynced.", ""),
    "disk_bytes": ("Bytes of the file system of the data directory.", ""),
    "disk_free_bytes": ("Bytes that are free there for this process.", ""),
    "l2_flush_lag": ("Journal entries that L2 has not made durable: where it grows, its disk is full or too slow.", ""),
    "write_behind_profiles": ("Dirty profiles held in memory.", ""),
    "write_behind_profiles_max": ("The most of them: beyond it 429.", ""),
    "write_behind_lag": ("Dirty profiles that a level still lacks.", "consumer"),
    "consumer_lag": ("Journal entries of this run that a consumer (a level, the ledger) lacks.", "consumer"),
    "erasures_pending": ("Erasures that are under way.", ""),
    "ledger_lag": ("Journal entries that the ledger is behind.", ""),
    "ledger_up": ("1 if the ledger took what it was given last.", ""),
    "tier_enabled": ("1 if the tier is turned on.", "tier"),
    "tier_state": ("1 if the tier can be read, 0 if not.", "tier"),
    "tier_breaker": ("1 for the state of the tier's breaker: closed, open, half_open, off.", "tier,state"),
    "scorer": ("1 for the scoring engine in use, 0 for the others.", "scorer"),
    "model": ("1 for the models in use: champion, challenger.", "role,model"),
    "skew_rows": ("Logged vectors at the last weir doctor --skew: compared, differing.", "result"),
    "skew_checked_seconds": ("When that was, as UNIX time.", ""),
    "drift_rows": ("Sampled transactions in the window of population stability.", ""),
    "population_stability": ("PSI of a feature against the training set.", "feature"),
    "score_stability": ("PSI of the score against the training set.", "model"),
    "labelled": ("Labelled transactions, by what was answered and what it was.", "model,outcome,label"),
    "live_precision": ("Share of fraud in what had this outcome or a stricter one.", "model,outcome"),
    "live_recall": ("Share of all known fraud that had this outcome or a stricter one.", "model,outcome"),
    "calibration_rows": ("Labelled transactions, by the lower end of their score's bin.", "model,score_from"),
    "calibration_score": ("Mean score of these.", "model,score_from"),
    "calibration_fraud": ("Share of fraud in these.", "model,score_from"),
    "challenger_rows": ("Transactions that the challenger has scored in the shadow.", "model"),
    "challenger_agreement": ("Share of these that champion and challenger would answer alike.", "model"),
    "challenger_outcomes": ("These, by both outcomes.", "champion,challenger"),
    "challenger_scores": ("These, by the lower end of the score's bin: side champion or challenger.", "side,score_from"),
}


class Counts(dict[Labels, int]):
    """A counter family: label values -> count; absent is 0. `counts["redis", "hit"] += n`, one label: `counts["x",]`."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        super().__init__()
        self.name = name
        self.text = text
        self.labels = labels

    def __missing__(self, key: Labels) -> int:
        return 0

    def pieces(self) -> Iterable[Metric]:
        """As one Prometheus counter."""
        family = CounterMetricFamily(f"weir_{self.name}", self.text, labels=self.labels)
        for key, count in self.items():
            family.add_metric([str(value) for value in key], count)
        yield family


class Histogram:
    """Counts of values by upper bound, and their sum. `observe` costs 0.1 µs."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, n: int = 1) -> None:
        """Count a value `n` times, in the unit of the bounds."""
        self.counts[bisect_left(self.bounds, value)] += n
        self.total += value * n

    def observe_all(self, values: npt.NDArray[np.float64]) -> None:
        """Count these; float64 (n,), in the unit of the bounds. 10 µs and 0.02 a value."""
        places = np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.counts)).tolist()
        self.counts = [count + more for count, more in zip(self.counts, places, strict=True)]
        self.total += float(values.sum())

    def describe(self) -> dict[str, object]:
        """For a page: upper bounds, counts (the last one is of what lies above them all), and their sum."""
        return {"bounds": self.bounds, "counts": self.counts, "n": sum(self.counts), "sum": round(self.total, 9)}

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus wants them."""
        running = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            running += count
            buckets.append((bound, running))
        return buckets


class Histograms(dict[Labels, Histogram]):
    """A histogram family by label values; a new combination starts empty. Without labels the key is ()."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> None:
        super().__init__()
        self.name = name
        self.text = text
        self.bounds = bounds
        self.labels = labels

    def __missing__(self, key: Labels) -> Histogram:
        made = self[key] = Histogram(self.bounds)
        return made

    def pieces(self) -> Iterable[Metric]:
        """As a Prometheus histogram, a few label values at a time: each has some twenty series."""
        items = list(self.items())
        for start in range(0, max(len(items), 1), PIECE_HISTOGRAMS):
            family = HistogramMetricFamily(f"weir_{self.name}", self.text, labels=self.labels)
            for key, histogram in items[start : start + PIECE_HISTOGRAMS]:
                family.add_metric([str(value) for value in key], histogram.buckets(), histogram.total)
            yield family


class Metrics:
    """All numbers of one service. Stops add to the attributes; owners of state `watch` their gauges."""

    def __init__(self) -> None:
        self.requests = Counts("requests", "HTTP requests.", "route", "status")
        self.request_seconds = Histograms("request_seconds", "Time in the handler.", LATENCY_BOUNDS, "route")
        self.tx = Counts("tx", "Transactions scored, by outcome.", "outcome")
        self.tx_scored = Counts("tx_scored", "Transactions scored, by engine.", "scorer")
        self.tx_degraded = Counts("tx_degraded", "Transactions decided though a tier could not be asked.", "tier")
        self.replayed = Counts("tx_replayed", "Transactions answered from their stored decision.")
        self.twins = Counts("tx_twins", "Transactions sent again while they were being scored.")
        self.out_of_time = Counts("tx_out_of_time", "Transactions refused for their ts: old|future.", "side")
        self.refused = Counts("refused", "Transactions and requests refused, by problem code.", "reason")
        self.labels = Counts("labels", "Labels received: applied|unchanged|unknown_event.", "result")
        self.journal_refused = Counts("journal_refused", "Appends refused: bytes_max|disk_full|failed.", "reason")
        self.batch_failed = Counts("batch_failed", "Micro-batches taken back: scoring or the append failed.")
        self.batch_rows = Histograms("batch_rows", "Transactions per micro-batch.", ROWS_BOUNDS)
        self.batch_waves = Histograms("batch_waves", "Waves per micro-batch.", WAVES_BOUNDS)
        self.batch_seconds = Histograms("batch_seconds", "Time of one micro-batch, by stop.", LATENCY_BOUNDS, "stop")
        self.score_seconds = Histograms(
            "score_seconds", "Time of scoring one micro-batch, by engine.", LATENCY_BOUNDS, "scorer"
        )
        self.tier_lookups = Counts("tier_lookups", "Profiles asked of a tier: hit|miss|unavailable.", "tier", "result")
        self.tier_seconds = Histograms("tier_read_seconds", "One round trip to a tier.", LATENCY_BOUNDS, "tier")
        self.tier_failures = Counts("tier_failures", "Calls of a tier that failed and opened its breaker.", "tier")
        self.l1_seconds = Histograms("l1_lookup_seconds", "One look-up in L1, sampled by shadow reads.", L1_BOUNDS)
        self.unknown = Counts("profiles_unknown", "Profiles that no tier could be asked for, begun as partial.")
        self.bloom = Counts("bloom", "Bloom answers: negative|positive|false_positive.", "filter", "result")
        self.evictions = Counts("l1_evictions", "Profiles evicted from L1.", "kind")
        self.late_dropped = Counts("late_dropped", "Events too late for their tile, by ring.", "ring")
        self.written = Counts("write_behind_written", "Profiles written to a tier by write-behind.", "consumer")
        self.write_seconds = Histograms(
            "write_behind_seconds", "One write to a consumer of the journal.", LATENCY_BOUNDS, "consumer"
        )
        self.sync_seconds = Histograms("journal_sync_seconds", "One fsync of the journal.", LATENCY_BOUNDS)
        self.shadow = Counts("shadow", "Shadow reads of a tier: same|behind|absent|mismatch|lost|ahead.", "tier", "result")
        self.shadow_behind = Histograms("shadow_behind_entries", "Journal entries it was behind.", BEHIND_BOUNDS, "tier")
        self.infer = Counts("infer", "Inferences under /v2: ok|problem code.", "model", "result")
        self.infer_seconds = Histograms("infer_seconds", "Time of one inference, its body included.", LATENCY_BOUNDS, "model")
        self.reasons_left = Counts("reasons_left", "Transactions that were not explained: decide.reasons_rows_max.")
        self.watch_dropped = Counts("watch_dropped", "Sampled transactions that nobody looked at.", "use")
        self.vector_log = Counts("vector_log", "Vectors logged for the skew check: written|failed.", "result")
        self.traces = Counts("traces", "Requests traced, and left out for otel.traces_per_s_max: traced|left_out.", "result")
        self.loop_lag = Histograms("loop_lag_seconds", "How late the event loop woke a timer.", LATENCY_BOUNDS)
        for outcome in ("approve", "review", "decline"):  # series that exist from the start: rate() needs the zero
            self.tx[outcome,] = 0
        self.traces["traced",] = self.traces["left_out",] = 0
        self.families = [value for value in vars(self).values() if isinstance(value, Counts | Histograms)]
        self.before_scrape: Callable[[], None] = lambda: None
        self._gauges: dict[str, Callable[[], Gauge]] = {}
        self._process = ProcessCollector(registry=None)

    def watch(self, gauge: str, read: Callable[[], Gauge]) -> None:
        """Have `read` called at every scrape for one of GAUGES: a number, or label value -> number."""
        assert gauge in GAUGES, gauge
        self._gauges[gauge] = read

    def render(self) -> bytes:
        """The text of /metrics (content type: CONTENT_TYPE), in one go: 10 ms with 900 series."""
        return b"".join(self._texts())

    async def render_in_turns(self) -> bytes:
        """The same with the loop given back after every TURN_S, so that no request waits for all of it."""
        parts: list[bytes] = []
        due = time.perf_counter() + TURN_S
        for text in self._texts():
            parts.append(text)
            if time.perf_counter() > due:
                await asyncio.sleep(0)
                due = time.perf_counter() + TURN_S
        return b"".join(parts)

    def process_families(self) -> Iterable[Metric]:
        """What the operating system says of the process."""
        return self._process.collect()

    def _texts(self) -> Iterator[bytes]:
        self.before_scrape()
        for family in self.families:
            for number, piece in enumerate(family.pieces()):
                text = generate_latest(_One(piece))
                yield text if number == 0 else _HEAD.sub(b"", text)
        for gauge, read in self._gauges.items():
            yield generate_latest(_One(_gauge_family(gauge, read())))
        for metric in self.process_families():
            yield generate_latest(_One(metric))


class _One(Collector):
    """A single family, as the exposition wants it."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _gauge_family(gauge: str, value: Gauge) -> Metric:
    text, labels = GAUGES[gauge]
    numbers: Mapping[Any, float] = value if isinstance(value, Mapping) else {(): value}
    family = GaugeMetricFamily(f"weir_{gauge}", text, labels=labels.split(",") if labels else None)
    for key, number in numbers.items():
        family.add_metric([key] if isinstance(key, str) else list(key), number)
    return family
