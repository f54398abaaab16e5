"""How good a score is: ROC AUC, average precision, card precision at k. numpy only, for the service's path has no scikit-learn.

`labels` holds 1 for fraud and 0 for legit; rows with other labels must be dropped first (`known`). Ties are handled as
scikit-learn does. A metric that is not defined (only one class) is nan.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

DAY_MS = 86_400_000
CARDS_CHECKED = 100  # what the Fraud Detection Handbook assumes its analysts can look at in a day


class Quality(msgspec.Struct, frozen=True):
    """The figures of one set of scored rows with known labels."""

    n_rows: int
    n_frauds: int
    auc: float
    average_precision: float
    card_precision_at_100: float


def quality(scores: ArrayLike, labels: ArrayLike, ts: ArrayLike, card_ids: Sequence[str]) -> Quality:
    """All figures over the rows whose label is known (0 or 1)."""
    label = np.asarray(labels)
    known = (label == 0) | (label == 1)
    score, label, time = np.asarray(scores, np.float64)[known], label[known], np.asarray(ts, np.int64)[known]
    cards = np.asarray(card_ids, dtype=object)[known]
    n_frauds = int(label.sum())
    precision = card_precision_at(score, label, time, cards.tolist())
    return Quality(len(label), n_frauds, auc(score, label), average_precision(score, label), precision)


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a fraud scores above a legit row, ties count half (Mann-Whitney)."""
    score, label = np.asarray(scores, np.float64), np.asarray(labels)
    n_frauds = int((label == 1).sum())
    n_legit = len(label) - n_frauds
    if n_frauds == 0 or n_legit == 0:
        return float("nan")
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    rank = (last - (count - 1) / 2.0)[place]  # mean rank of each group of ties, from 1
    return float((rank[label == 1].sum() - n_frauds * (n_frauds + 1) / 2.0) / (n_frauds * n_legit))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Sum over thresholds of (recall step) x precision, without interpolation; ties share one threshold."""
    score, label = np.asarray(scores, np.float64), np.asarray(labels)
    n_frauds = int((label == 1).sum())
    if n_frauds == 0:
        return float("nan")
    found, flagged, _ = _by_threshold(score, label)
    steps = np.diff(found, prepend=0) / n_frauds
    return float((steps * found / flagged).sum())


def card_precision_at(
    scores: ArrayLike, labels: ArrayLike, ts: ArrayLike, card_ids: Sequence[str], k: int = CARDS_CHECKED
) -> float:
    """Mean over days (UTC) of the share of truly defrauded cards among the k with the highest score of that day.

    A card's score of a day is the highest of its transactions; it is defrauded if one of them is a fraud. A card found
    is blocked: it no longer counts on the following days. Always divided by k, as the Fraud Detection Handbook does
    (section "Performance metrics / top-k"), even if a day has fewer cards. Equal scores: order of the card ids.
    """
    score, label = np.asarray(scores, np.float64), np.asarray(labels)
    days = np.asarray(ts, np.int64) // DAY_MS
    if len(days) == 0:
        return float("nan")
    names, card = np.unique(np.asarray(card_ids, dtype=str), return_inverse=True)
    found = np.zeros(len(names), bool)
    shares = []
    for day in np.unique(days):
        today = (days == day) & ~found[card]
        best = np.full(len(names), -np.inf)
        np.maximum.at(best, card[today], score[today])
        defrauded = np.zeros(len(names), bool)
        defrauded[card[today & (label == 1)]] = True
        checked = np.argsort(-best, kind="stable")[:k]
        checked = checked[best[checked] > -np.inf]
        hits = checked[defrauded[checked]]
        found[hits] = True
        shares.append(len(hits) / k)
    return float(np.mean(shares))


def threshold_at_precision(scores: ArrayLike, labels: ArrayLike, precision: float, n_min: int) -> float | None:
    """The lowest score from which on at least n_min rows have at least this precision; None if there is none."""
    found, flagged, cut = _by_threshold(np.asarray(scores, np.float64), np.asarray(labels))
    good = np.flatnonzero((found >= precision * flagged) & (flagged >= n_min))
    return float(cut[good[-1]]) if len(good) else None


def _by_threshold(
    score: NDArray[np.float64], label: NDArray[np.int8]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Per distinct score, from the highest: frauds and rows at or above it, and the score."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.zeros(0, np.int64)
    found = np.cumsum(label[order] == 1).astype(np.float64)[last]
    return found, (last + 1).astype(np.float64), ordered[last]
