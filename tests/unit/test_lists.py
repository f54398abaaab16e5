"""The lists: exact, ordered by LSN, with expiry; a change that is replayed changes nothing."""

import pytest

from features.plan import compile_plan
from features.spec import load_spec
from service.lists import ListChange, Lists

TX = ("c1", "m1", None, "203.0.113.7")


@pytest.fixture
def lists() -> Lists:
    return Lists(compile_plan(load_spec("cards")).kinds)


def change(entity: str, reason: str | None, expires: int | None = None, name: str = "deny", kind: str = "card") -> ListChange:
    return ListChange(name, kind, entity, reason, expires)


def test_lists_empty_are_falsy_and_match_nothing(lists: Lists) -> None:
    """The hot path may skip lists that hold nothing."""
    assert not lists
    assert lists.match("deny", TX, 0) == []
    lists.apply(change("c1", "stolen"), 1)
    assert lists
    lists.apply(change("c1", None), 2)
    assert not lists


def test_lists_match_only_the_named_list_kind_and_id(lists: Lists) -> None:
    """An entry on one list, of one kind, for one id, matches nothing else; absent entities match nothing."""
    lists.apply(change("c1", "x", name="allow"), 1)
    lists.apply(change("m1", "x", kind="card"), 2)
    lists.apply(change("c10", "x"), 3)
    assert lists.match("deny", TX, 0) == []
    lists.apply(change("203.0.113.7", "x", kind="ip"), 4)
    lists.apply(change("m1", "x", kind="merchant"), 5)
    assert lists.match("deny", TX, 0) == ["merchant", "ip"]
    assert lists.match("allow", TX, 0) == ["card"]


def test_lists_older_change_is_ignored(lists: Lists) -> None:
    """An entry keeps the newest change by LSN, whatever the order; the same change again is a no-op."""
    lists.apply(change("c1", "second"), 7)
    lists.apply(change("c1", "first"), 5)
    lists.apply(change("c1", None), 7)
    entry = lists.get("deny", "card", "c1", 0)
    assert entry is not None
    assert (entry.reason, entry.lsn) == ("second", 7)


def test_lists_replay_from_any_point_gives_the_same(lists: Lists) -> None:
    """Put, delete, put again: replaying the tail over what is stored ends in the same state."""
    history = [
        (1, change("a", "x")),
        (2, change("a", None)),
        (3, change("b", "y")),
        (4, change("a", "z")),
        (5, change("b", None)),
    ]
    for lsn, one in history:
        lists.apply(one, lsn)
    after = lists.items()
    for start in range(len(history)):
        for lsn, one in history[start:]:
            lists.apply(one, lsn)
        assert lists.items() == after
    assert [key[2] for key, _ in after] == ["a"]


def test_lists_expired_entry_is_dropped_when_met(lists: Lists) -> None:
    """At its expiry an entry counts as absent and leaves the list."""
    lists.apply(change("c1", "stolen", expires=1_000), 1)
    assert lists.get("deny", "card", "c1", 999) is not None
    assert lists.match("deny", TX, 1_000) == []
    assert not lists
