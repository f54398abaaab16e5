"""What is counted of batches: the same as one by one, whenever it is folded."""

import random
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from service.metrics import LATENCY_BOUNDS, Histogram
from service.tally import FOLD_BATCHES, BatchTally


def _batch(rng: random.Random, scorer: Any, **fields: Any) -> Any:
    times = [1000.0]
    for _ in range(3):
        times.append(times[-1] + rng.expovariate(1 / 1e-4))
    tickets = [SimpleNamespace(lookup_seconds=rng.expovariate(1e5)) for _ in range(rng.randint(1, 3))]
    made = {"times": times, "tickets": tickets, "n_rows": rng.randint(1, 300), "waves": rng.randint(0, 3), "degraded": {}}
    return SimpleNamespace(scorer=scorer, **(made | fields))


def test_folded_counts_are_those_of_one_by_one() -> None:
    """Rows, waves, seconds by stop and by engine are what single observations give, over folds and changes of the engine."""
    rng = random.Random(7)
    tally = BatchTally()
    engines = [cast(Any, SimpleNamespace(name=name)) for name in ("go", "onnx", "go")]
    seconds = {stop: Histogram(LATENCY_BOUNDS) for stop in tally.seconds}
    by_engine = {name: Histogram(LATENCY_BOUNDS) for name in ("go", "onnx")}
    n_rows, n_all = {"go": 0, "onnx": 0}, 3 * (FOLD_BATCHES + 5)
    for number in range(n_all):
        scorer = engines[number * 3 // n_all]
        batch = _batch(rng, scorer)
        tally.note(batch)
        seconds["lookup"].observe(sum(ticket.lookup_seconds for ticket in batch.tickets))
        for stop, at in (("score", 0), ("decide", 1), ("journal", 2)):
            seconds[stop].observe(batch.times[at + 1] - batch.times[at])
        by_engine[scorer.name].observe(batch.times[1] - batch.times[0])
        n_rows[scorer.name] += batch.n_rows
    tally.fold()
    assert {stop: h.counts for stop, h in tally.seconds.items()} == {stop: h.counts for stop, h in seconds.items()}
    for stop, histogram in seconds.items():
        assert tally.seconds[stop].total == pytest.approx(histogram.total)
    assert {name: scorer.seconds.counts for name, scorer in tally.scorers.items()} == {
        n: h.counts for n, h in by_engine.items()
    }
    assert {name: scorer.n_rows for name, scorer in tally.scorers.items()} == n_rows
    assert sum(tally.rows.counts) == n_all
    assert sum(tally.waves.counts) < n_all  # what an engine does not tell is not counted
    before = list(tally.rows.counts)
    tally.fold()
    assert tally.rows.counts == before


def test_degraded_transactions_are_counted_by_tier() -> None:
    """A transaction for which two tiers could not be asked counts for both."""
    tally, rng = BatchTally(), random.Random(1)
    tally.note(_batch(rng, SimpleNamespace(name="go"), degraded={0: ("redis",), 4: ("redis", "postgres")}))
    assert tally.degraded == {"redis": 2, "postgres": 1}


def test_value_at_a_bound_counts_below_it() -> None:
    """Both ways of observing agree where it matters: a bucket holds what is at most its bound."""
    one, many = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        one.observe(value)
    many.observe_all(np.array([0.5, 1.0, 1.5, 2.0, 2.5]))
    many.observe_all(np.array([]))
    assert one.counts == many.counts == [2, 2, 1]
    assert one.total == many.total
