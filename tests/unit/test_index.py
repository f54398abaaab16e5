"""Both indexes of L1: any order of calls leaves what a dict would hold; what cannot be is refused by the core's."""

import random

import numpy as np
import pytest

from gocore.binding import load_core
from gocore.errors import BadArgument, BadHandle
from gocore.index import GoIndex
from gocore.locate import missing_core
from service.tiers.index import DictIndex, Index, open_index

NEEDS_CORE = pytest.mark.skipif(missing_core() is not None, reason=str(missing_core()))


@pytest.fixture(params=["dict", pytest.param("go", marks=NEEDS_CORE)])
def index(request: pytest.FixtureRequest) -> Index:
    """An empty index."""
    return DictIndex() if request.param == "dict" else GoIndex(load_core())


@pytest.mark.parametrize("seed", range(5))
def test_index_any_order_of_calls_is_a_dict(index: Index, seed: int) -> None:
    """Entities of all lengths, in and out of slots, are found where they were put."""
    rng = random.Random(seed)
    model: dict[str, int] = {}
    free = list(range(300))
    names = [rng.choice(("c", "\N{GREEK SMALL LETTER ALPHA}", "x" * 22, "y" * 23, "z" * 128)) + str(n) for n in range(400)]
    for _ in range(3_000):
        entity = rng.choice(names)
        if entity in model and rng.random() < 0.5:
            slot = model.pop(entity)
            assert index.remove(np.array([slot])) == [entity]
            free.append(slot)
        elif entity not in model and free:
            slot = free.pop(rng.randrange(len(free)))
            index.put([entity], np.array([slot]))
            model[entity] = slot
    wanted = [*names, "", "nobody"]
    rng.shuffle(wanted)
    found = index.find(wanted)
    assert found.dtype == np.int64
    assert found.tolist() == [model.get(entity, -1) for entity in wanted]
    assert [index.find([entity]).item() for entity in names[:20]] == [model.get(entity, -1) for entity in names[:20]]
    by_slot = {slot: entity for entity, slot in model.items()}
    assert index.ids(range(-1, 301)) == [by_slot.get(slot, "") for slot in range(-1, 301)]
    assert index.find([]).tolist() == []
    assert index.ids([]) == []


@NEEDS_CORE
def test_index_of_the_core_refuses_what_cannot_be() -> None:
    """A second slot for an entity, a second entity for a slot, no entity, no such slot: BadArgument, and nothing changes."""
    index = GoIndex(load_core())
    index.put(["a"], np.array([3]))
    for entity, slot in (("a", 4), ("b", 3), ("", 5), ("b", -1), ("b", 1 << 40), ("b\n", 6)):
        with pytest.raises(BadArgument):
            index.put([entity], np.array([slot]))
    for slot in (4, -1, 1 << 40):
        with pytest.raises(BadArgument):
            index.remove(np.array([slot]))
    assert index.find(["a", "b"]).tolist() == [3, -1]
    assert index.ids([3, 4, 1 << 40, -5]) == ["a", "", "", ""]
    index.handle ^= 1 << 33
    with pytest.raises(BadHandle):
        index.find(["a"])


@NEEDS_CORE
def test_open_index_takes_the_core_where_it_is() -> None:
    """The service runs on the core's index."""
    assert isinstance(open_index(), GoIndex)
