"""Bad input never crosses into the Go core: it is refused with its value and limit named, and nothing has changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.plan import compile_plan
from features.slab import Slab
from features.spec import load_spec
from gocore.binding import ADVANCE, DRY, RISK, VECTORS, Core, load_core
from gocore.errors import (
    BadArgument,
    BadModel,
    BadPlan,
    BadProfile,
    GoCoreError,
)
from gocore.locate import missing_core
from models.arena import Arena
from models.card import ARTIFACTS, MODEL_FILE
from models.go_scorer import GoScorer
from models.scorer import ModelError

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

ROOT = Path(__file__).parents[2]
PLAN = compile_plan(load_spec("cards"))
HANDBOOK = compile_plan(load_spec("handbook"))
MODEL = ARTIFACTS / "cards" / MODEL_FILE
ROWS, SLOTS = 8, 4
BASE_MS = 1_750_000_000_000
TS, AMOUNT = 0, 1  # columns
LONG_ROWS = 60_000  # rows that the core works on for longer than it takes to look


@pytest.fixture(scope="module")
def core() -> Core:
    return load_core()


@pytest.fixture(scope="module")
def plan(core: Core) -> int:
    return core.load_plan(PLAN.to_bytes())


@pytest.fixture(scope="module")
def model(core: Core) -> int:
    return core.load_model(MODEL.read_bytes(), PLAN.n_features)


def make_arena(rows: int = ROWS, slots: int = SLOTS) -> Arena:
    """Rows that can be scored, of profiles that repeat."""
    arena = Arena(PLAN, [Slab(kind, slots) for kind in PLAN.kinds], rows)
    numbers = np.arange(rows)
    arena.lsns[:] = numbers + 1
    arena.slots[:] = (numbers % slots)[:, None]
    arena.columns[:] = -1
    arena.columns[:, TS] = BASE_MS + numbers * 1000
    arena.columns[:, AMOUNT] = numbers % 1000
    return arena


@pytest.fixture
def arena(core: Core, plan: int) -> Arena:
    """Bound, with profiles that one pass has begun."""
    arena = make_arena()
    core.bind(plan, arena)
    core.score(0, arena, 0, ROWS, ADVANCE | VECTORS)
    arena.lsns += ROWS
    return arena


def state(arena: Arena) -> list[bytes]:
    """Everything that a refused call must leave alone."""
    outs = [arena.vectors.tobytes(), arena.risk.tobytes(), arena.lsns.tobytes(), arena.slots.tobytes(), arena.columns.tobytes()]
    return outs + [slab.rows.tobytes() + slab.late_dropped.tobytes() for slab in arena.slabs]


@pytest.fixture
def refused(arena: Arena) -> Iterator[Callable[..., None]]:
    """`refused(error, named, call)`: it raises `error`, the message has all of `named`; nothing has changed at the end."""
    before = []

    def check(error: type[GoCoreError], named: tuple[str, ...], call: Callable[..., Any], *arguments: Any) -> None:
        before.append(state(arena))
        with pytest.raises(error) as caught:
            call(*arguments)
        assert all(name in str(caught.value) for name in named), caught.value

    yield check
    assert before
    assert all(snapshot == state(arena) for snapshot in before)


@pytest.mark.parametrize(
    ("first", "n", "flags", "named"),
    [
        (0, 0, ADVANCE, ("0 rows", "8")),
        (0, -1, ADVANCE, ("8",)),
        (0, ROWS + 1, ADVANCE, ("9 rows from row 0", "arena of 8")),
        (-1, 1, ADVANCE, ("1 rows from row -1",)),
        (ROWS, 1, ADVANCE, ("1 rows from row 8",)),
        (1, 2**63 - 1, ADVANCE, ("arena of 8",)),
        (0, 1, 0, ("flags 0x0",)),
        (0, 1, VECTORS, ("flags 0x4", "0x1f")),
        (0, 1, ADVANCE | DRY, ("flags 0x3",)),
        (0, 1, ADVANCE | 32, ("flags 0x21",)),
        (0, 1, ADVANCE | RISK, ("no model",)),
    ],
)
def test_score_wrong_arguments_are_refused(
    first: int, n: int, flags: int, named: tuple[str, ...], core: Core, arena: Arena, refused: Callable[..., None]
) -> None:
    """Ranges outside the arena and flags that say nothing, too much or the unknown raise BadArgument."""
    refused(BadArgument, named, core.score, 0, arena, first, n, flags)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_score_numbers_beyond_64_bits_do_not_cross(number: int, core: Core, arena: Arena) -> None:
    """What does not fit the C type raises OverflowError before the call."""
    before = state(arena)
    with pytest.raises(OverflowError):
        core.score(0, arena, number, 1, ADVANCE)
    with pytest.raises(OverflowError):
        core.score(0, arena, 0, 1, number)
    assert state(arena) == before


@pytest.mark.parametrize(
    ("where", "column", "value", "named"),
    [
        ("slots", 0, -2, ("row 7", "slot -2", "card", "4")),
        ("slots", 3, SLOTS, ("row 7", "slot 4", "ip", "has 4")),
        ("slots", 1, 2**40, ("row 7", f"slot {2**40}", "merchant")),
        ("slots", 2, -(2**63), (f"slot {-(2**63)}", "device")),
        ("columns", TS, -1, ("row 7", "ts -1", "2^62")),
        ("columns", TS, 2**62 + 1, (f"ts {2**62 + 1}", "2^62")),
        ("columns", AMOUNT, -1, ("amount -1", f"{2**37 - 1}")),
        ("columns", AMOUNT, 2**37, (f"amount {2**37}", f"{2**37 - 1}")),
        ("lsns", ..., 0, ("row 7", "lsn 0")),
        ("lsns", ..., -(2**63), (f"lsn {-(2**63)}",)),
    ],
)
def test_score_wrong_last_row_is_refused_before_the_first_is_applied(
    where: str, column: Any, value: int, named: tuple[str, ...], core: Core, arena: Arena, refused: Callable[..., None]
) -> None:
    """A slot, time, amount or LSN out of range in any row refuses the batch as a whole."""
    getattr(arena, where)[ROWS - 1, ... if column is ... else column] = value
    refused(BadArgument, named, core.score, 0, arena, 0, ROWS, ADVANCE | VECTORS)
    refused(BadArgument, named, core.score, 0, arena, 0, ROWS, DRY | VECTORS)


def test_score_values_at_their_limits_are_taken(core: Core, arena: Arena) -> None:
    """The last slot, absent entities, the latest time, the largest amount and LSN are all fine."""
    arena.slots[0], arena.slots[1] = -1, SLOTS - 1
    arena.columns[1, TS], arena.columns[1, AMOUNT] = 2**62, 2**37 - 1
    arena.columns[0, TS], arena.columns[0, AMOUNT] = 0, 0
    arena.lsns[:2] = 2**62, 2**63 - 1
    core.score(0, arena, 0, 2, ADVANCE | VECTORS)
    assert int(arena.slabs[0].words[SLOTS - 1, 2]) == 2**63 - 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1, 0, BASE_MS, 1, 99), ("kind -1", "4")),
        ((4, 0, BASE_MS, 1, 99), ("kind 4", "4")),
        ((0, -1, BASE_MS, 1, 99), ("slot -1", "card")),
        ((0, SLOTS, BASE_MS, 1, 99), ("slot 4", "has 4")),
        ((0, 0, -1, 1, 99), ("ts -1",)),
        ((0, 0, 2**62 + 1, 1, 99), (f"ts {2**62 + 1}",)),
        ((0, 0, BASE_MS, 0, 99), ("not 0",)),
        ((0, 0, BASE_MS, -2, 99), ("not -2",)),
        ((0, 0, BASE_MS, 1, 0), ("lsn 0",)),
    ],
)
def test_label_wrong_arguments_are_refused(
    arguments: tuple[int, ...], named: tuple[str, ...], core: Core, arena: Arena, refused: Callable[..., None]
) -> None:
    """A kind, slot, time, delta or LSN out of range raises BadArgument."""
    refused(BadArgument, named, core.label, arena, *arguments)


def test_merge_wrong_profiles_are_refused(core: Core, plan: int, arena: Arena, refused: Callable[..., None]) -> None:
    """Lengths, kinds, versions and layouts that are not the plan's raise, whichever side they are on."""
    good = arena.slabs[0].get(0)
    other = arena.slabs[1].get(0)
    refused(BadArgument, ("1407", "1408"), core.merge, plan, 0, good[:-1], good)
    refused(BadProfile, ("1408 bytes, not 1407",), core.merge, plan, 0, good[:-1], good[:-1])
    refused(BadArgument, ("1409",), core.merge, plan, 0, good + b"\0", good + b"\0")
    refused(BadArgument, ("0 bytes",), core.merge, plan, 0, b"", b"")
    refused(BadArgument, ("kind 4",), core.merge, plan, 4, good, good)
    refused(BadArgument, ("kind -1",), core.merge, plan, -1, good, good)
    refused(BadProfile, ("version 0",), core.merge, plan, 0, good, bytes(len(good)))
    refused(BadProfile, ("version 2",), core.merge, plan, 0, b"\2" + good[1:], good)
    refused(BadProfile, ("1024 bytes",), core.merge, plan, 1, other[:-8], other[:-8])
    refused(BadProfile, ("layout",), core.merge, plan, 0, good[:8] + bytes(8) + good[16:], good)
    assert len(core.merge(plan, 0, good, good)) == len(good)


