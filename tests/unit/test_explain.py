"""Reasons by ablation: a feature weighs what the log-odds lose when it alone is put back to its usual value."""

import numpy as np
import numpy.typing as npt
import pytest

from features.plan import compile_plan
from features.spec import load_spec
from gocore.locate import missing_core
from models.card import ARTIFACTS, MODEL_FILE, load_card
from models.explain import WEIGHT_MIN, strongest, weigh
from models.scorers import open_scorer

Float32s = npt.NDArray[np.float32]
COEFFICIENTS = np.array([2.0, -1.0, 0.0], dtype=np.float32)


def linear(vectors: Float32s) -> Float32s:
    """A model whose log-odds are linear: its weights are known."""
    risk: Float32s = (1 / (1 + np.exp(-(vectors @ COEFFICIENTS)))).astype(np.float32)
    return risk


def test_weigh_linear_model_gives_its_coefficients() -> None:
    """Of a linear model, weight = coefficient * (value - usual)."""
    vectors = np.array([[1.0, 1.0, 9.0], [0.5, -2.0, 0.0]], dtype=np.float32)
    reference = np.array([0.0, 0.5, 0.0], dtype=np.float32)
    weights = weigh(vectors, linear(vectors), reference, linear)
    assert np.allclose(weights, (vectors - reference) * COEFFICIENTS, atol=1e-4)


def test_weigh_asks_the_model_once() -> None:
    """However many rows there are, it is one call, of rows times features rows."""
    asked: list[tuple[int, ...]] = []

    def counting(vectors: Float32s) -> Float32s:
        asked.append(vectors.shape)
        return linear(vectors)

    vectors = np.ones((5, 3), dtype=np.float32)
    weigh(vectors, linear(vectors), np.zeros(3, dtype=np.float32), counting)
    assert asked == [(15, 3)]


def test_strongest_leaves_out_what_lowers_or_hardly_raises() -> None:
    """Ordered by weight, equal ones by place; below WEIGHT_MIN nothing is a reason."""
    weights = np.array([0.5, -3.0, WEIGHT_MIN, 2.0, 0.5, WEIGHT_MIN / 2])
    assert strongest(weights, 10) == [3, 0, 4, 2]
    assert strongest(weights, 2) == [3, 0]
    assert strongest(weights, 0) == []


def test_weigh_both_engines_name_the_same_features() -> None:
    """Over 200 random vectors around the reference, onnx and go give the same reasons in the same order."""
    if reason := missing_core():
        pytest.skip(reason)
    plan = compile_plan(load_spec("cards"))
    card = load_card(ARTIFACTS / "cards")
    assert card.golden is not None
    reference = np.array(card.reference, dtype=np.float32)
    draw = np.random.default_rng(3)
    inputs = np.array(card.golden.inputs, dtype=np.float32)
    chosen = inputs[draw.integers(0, len(inputs), 200)]
    vectors = (chosen * draw.uniform(0.5, 1.5, (200, 1))).astype(np.float32)
    found = []
    for name in ("onnx", "go"):
        scorer = open_scorer(name, plan, ARTIFACTS / "cards" / MODEL_FILE)
        weights = weigh(vectors, scorer.infer(vectors), reference, scorer.infer)
        found.append([strongest(row, 3) for row in weights])
    assert found[0] == found[1]
    assert sum(map(len, found[0])) > 100
