"""What a card remembers of the training rows: a reference vector, golden inputs with their scores, how values were spread.

Explanations ask what a value changes against `reference`; a loaded model is asked for `golden` again; the live stream is held
against `population`. Deterministic: the same rows and scores give the same card.
"""

import numpy as np
from numpy.typing import NDArray

from models.card import Golden, Population

GOLDEN_ROWS = 16
BINS = 10  # of equal share where a feature's values allow it; a stability index over ten bins is the custom

Float32s = NDArray[np.float32]


def reference_vector(vectors: Float32s, frauds: NDArray[np.int8]) -> list[float]:
    """The median of every feature over the legit rows, float32 exactly. A value that occurred: no mean of two."""
    legit = vectors[frauds == 0]
    middle = np.sort(legit, axis=0)[(len(legit) - 1) // 2]
    return [float(value) for value in middle]


def golden_rows(vectors: Float32s, risk: Float32s) -> Golden:
    """GOLDEN_ROWS rows (fewer if there are fewer) from the lowest score to the highest, evenly by rank."""
    order = np.argsort(risk, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, GOLDEN_ROWS).round().astype(np.int64))]
    return Golden(vectors[chosen].astype(np.float64).tolist(), risk[chosen].astype(np.float64).tolist())


def population_of(vectors: Float32s, risk: Float32s) -> Population:
    """Edges at the deciles of each feature and of the score, each once, and the share of rows in every bin."""
    pairs = [_spread(column) for column in vectors.T]
    score_edges, score_shares = _spread(risk)
    return Population([edges for edges, _ in pairs], [shares for _, shares in pairs], score_edges, score_shares)


def _spread(values: Float32s) -> tuple[list[float], list[float]]:
    """Inner edges that occurred (an edge begins its bin), without those that would leave the first bin empty."""
    ordered = np.sort(values)
    places = len(ordered) * np.arange(1, BINS) // BINS
    edges = np.unique(ordered[places])
    edges = edges[edges > ordered[0]]
    if not len(edges) and ordered[-1] > ordered[0]:
        edges = np.array([ordered[ordered > ordered[0]][0]])  # nine tenths are one value: what is above it is the other bin
    counts = np.bincount(np.searchsorted(edges, ordered, side="right"), minlength=len(edges) + 1)
    return [float(edge) for edge in edges], [float(share) for share in counts / len(ordered)]
