"""Errors: each class of the tree becomes the problem that the contract promises."""

import json

import pytest

from service import errors
from service.errors import Overloaded, StartError, TierUnavailable, Unauthorized, WeirError, problem


def _all_classes(base: type[WeirError] = WeirError) -> list[type[WeirError]]:
    found = [base]
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            found += _all_classes(child)
    return found


def test_problem_of_field_error_names_field() -> None:
    """A problem holds type, title, status, detail and the field, and nothing else."""
    body = json.loads(problem(errors.InvalidEvent("amount is -1: expected int >= 0", "amount")))
    assert body == {
        "type": "urn:weir:problem:invalid-event",
        "title": "Invalid event",
        "status": 422,
        "detail": "amount is -1: expected int >= 0",
        "field": "amount",
    }


def test_problem_without_field_omits_it() -> None:
    """A problem that is not about a field has no field member."""
    assert "field" not in json.loads(problem(errors.NotReady("recovering")))


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.MalformedBody, 400),
        (errors.Unauthorized, 401),
        (errors.Forbidden, 403),
        (errors.NotFound, 404),
        (errors.MethodNotAllowed, 405),
        (errors.Conflict, 409),
        (errors.BodyTooLarge, 413),
        (errors.UnsupportedMedia, 415),
        (errors.InvalidEvent, 422),
        (errors.Overloaded, 429),
        (errors.ScoringFailed, 500),
        (errors.NotReady, 503),
        (errors.JournalUnavailable, 503),
    ],
)
def test_error_class_has_status_of_contract(kind: type[WeirError], status: int) -> None:
    """Each class carries the HTTP status that the contract gives it."""
    assert kind("x").status == status


def test_tree_in_docstring_names_every_class() -> None:
    """The drawing at the top of errors.py is complete."""
    assert errors.__doc__ is not None
    missing = [kind.__name__ for kind in _all_classes() if kind.__name__ not in errors.__doc__]
    assert missing == []


def test_codes_are_unique_per_class() -> None:
    """Two classes never share a slug, so a client can tell causes apart."""
    codes = [vars(kind)["code"] for kind in _all_classes() if "code" in vars(kind)]
    assert len(codes) == len(set(codes))


def test_tier_unavailable_names_tier() -> None:
    """The tier stands in the message and as an attribute."""
    error = TierUnavailable("redis", "no answer in 50 ms")
    assert (error.tier, error.status, str(error)) == ("redis", 503, "redis: no answer in 50 ms")


def test_headers_follow_status() -> None:
    """401 challenges, 405 lists methods, 429 says when to come back."""
    assert Unauthorized("x").headers() == {"WWW-Authenticate": 'Bearer realm="weir"'}
    assert errors.MethodNotAllowed("x", ("GET", "PUT")).headers() == {"Allow": "GET, PUT"}
    assert Overloaded("queue holds 8192 of 8192", retry_after_s=2).headers() == {"Retry-After": "2"}


def test_start_errors_exit_codes() -> None:
    """Wrong input exits with 2, everything else with 1."""
    assert StartError("x").exit_code == 1
    assert errors.SettingsError("x").exit_code == 2
    assert errors.KeyFileError("x").exit_code == 2
