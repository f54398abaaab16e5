"""What `weir train` can fit: the network, gradient boosting, a random forest. Each comes out as ONNX that scorers run."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np

from models.calibrate import platt
from models.fit_network import fit_network
from models.fit_trees import fit_boosting, fit_forest
from models.graph import build_graph, build_tree_graph
from models.onnx_session import open_session
from models.rows import Float32s, Rows, join

NETWORK: Final = "network"
BOOSTING: Final = "boosting"
FOREST: Final = "forest"
SHORT_NAMES: Final = {NETWORK: "mlp", BOOSTING: "boosting", FOREST: "forest"}  # as a model's name ends
ROWS_PER_CALL = 8192  # bounds the activations: 8192 x 256 float32 are 8 MiB

Progress = Callable[[str, int, int], None]  # step, done, total


class Fitted(msgspec.Struct, frozen=True):
    """The model; the risk float32 (n,) that validation rows got from one that had not seen them; what was learned."""

    model: bytes
    validation_risk: Float32s
    n_parameters: int


def fit_estimator(
    name: str, fit: Rows, validation: Rows, seed: int, metadata: Mapping[str, str], progress: Progress | None
) -> Fitted:
    """Fit, calibrate on validation, write as ONNX. The same rows and seed give the same bytes on one machine."""
    if name == NETWORK:
        network = fit_network(fit, validation, seed, progress)
        model = build_graph(network, metadata)
        return Fitted(model, infer(model, validation.vectors), network.n_parameters)
    width, everything = fit.vectors.shape[1], join(fit, validation)
    if name == FOREST:
        first = build_tree_graph(fit_forest(fit, seed, progress), width, None, metadata)
        trees = fit_forest(everything, seed, progress, "fit on all rows")
        return Fitted(build_tree_graph(trees, width, None, metadata), infer(first, validation.vectors), trees.n_parameters)
    assert name == BOOSTING, name
    trees = fit_boosting(fit, seed, progress)
    calibration = platt(trees.values(validation.vectors), validation.frauds)
    first = build_tree_graph(trees, width, calibration, metadata)
    trees = fit_boosting(everything, seed, progress, "fit on all rows")
    model = build_tree_graph(trees, width, calibration, metadata)
    return Fitted(model, infer(first, validation.vectors), trees.n_parameters)


def infer(model: bytes, vectors: Float32s) -> Float32s:
    """Risk float32 (n,) of vectors (n, n_features) by the runtime that serves the model."""
    session = open_session(model, "the model just fitted")
    parts = [
        session.run(["risk"], {"features": vectors[at : at + ROWS_PER_CALL]})[0] for at in range(0, len(vectors), ROWS_PER_CALL)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])