def test_null_pointers_are_refused(core: Core, plan: int, arena: Arena, refused: Callable[..., None]) -> None:
    """A null pointer in any place raises BadArgument; the library never follows it."""
    lib, ffi = core._lib, core._ffi
    null, data = ffi.NULL, ffi.from_buffer("uint8_t[]", PLAN.to_bytes())
    handle, size = ffi.new("uint64_t *"), len(PLAN.to_bytes())
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("weir_open_runtime", (null,)),
        ("weir_runtime_version", (null, 64)),
        ("weir_plan_load", (null, size, handle)),
        ("weir_plan_load", (data, size, null)),
        ("weir_model_load", (null, 10, 40, handle)),
        ("weir_model_load", (data, size, 40, null)),
        ("weir_bind", (plan, null, handle)),
        ("weir_bind", (plan, ffi.new("weir_arena *"), handle)),
        ("weir_label", (arena.handle, 0, 0, BASE_MS, 1, 99, null)),
        *(("weir_merge", (plan, 0, *sides, PLAN.kinds[0].size)) for sides in ((null, data, data), (data, null, data))),
        ("weir_merge", (plan, 0, data, data, null, PLAN.kinds[0].size)),
    ]
    for name, arguments in calls:
        refused(BadArgument, ("null",), lambda n=name, a=arguments: core.check(getattr(lib, n)(*a)))
    assert handle[0] == 0
    assert lib.weir_last_error(null, 100) > 0


