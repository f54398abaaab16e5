"""Express: what one call of the core does is what the calls one by one do, byte by byte, as far as it goes."""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest

from features.plan import compile_plan
from features.slab import Slab
from features.spec import load_spec
from gocore.binding import Core, load_core
from gocore.encode import Encoded, Encoder
from gocore.errors import BadArgument, BadHandle
from gocore.express import ENCODED, ROWS_MAX, SCORED, TAKEN, Express, Outcome
from gocore.filter import GoFilter
from gocore.index import GoIndex
from gocore.intake import JSON, MSGPACK, Intake
from gocore.locate import missing_core
from models.arena import Arena
from models.card import ARTIFACTS, MODEL_FILE
from models.go_scorer import GoScorer
from service.codec import decode_transaction
from service.decisions import encode_body

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

PLAN = compile_plan(load_spec("cards"))
NOW, LSN, ALL = 1_750_000_000_000, 7_000, (0, 1 << 62)
PARTS = ((b"T", b",", b"}"),)
CARDS = 12


def body(event_id: str, card: int = 0, **more: Any) -> bytes:
    fields: dict[str, Any] = {
        "event_id": event_id, "ts": NOW, "amount": 1299 + card, "currency": "EUR", "card_id": f"c{card}",
        "merchant_id": f"m{card % 3}", "device_id": f"d{card}", "ip": "203.0.113.7", "country": "DE", "mcc": 5411,
        "channel": "ecom", "lat": 52.5, "lon": 13.4,
    }  # fmt: skip
    return json.dumps({name: value for name, value in (fields | more).items() if value is not None}).encode()


class Rig:
    """A service's memory without the service: indexes that know CARDS cards, an arena, a filter, an express over all of it."""

    def __init__(self, core: Core, rows_max: int = ROWS_MAX) -> None:
        plan = core.load_plan(PLAN.to_bytes())
        self.indexes = [GoIndex(core) for _ in PLAN.kinds]
        for index, ids in zip(self.indexes, ([f"c{n}" for n in range(CARDS)], ["m0", "m1", "m2"],
                                             [f"d{n}" for n in range(CARDS)], ["203.0.113.7"]), strict=True):  # fmt: skip
            index.put(ids, np.arange(len(ids)))
        self.slabs = [Slab(kind, CARDS) for kind in PLAN.kinds]
        self.arena = Arena(PLAN, self.slabs, rows_max)
        self.scorer = GoScorer(PLAN, ARTIFACTS / PLAN.spec_name / MODEL_FILE)
        self.intake = Intake(core, plan, ROWS_MAX + 1, len(PLAN.kinds), self.indexes)
        self.encoder = Encoder(core, ROWS_MAX + 1)
        self.filters = [GoFilter(core, 10_000, 1e-6)]
        self.express = Express(core, self.intake, self.encoder)

    def run(
        self, bodies: list[bytes], fmt: int = JSON, times: tuple[int, int] = ALL, below: float = 2.0, lsn: int = LSN
    ) -> Outcome:
        return self.express.run(*self.scorer.handles(self.arena), bodies, fmt, self.filters, PARTS, lsn, times, below)

    def one_by_one(self, bodies: list[bytes], fmt: int = JSON) -> "Result":
        taken = self.intake.take(bodies, fmt, self.filters)
        n = len(bodies)
        assert taken.slots is not None
        self.arena.lsns[:n] = np.arange(LSN, LSN + n)
        self.arena.slots[:n], self.arena.columns[:n] = taken.slots, taken.columns
        self.scorer.score(self.arena, n)
        risks = self.arena.risk[:n]
        return self.result(n, self.encoder.encode(LSN, risks, taken.bodies, taken.body_ends, taken.event_ids, bytes(n), PARTS))

    def result(self, n: int, encoded: Encoded) -> "Result":
        return Result(encoded, self.profiles(), self.arena.vectors[:n].tobytes(), self.arena.risk[:n].tobytes())

    def profiles(self) -> list[bytes]:
        return [slab.rows.tobytes() for slab in self.slabs]


class Result(NamedTuple):
    encoded: Encoded
    profiles: list[bytes]
    vectors: bytes
    risks: bytes


@pytest.fixture(scope="module")
def core() -> Core:
    return load_core()


@pytest.fixture
def rig(core: Core) -> Rig:
    return Rig(core)


@pytest.mark.parametrize("n_rows", [1, 2, 5, 17, 64, ROWS_MAX])
@pytest.mark.parametrize("fmt", [JSON, MSGPACK])
def test_express_is_what_the_calls_one_by_one_are(core: Core, n_rows: int, fmt: int) -> None:
    """Entries, records, replies, profiles, vectors and scores; cards that come several times in a chunk see themselves."""
    bodies = [
        body(f"t-{row}", row * 7 % CARDS, ts=NOW + row, device_id=None if row % 5 == 0 else f"d{row % CARDS}")
        for row in range(n_rows)
    ]
    if fmt == MSGPACK:
        bodies = [encode_body(decode_transaction(one)) for one in bodies]
    express, others = Rig(core), Rig(core)
    came = express.run(bodies, fmt)
    assert (came.stage, came.last_ts) == (ENCODED, NOW + n_rows - 1)
    assert min(came.decode_ns, came.look_up_ns, came.score_ns, came.encode_ns) > 0
    expected = others.one_by_one(bodies, fmt)
    assert express.result(n_rows, express.encoder.encoded()) == expected
    taken, scored = others.intake.taken(), express.intake.scored()
    assert taken.slots is not None
    assert scored[:2] == (taken.event_ids, taken.bodies)
    assert (scored[2].tolist(), scored[3].tolist()) == (taken.body_ends.tolist(), taken.slots.tolist())


