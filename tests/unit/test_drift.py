"""Population stability: none for the training rows themselves, large for a stream that moved, silent on few rows."""

import numpy as np
import pytest

from models.drift import ROWS_MIN, SCORE, WINDOW_CHUNKS, Drift
from models.portrait import population_of

DRAW = np.random.default_rng(5)
ROWS = DRAW.normal(size=(20_000, 2)).astype(np.float32)
SCORES = DRAW.uniform(size=20_000).astype(np.float32)
POPULATION = population_of(ROWS, SCORES)


@pytest.fixture
def drift() -> Drift:
    return Drift(["a", "b"], POPULATION)


def test_stability_of_the_training_rows_is_none(drift: Drift) -> None:
    """The same rows again are stable to the last digits; every feature and the score have a figure."""
    for at in range(0, 10_000, 250):
        drift.add(ROWS[at : at + 250], SCORES[at : at + 250])
    found = drift.stability()
    assert set(found) == {"a", "b", SCORE}
    assert all(0 <= psi < 0.01 for psi in found.values())


def test_stability_of_a_moved_feature_is_large_and_of_it_alone(drift: Drift) -> None:
    """One feature that moved by a standard deviation is above 0.25, the others stay below 0.1."""
    moved = ROWS[:4000] + np.array([1.0, 0.0], dtype=np.float32)
    drift.add(moved, SCORES[:4000])
    found = drift.stability()
    assert found["a"] > 0.25
    assert max(found["b"], found[SCORE]) < 0.1


def test_stability_by_hand() -> None:
    """Two bins of 50 %, of which 80 and 20 % are seen: (0.3) ln(1.6) - (0.3) ln(0.4)."""
    flat = np.linspace(0, 1, 2000, dtype=np.float32)
    drift = Drift(["a"], population_of(np.repeat([[0.0], [1.0]], 1000, axis=0).astype(np.float32), flat))
    values = np.repeat([[0.0], [1.0]], [800, 200], axis=0).astype(np.float32)
    drift.add(values, flat[::2])
    assert drift.stability()["a"] == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4))


@pytest.mark.parametrize(("n_rows", "speaks"), [(ROWS_MIN - 1, False), (ROWS_MIN, True), (ROWS_MIN + 1, True)])
def test_stability_needs_rows(drift: Drift, n_rows: int, speaks: bool) -> None:
    """Below ROWS_MIN rows there is no figure, but the page has the counts."""
    drift.add(ROWS[:n_rows], SCORES[:n_rows])
    assert bool(drift.stability()) == speaks
    shown = drift.describe()
    assert shown["rows"] == n_rows
    assert (shown["score"]["psi"] is not None) == speaks
    assert sum(shown["features"]["a"]["actual"]) == pytest.approx(1, abs=1e-3)


def test_window_forgets_old_rows(drift: Drift) -> None:
    """A shift shows at once, and is gone once the window holds none of its rows."""
    drift.add(ROWS[:ROWS_MIN] + 5, SCORES[:ROWS_MIN])
    assert drift.stability()["a"] > 1
    for _ in range(WINDOW_CHUNKS):
        drift.add(ROWS[:ROWS_MIN], SCORES[:ROWS_MIN])
    assert drift.stability()["a"] < 0.05
    assert drift.n_rows == WINDOW_CHUNKS * ROWS_MIN