def test_null_pointers_in_an_arena_are_refused(core: Core, plan: int) -> None:
    """Each of the arena's pointers, its slabs' included, is checked when it is bound."""
    arena = make_arena()
    memory, slabs = raw_memory(core, arena)
    handle = core._ffi.new("uint64_t *")
    places = [(memory, name) for name in ("slabs", "vectors", "risk")] + [(slabs[2], "base"), (slabs[3], "late_dropped")]
    for target, name in places + [(getattr(memory, name), "start") for name in ("lsns", "slots", "columns")]:
        kept = getattr(target, name)
        setattr(target, name, core._ffi.NULL)
        with pytest.raises(BadArgument, match="null"):
            core.check(core._lib.weir_bind(plan, memory, handle))
        setattr(target, name, kept)
    core.check(core._lib.weir_bind(plan, memory, handle))
    core.check(core._lib.weir_unbind(handle[0]))


def raw_memory(core: Core, arena: Arena) -> tuple[Any, Any]:
    """weir_arena and weir_slab[] of an arena, as the binding fills them."""
    new, cast = core._ffi.new, core._ffi.cast
    slabs = new("weir_slab[]", len(arena.slabs))
    for target, slab in zip(slabs, arena.slabs, strict=True):
        target.base, target.stride, target.capacity = cast("void *", slab.rows.ctypes.data), slab.kind.size, slab.capacity
        target.late_dropped, target.n_late_dropped = cast("int64_t *", slab.late_dropped.ctypes.data), slab.late_dropped.size
    memory = new("weir_arena *")
    memory.rows, memory.n_slabs, memory.slabs = arena.rows_max, len(arena.slabs), slabs
    for name in ("lsns", "slots", "columns"):
        array = getattr(arena, name)
        rows = getattr(memory, name)
        rows.start, rows.stride = cast("int64_t *", array.ctypes.data), array.strides[0]
        rows.size = (len(array) - 1) * array.strides[0] + array[0].nbytes
    memory.vectors, memory.risk = cast("float *", arena.vectors.ctypes.data), cast("float *", arena.risk.ctypes.data)
    memory.n_vectors, memory.n_risk = arena.vectors.size, arena.risk.size
    return memory, slabs


