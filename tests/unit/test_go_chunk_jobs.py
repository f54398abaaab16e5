"""The memory of the core's calls for chunks: what cannot be is refused and named, nothing beyond what was lent is touched."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from features.plan import COLUMNS, compile_plan
from features.spec import load_spec
from gocore.binding import Core, load_core
from gocore.errors import BadArgument, BadHandle
from gocore.locate import missing_core
from service.codec import decode_transaction
from service.decisions import encode_body

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

PLAN = compile_plan(load_spec("cards"))
LISTS = 1 + len(PLAN.kinds)  # of ids
MARK = 0xEE  # in memory that was not written to
GUARD = 64  # bytes behind each output

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def core() -> Core:
    return load_core()


@pytest.fixture(scope="module")
def plan(core: Core) -> int:
    return core.load_plan(PLAN.to_bytes())


def body(event_id: str = "t-1") -> bytes:
    """A transaction with an id of each kind."""
    fields = {"event_id": event_id, "ts": 1_750_000_000_000, "amount": 1299, "currency": "USD", "card_id": "c1"}
    return json.dumps(fields | {"merchant_id": "m1", "device_id": "d1", "ip": "203.0.113.7"}).encode()


def bytes_of(arrays: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def marked(n: int, dtype: type = np.int64) -> npt.NDArray[Any]:
    return np.full(n, MARK, dtype)


def intake_job(core: Core, bodies: Sequence[bytes], body_bytes: int = 1000, id_bytes: int = 100) -> tuple[Any, Arrays]:
    n = len(bodies)
    arrays: Arrays = {
        "text": np.frombuffer(b"".join(bodies), dtype=np.uint8).copy(), "ends": np.cumsum(list(map(len, bodies))),
        "status": marked(n, np.uint8), "columns": marked(n * len(COLUMNS)), "bodies": marked(body_bytes + GUARD, np.uint8),
        "body_ends": marked(n), "ids": marked(LISTS * id_bytes + GUARD, np.uint8), "id_ends": marked(LISTS),
    }  # fmt: skip
    job = core.new_job("weir_intake_job", arrays)
    job.text_size, job.rows, job.rows_max, job.bodies_size, job.id_bytes = len(arrays["text"]), n, n, body_bytes, id_bytes
    return job, arrays


def encode_job(core: Core, n: int, room: tuple[int, int, int] = (1000, 1000, 1000)) -> tuple[Any, Arrays]:
    """`n` rows with bodies of 5 bytes and one class; `room` for entries, records, replies."""
    arrays: Arrays = {
        "risk": np.full(n, 0.5, np.float32), "bodies": np.arange(5 * n, dtype=np.uint8),
        "body_ends": np.arange(5, 5 * n + 1, 5),
        "event_ids": np.frombuffer(b"e\n" * n, np.uint8).copy(), "classes": np.zeros(n, np.uint8),
        "parts": np.frombuffer(b"tailmiddleend", np.uint8).copy(), "part_ends": np.array([4, 10, 13]),
        "stored_ends": marked(n), "reply_ends": marked(n),
    }  # fmt: skip
    arrays |= {name: marked(size + GUARD, np.uint8) for name, size in zip(("entries", "stored", "replies"), room, strict=True)}
    job = core.new_job("weir_encode_job", {name: array for name, array in arrays.items() if name != "risk"})
    job.risk = core.floats_in(arrays["risk"])
    job.rows, job.rows_max, job.first_lsn, job.n_classes, job.separator = n, n, 1, 1, ord(";")
    job.bodies_size, job.event_ids_size, job.parts_size = 5 * n, 2 * n, 13
    job.entries_size, job.stored_size, job.replies_size = room
    return job, arrays


@pytest.mark.parametrize("name", ["text", "ends", "status", "columns", "bodies", "body_ends", "ids", "id_ends"])
def test_null_pointer_in_an_intake_job_is_refused(core: Core, plan: int, name: str) -> None:
    """Each of the pointers is checked before anything is written."""
    job, arrays = intake_job(core, [body()])
    before = bytes_of(arrays)
    setattr(job, name, core._ffi.NULL)
    with pytest.raises(BadArgument, match=f"{name}: a pointer is null"):
        core.check(core.call_intake(plan, job))
    with pytest.raises(BadArgument, match="job: a pointer is null"):
        core.check(core.call_intake(plan, core._ffi.NULL))
    with pytest.raises(BadHandle):
        core.check(core.call_intake(plan + (1 << 40), job))
    assert before == bytes_of(arrays)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("rows", -1, "-1 rows with room for 2"), ("rows", 3, "3 rows with room for 2"), ("rows_max", 1, "room for 1"),
        ("rows_max", -1, "room for -1"), ("rows_max", 2**20 + 1, "1048576"),
        ("format", 2, "format 2"), ("format", -1, "format -1"),
        ("text_size", -1, "text: -1 bytes"), ("text_size", 2**62, "text: "), ("text_size", 300, "body 1 ends at byte"),
        ("bodies_size", -1, "bodies: -1"), ("id_bytes", 1, "1 bytes for the ids of 2 rows"), ("id_bytes", -1, "-1 bytes"),
        ("id_bytes", 2**62, "bytes for the ids"),
    ],
)  # fmt: skip
def test_wrong_length_in_an_intake_job_is_refused(core: Core, plan: int, name: str, value: int, named: str) -> None:
    """Sizes that cannot be, and rows without room, are named; nothing was written."""
    job, arrays = intake_job(core, [body()] * 2)
    before = bytes_of(arrays)
    setattr(job, name, value)
    with pytest.raises(BadArgument, match=named):
        core.check(core.call_intake(plan, job))
    assert before == bytes_of(arrays)


@pytest.mark.parametrize("ends", [(-1, 5), (5, 4), (0, 2**62), (2**63 - 1, 5)])
def test_ends_that_fall_or_lead_outside_are_refused(core: Core, plan: int, ends: tuple[int, int]) -> None:
    """No body begins before the one ahead of it or ends outside the text."""
    job, arrays = intake_job(core, [body()] * 2)
    arrays["ends"][:] = ends
    with pytest.raises(BadArgument, match="ends at byte"):
        core.check(core.call_intake(plan, job))
    assert (arrays["status"] == MARK).all()


def test_intake_memory_at_its_boundary_is_filled_and_not_passed(core: Core, plan: int) -> None:
    """Exactly enough is enough; with a byte less the last row is left, and nothing lies behind what was said to be there."""
    bodies = [body("e" * 40), body()]
    need = sum(len(encode_body(decode_transaction(each))) for each in bodies)
    ids = len("e" * 40 + "\n" + "t-1\n")
    for body_bytes, id_bytes, status in ((need, ids, [0, 0]), (need - 1, ids, [0, 1]), (need, ids - 1, [0, 1]), (0, 2, [1, 1])):
        job, arrays = intake_job(core, bodies, body_bytes, id_bytes)
        core.check(core.call_intake(plan, job))
        assert arrays["status"].tolist() == status
        assert job.n_left == sum(status)
        assert arrays["id_ends"].min() >= 2
        assert (arrays["bodies"][body_bytes:] == MARK).all()
        assert (arrays["ids"][LISTS * id_bytes :] == MARK).all()


@pytest.mark.parametrize(
    "name",
    ["risk", "bodies", "body_ends", "event_ids", "classes", "parts", "part_ends", "entries", "stored", "stored_ends", "replies",
     "reply_ends"],
)  # fmt: skip
def test_null_pointer_in_an_encode_job_is_refused(core: Core, name: str) -> None:
    """Each of the pointers is checked before anything is written."""
    job, arrays = encode_job(core, 2)
    before = bytes_of(arrays)
    setattr(job, name, core._ffi.NULL)
    with pytest.raises(BadArgument, match=f"{name}: a pointer is null"):
        core.check(core.call_encode(job))
    with pytest.raises(BadArgument, match="job: a pointer is null"):
        core.check(core.call_encode(core._ffi.NULL))
    assert before == bytes_of(arrays)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("rows", -1, "-1 rows"), ("rows", 3, "3 rows with room for 2"), ("rows_max", 2**20 + 1, "1048576"),
        ("rows_max", 1, "room for 1"),
        ("first_lsn", 0, "first LSN 0"), ("first_lsn", -5, "LSN below 0"), ("first_lsn", 2**63 - 2, "first LSN"),
        ("n_classes", 257, "257 classes"), ("n_classes", -1, "-1 classes"), ("n_classes", 0, "class 0 of 0"),
        ("separator", 256, "separator 256"), ("separator", -1, "separator -1"), ("bodies_size", -1, "bodies: -1"),
        ("bodies_size", 9, "body 1 ends at byte 10"), ("event_ids_size", 3, "1 event ids"), ("event_ids_size", -1, "ids: -1"),
        ("parts_size", 12, "part 2 ends at byte 13"), ("parts_size", 2**24 + 1, "16777217 bytes"), ("parts_size", -1, "-1"),
        ("entries_size", -1, "entries: -1"), ("stored_size", 2**62, "stored: "), ("replies_size", -(2**63), "replies: -"),
    ],
)  # fmt: skip
def test_wrong_length_in_an_encode_job_is_refused(core: Core, name: str, value: int, named: str) -> None:
    """Sizes that cannot be, and rows without room, are named."""
    job, _ = encode_job(core, 2)
    setattr(job, name, value)
    with pytest.raises(BadArgument, match=named):
        core.check(core.call_encode(job))
    assert job.entries_end == 0


def test_encode_room_at_its_boundary_is_filled_and_not_passed(core: Core) -> None:
    """Exactly enough is enough; a byte less of any of the three is refused, and nothing is written behind it."""
    job, arrays = encode_job(core, 3)
    core.check(core.call_encode(job))
    need = (job.entries_end, int(arrays["stored_ends"][-1]), int(arrays["reply_ends"][-1]))
    outputs = [arrays[name][:size].tobytes() for name, size in zip(("entries", "stored", "replies"), need, strict=True)]
    for less in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), need):
        room = (need[0] - less[0], need[1] - less[1], need[2] - less[2])
        job, arrays = encode_job(core, 3, room)
        if any(less):
            with pytest.raises(BadArgument, match=f"there is room for {room[0]}, {room[1]}, {room[2]}"):
                core.check(core.call_encode(job))
            assert job.entries_end == 0
        else:
            core.check(core.call_encode(job))
            assert [arrays[name][:-GUARD].tobytes() for name in ("entries", "stored", "replies")] == outputs
        assert all((arrays[name][-GUARD:] == MARK).all() for name in ("entries", "stored", "replies"))
