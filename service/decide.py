"""From a risk score to an outcome: lists, then thresholds, then the policy for what could not be known. Pure.

Only exact knowledge declines: a stored deny list entry or the model's score. A profile that a tier could not be asked for
changes the outcome by the written policy (`decide.unknown_outcome`), never by accident.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from features.plan import COLUMNS
from service.lists import Lists
from service.rows import Rows

APPROVE, REVIEW, DECLINE = "approve", "review", "decline"
AMOUNT = COLUMNS.index("amount")
PLACES_OF_A_BYTE = 256

Places = npt.NDArray[np.unsignedinteger[Any]]  # (rows,): uint8, or uint16 if there are more than PLACES_OF_A_BYTE to name


class Decision(msgspec.Struct, gc=False):
    """What was answered for one transaction. `degraded` names the tiers that could not be asked."""

    event_id: str
    score: float
    outcome: str
    model: str
    scorer: str
    lsn: int
    replayed: bool = False
    degraded: tuple[str, ...] = ()
    reasons: tuple[str, ...] | None = None
    trace: dict[str, Any] | None = None


class Policy(msgspec.Struct, frozen=True):
    """Thresholds on the risk score, and the outcome for an unknown profile from `unknown_amount_min` (base minor units) on."""

    review_threshold: float
    decline_threshold: float
    unknown_outcome: str
    unknown_amount_min: int

    @property
    def approved_below(self) -> float:
        """Every score below this is approved, where no list decides and nothing is unknown."""
        return min(self.review_threshold, self.decline_threshold)


class Conclusion(msgspec.Struct, frozen=True):
    """What a decision says besides score and LSN; many transactions of a batch share one."""

    outcome: str
    reasons: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    is_own: bool = False  # of one transaction, and not to be remembered


# By the score alone: the place of each is what `decide_rows` computes.
BY_SCORE = (
    Conclusion(APPROVE),
    Conclusion(REVIEW, ("SCORE_ABOVE_REVIEW_THRESHOLD",)),
    Conclusion(DECLINE, ("SCORE_ABOVE_DECLINE_THRESHOLD",)),
)


def decide_rows(
    rows: Rows,
    risks: npt.NDArray[np.float32],
    degraded: Mapping[int, tuple[str, ...]],
    policy: Policy,
    lists: Lists,
    now_ms: int,
) -> tuple[Places, list[Conclusion]]:
    """The place of each row's conclusion, and the conclusions. `degraded`: by row, what could not be asked.

    Places are bytes but for lists of many kinds together with many combinations of tiers that could not be asked.
    """
    if not (lists or degraded) and max(risks.tolist()) < policy.approved_below:  # nearly always; NumPy's way takes 4 µs more
        return np.zeros(len(risks), dtype=np.uint8), list(BY_SCORE)
    scores = risks.astype(np.float64)
    classes: Places = (scores >= policy.review_threshold).view(np.uint8)
    declined = scores >= policy.decline_threshold
    if declined.any():
        classes[declined] = 2
    if not (lists or degraded):
        return classes, list(BY_SCORE)
    conclusions = {conclusion: place for place, conclusion in enumerate(BY_SCORE)}
    for row in range(len(rows)) if lists else degraded:
        levels = degraded.get(row, ())
        amount = int(rows.columns[row, AMOUNT])
        outcome, reasons = decide(rows.entities_of(row), amount, float(risks[row]), bool(levels), policy, lists, now_ms)
        place = conclusions.setdefault(Conclusion(outcome, reasons, levels), len(conclusions))
        if place == PLACES_OF_A_BYTE and classes.itemsize == 1:
            classes = classes.astype(np.uint16)
        classes[row] = place
    return classes, list(conclusions)


def decide(
    entities: Sequence[str | None], amount: int, risk: float, unknown: bool, policy: Policy, lists: Lists, now_ms: int
) -> tuple[str, tuple[str, ...]]:
    """Outcome and reason codes. `entities` has an id per kind, `amount` is in base minor units, `unknown` says that a profile
    could not be asked for."""
    if lists:
        denied = lists.match("deny", entities, now_ms)
        if denied:
            return DECLINE, tuple(f"DENY_LIST_{kind.upper()}" for kind in denied)
        allowed = lists.match("allow", entities, now_ms)
        if allowed:
            return APPROVE, tuple(f"ALLOW_LIST_{kind.upper()}" for kind in allowed)
    if risk >= policy.decline_threshold:
        return DECLINE, BY_SCORE[2].reasons
    if unknown and amount >= policy.unknown_amount_min and policy.unknown_outcome == DECLINE:
        return DECLINE, ("L3_UNKNOWN",)
    if risk >= policy.review_threshold:
        return REVIEW, BY_SCORE[1].reasons
    if unknown and amount >= policy.unknown_amount_min:
        return policy.unknown_outcome, ("L3_UNKNOWN",)
    return APPROVE, ()
