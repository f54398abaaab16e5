"""What a level lacks: the order of keys, their first LSNs, and the bound below all of them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.dirty import EXACT_MAX, SPAN_BITS, Dirty

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 20), st.integers(1, 1 << 20)),
        st.tuples(st.just("add_many"), st.sets(st.integers(0, 20)), st.integers(1, 1 << 20)),
        st.tuples(st.just("take"), st.integers(0, 8), st.sets(st.integers(0, 20))),
        st.tuples(st.just("discard"), st.integers(0, 20)),
        st.tuples(st.just("put_back")),
    ),
    max_size=40,
)


def key_of(number: int) -> bytes:
    return b"card:%d" % number


@given(STEPS)
def test_dirty_is_a_dict_in_order_of_arrival(steps: list[tuple]) -> None:  # type: ignore[type-arg]  # of several shapes
    """Any order of calls leaves the keys, LSNs and order of a dict, and a first LSN that is none above the lowest."""
    dirty, model, flight = Dirty(), dict[bytes, int](), dict[bytes, int]()
    for step in steps:
        if step[0] == "add":
            dirty.add(key_of(step[1]), step[2])
            model.setdefault(key_of(step[1]), step[2])
        elif step[0] == "add_many":
            keys = [key_of(number) for number in sorted(step[1])]
            dirty.add_many(keys, [step[2]] * len(keys))
            for key in keys:
                model.setdefault(key, step[2])
        elif step[0] == "take":
            but = {key_of(number) for number in step[2]}
            taken = dirty.take(step[1], but)
            expected = [key for key in model if key not in but][: step[1]]
            assert taken == {key: model.pop(key) for key in expected}
            flight = taken
        elif step[0] == "discard":
            dirty.discard(key_of(step[1]))
            model.pop(key_of(step[1]), None)
        else:
            dirty.put_back(flight)
            for key, lsn in flight.items():
                model.pop(key, None)
                model[key] = lsn
            flight = {}
        assert list(dirty.items()) == list(model.items())
        assert len(dirty) == len(model)
        if model:
            assert dirty.first_lsn() == min(model.values())


@pytest.mark.parametrize("n_keys", [EXACT_MAX, EXACT_MAX + 1, 5 * EXACT_MAX])
def test_dirty_first_lsn_of_many_keys_is_a_close_lower_bound(n_keys: int) -> None:
    """Exact up to EXACT_MAX keys, above it less than a span too low, also while keys leave and come back."""
    rng = random.Random(n_keys)
    dirty, lsns = Dirty(), {key_of(n): rng.randrange(1 << 20, 1 << 24) for n in range(n_keys)}
    dirty.add_many(lsns.keys(), lsns.values())
    while lsns:
        lowest = min(lsns.values())
        slack = 0 if len(lsns) <= EXACT_MAX else 1 << SPAN_BITS
        assert lowest - slack <= dirty.first_lsn() <= lowest
        taken = dirty.take(n_keys // 10)
        returned = {key: lsn for key, lsn in taken.items() if rng.random() < 0.3}
        dirty.put_back(returned)
        lsns = {key: lsn for key, lsn in lsns.items() if key not in taken} | returned
    assert not dirty
