"""What a level lacks: the order of keys, their first LSNs, and the bound below all of them."""

import functools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.plan import compile_plan
from features.spec import load_spec
from service.dirty import EXACT_MAX, SPAN_BITS, WINDOW_SLOTS, Dirty
from service.l1_keys import L1Keys
from service.tiers.l1 import L1

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


@functools.cache
def l1_keys(n_cards: int) -> L1Keys:
    """Of an L1 that holds the cards 0, 1, ... in the slots of those numbers."""
    plan = compile_plan(load_spec("cards"))
    l1 = L1(plan, n_cards * plan.kinds[0].size, 4, lambda kind, entities, slots: None)
    for number in range(n_cards):
        assert l1.claim(0, str(number)) == number
    return L1Keys(plan, l1)


def key_of(number: int) -> bytes:
    return b"card:%d" % number


@given(STEPS)
def test_dirty_is_a_dict_in_order_of_arrival(steps: list[tuple]) -> None:  # type: ignore[type-arg]  # of several shapes
    """Any order of calls leaves the keys, LSNs and order of a dict, and a first LSN that is none above the lowest."""
    dirty, model, flight = Dirty(l1_keys(0)), dict[bytes, int](), dict[bytes, int]()
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
    dirty, lsns = Dirty(l1_keys(0)), {key_of(n): rng.randrange(1 << 20, 1 << 24) for n in range(n_keys)}
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


SLOT_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 20), st.integers(1, 1 << 20)),
        st.tuples(st.just("mark"), st.sets(st.integers(0, 20)), st.integers(1, 1 << 20)),
        st.tuples(st.just("leave"), st.integers(0, 20)),
        st.tuples(st.just("take"), st.integers(0, 12), st.sets(st.integers(0, 20))),
        st.tuples(st.just("discard"), st.integers(0, 20)),
    ),
    max_size=40,
)


@given(SLOT_STEPS)
def test_dirty_slots_and_keys_lose_no_change_and_no_first_lsn(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    """Whatever is marked by slot or by key is dirty with its lowest LSN until it is taken, however it moves between the two."""
    dirty, by_key, by_slot = Dirty(l1_keys(21)), dict[bytes, int](), dict[int, int]()
    for step in steps:
        if step[0] == "add":
            dirty.add(key_of(step[1]), step[2])
            by_key.setdefault(key_of(step[1]), step[2])
        elif step[0] == "mark":
            slots = np.array(sorted(step[1]), dtype=np.int64)
            dirty.mark(0, slots, np.full(len(slots), step[2]))
            for slot in step[1]:
                by_slot.setdefault(slot, step[2])
        elif step[0] == "leave":
            key = key_of(step[1])
            dirty.leave(0, np.array([step[1]]), [key])
            if step[1] in by_slot:
                by_key[key] = min(by_slot.pop(step[1]), by_key.get(key, 1 << 62))
        elif step[0] == "take":
            but = {key_of(number) for number in step[2]}
            free = {*by_key, *map(key_of, by_slot)} - but
            taken = dirty.take(step[1], but)
            assert len(taken) <= step[1]
            assert taken.keys() <= free
            assert taken or not free or not step[1] or but
            for key, lsn in taken.items():
                found = by_key.pop(key, None), by_slot.get(int(key[5:]))
                assert lsn in found
                if found[0] is None or lsn != found[0] or not dirty_by_slot(dirty, key):
                    by_slot.pop(int(key[5:]), None)
        else:
            dirty.discard(key_of(step[1]))
            by_key.pop(key_of(step[1]), None)
            by_slot.pop(step[1], None)
        everything = [*by_key.values(), *by_slot.values()]
        assert len(dirty) == len(everything)
        for number in range(21):
            lsns = [lsn for lsn in (by_key.get(key_of(number)), by_slot.get(number)) if lsn is not None]
            assert dirty.lsn_of(key_of(number)) == min(lsns, default=None)
            assert (key_of(number) in dirty) == bool(lsns)
        asked = [key_of(number) for number in range(0, 25, 2)]
        assert dirty.among(asked) == {key for key in asked if key in dirty}
        if everything:
            assert dirty.first_lsn() == min(everything)


def dirty_by_slot(dirty: Dirty, key: bytes) -> bool:
    """Whether the key is (still) dirty by its slot."""
    return sum(each == key for each, _ in dirty.items()) - (key in dirty.kept_by_key()) == 1


def test_dirty_slots_are_taken_in_a_circle_over_many_windows() -> None:
    """Each slot once before any comes again, from far more slots than are looked at together; what is excluded stays."""
    n = 3 * WINDOW_SLOTS + 17
    dirty = Dirty(l1_keys(n))
    slots = np.arange(n)
    dirty.mark(0, slots, slots + 1_000_000)
    kept = {key_of(5), key_of(WINDOW_SLOTS)}
    first = dirty.take(WINDOW_SLOTS + 100, kept)
    assert len(first) == WINDOW_SLOTS + 100
    again = np.arange(0, 2_000)
    dirty.mark(0, again, again + 2_000_000)  # behind the hand
    second = dirty.take(n, kept)
    assert len(second) == n - 2 - len(first) + 2_000 - 1
    assert next(iter(second)) == key_of(WINDOW_SLOTS + 102)
    assert [key for key, _ in dirty.items()] == sorted(kept, key=lambda key: int(key[5:]))
    assert dirty.take(5) == {key_of(5): 1_000_005, key_of(WINDOW_SLOTS): 1_000_000 + WINDOW_SLOTS}
    assert not dirty