@pytest.mark.parametrize(
    ("odd", "times"),
    [
        pytest.param(b"{", ALL, id="no-transaction"),
        pytest.param(body("t-odd", CARDS), ALL, id="unknown-card"),
        pytest.param(body("t-0"), ALL, id="comes-twice"),
        pytest.param(body("t-odd", ts=NOW + 11), (NOW, NOW + 10), id="too-early"),
        pytest.param(body("t-odd", ts=NOW - 1), (NOW, NOW + 10), id="too-late"),
    ],
)
def test_a_row_out_of_the_ordinary_stops_it_before_anything_changes(rig: Rig, odd: bytes, times: tuple[int, int]) -> None:
    """Then the chunk is decoded and looked up as by Intake.take, and no profile has changed."""
    before = rig.profiles()
    came = rig.run([body("t-0"), body("t-1", 1), odd], times=times)
    assert came == (TAKEN, came.last_ts, came.decode_ns, came.look_up_ns, 0, 0)
    assert rig.profiles() == before
    taken = rig.intake.taken()
    assert taken.event_ids.startswith(b"t-0\nt-1\n")
    assert (taken.left, taken.n_missing, taken.suspects) in (
        ([2], 0, []), ([], 2, []), ([], 0, [2]), ([], 0, []),
    )  # fmt: skip


def test_times_at_the_bounds_are_within(rig: Rig) -> None:
    """Both are included."""
    assert rig.run([body("a", ts=NOW), body("b", ts=NOW + 10)], times=(NOW, NOW + 10)).stage == ENCODED


def test_a_score_that_is_not_low_stops_it_once_scored(rig: Rig) -> None:
    """Risks and vectors are in the arena; undo restores every byte; below the very score is not below."""
    before = rig.profiles()
    came = rig.run([body("a"), body("b", 1)], below=0.0)
    assert (came.stage, came.encode_ns) == (SCORED, 0)
    risks = rig.arena.risk[:2].copy()
    assert rig.profiles() != before
    rig.scorer.undo(rig.arena, LSN)
    assert rig.profiles() == before
    lowest, highest = sorted(risks.tolist())
    assert rig.run([body("c"), body("d", 1)], below=highest).stage == SCORED
    rig.scorer.undo(rig.arena, LSN)
    assert rig.run([body("e"), body("f", 1)], below=np.nextafter(highest, 1)).stage == ENCODED
    assert lowest <= highest


def test_an_encoded_chunk_can_be_taken_back(rig: Rig) -> None:
    """As where the journal refuses it; with another LSN there is nothing to take back."""
    before = rig.profiles()
    assert rig.run([body("a"), body("b")]).stage == ENCODED
    after = rig.profiles()
    rig.scorer.undo(rig.arena, LSN + 1)
    assert rig.profiles() == after
    rig.scorer.undo(rig.arena, LSN)
    assert rig.profiles() == before


def test_chunks_that_cannot_be(core: Core, rig: Rig) -> None:
    """None, too many, an arena with less room, an LSN of 0: refused, and nothing has changed."""
    before = rig.profiles()
    for bodies, lsn, named in (
        ([], LSN, "0 rows, not 1 to 256"),
        ([body(f"t-{row}") for row in range(ROWS_MAX + 1)], LSN, "257 rows, not 1 to 256"),
        ([body("t")], 0, "an LSN below 1"),
    ):
        with pytest.raises(BadArgument, match=named):
            rig.run(bodies, lsn=lsn)
    small = Rig(core, rows_max=2)
    with pytest.raises(BadArgument, match="3 rows, not 1 to 2"):
        small.run([body("a"), body("b"), body("c")])
    assert rig.profiles() == before


def test_handles_that_cannot_be(core: Core, rig: Rig) -> None:
    """A plan, a model and an arena that are not there; indexes that are not there."""
    model, arena = rig.scorer.handles(rig.arena)
    for handles in ((model + 1_000_000, arena), (model, arena + 1_000_000)):
        with pytest.raises(BadHandle):
            rig.express.run(*handles, [body("t")], JSON, rig.filters, PARTS, LSN, ALL, 2.0)
    with pytest.raises(BadArgument, match="risk is wanted, and no model given"):
        rig.express.run(0, arena, [body("t-1")], JSON, rig.filters, PARTS, LSN, ALL, 2.0)
    blind = Intake(core, rig.intake.plan, 4, len(PLAN.kinds))
    with pytest.raises(BadArgument, match="no indexes of the arena's 4 kinds"):
        Express(core, blind, rig.encoder).run(model, arena, [body("t-2")], JSON, rig.filters, PARTS, LSN, ALL, 2.0)


def test_rooms_grow_with_what_comes(rig: Rig) -> None:
    """Long ids of characters that are written as two in JSON: all of it comes out."""
    assert rig.run([body(f"{row:03}" + '"' * 125, row % CARDS) for row in range(ROWS_MAX)]).stage == ENCODED
    assert rig.encoder.encoded().replies.count(b'\\"') == 125 * ROWS_MAX
