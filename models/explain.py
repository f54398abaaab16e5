"""Why a risk score is what it is: each feature in turn is put back to its usual value, and the model is asked again.

A feature's weight is how much the log-odds of fraud fall when it alone takes the value of the card's `reference` vector (the
median legit transaction). Ablation one at a time shares nothing out: of two features that say the same, each may weigh little
(docs/guides/models.md). All rows are asked in one call of the model, which costs what as many rows as features cost.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

WEIGHT_MIN = 0.1  # log-odds; engines agree within 1e-6 of risk, which is 0.01 of log-odds at RISK_MIN
RISK_MIN = 1e-4  # what is nearer to 0 or 1 counts as this: float32 has no digits for the odds there


def weigh(vectors: Float32s, risks: Float32s, reference: Float32s, infer: Callable[[Float32s], Float32s]) -> Float64s:
    """How much each feature raises each risk, in log-odds: float64 (rows, n_features).

    vectors: float32 (rows, n_features); risks: float32 (rows,), what the model gave for them; reference: float32 (n_features,).
    """
    n_rows, width = vectors.shape
    ablated = np.repeat(vectors, width, axis=0)
    ablated.reshape(n_rows, width, width)[:, np.arange(width), np.arange(width)] = reference
    usual = infer(ablated).reshape(n_rows, width)
    return _log_odds(risks)[:, None] - _log_odds(usual)


def strongest(weights: Float64s, n_max: int) -> Sequence[int]:
    """The features that raise the risk most, float64 (n_features,) -> at most `n_max` places, the strongest first."""
    order = np.argsort(-weights, kind="stable")[:n_max]
    return [int(place) for place in order if weights[place] >= WEIGHT_MIN]


def _log_odds(risks: Float32s) -> Float64s:
    clipped = np.clip(risks.astype(np.float64), RISK_MIN, 1 - RISK_MIN)
    odds: Float64s = np.log(clipped / (1 - clipped))
    return odds
