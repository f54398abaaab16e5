"""Does memory grow? Least squares over samples that resemble their neighbours, with an interval that knows it.

Residuals of memory are correlated from one second to the next, so n samples are worth fewer: n (1 - r) / (1 + r) with r the
correlation of neighbours (lag 1; an AR(1) process). The textbook's interval, which counts n, would call every drift proven.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import msgspec
import numpy as np

N_EFFECTIVE_MIN = 5.0  # below that there is no interval worth the name
Verdict = Literal["flat", "grows", "undecided", "too short"]


class Slope(msgspec.Struct, frozen=True):
    """Units of the samples per hour: the estimate and its interval of 95 %; None where the samples are too few to tell."""

    n: int
    n_effective: float
    per_hour: float | None
    low: float | None
    high: float | None

    def verdict(self, most: float) -> Verdict:
        """`grows`: surely above `most` an hour. `flat`: surely not above it. Else nobody knows, or nothing can be said."""
        if self.low is None or self.high is None:
            return "too short"
        if self.low > most:
            return "grows"
        return "flat" if self.high <= most else "undecided"


def fit(seconds: Sequence[float], values: Sequence[float]) -> Slope:
    """The slope of `values` over `seconds`, per hour."""
    n = len(values)
    if n < 3 or seconds[-1] <= seconds[0]:
        return Slope(n, float(n), None, None, None)
    x, y = np.asarray(seconds, dtype=np.float64) / 3600, np.asarray(values, dtype=np.float64)
    x = x - x.mean()
    spread = float((x * x).sum())
    slope = float((x * (y - y.mean())).sum()) / spread
    residuals = y - y.mean() - slope * x
    total = float((residuals * residuals).sum())
    if total < 1e-9:  # a straight line
        return Slope(n, float(n), slope, slope, slope)
    r = min(max(float((residuals[1:] * residuals[:-1]).sum()) / total, 0.0), 0.999)
    n_effective = n * (1 - r) / (1 + r)
    if n_effective < N_EFFECTIVE_MIN:
        return Slope(n, round(n_effective, 1), slope, None, None)
    freedom = n_effective - 2
    error = math.sqrt(total / (n - 2) / spread * n / n_effective)
    half = _student(freedom) * error
    return Slope(n, round(n_effective, 1), slope, slope - half, slope + half)


def pooled(slopes: Sequence[Slope]) -> Slope:
    """One slope of several lives, weighted by how sure each is (inverse variance)."""
    n = sum(slope.n for slope in slopes)
    sure = [
        (s.per_hour, (s.high - s.low) / 2)
        for s in slopes
        if s.per_hour is not None and s.low is not None and s.high is not None
    ]
    sure = [(estimate, half) for estimate, half in sure if half > 0]
    if not sure:
        return Slope(n, 0.0, None, None, None)
    weights = [1 / half**2 for _, half in sure]
    mean = sum(w * estimate for w, (estimate, _) in zip(weights, sure, strict=True)) / sum(weights)
    half = 1 / math.sqrt(sum(weights))
    return Slope(n, sum(s.n_effective for s in slopes), mean, mean - half, mean + half)


def _student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, within 1 % from 3 degrees of freedom on (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(0.975)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
