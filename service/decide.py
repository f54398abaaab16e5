"""From a risk score to an outcome: lists, then thresholds, then the policy for what could not be known. Pure.

Only exact knowledge declines: a stored deny list entry or the model's score. A profile that a tier could not be asked for
changes the outcome by the written policy (`decide.unknown_outcome`), never by accident.
"""

from typing import Any

import msgspec

from features.transaction import Transaction
from service.lists import Lists

APPROVE, REVIEW, DECLINE = "approve", "review", "decline"


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


def decide(
    tx: Transaction, amount: int, risk: float, unknown: bool, policy: Policy, lists: Lists, now_ms: int
) -> tuple[str, tuple[str, ...]]:
    """Outcome and reason codes. `amount` is in base minor units, `unknown` says that a profile could not be asked for."""
    if lists:
        denied = lists.match("deny", tx, now_ms)
        if denied:
            return DECLINE, tuple(f"DENY_LIST_{kind.upper()}" for kind in denied)
        allowed = lists.match("allow", tx, now_ms)
        if allowed:
            return APPROVE, tuple(f"ALLOW_LIST_{kind.upper()}" for kind in allowed)
    if risk >= policy.decline_threshold:
        return DECLINE, ("SCORE_ABOVE_DECLINE_THRESHOLD",)
    if unknown and amount >= policy.unknown_amount_min and policy.unknown_outcome == DECLINE:
        return DECLINE, ("L3_UNKNOWN",)
    if risk >= policy.review_threshold:
        return REVIEW, ("SCORE_ABOVE_REVIEW_THRESHOLD",)
    if unknown and amount >= policy.unknown_amount_min:
        return policy.unknown_outcome, ("L3_UNKNOWN",)
    return APPROVE, ()
