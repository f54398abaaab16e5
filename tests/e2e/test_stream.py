"""POST /v1/score/stream over HTTP: order, errors in place, what ends a stream, both forms."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Reply, Weir

PATH = "/v1/score/stream"
NDJSON, MSGPACK = "application/x-ndjson", "application/msgpack"
NUMBERS: Iterator[int] = iter(range(10**9))


def tx(**changed: Any) -> dict[str, Any]:
    number = next(NUMBERS)
    made = {"event_id": f"stream-{number}", "ts": 1_767_225_600_000 + number, "amount": 1299, "currency": "EUR"}
    return made | {"card_id": f"c{number % 7}", "merchant_id": "m1"} | changed


def call(weir: "Weir", method: str, path: str, body: bytes | None = None, kind: str = NDJSON) -> "Reply":
    return weir.call(method, path, body, {"Content-Type": kind})


def lines(weir: "Weir", rows: list[bytes], end: bytes = b"\n", path: str = PATH) -> list[Any]:
    reply = call(weir, "POST", path, b"\n".join(rows) + end, NDJSON)
    assert (reply.status, reply.headers["content-type"]) == (200, NDJSON)
    assert reply.body.endswith(b"\n")
    return [json.loads(line) for line in reply.body.splitlines()]


def test_stream_answers_in_order_and_bad_lines_in_place(weir: "Weir") -> None:
    """Every line has its reply, blank ones have none; what is wrong is said where it stands and ends nothing."""
    good = [tx() for _ in range(1_500)]
    rows = [json.dumps(row).encode() for row in good]
    rows[700:700] = [b"", b"{", json.dumps(tx(amount=-1)).encode(), b"  ", rows[0]]
    replies = lines(weir, rows)
    assert len(replies) == 1_503
    assert [r["event_id"] for r in replies[:700] + replies[703:]] == [row["event_id"] for row in good]
    assert [replies[700]["error"]["status"], replies[701]["error"]["field"]] == [400, "amount"]
    assert replies[702]["replayed"]
    assert replies[702]["lsn"] == replies[0]["lsn"]
    lsns = [r["lsn"] for r in replies[:700] + replies[703:]]
    assert lsns == sorted(set(lsns))


def test_stream_reports_a_partial_line_at_its_end(weir: "Weir") -> None:
    """A last line counts without its line feed if it is whole, and is an error in place if it is not."""
    whole, part = json.dumps(tx()).encode(), json.dumps(tx()).encode()[:-5]
    assert "score" in lines(weir, [whole], end=b"")[0]
    assert lines(weir, [json.dumps(tx()).encode(), part], end=b"")[1]["error"]["status"] == 400
    reply = call(weir, "POST", PATH, b"", NDJSON)
    assert (reply.status, reply.body) == (200, b"")


def test_stream_takes_flags_and_refuses_what_it_does_not_know(weir: "Weir") -> None:
    """`?commit=false` and `?explain=1` work as elsewhere; unknown flags, types and keys are refused before anything is read."""
    (tried,) = lines(weir, [json.dumps(tx()).encode()], path=f"{PATH}?commit=false&explain=1")
    assert (tried["lsn"], tried["outcome"]) == (0, "approve")
    assert isinstance(tried["reasons"], list)
    assert call(weir, "POST", f"{PATH}?comit=false", b"", NDJSON).status == 422
    assert call(weir, "POST", PATH, b"", "image/png").status == 415
    assert call(weir, "GET", PATH).status == 405


def test_packed_stream_is_answered_in_kind(weir: "Weir") -> None:
    """MessagePack maps, one after the other; a value that is no transaction is refused in its place."""
    rows: list[Any] = [tx(), 3, tx(amount="x"), tx()]
    body = b"".join(map(msgspec.msgpack.encode, rows))
    reply = call(weir, "POST", PATH, body, MSGPACK)
    assert (reply.status, reply.headers["content-type"]) == (200, MSGPACK)
    found = msgspec.msgpack.decode(b"\x94" + reply.body)
    assert [row.get("event_id") for row in found] == [rows[0]["event_id"], None, rows[2]["event_id"], rows[3]["event_id"]]
    assert [row["error"]["status"] if "error" in row else 200 for row in found] == [200, 400, 422, 200]


def test_packed_stream_ends_where_no_value_can_begin(weir: "Weir") -> None:
    """What came before is answered; the last reply says why nothing follows."""
    reply = call(weir, "POST", PATH, msgspec.msgpack.encode(tx()) + b"\xc1" + b"\x00" * 10, MSGPACK)
    good, last = msgspec.msgpack.decode(b"\x92" + reply.body)
    assert "score" in good
    assert last["error"]["status"] == 400


def test_row_without_an_end_ends_the_stream(weir: "Weir") -> None:
    """A line above server.body_bytes_max is not kept in memory: 413 in place, and the end."""
    replies = lines(weir, [json.dumps(tx()).encode(), b"x" * (3 << 20)], end=b"")
    assert "score" in replies[0]
    assert replies[1]["error"]["status"] == 413
    assert len(replies) == 2


@pytest.mark.parametrize("form", [NDJSON, MSGPACK])
def test_single_and_batch_answer_in_the_form_of_the_request(weir: "Weir", form: str) -> None:
    """The same transaction by all three routes gets the same decision, the second and third time replayed."""
    row = tx()
    pack, unpack = (
        (msgspec.msgpack.encode, msgspec.msgpack.decode) if form == MSGPACK else (msgspec.json.encode, msgspec.json.decode)
    )
    kind = form if form == MSGPACK else "application/json"
    one = call(weir, "POST", "/v1/score", pack(row), kind)
    many = call(weir, "POST", "/v1/score/batch", pack([row]), kind)
    stream = call(weir, "POST", PATH, pack(row), form)
    assert one.headers["content-type"] == many.headers["content-type"] == kind
    first, again, third = unpack(one.body), unpack(many.body)[0], unpack(stream.body)
    assert (first["replayed"], again["replayed"], third["replayed"]) == (False, True, True)
    assert first["lsn"] == again["lsn"] == third["lsn"]
    assert first["score"] == again["score"] == third["score"]
