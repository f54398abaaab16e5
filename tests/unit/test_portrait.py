"""What a card remembers of the training rows can be trusted by whoever loads it."""

import numpy as np
import pytest

from models.portrait import golden_rows, population_of, reference_vector

RANDOM = np.random.default_rng(7)
VECTORS = RANDOM.normal(size=(1000, 3)).astype(np.float32)
VECTORS[:, 1] = (RANDOM.random(1000) < 0.03).astype(np.float32)  # a rare flag: fewer ones than a tenth
VECTORS[:, 2] = 4  # never varies
RISK = RANDOM.random(1000).astype(np.float32)


def test_population_shares_count_the_rows_as_a_reader_bins_them() -> None:
    """Binning the rows by the card's edges gives the card's shares, which sum to 1."""
    found = population_of(VECTORS, RISK)
    for values, edges, shares in zip(VECTORS.T, found.edges, found.shares, strict=True):
        bins = np.searchsorted(edges, values, side="right")
        assert np.bincount(bins, minlength=len(edges) + 1).tolist() == [round(share * 1000) for share in shares]
        assert sum(shares) == pytest.approx(1.0)
    assert [round(share, 6) for share in found.score_shares] == [0.1] * 10


def test_population_rare_flag_has_two_bins_a_constant_one() -> None:
    """A flag that is set in 3 % is told apart from one that never is."""
    found = population_of(VECTORS, RISK)
    assert found.edges[1] == [1.0]
    assert found.shares[1][1] == pytest.approx(VECTORS[:, 1].mean())
    assert (found.edges[2], found.shares[2]) == ([], [1.0])


def test_population_of_one_row_has_one_bin() -> None:
    """The smallest population there is."""
    found = population_of(VECTORS[:1], RISK[:1])
    assert (found.edges, found.score_shares) == ([[], [], []], [1.0])


def test_reference_is_the_median_of_legit_rows_alone() -> None:
    """Frauds do not pull the reference, and each of its values occurred."""
    frauds = np.zeros(1000, np.int8)
    frauds[:400] = 1
    wild = VECTORS.copy()
    wild[:400] = 1e6
    reference = reference_vector(wild, frauds)
    assert reference == reference_vector(VECTORS[400:], frauds[400:])
    assert np.float32(reference[0]) in VECTORS[400:, 0]


def test_golden_rows_span_the_scores_and_round_trip() -> None:
    """16 rows from the lowest to the highest score; float32 values survive the card's decimal numbers."""
    golden = golden_rows(VECTORS, RISK)
    assert len(golden.inputs) == len(golden.scores) == 16
    assert (golden.scores[0], golden.scores[-1]) == (RISK.min(), RISK.max())
    place = int(np.flatnonzero(np.float32(golden.scores[7]) == RISK)[0])
    assert np.array_equal(np.array(golden.inputs[7], np.float32), VECTORS[place])


def test_golden_rows_of_few_rows_are_all_of_them() -> None:
    """Fewer rows than asked for are taken once each."""
    assert len(golden_rows(VECTORS[:5], RISK[:5]).scores) == 5
