"""Histograms, counts and the clock of a run."""

import numpy as np
import pytest

from loadgen.recorder import Latencies, Recorder, Words, percentile_curve, summarise
from models.machine import machine


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def latencies(values: list[int]) -> Latencies:
    filled = Latencies()
    for value in values:
        filled.add(value)
    return filled


def test_summarise_merged_clients_agree_with_numpy_within_a_thousandth() -> None:
    """Percentiles over the merged histograms of several clients are those of all values, within 3 digits."""
    values = np.random.default_rng(5).lognormal(7, 1.2, 30_000).astype(int)
    summary = summarise(Latencies.merged([latencies(part.tolist()) for part in np.array_split(values, 4)]))
    assert summary.n == 30_000
    for name, quantile in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99_9", 0.999)):
        exact = np.quantile(values, quantile, method="inverted_cdf")
        assert getattr(summary, name) == pytest.approx(exact, rel=0.002)
    assert summary.max == values.max()
    assert summary.mean == pytest.approx(values.mean(), rel=0.002)


def test_summarise_nothing_is_all_zero() -> None:
    """No value, no failure: zeros."""
    summary = summarise(Latencies.merged([Latencies(), Latencies()]))
    assert (summary.n, summary.p50, summary.max) == (0, 0, 0)
    assert percentile_curve(Latencies.merged([])) == []


def test_latencies_beyond_the_range_are_kept_at_its_ends() -> None:
    """A negative value (clock step) counts as 0, one above an hour as an hour: none is lost."""
    summary = summarise(latencies([-5, 10, 10**12]).histogram())
    assert summary.n == 3
    assert summary.max == 3_600_000_000


def test_percentile_curve_rises_to_what_the_count_supports() -> None:
    """The curve runs from the median to 1 - 1/n and never falls."""
    curve = percentile_curve(latencies(list(range(1, 1001))).histogram())
    assert curve[0][0] == pytest.approx(2)
    assert curve[-1][0] == pytest.approx(1000)
    assert [us for _, us in curve] == sorted(us for _, us in curve)
    assert curve[0][1] == pytest.approx(500, rel=0.01)


def test_words_number_by_first_use() -> None:
    """Known words keep their code, new ones get the next."""
    words = Words("approve")
    assert [words.code(word) for word in ("approve", "hold", "approve", "hold")] == [0, 1, 0, 1]
    assert words.words == ["approve", "hold"]


def test_recorder_counts_outcomes_degradations_and_errors() -> None:
    """Rows are scored or failed; errors are counted by kind with the first example, most frequent first."""
    recorder = Recorder(5, 1)
    recorder.scored(0, 0.25, "approve", 11, False, "", 100)
    recorder.scored(1, 0.75, "review", 12, True, "redis", 200)
    recorder.failed(1, "409", "first conflict")
    recorder.failed(2, "422", "first bad field")
    recorder.failed(0, "422", "second bad field")
    assert recorder.outcome_counts() == {"approve": 1, "review": 1}
    assert recorder.degraded_counts() == {"redis": 1}
    assert [(e.kind, e.count, e.example) for e in recorder.errors()] == [
        ("422", 2, "first bad field"),
        ("409", 1, "first conflict"),
    ]
    assert (recorder.n_scored, recorder.n_failed) == (2, 3)
    assert recorder.replayed.tolist() == [False, True, False, False, False]
    assert recorder.lsn.tolist() == [11, 12, 0, 0, 0]
    assert np.isnan(recorder.score[2])


def test_recorder_active_time_leaves_pauses_out() -> None:
    """Only time between mark(True) and mark(False) counts, and throughput is binned in it."""
    clock = FakeClock()
    recorder = Recorder(10, 1, clock)
    clock.now += 50
    recorder.mark(active=True)
    recorder.mark(active=True)
    clock.now += 2.5
    recorder.answered(3, "m")
    recorder.mark(active=False)
    clock.now += 70
    recorder.mark(active=True)
    clock.now += 1
    recorder.answered(4, "m")
    assert recorder.active_s() == pytest.approx(3.5)
    assert dict(recorder.per_second) == {2: 3, 3: 4}
    assert recorder.models == {"m": 7}


def test_machine_names_what_it_runs_on() -> None:
    """Processor, cores and versions are known."""
    facts = machine()
    assert facts.cpu
    assert facts.cores >= 1
    assert "numpy" in facts.versions
