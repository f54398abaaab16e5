"""Log odds to probabilities."""

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression


def platt(logits: NDArray[np.float32], frauds: NDArray[np.int8]) -> tuple[float, float]:
    """Slope and shift that make the logits' sigmoid a probability on validation (Platt 1999); the order is kept."""
    fitted = LogisticRegression(C=1e6).fit(logits[:, None].astype(np.float64), frauds)
    slope, shift = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return (slope, shift) if slope > 0 else (1.0, 0.0)
