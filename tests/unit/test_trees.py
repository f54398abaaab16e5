"""Boosted trees and forests keep every answer on their way from scikit-learn to ONNX, and both scorers give it."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from features.plan import Plan, compile_plan
from features.slab import Slab
from features.spec import load_spec
from gocore.locate import missing_core
from models import fit_trees
from models.arena import Arena
from models.estimators import infer
from models.fit_trees import fit_boosting, fit_forest
from models.go_scorer import GoScorer
from models.graph import build_tree_graph, run_graph
from models.onnx_scorer import OnnxScorer
from models.rows import Rows, join, sample_legit
from models.scorer import Scorer
from models.trees import Trees

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN: Plan = compile_plan(load_spec("handbook40"))
WIDTH = PLAN.n_features
RANDOM = np.random.default_rng(5)


def draw_rows(n: int) -> Rows:
    """Whole numbers and fractions, so that rows stand exactly on thresholds; frauds follow two features."""
    vectors = RANDOM.normal(size=(n, WIDTH)).astype(np.float32)
    vectors[:, ::2] = np.round(vectors[:, ::2] * 2) / 2
    odds = vectors[:, 0] + vectors[:, 1] * (vectors[:, 2] > 0) - 2
    return Rows(vectors, (RANDOM.random(n) < 1 / (1 + np.exp(-odds))).astype(np.int8))


@pytest.fixture(scope="module")
def rows() -> Rows:
    return draw_rows(3000)


@pytest.fixture(scope="module")
def boosted(rows: Rows) -> Trees:
    return fit_boosting(rows, 3, None)


@pytest.fixture(scope="module")
def forest(rows: Rows) -> Trees:
    return fit_forest(rows, 3, None)


def test_fit_boosting_trees_are_those_of_scikit_learn(rows: Rows, boosted: Trees) -> None:
    """The arrays give its log odds, also for rows that stand on a threshold, and for numbers out of all proportion."""
    model = HistGradientBoostingClassifier(
        max_iter=fit_trees.STEP, learning_rate=fit_trees.LEARNING_RATE, max_leaf_nodes=fit_trees.LEAVES_MAX,
        min_samples_leaf=fit_trees.LEAF_ROWS_MIN, l2_regularization=fit_trees.L2, max_features=fit_trees.FEATURES_SHARE,
        early_stopping=False, warm_start=True, random_state=3,
    )  # fmt: skip
    for done in range(fit_trees.STEP, fit_trees.ITERATIONS + 1, fit_trees.STEP):
        model.set_params(max_iter=done).fit(rows.vectors, rows.frauds)
    wild = np.concatenate([rows.vectors, rows.vectors[:50] * 1e30, np.zeros((1, WIDTH), np.float32)])
    assert np.abs(boosted.values(wild) - model.decision_function(wild)).max() < 1e-4
    assert boosted.n_parameters == len(boosted.value)


def test_fit_forest_trees_are_those_of_scikit_learn(rows: Rows, forest: Trees) -> None:
    """The mean share of frauds in the leaves; 100 trees of the default settings."""
    model = RandomForestClassifier(fit_trees.FOREST_STEP, warm_start=True, random_state=3)
    for done in range(fit_trees.FOREST_STEP, fit_trees.FOREST_TREES + 1, fit_trees.FOREST_STEP):
        model.set_params(n_estimators=done).fit(rows.vectors, rows.frauds)
    others = draw_rows(500).vectors
    assert np.abs(forest.values(others) - model.predict_proba(others)[:, 1]).max() < 1e-6


def test_build_tree_graph_onnxruntime_and_the_reference_agree(boosted: Trees, forest: Trees) -> None:
    """Onnx's own implementation, onnxruntime and the arrays give one answer, a risk in [0, 1]."""
    vectors = np.concatenate([draw_rows(300).vectors, np.full((1, WIDTH), 3e38, np.float32)])
    odds = build_tree_graph(boosted, WIDTH, (1.5, -0.25), {})
    share = build_tree_graph(forest, WIDTH, None, {})
    expected = 1 / (1 + np.exp(-(boosted.values(vectors) * 1.5 - 0.25)))
    for model, want in ((odds, expected), (share, np.clip(forest.values(vectors), 0, 1))):
        assert np.abs(infer(model, vectors) - want).max() < 1e-6
        assert np.abs(run_graph(model, vectors[:40]) - want[:40]).max() < 1e-6
        assert infer(model, vectors).min() >= 0
        assert infer(model, vectors).max() <= 1


@pytest.mark.skipif(missing_core() is not None, reason=missing_core() or "")
@pytest.mark.parametrize("kind", ["boosted", "forest"])
def test_tree_model_both_scorers_give_the_same_score(
    kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Over a stream of events, through profiles and features, within 1e-6."""
    trees: Trees = request.getfixturevalue(kind)
    path = tmp_path_factory.mktemp("trees") / "model.onnx"
    path.write_bytes(build_tree_graph(trees, WIDTH, (1.0, 0.0) if kind == "boosted" else None, {}))
    arenas = [Arena(PLAN, [Slab(k, 20) for k in PLAN.kinds], 64) for _ in range(2)]
    scorers: list[Scorer] = [OnnxScorer(PLAN, path), GoScorer(PLAN, path)]
    ts = 1_750_000_000_000
    for batch in range(20):
        slots = RANDOM.integers(0, 20, (64, 2))
        amounts = RANDOM.integers(0, 50_000, 64)
        for row in range(64):
            ts += int(RANDOM.integers(0, 4_000_000))
            columns = [ts, int(amounts[row]), -1, -1, -1, 1, 2, -1, -1, -1, -1]
            for arena in arenas:
                arena.put(row, batch * 64 + row + 1, slots[row].tolist(), columns)
        for scorer, arena in zip(scorers, arenas, strict=True):
            scorer.score(arena, 64)
        assert np.abs(arenas[0].risk - arenas[1].risk).max() < 1e-6
        assert np.array_equal(arenas[0].slabs[0].rows, arenas[1].slabs[0].rows)


def test_sample_legit_takes_back_what_it_left_out() -> None:
    """All frauds, twice as many legit rows, in order; the shift is the log of the share of legit rows taken."""
    frauds = np.zeros(1000, np.int8)
    frauds[::50] = 1
    rows = Rows(np.arange(1000, dtype=np.float32)[:, None], frauds)
    sample = sample_legit(rows, 2, np.random.RandomState(0))
    assert (len(sample.rows.frauds), int(sample.rows.frauds.sum())) == (60, 20)
    assert (np.diff(sample.rows.vectors[:, 0]) > 0).all()
    assert sample.shift == pytest.approx(np.log(40 / 980))
    everything = sample_legit(join(rows, rows), 1000, np.random.RandomState(0))
    assert (len(everything.rows.frauds), everything.shift) == (2000, 0.0)
