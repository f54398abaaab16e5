"""Population stability: how far what a model sees now has moved from what it was trained on.

PSI = sum over bins of (now - then) * ln(now / then), the shares of rows in each bin; the bins are those of the card's
`population`. Credit scoring calls below 0.1 stable, above 0.25 a shift that needs a look (Siddiqi 2006). Two samples of one
population differ too, by about (bins - 1) * (1 / rows + 1 / training rows): so nothing is said below ROWS_MIN rows.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.card import Population

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

ROWS_MIN: Final = 1_000  # 10 bins of nothing but chance then give 0.009
WINDOW_CHUNKS: Final = 10  # of ROWS_MIN rows each: what is looked at is the last 9,000 to 10,000
SCORE: Final = ""  # in place of a feature's name
SHARE_MIN: Final = 1e-4  # an empty bin counts as this, or one row would be infinitely far


class Drift:
    """Counts vectors and scores into the bins of one population. 40 features: 0.5 ms for 256 rows."""

    def __init__(self, feature_names: list[str], population: Population) -> None:
        self._names = feature_names
        self._edges = [np.array(edges, dtype=np.float32) for edges in (*population.edges, population.score_edges)]
        self._expected = [np.array(shares, dtype=np.float64) for shares in (*population.shares, population.score_shares)]
        self._chunks: list[list[Int64s]] = []
        self._rows: list[int] = []

    @property
    def n_rows(self) -> int:
        """Rows in the window."""
        return sum(self._rows)

    def add(self, vectors: Float32s, scores: Float32s) -> None:
        """Count rows: float32 (rows, n_features) and (rows,)."""
        if not self._rows or self._rows[-1] >= ROWS_MIN:
            self._chunks.append([np.zeros(len(expected), dtype=np.int64) for expected in self._expected])
            self._rows.append(0)
            del self._chunks[:-WINDOW_CHUNKS], self._rows[:-WINDOW_CHUNKS]
        for counts, edges, values in zip(self._chunks[-1], self._edges, (*vectors.T, scores), strict=True):
            counts += np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(counts))
        self._rows[-1] += len(scores)

    def stability(self) -> dict[str, float]:
        """PSI by feature, and of the score under SCORE. Empty below ROWS_MIN rows."""
        if self.n_rows < ROWS_MIN:
            return {}
        shares = self._shares()
        values = [_psi(now, then) for now, then in zip(shares, self._expected, strict=True)]
        return dict(zip((*self._names, SCORE), values, strict=True))

    def describe(self) -> dict[str, Any]:
        """What a page shows: of each feature and the score, PSI (None while rows are too few), edges, shares then and now."""
        shares, stability = self._shares(), self.stability()
        shown = {
            name: {
                "psi": round(stability[name], 4) if stability else None,
                "edges": edges.tolist(),
                "expected": [round(share, 4) for share in then.tolist()],
                "actual": [round(share, 4) for share in now.tolist()],
            }
            for name, edges, then, now in zip((*self._names, SCORE), self._edges, self._expected, shares, strict=True)
        }
        score = shown.pop(SCORE)
        return {"rows": self.n_rows, "rows_min": ROWS_MIN, "score": score, "features": shown}

    def _shares(self) -> list[Float64s]:
        n_rows = max(self.n_rows, 1)
        if not self._chunks:
            return [np.zeros(len(expected)) for expected in self._expected]
        return [np.sum(counts, axis=0) / n_rows for counts in zip(*self._chunks, strict=True)]


def _psi(now: Float64s, then: Float64s) -> float:
    a, b = np.maximum(now, SHARE_MIN), np.maximum(then, SHARE_MIN)
    return float(((a - b) * np.log(a / b)).sum())
