"""Decided transactions to bytes in the core: entries, records and replies are those that Python makes one by one."""

import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from features.transaction import Transaction
from gocore.binding import Core, load_core
from gocore.encode import CLASSES_MAX, Encoded, Encoder, Parts
from gocore.errors import BadArgument
from gocore.locate import missing_core
from service.codec import encode_decision
from service.decide import Decision
from service.decisions import StoredDecision, encode_body, encode_stored
from service.journal_format import TX, encode_entries
from service.pieces import Pieces
from service.records import encode_outcome

MISSING = missing_core()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

SEED = os.environ.get("SEED")
EXAMPLES = settings(
    max_examples=int(os.environ.get("EXAMPLES", "100")),
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
ROWS_MAX = 600
LSN = 5 << 48 | 1
Class = tuple[str, str, str, tuple[str, ...], tuple[str, ...]]  # outcome, model, scorer, degraded, reasons
APPROVE: Class = ("approve", "cards-mlp@1", "go", (), ())
REVIEW: Class = ("review", "cards-mlp@1", "go", ("redis",), ("L3_UNKNOWN",))


@pytest.fixture(scope="module")
def core() -> Core:
    return load_core()


@pytest.fixture(scope="module")
def encoder(core: Core) -> Encoder:
    return Encoder(core, ROWS_MAX)


def seeded(test: Callable[[], None]) -> None:
    """Run a hypothesis test, drawn from SEED if it is set."""
    (seed(int(SEED))(test) if SEED else test)()


def parts_of(classes: Sequence[Class], explain: bool = False) -> Parts:
    """The constant bytes of each class, cut out of what Python encodes."""
    parts = []
    for outcome, model, scorer, degraded, reasons in classes:
        stored = StoredDecision(1, b"", 0.5, outcome, model, scorer, degraded, reasons)
        tail = encode_outcome(stored)[1 + 9 :]
        _, text = encode_decision(Decision("", 0.5, outcome, model, scorer, 7, False, degraded, reasons), explain).split(
            b"0.5", 1
        )
        middle, end = text.split(b'"lsn":7', 1)
        parts.append((tail, middle + b'"lsn":', end))
    return tuple(parts)


def encoded(
    encoder: Encoder, txs: Sequence[Transaction], risk: Any, classes: Sequence[int], parts: Parts, **more: Any
) -> Encoded:
    bodies = [encode_body(tx) for tx in txs]
    ends = np.cumsum(list(map(len, bodies)), dtype=np.int64)
    event_ids = "".join(f"{tx.event_id}\n" for tx in txs).encode()
    lsn = more.pop("first_lsn", LSN)
    return encoder.encode(lsn, np.array(risk, np.float32), b"".join(bodies), ends, event_ids, bytes(classes), parts, **more)


def check_rows(
    found: Encoded, txs: Sequence[Transaction], risk: Any, classes: Sequence[int], known: Sequence[Class], first_lsn: int = LSN,
    separator: bytes = b"\n", explain: bool = False,
) -> None:  # fmt: skip
    """Compare with what Python makes of the same rows."""
    entries = []
    stored_records, replies = Pieces(found.stored, found.stored_bounds), Pieces(found.replies, found.reply_bounds)
    for row, tx in enumerate(txs):
        outcome, model, scorer, degraded, reasons = known[classes[row]]
        score, body, lsn = float(np.float32(risk[row])), encode_body(tx), first_lsn + row
        stored = StoredDecision(lsn, body, score, outcome, model, scorer, degraded, reasons)
        entries.append((TX, body, encode_outcome(stored)))
        assert stored_records[row] == encode_stored(stored)
        decision = Decision(tx.event_id, score, outcome, model, scorer, lsn, False, degraded, reasons)
        assert replies[row] == encode_decision(decision, explain) + separator
    assert encode_entries(entries) == found.entries
    assert (len(stored_records), len(replies)) == (len(txs), len(txs))
    assert (found.stored_bounds[-1], found.reply_bounds[-1]) == (len(found.stored), len(found.replies))


def tx(event_id: str = "t-1", **changes: Any) -> Transaction:
    return msgspec.structs.replace(Transaction(event_id, 1_750_000_000_000, 1299, "EUR", "c1", "m1"), **changes)


WORDS = st.text(max_size=40)
IDS = st.text(st.characters().filter(str.isprintable), min_size=1, max_size=128)
LISTS = st.lists(st.sampled_from(["redis", "postgres", "L3_UNKNOWN", 'ODD "ONE"', "ü"]), max_size=20).map(tuple)


@st.composite
def chunks(draw: st.DrawFn) -> tuple[list[Transaction], list[float], list[int], list[Class]]:
    known = draw(st.lists(st.tuples(WORDS, WORDS, WORDS, LISTS, LISTS), min_size=1, max_size=5))
    n = draw(st.integers(0, 12))
    txs = [tx(draw(IDS), card_id=draw(IDS) * draw(st.sampled_from([1, 1, 1, 40]))) for _ in range(n)]
    risk = draw(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=n, max_size=n))
    return txs, risk, draw(st.lists(st.integers(0, len(known) - 1), min_size=n, max_size=n)), known


