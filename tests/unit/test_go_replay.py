"""Taking blocks apart in the core: what cannot be a job is refused, and no bytes, however damaged, harm the process."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from features.plan import compile_plan
from features.slab import Slab
from features.spec import load_spec
from gocore.binding import Core, load_core
from gocore.errors import BadArgument, BadHandle, GoCoreError
from gocore.locate import missing_core
from gocore.replay import IDS_MAX, Splitter
from models.arena import Arena
from service.journal import LABEL, TX, Journal

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

PLAN = compile_plan(load_spec("cards"))
ROWS = 8
Bytes = npt.NDArray[np.uint8]
HEADER_BYTES = 24


@pytest.fixture(scope="module")
def core() -> Core:
    return load_core()


@pytest.fixture(scope="module")
def plan(core: Core) -> int:
    return core.load_plan(PLAN.to_bytes())


@pytest.fixture
def arena(core: Core, plan: int) -> Arena:
    made = Arena(PLAN, [Slab(kind, 4) for kind in PLAN.kinds], ROWS)
    core.bind(plan, made)
    return made


@pytest.fixture
def blocks(tmp_path: Path) -> Bytes:
    journal = Journal.open(tmp_path, sync="os")
    for number in range(4):
        journal.append([(TX, b"\x80", b""), (LABEL, b"label" * number, b"")])
    journal.abandon()
    (segment,) = tmp_path.glob("*.seg")
    return np.frombuffer(segment.read_bytes()[HEADER_BYTES:], dtype=np.uint8).copy()


def splitter(core: Core, plan: int) -> Splitter:
    return Splitter(core, plan, ROWS, len(PLAN.kinds), IDS_MAX)


@pytest.mark.parametrize("ids_max", [0, -1, (1 << 28) + 1])
def test_open_replay_with_no_sense_of_size_is_refused(core: Core, plan: int, ids_max: int) -> None:
    """As many numbers as a machine can hold, and at least one."""
    with pytest.raises(GoCoreError, match="ids"):
        core.open_replay(plan, ids_max)
    with pytest.raises(BadHandle):
        core.open_replay(plan + 999, 10)


def test_take_of_what_cannot_be_a_job_is_refused(core: Core, plan: int, arena: Arena, blocks: Bytes) -> None:
    """LSNs below 0, no bytes, an arena that is not bound, one of another plan, a handle that was given back."""
    take = splitter(core, plan).take
    for lsns in ((-1, 0, 10), (0, -1, 10), (0, 0, -1)):
        with pytest.raises(BadArgument, match="LSN below 0"):
            take(arena, blocks, *lsns, False)
    with pytest.raises(BadArgument, match="blocks: 0 bytes"):
        take(arena, blocks[:0], 0, 0, 10, False)
    other = splitter(core, core.load_plan(PLAN.to_bytes()))
    with pytest.raises(GoCoreError, match="another plan"):
        other.take(arena, blocks, 0, 0, 10, False)
    job = core.replay_job({})
    with pytest.raises(BadArgument):
        core.replay(other._handle, arena, job)
    with pytest.raises(BadHandle):
        core.replay(other._handle + (1 << 40), arena, job)
    core.unbind(arena)
    with pytest.raises(BadHandle):
        take(arena, blocks, 0, 0, 10, False)


def test_job_that_lacks_memory_is_refused(core: Core, plan: int, arena: Arena, blocks: Bytes) -> None:
    """Each of the arrays is needed, records alone are not."""
    handle = core.open_replay(plan, 10)
    kinds = len(PLAN.kinds)
    sizes = {"id_ends": kinds, "n_new": kinds, "n_distinct": kinds, "numbers": kinds * ROWS, "first_rows": kinds * ROWS,
             "record_ends": 2 * ROWS, "others": 5}  # fmt: skip
    arrays: dict[str, npt.NDArray[Any]] = {name: np.zeros(size, dtype=np.int64) for name, size in sizes.items()}
    arrays |= {"ids": np.zeros(kinds * 64, dtype=np.uint8), "blocks": blocks}
    for lacking in [*arrays, None]:
        job = core.replay_job({name: array for name, array in arrays.items() if name != lacking})
        job.blocks_size, job.id_bytes, job.others_max, job.to_lsn = blocks.size, 64, 1, 1 << 62
        if lacking is None:
            core.replay(handle, arena, job)
        else:
            with pytest.raises(BadArgument, match=f"{lacking}.*null"):
                core.replay(handle, arena, job)
    job.id_bytes = 0
    with pytest.raises(BadArgument, match="0 bytes for ids"):
        core.replay(handle, arena, job)


def test_damaged_bytes_give_an_answer(core: Core, plan: int, arena: Arena, blocks: Bytes) -> None:
    """Any byte changed, any length: whatever is taken lies within what was given."""
    rng = random.Random(int(os.environ.get("SEED", "1")))
    take = splitter(core, plan).take
    for _ in range(3_000):
        damaged = blocks[: rng.randrange(1, blocks.size + 1)].copy()
        for _ in range(rng.randrange(3)):
            damaged[rng.randrange(damaged.size)] = rng.randrange(256)
        taken = take(arena, damaged, rng.choice([0, 1 << 48]), 0, 1 << 62, rng.random() < 0.5)
        assert 0 <= taken.size <= damaged.size
        assert taken.n_rows + len(taken.others) == taken.n_entries <= 8
