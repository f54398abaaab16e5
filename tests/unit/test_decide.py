"""decide: lists, then thresholds, then the policy for what could not be known."""

import pytest

from features.plan import compile_plan
from features.spec import load_spec
from service.decide import APPROVE, DECLINE, REVIEW, Policy, decide
from service.lists import ListChange, Lists

TX = ("c1", "m1", "", "")
POLICY = Policy(0.5, 0.9, REVIEW, 500)


@pytest.fixture
def lists() -> Lists:
    return Lists(compile_plan(load_spec("cards")).kinds)


def put(lists: Lists, name: str, kind: str, entity: str, expires: int | None = None) -> None:
    lists.apply(ListChange(name, kind, entity, "because", expires), 1)


@pytest.mark.parametrize(
    ("risk", "outcome"),
    [(0.0, APPROVE), (0.4999, APPROVE), (0.5, REVIEW), (0.8999, REVIEW), (0.9, DECLINE), (1.0, DECLINE)],
)
def test_decide_thresholds_at_and_beside_the_limit(lists: Lists, risk: float, outcome: str) -> None:
    """A score at a threshold already belongs to the stricter outcome."""
    assert decide(TX, 1000, risk, False, POLICY, lists, 0)[0] == outcome


@pytest.mark.parametrize(("amount", "outcome"), [(499, APPROVE), (500, REVIEW), (501, REVIEW)])
def test_decide_unknown_profile_from_the_amount_on(lists: Lists, amount: int, outcome: str) -> None:
    """The policy's outcome applies from unknown_amount_min on and names L3_UNKNOWN."""
    assert decide(TX, amount, 0.1, True, POLICY, lists, 0) == (outcome, () if outcome == APPROVE else ("L3_UNKNOWN",))


def test_decide_unknown_never_softens_the_score(lists: Lists) -> None:
    """The model's decline stands, a review is not made an approve, a decline policy beats a review."""
    lax, strict = Policy(0.5, 0.9, APPROVE, 0), Policy(0.5, 0.9, DECLINE, 0)
    assert decide(TX, 1000, 0.95, True, lax, lists, 0) == (DECLINE, ("SCORE_ABOVE_DECLINE_THRESHOLD",))
    assert decide(TX, 1000, 0.6, True, lax, lists, 0) == (REVIEW, ("SCORE_ABOVE_REVIEW_THRESHOLD",))
    assert decide(TX, 1000, 0.6, True, strict, lists, 0) == (DECLINE, ("L3_UNKNOWN",))
    assert decide(TX, 1000, 0.1, False, strict, lists, 0) == (APPROVE, ())


def test_decide_deny_list_beats_allow_list_and_score(lists: Lists) -> None:
    """Deny wins over allow, allow over the score; the reasons name the kinds."""
    put(lists, "allow", "card", "c1")
    assert decide(TX, 1000, 0.99, True, POLICY, lists, 0) == (APPROVE, ("ALLOW_LIST_CARD",))
    put(lists, "deny", "merchant", "m1")
    put(lists, "deny", "card", "c1")
    assert decide(TX, 1000, 0.0, False, POLICY, lists, 0) == (DECLINE, ("DENY_LIST_CARD", "DENY_LIST_MERCHANT"))


def test_decide_expired_entry_counts_as_absent(lists: Lists) -> None:
    """An entry counts until the millisecond before it expires."""
    put(lists, "deny", "card", "c1", expires=100)
    assert decide(TX, 1000, 0.0, False, POLICY, lists, 99)[0] == DECLINE
    assert decide(TX, 1000, 0.0, False, POLICY, lists, 100)[0] == APPROVE