@pytest.mark.parametrize(
    ("of", "name", "value", "named"),
    [
        ("memory", "rows", 0, ("0 rows",)),
        ("memory", "rows", -5, ("-5 rows",)),
        ("memory", "rows", 2**20 + 1, ("1048577 rows", "1048576")),
        ("memory", "n_slabs", 3, ("3 slabs", "4 kinds")),
        ("memory", "n_slabs", 2**40, ("4 kinds",)),
        ("memory", "n_vectors", 319, ("319", "320")),
        ("memory", "n_risk", 7, ("7 for risk", "8")),
        ("memory", "n_risk", -1, ("risk", "-1")),
        ("lsns", "stride", 0, ("lsns", "stride of 0")),
        ("lsns", "stride", 12, ("lsns", "stride of 12", "multiple of 8")),
        ("slots", "stride", 24, ("slots", "stride of 3 words", "4")),
        ("columns", "stride", -128, ("columns", "-128")),
        ("columns", "stride", 80, ("columns", "stride of 10 words", "11")),
        ("columns", "stride", 2**40, ("columns", "words", str(2**37))),
        ("columns", "size", 87, ("columns", "10 words", "123")),
        ("slab", "n_late_dropped", 3, ("card", "3 counters", "4 rings")),
        ("slab", "n_late_dropped", 2**62, ("late_dropped", str(2**62))),
        ("slab", "stride", 1400, ("card", "stride 1400", "1408")),
        ("slab", "stride", 0, ("stride 0",)),
        ("slab", "capacity", -1, ("capacity -1",)),
        ("slab", "capacity", 2**62, (f"capacity {2**62}",)),
    ],
)
def test_bind_wrong_lengths_and_strides_are_refused(
    of: str, name: str, value: int, named: tuple[str, ...], core: Core, plan: int
) -> None:
    """What an arena says of its memory is checked against the plan."""
    memory, slabs = raw_memory(core, make_arena())
    setattr({"memory": memory, "slab": slabs[0]}.get(of) or getattr(memory, of), name, value)
    handle = core._ffi.new("uint64_t *")
    with pytest.raises(BadArgument) as caught:
        core.check(core._lib.weir_bind(plan, memory, handle))
    assert all(part in str(caught.value) for part in named), caught.value
    assert handle[0] == 0


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("lsns", lambda a: a.lsns[:-1]),
        ("lsns", lambda a: a.lsns.astype(np.int32)),
        ("slots", lambda a: a.slots[:, :3]),
        ("columns", lambda a: np.zeros((ROWS, 22), np.int64)[:, ::2]),
        ("vectors", lambda a: a.vectors[:-1]),
        ("vectors", lambda a: a.vectors[:, :-1]),
        ("vectors", lambda a: a.vectors.astype(np.float64)),
        ("vectors", lambda a: np.asfortranarray(a.vectors)),
        ("risk", lambda a: np.zeros(2 * ROWS, np.float32)[::2]),
        ("risk", lambda a: np.zeros((ROWS, 1), np.float32)),
        ("risk", lambda a: np.broadcast_to(np.float32(0), (ROWS,))),
    ],
)
def test_bind_array_that_is_too_small_or_of_another_type_is_refused(
    name: str, replaced: Callable[[Arena], Any], core: Core, plan: int
) -> None:
    """The core cannot see where an array ends, so the binding refuses one that is not as the plan needs it."""
    arena = make_arena()
    setattr(arena, name, replaced(arena))
    with pytest.raises(BadArgument, match=name):
        core.bind(plan, arena)
    assert arena.handle == 0


