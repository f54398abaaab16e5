"""Fits trees: gradient boosting, and a random forest with the settings of the Fraud Detection Handbook's baseline.

Both are fitted twice: on the fit rows, to be calibrated and given thresholds on validation, then on all rows, as what is
calibrated is the method, and the latest rows are the ones most like those to come. Settings tried: docs/results/handbook.md.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from models.rows import Float32s, Rows, sample_legit
from models.trees import Trees

ITERATIONS = 300
STEP = 60  # iterations between two signs of progress; each step bins the rows again
LEARNING_RATE = 0.04
LEAVES_MAX = 15
LEAF_ROWS_MIN = 50
L2 = 5.0
FEATURES_SHARE = 0.5  # drawn anew for each split
LEGIT_PER_FRAUD = 24
FOREST_TREES = 100  # scikit-learn's default, as in the book
FOREST_STEP = 10

Progress = Callable[[str, int, int], None]  # step, done, total


def fit_boosting(rows: Rows, seed: int, progress: Progress | None, what: str = "fit") -> Trees:
    """Log odds, those of the whole stream."""
    sample = sample_legit(rows, LEGIT_PER_FRAUD, np.random.RandomState(seed))
    model = HistGradientBoostingClassifier(
        max_iter=STEP, learning_rate=LEARNING_RATE, max_leaf_nodes=LEAVES_MAX, min_samples_leaf=LEAF_ROWS_MIN,
        l2_regularization=L2, max_features=FEATURES_SHARE, early_stopping=False, warm_start=True, random_state=seed,
    )  # fmt: skip
    for done in range(STEP, ITERATIONS + 1, STEP):
        model.set_params(max_iter=done).fit(sample.rows.vectors, sample.rows.frauds)
        if progress is not None:
            progress(what, done, ITERATIONS)
    # Private, as scikit-learn shows a boosted tree nowhere else; the test compares every score.
    nodes = [_boosted(predictors[0].nodes) for predictors in model._predictors]
    return _joined(nodes, float(model._baseline_prediction.ravel()[0]) + sample.shift)


def fit_forest(rows: Rows, seed: int, progress: Progress | None, what: str = "fit") -> Trees:
    """The share of frauds in the leaves, averaged over the trees: a probability already."""
    model = RandomForestClassifier(FOREST_STEP, warm_start=True, random_state=seed, n_jobs=-1)
    for done in range(FOREST_STEP, FOREST_TREES + 1, FOREST_STEP):
        model.set_params(n_estimators=done).fit(rows.vectors, rows.frauds)
        if progress is not None:
            progress(what, done, FOREST_TREES)
    fraud = list(model.classes_).index(1)
    return _joined([_grown(tree.tree_, fraud) for tree in model.estimators_], 0.0)


def _boosted(nodes: Any) -> Trees:
    is_leaf = nodes["is_leaf"].astype(bool)
    return Trees(
        feature=np.where(is_leaf, -1, nodes["feature_idx"]).astype(np.int64),
        threshold=_floor32(nodes["num_threshold"]),
        left=nodes["left"].astype(np.int64),
        right=nodes["right"].astype(np.int64),
        value=np.where(is_leaf, nodes["value"], 0).astype(np.float32),
        starts=np.zeros(1, np.int64),
        base=0.0,
    )


def _grown(tree: Any, fraud: int) -> Trees:
    is_leaf = tree.children_left < 0
    shares = tree.value[:, 0, fraud] / tree.value[:, 0, :].sum(axis=1) / FOREST_TREES
    return Trees(
        feature=np.where(is_leaf, -1, tree.feature).astype(np.int64),
        threshold=_floor32(tree.threshold),
        left=tree.children_left.astype(np.int64),
        right=tree.children_right.astype(np.int64),
        value=np.where(is_leaf, shares, 0).astype(np.float32),
        starts=np.zeros(1, np.int64),
        base=0.0,
    )


def _floor32(thresholds: NDArray[np.float64]) -> Float32s:
    """The largest float32 not above each: for a float32 x, x <= threshold stays what it was."""
    rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def _joined(trees: list[Trees], base: float) -> Trees:
    starts = np.cumsum([0] + [len(tree.feature) for tree in trees[:-1]])
    parts = {
        name: np.concatenate([getattr(t, name) for t in trees]) for name in ("feature", "threshold", "left", "right", "value")
    }
    return Trees(**parts, starts=starts, base=base)
