"""What has changed since write-behind looked: by slot while the entity is in L1, by name afterwards, each once."""

import numpy as np
import pytest

from features.plan import Plan, compile_plan
from features.spec import load_spec
from service.tiers.l1 import L1
from service.touched import NOTED_ROWS_MAX, Touched


@pytest.fixture(scope="module")
def plan() -> Plan:
    """The default spec's."""
    return compile_plan(load_spec("cards"))


def make(plan: Plan, n_cards: int = 8) -> tuple[L1, Touched]:
    """An L1 that holds c0, c1, ... in slots 0, 1, ... of the first kind, and what is marked in it."""
    touched = Touched(len(plan.kinds))
    l1 = L1(plan, n_cards * plan.kinds[0].size, 4, touched.leave)
    touched.attach(l1)
    for number in range(n_cards):
        l1.unpin(0, l1.claim(0, f"c{number}"))
    return l1, touched


def taken(l1: L1, touched: Touched) -> dict[str, int]:
    """What is marked of the first kind, by name."""
    marked = touched.take()[0]
    by_slot = dict(zip(l1.indexes[0].ids(marked.slots), marked.lsns.tolist(), strict=True))
    return {name: min(by_slot.get(name, lsn), lsn) for name, lsn in (by_slot | marked.by_entity).items()}


@pytest.mark.parametrize("n_rows", [1, 25, NOTED_ROWS_MAX + 1])
def test_touched_marks_a_slot_again_only_after_it_was_forgotten(plan: Plan, n_rows: int) -> None:
    """A known slot is not marked, one that was forgotten is, the slot -1 never; a repeated slot has its first LSN."""
    l1, touched = make(plan)
    rows = np.full((n_rows, len(plan.kinds)), -1, dtype=np.int64)
    rows[:, 0] = ([3, -1, 5, 3] * n_rows)[:n_rows]
    touched.mark_rows(rows, 100)
    assert taken(l1, touched) == ({"c3": 100, "c5": 102} if n_rows > 2 else {"c3": 100})
    touched.mark_rows(rows, 200)
    assert not touched
    assert not taken(l1, touched)
    touched.forget(0, 3)
    touched.mark_rows(rows, 300)
    assert touched.has(0, "c3")
    assert not touched.has(0, "c5")
    assert taken(l1, touched) == {"c3": 300}
    touched.forget_all()
    touched.mark_rows(rows, 400)
    assert len(touched) == (2 if n_rows > 2 else 1)
    assert taken(l1, touched) == ({"c3": 400, "c5": 402} if n_rows > 2 else {"c3": 400})


def test_touched_entity_that_leaves_its_slot_stays_marked(plan: Plan) -> None:
    """Its mark goes by name with the lower LSN, and who has the slot next is not taken for it."""
    l1, touched = make(plan, n_cards=4)
    slot = l1.slot_of(0, "c0")
    rows = np.full((1, len(plan.kinds)), -1, dtype=np.int64)
    rows[0, 0] = slot
    touched.mark(0, "c0", 70)
    touched.mark_rows(rows, 50)
    assert l1.shrink(0, 1) == 1
    assert l1.slot_of(0, "c0") < 0
    assert touched.has(0, "c0")
    assert l1.claim(0, "new") == slot
    assert not touched.has(0, "new")
    touched.mark_rows(rows, 90)
    assert taken(l1, touched) == {"c0": 50, "new": 90}