def test_encode_random_chunks_agree(encoder: Encoder) -> None:
    """Any float, any printable id, any text in a class, any LSN."""

    @EXAMPLES
    @given(chunks(), st.integers(1, 2**63 - 100), st.sampled_from([b"\n", b",", b"\xff"]), st.booleans())
    def agree(chunk: tuple[Any, ...], first_lsn: int, separator: bytes, explain: bool) -> None:
        txs, risk, classes, known = chunk
        found = encoded(encoder, txs, risk, classes, parts_of(known, explain), first_lsn=first_lsn, separator=separator)
        check_rows(found, txs, risk, classes, known, first_lsn, separator, explain)

    seeded(agree)


def test_encode_scores_of_every_size_agree(encoder: Encoder) -> None:
    """Float32 numbers of any bits have the digits that Python gives them."""
    bits = np.random.default_rng(int(SEED or 1)).integers(0, 2**32, 20_000, dtype=np.uint32)
    risk = bits.view(np.float32)
    special = [0.0, -0.0, 1.0, 0.5, 0.1, 1e-5, 9.9e-6, 1e-45, 1e15, 1e16, 3e38, 0.9999999, 1.1754944e-38]
    risk = np.concatenate([np.array(special, np.float32), risk[np.isfinite(risk)], np.linspace(0, 1, 5000, dtype=np.float32)])
    parts = parts_of([APPROVE])
    for start in range(0, len(risk), ROWS_MAX):
        some = risk[start : start + ROWS_MAX]
        txs = [tx()] * len(some)
        check_rows(encoded(encoder, txs, some, [0] * len(some), parts), txs, some, [0] * len(some), [APPROVE])


@pytest.mark.parametrize("n_rows", [0, 1, 2, ROWS_MAX])
def test_encode_chunk_of_any_size_agrees(encoder: Encoder, n_rows: int) -> None:
    """None, one, as many as there is room for."""
    txs, classes = [tx(f"e{row}") for row in range(n_rows)], [row % 2 for row in range(n_rows)]
    risk = [row / 1000 for row in range(n_rows)]
    found = encoded(encoder, txs, risk, classes, parts_of([APPROVE, REVIEW]))
    check_rows(found, txs, risk, classes, [APPROVE, REVIEW])


def test_encode_numbers_of_every_width_agree(encoder: Encoder) -> None:
    """LSNs and bodies at each width that MessagePack has for them, a class of each number."""
    for first_lsn in (1, 126, 127, 254, 255, 65534, 65535, 2**32 - 2, 2**32 - 1, 2**63 - 4):
        txs = [tx(card_id="x" * n) for n in (1, 100, 66_000)]
        check_rows(encoded(encoder, txs, [0.5] * 3, [0] * 3, parts_of([APPROVE]), first_lsn=first_lsn), txs, [0.5] * 3, [0] * 3,
                   [APPROVE], first_lsn)  # fmt: skip
    known: list[Class] = [(f"outcome {number}", *APPROVE[1:]) for number in range(CLASSES_MAX)]
    txs = [tx(f"e{number}") for number in range(CLASSES_MAX)]
    classes = list(range(CLASSES_MAX))
    check_rows(encoded(encoder, txs, [0.5] * CLASSES_MAX, classes, parts_of(known)), txs, [0.5] * CLASSES_MAX, classes, known)


def test_encode_results_larger_than_the_rooms_grow_them(core: Core) -> None:
    """Long bodies, long replies, ids that are escaped throughout."""
    own = Encoder(core, 64)
    long: Class = ("x" * 5000, *APPROVE[1:])
    for card_id, event_id in (("é" * 30_000, "t"), ("c1", '"' * 128), ("c1", "\\" * 128)):
        txs = [tx(event_id, card_id=card_id)] * 64
        for known in ([APPROVE], [long]):
            check_rows(encoded(own, txs, [0.1] * 64, [0] * 64, parts_of(known)), txs, [0.1] * 64, [0] * 64, known)


