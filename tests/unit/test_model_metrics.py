"""Figures of merit against scikit-learn and against a plain reading of the published definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from models.metrics import auc, average_precision, card_precision_at, quality, threshold_at_precision

DAY_MS = 86_400_000
# Few distinct scores: most pairs are ties.
ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=2, max_size=60).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


@given(ROWS)
def test_auc_random_ties_equals_scikit_learn(rows: list[tuple[int, int]]) -> None:
    """The area under the ROC curve is scikit-learn's, ties included."""
    scores, labels = np.array(rows).T
    assert auc(scores / 7, labels) == pytest.approx(roc_auc_score(labels, scores / 7), abs=1e-12)


@given(ROWS)
def test_average_precision_random_ties_equals_scikit_learn(rows: list[tuple[int, int]]) -> None:
    """Average precision is scikit-learn's, ties included."""
    scores, labels = np.array(rows).T
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=80),
    st.integers(1, 4),
)
@settings(max_examples=200)
def test_card_precision_at_random_days_equals_the_definition(rows: list[tuple[int, int, int, int]], k: int) -> None:
    """Day by day: highest score per card, the k highest checked, those defrauded counted and gone the next day."""
    scores = np.array([score for score, _, _, _ in rows])
    labels = np.array([label for _, label, _, _ in rows])
    ts = np.array([day * DAY_MS + 5 for _, _, day, _ in rows])
    cards = [f"c{card}" for _, _, _, card in rows]
    gone: set[str] = set()
    shares = []
    for day in sorted({day for _, _, day, _ in rows}):
        best: dict[str, int] = {}
        defrauded = set()
        for score, label, at, number in rows:
            card = f"c{number}"
            if at != day or card in gone:
                continue
            best[card] = max(best.get(card, -1), score)
            if label:
                defrauded.add(card)
        checked = sorted(best, key=lambda card: (-best[card], card))[:k]
        found = defrauded.intersection(checked)
        gone |= found
        shares.append(len(found) / k)
    assert card_precision_at(scores, labels, ts, cards, k) == pytest.approx(np.mean(shares))


def test_card_precision_at_found_card_does_not_count_again() -> None:
    """A card found on Monday is blocked: its fraud on Tuesday brings nothing, the next card moves up."""
    scores, labels = [0.9, 0.1, 0.9, 0.1], [1, 0, 1, 1]
    ts = [0, 0, DAY_MS, DAY_MS]
    cards = ["a", "b", "a", "b"]
    assert card_precision_at(scores, labels, ts, cards, k=1) == 1.0
    assert card_precision_at(scores, labels, ts, cards, k=2) == 0.5


def test_metrics_perfect_and_reversed_scores() -> None:
    """A perfect order is 1, its reverse is 0, all ties are one half."""
    labels = [0, 0, 1, 1]
    assert auc([1, 2, 3, 4], labels) == 1.0
    assert auc([4, 3, 2, 1], labels) == 0.0
    assert auc([1, 1, 1, 1], labels) == 0.5
    assert average_precision([1, 2, 3, 4], labels) == 1.0


def test_metrics_one_class_is_nan() -> None:
    """Without frauds, or without rows, a figure is not defined."""
    assert math.isnan(auc([1, 2], [0, 0]))
    assert math.isnan(average_precision([1, 2], [0, 0]))
    assert math.isnan(auc([], []))
    assert math.isnan(card_precision_at([], [], [], []))


def test_quality_drops_unknown_labels() -> None:
    """Rows without a known label count nowhere."""
    got = quality([0.9, 0.2, 0.99], [1, 0, -1], [0, 0, 0], ["a", "b", "c"])
    assert (got.n_rows, got.n_frauds, got.auc, got.average_precision) == (2, 1, 1.0, 1.0)
    assert got.card_precision_at_100 == 0.01


def test_threshold_at_precision_lowest_that_holds() -> None:
    """The lowest score at which precision still holds, over enough rows; None if there is none."""
    scores, labels = [0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 0, 1, 0]
    assert threshold_at_precision(scores, labels, 0.75, n_min=1) == 0.6
    assert threshold_at_precision(scores, labels, 0.76, n_min=1) == 0.8
    assert threshold_at_precision(scores, labels, 0.76, n_min=3) is None
    assert threshold_at_precision([], [], 0.5, n_min=1) is None
