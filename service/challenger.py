"""The challenger: another model that scores a sample beside the champion, and is only ever counted."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.card import ModelCard
from models.scorer import Scorer
from service.decide import APPROVE, DECLINE, REVIEW, Policy

Float32s = npt.NDArray[np.float32]

OUTCOMES: Final = (APPROVE, REVIEW, DECLINE)
SCORE_BOUNDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)  # of risk; most of it is below 0.01


class Challenger:
    """One challenger's model, and how it compares by score alone: lists and unknown profiles change neither side.

    champion, own: thresholds of both. n_agreements: by champion's and challenger's outcome. champion_scores,
    challenger_scores: counts by SCORE_BOUNDS.
    """

    def __init__(self, card: ModelCard, scorer: Scorer, champion: Policy, own: Policy, share: float) -> None:
        self.card = card
        self._scorer = scorer
        self._champion, self._own = champion, own
        self._share = share
        self.restart()

    def restart(self) -> None:
        """Forget what was counted."""
        self.n_rows = 0
        self.n_agreements = {(a, b): 0 for a in OUTCOMES for b in OUTCOMES}
        self.champion_scores, self.challenger_scores = np.zeros((2, len(SCORE_BOUNDS) + 1), dtype=np.int64)
        self._difference = 0.0

    def face(self, champion: Policy) -> None:
        """Another champion, from the next comparison on."""
        self._champion = champion
        self.restart()

    def infer(self, vectors: Float32s) -> Float32s:
        """The challenger's risks. On any thread."""
        return self._scorer.infer(vectors)

    def compare(self, champion: Float32s, challenger: Float32s) -> None:
        """Count the two models' risks of the same rows, float32 (rows,) each."""
        ours, theirs = _outcomes(champion, self._champion), _outcomes(challenger, self._own)
        for pair, n in zip(*np.unique(ours * 3 + theirs, return_counts=True), strict=True):
            self.n_agreements[OUTCOMES[pair // 3], OUTCOMES[pair % 3]] += int(n)
        for counts, risks in ((self.champion_scores, champion), (self.challenger_scores, challenger)):
            counts += np.bincount(np.searchsorted(SCORE_BOUNDS, risks, side="right"), minlength=len(counts))
        self._difference += float(np.abs(champion.astype(np.float64) - challenger).sum())
        self.n_rows += len(champion)

    @property
    def agreement(self) -> float:
        """Share of rows that both would have answered alike; 1 for none."""
        return sum(self.n_agreements[o, o] for o in OUTCOMES) / self.n_rows if self.n_rows else 1.0

    def describe(self) -> dict[str, Any]:
        """What GET /v1/models shows. outcomes: champion's, then challenger's."""
        return {
            "model": self.card.model,
            "share": self._share,
            "rows": self.n_rows,
            "agreement": round(self.agreement, 6),
            "mean_difference": round(self._difference / self.n_rows, 6) if self.n_rows else 0.0,
            "outcomes": {a: {b: self.n_agreements[a, b] for b in OUTCOMES} for a in OUTCOMES},
            "scores": {
                "bounds": SCORE_BOUNDS,
                "champion": self.champion_scores.tolist(),
                "challenger": self.challenger_scores.tolist(),
            },
        }


def _outcomes(risks: Float32s, policy: Policy) -> npt.NDArray[np.int64]:
    wide = risks.astype(np.float64)
    return (wide >= policy.review_threshold).astype(np.int64) + (wide >= policy.decline_threshold)