def test_encode_results_outlive_the_next_call_and_parts_are_kept(encoder: Encoder) -> None:
    """Rooms are used again, results are copies; other parts take the place of those before."""
    parts = parts_of([APPROVE])
    first = encoded(encoder, [tx("a")], [0.25], [0], parts)
    kept = Encoded(first.entries, first.stored, list(first.stored_bounds), first.replies, list(first.reply_bounds))
    second = encoded(encoder, [tx("b" * 50)] * 3, [0.5] * 3, [1] * 3, parts_of([APPROVE, REVIEW]))
    assert first == kept
    check_rows(second, [tx("b" * 50)] * 3, [0.5] * 3, [1] * 3, [APPROVE, REVIEW])
    check_rows(encoded(encoder, [tx("a")], [0.25], [0], parts), [tx("a")], [0.25], [0], [APPROVE])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"risk": [0.5, float("nan")]}, "row 1 has the risk NaN"), ({"risk": [float("-inf"), 0.5]}, "row 0 has the risk -Inf"),
        ({"risk": [0.5]}, "1 risks, 2 bodies"), ({"classes": b"\0"}, "1 classes"), ({"parts": ()}, "row 0 has class 0 of 0"),
        ({"classes": b"\0\1"}, "row 1 has class 1 of 1"), ({"parts": ((b"",) * 3,) * 257}, "257 classes, at most 256"),
        ({"parts": ((b"", b"", b"x" * (1 << 24)),) * 2}, "bytes of parts, at most"), ({"body_ends": [5, 4]}, "body 1 ends at"),
        ({"body_ends": [-1, 4]}, "body 0 ends at byte -1"), ({"body_ends": [0, 2**40]}, "body 1 ends at byte"),
        ({"event_id_blob": b"a\n"}, "1 event ids, each with a line feed, for 2 rows"), ({"event_id_blob": b""}, "0 event ids"),
        ({"event_id_blob": b"a\nb"}, "1 event ids"), ({"event_id_blob": b"a\nb\nc\n"}, "2 bytes of event ids are left over"),
        ({"first_lsn": 0}, "first LSN 0"), ({"first_lsn": -1}, "LSN below 0"), ({"first_lsn": 2**63 - 1}, "first LSN 92233720"),
        ({"separator": b""}, "0 bytes"), ({"separator": b"\r\n"}, "2 bytes"),
    ],
)  # fmt: skip
def test_encode_what_cannot_be_is_refused(encoder: Encoder, changes: dict[str, Any], named: str) -> None:
    """Numbers that do not agree, classes that are not there, risks that are no numbers, LSNs out of range."""
    arguments: dict[str, Any] = {
        "first_lsn": LSN, "risk": [0.5, 0.5], "bodies": b"abcdef", "body_ends": [3, 6], "event_id_blob": b"a\nb\n",
        "classes": b"\0\0", "parts": parts_of([APPROVE]),
    }  # fmt: skip
    arguments |= changes
    arguments["risk"] = np.array(arguments["risk"], dtype=np.float32)
    arguments["body_ends"] = np.array(arguments["body_ends"], dtype=np.int64)
    with pytest.raises(BadArgument, match=named):
        encoder.encode(**arguments)


def test_encode_arrays_of_another_type_or_with_gaps_are_refused(encoder: Encoder) -> None:
    """The core cannot see the type of an array, so it is checked before."""
    good: dict[str, Any] = {
        "first_lsn": LSN, "risk": np.zeros(2, np.float32), "bodies": b"", "body_ends": np.zeros(2, np.int64),
        "event_id_blob": b"a\nb\n", "classes": np.zeros(2, np.uint8), "parts": parts_of([APPROVE]),
    }  # fmt: skip
    assert len(encoder.encode(**good).stored_bounds) == 3
    wrong_types: list[tuple[str, Any]] = [("risk", np.float64), ("body_ends", np.int32), ("classes", np.int64)]
    for name, wrong in wrong_types:
        with pytest.raises(BadArgument, match="expected float32, int64 and uint8"):
            encoder.encode(**good | {name: np.zeros(2, wrong)})
    for name in ("risk", "body_ends", "classes"):
        with pytest.raises(ValueError, match="contiguous"):
            encoder.encode(**good | {name: np.zeros(4, good[name].dtype)[::2]})


def test_encode_more_rows_than_there_is_room_for_are_refused(encoder: Encoder) -> None:
    """The core is not asked to write past the ends."""
    n = ROWS_MAX + 1
    with pytest.raises(BadArgument, match=f"{n} rows with room for {ROWS_MAX}"):
        encoded(encoder, [tx()] * n, [0.5] * n, [0] * n, parts_of([APPROVE]))


def test_entry_of_known_bytes(encoder: Encoder) -> None:
    """What stands on the disk is pinned, whoever writes it."""
    found = encoder.encode(
        1, np.array([0.5], np.float32), b"\x80", np.array([1], np.int64), b"e\n", b"\0", ((b"T", b"M", b"E"),), b";"
    )
    score = b"\xcb" + struct.pack(">d", 0.5)
    assert found.entries == struct.pack("<BII", 1, 1, 11) + b"\x80" + b"\x96" + score + b"T"
    assert found.stored == b"\x9a\x01\xc4\x01\x80" + score + b"T\xc0\x00"
    assert found.replies == b'{"event_id":"e","score":0.5M1E;'