def test_bind_plan_of_other_kinds_or_features_is_refused(core: Core) -> None:
    """An arena of one plan is not taken for another, also where only the features are more."""
    handbook = core.load_plan(HANDBOOK.to_bytes())
    with pytest.raises(BadArgument, match="4 slabs, the plan has 2 kinds"):
        core.bind(handbook, make_arena())
    wider = load_spec("cards")
    wider = type(wider)(
        **{f: getattr(wider, f) for f in wider.__struct_fields__} | {"feature": wider.feature + wider.feature[:1]}
    )
    with pytest.raises(BadArgument, match="vectors"):
        core.bind(core.load_plan(compile_plan(wider).to_bytes()), make_arena())
    core.close_plan(handbook)


@pytest.mark.parametrize("packed", [PLAN.to_bytes(), HANDBOOK.to_bytes()], ids=["cards", "handbook"])
def test_load_plan_cut_anywhere_is_refused(packed: bytes, core: Core) -> None:
    """A plan that lacks its end, however much of it, raises BadPlan."""
    for length in range(1, len(packed)):
        with pytest.raises(BadPlan):
            core.load_plan(packed[:length])
    with pytest.raises(BadArgument, match="0 bytes"):
        core.load_plan(b"")
    with pytest.raises(BadPlan, match="1 bytes follow"):
        core.load_plan(packed + b"\0")


def test_load_plan_every_byte_flipped_is_refused_or_runs(core: Core) -> None:
    """Damage in any one byte raises BadPlan, or leaves a plan that runs without harm."""
    packed, survivors = PLAN.to_bytes(), 0
    for place in range(len(packed)):
        try:
            handle = core.load_plan(packed[:place] + bytes([packed[place] ^ 0xFF]) + packed[place + 1 :])
        except BadPlan:
            continue
        survivors += 1
        arena = make_arena()
        core.bind(handle, arena)
        core.score(0, arena, 0, ROWS, DRY | VECTORS)
        core.score(0, arena, 0, ROWS, ADVANCE | VECTORS)
        core.unbind(arena)
        core.close_plan(handle)
    assert 0 < survivors < len(packed) // 2


@pytest.mark.parametrize(
    ("data", "n_features", "error", "named"),
    [
        (b"", 40, BadArgument, "0 bytes"),
        (b"no model", 40, BadModel, "onnxruntime"),
        (MODEL.read_bytes()[:-1000], 40, BadModel, "onnxruntime"),
        (MODEL.read_bytes(), 39, BadModel, "39 features"),
        (MODEL.read_bytes(), -1, BadArgument, "-1 features"),
        (MODEL.read_bytes(), 2**20 + 1, BadArgument, "1048577 features"),
    ],
)
def test_load_model_wrong_one_is_refused(
    data: bytes, n_features: int, error: type[GoCoreError], named: str, core: Core
) -> None:
    """Bytes that are no model, or one of another width, raise and say which."""
    with pytest.raises(error, match=named):
        core.load_model(data, n_features)


def test_go_scorer_model_file_missing_or_corrupt_names_the_file(tmp_path: Path) -> None:
    """The scorer raises ModelError with the path, as the onnx scorer does."""
    corrupt = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match=r"model\.onnx: No such file"):
        GoScorer(PLAN, corrupt)
    corrupt.write_bytes(MODEL.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"model\.onnx: .*not a usable model"):
        GoScorer(PLAN, corrupt)
    with pytest.raises(ModelError, match="15 features"):
        GoScorer(HANDBOOK, MODEL)
