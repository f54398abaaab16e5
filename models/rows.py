"""Rows to learn from, and what every estimator does with them."""

import msgspec
import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]


class Rows(msgspec.Struct, frozen=True):
    """Vectors float32 (n, n_features) and what was known about their labels at deployment (1 fraud, 0 otherwise)."""

    vectors: Float32s
    frauds: NDArray[np.int8]


class Sample(msgspec.Struct, frozen=True):
    """All frauds and some of the legit rows; `shift` takes back from the log odds what leaving legit rows out adds to them."""

    rows: Rows
    shift: float


def join(first: Rows, second: Rows) -> Rows:
    """The rows of both, in this order."""
    return Rows(np.concatenate([first.vectors, second.vectors]), np.concatenate([first.frauds, second.frauds]))


def sample_legit(rows: Rows, legit_per_fraud: int, random: np.random.RandomState) -> Sample:
    """All frauds and `legit_per_fraud` times as many legit rows, or all that there are, in the order in which they came."""
    frauds, legit = np.flatnonzero(rows.frauds == 1), np.flatnonzero(rows.frauds == 0)
    n_legit = min(len(legit), legit_per_fraud * len(frauds))
    chosen = np.sort(np.concatenate([frauds, random.choice(legit, n_legit, replace=False)]))
    return Sample(Rows(rows.vectors[chosen], rows.frauds[chosen]), float(np.log(n_legit / len(legit))))
