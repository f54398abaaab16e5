"""Reasons of decisions: what the model made of a transaction, in words, behind the code of the rule that decided.

For what the score reviews or declines, and for whatever a caller asks about (`?explain=1`), unless a list decided: one more
call of the model per micro-batch, for those rows alone (models/explain.py, 0.1 ms a row). A batch that is approved costs one
look. At most `rows_max` rows of a micro-batch are explained, those who were asked about first, then the highest scores, and of
those nobody asked about no more than `share` of all transactions in the long run: what is left keeps its code, so that a stream
in which everything is suspicious still flows.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from models.explain import strongest, weigh
from models.words import Words
from service.decide import BY_SCORE, PLACES_OF_A_BYTE, Conclusion, Places
from service.ticket import REASONS

if TYPE_CHECKING:
    from service.batch import Batch

Float32s = npt.NDArray[np.float32]

_BY_SCORE = frozenset(conclusion.reasons for conclusion in BY_SCORE[1:])


def is_by_score(reasons: tuple[str, ...]) -> bool:
    """Whether these are the reasons of a decision that the model's score made."""
    return reasons in _BY_SCORE


def is_by_list(reasons: tuple[str, ...]) -> bool:
    """Whether a list decided: then the model has no part in it, whoever asks."""
    return bool(reasons) and reasons[0].startswith(("DENY_LIST_", "ALLOW_LIST_"))


class Explainer:
    """Explains the scores of one model. reference: float32 (n_features,), what is usual; infer: the model itself."""

    def __init__(
        self, words: Words, reference: Float32s, infer: Callable[[Float32s], Float32s], reasons_max: int, rows_max: int,
        share: float,
    ) -> None:  # fmt: skip
        self.n_left = 0  # rows that kept only their code
        self._words = words
        self._reference = reference
        self._infer = infer
        self._reasons_max = reasons_max
        self._rows_max = rows_max
        self._share = share
        self._room = float(rows_max)  # rows that may be explained without being asked about

    def explain(self, batch: "Batch", classes: Places, conclusions: list[Conclusion]) -> tuple[Places, list[Conclusion]]:
        """`decide_rows`'s answer with conclusions of their own for the rows that are explained.

        The batch is scored and its vectors are still in the arena. Raises what the model raises.
        """
        self.passed(batch.n_rows)
        if not batch.wanted & REASONS and not classes.any():
            return classes, conclusions
        rows = self._rows(batch, classes, conclusions)
        if not rows:
            return classes, conclusions
        conclusions = list(conclusions)
        words = self.words(batch.arena.vectors[rows], batch.arena.risk[rows])
        for row, said in zip(rows, words, strict=True):
            known = conclusions[classes[row]]
            classes[row] = len(conclusions)
            conclusions.append(msgspec.structs.replace(known, reasons=known.reasons + said, is_own=True))
        return classes, conclusions

    def passed(self, n_rows: int) -> None:
        """So many more transactions, of which a share may be explained."""
        self._room = min(self._room + n_rows * self._share, float(self._rows_max))

    def words(self, vectors: Float32s, risks: Float32s) -> list[tuple[str, ...]]:
        """What raises each risk most, the strongest first. float32 (rows, n_features), C-contiguous, and (rows,)."""
        weights = weigh(vectors, risks, self._reference, self._infer)
        return [
            tuple(self._words.say(place, float(vector[place]), float(self._reference[place])) for place in places)
            for vector, places in zip(vectors, (strongest(row, self._reasons_max) for row in weights), strict=True)
        ]

    def _rows(self, batch: "Batch", classes: Places, conclusions: Sequence[Conclusion]) -> list[int]:
        """The rows to be explained, in order of place."""
        by_score = [is_by_score(conclusion.reasons) for conclusion in conclusions]
        by_list = [is_by_list(conclusion.reasons) for conclusion in conclusions]
        asked: list[int] = []
        at = 0
        for ticket in batch.tickets:
            if ticket.wanted & REASONS:
                asked += (row for row in range(at, at + len(ticket.rows)) if not by_list[classes[row]])
            at += len(ticket.rows)
        of_score = [row for row in np.flatnonzero(classes).tolist() if by_score[classes[row]]]
        risks = batch.arena.risk
        rows = list(dict.fromkeys([*asked, *sorted(of_score, key=lambda row: -float(risks[row]))]))
        n_places = max(PLACES_OF_A_BYTE - len(conclusions), 0)
        n_max = min(self._rows_max, n_places, len(asked) + int(self._room))
        self.n_left += max(len(rows) - n_max, 0)
        self._room -= max(min(len(rows), n_max) - len(asked), 0)
        return sorted(rows[:n_max])
