"""Codec: what is valid passes, everything else is refused with the field that is wrong."""

import json
from typing import Any

import msgspec
import pytest

from features.transaction import AMOUNT_MAX, Transaction
from service import codec
from service.decide import Decision
from service.errors import BodyTooLarge, InvalidEvent, MalformedBody, UnsupportedMedia, WeirError

TX: dict[str, Any] = {
    "event_id": "t-1",
    "ts": 1750000000000,
    "amount": 1299,
    "currency": "EUR",
    "card_id": "c1",
    "merchant_id": "m1",
    "device_id": "d1",
    "ip": "203.0.113.7",
    "country": "DE",
    "mcc": 5411,
    "channel": "ecom",
    "lat": 52.5,
    "lon": 13.4,
}
LABEL = {"event_id": "t-1", "label": "fraud", "ts": 1750000000000}


def _body(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in {**TX, **changes}.items() if value is not ...}).encode()


def _refused(body: bytes) -> WeirError:
    with pytest.raises(WeirError) as caught:
        codec.decode_transaction(body)
    return caught.value


def _decision(**changes: Any) -> Decision:
    return msgspec.structs.replace(Decision("t-1", 0.25, "approve", "cards-1", "onnx", 7), **changes)


def test_decode_full_transaction() -> None:
    """Every field arrives as it was sent."""
    assert codec.decode_transaction(_body()) == Transaction(**TX)


def test_decode_required_fields_alone() -> None:
    """Everything after merchant_id may be absent, or null."""
    required = dict(list(TX.items())[:6])
    assert codec.decode_transaction(json.dumps(required).encode()) == Transaction(**required)
    assert codec.decode_transaction(_body(device_id=None, lat=None, lon=None)).device_id is None


@pytest.mark.parametrize("changes", [{"amount": 0}, {"amount": AMOUNT_MAX}, {"card_id": "x" * 128}, {"card_id": "ä"}])
def test_decode_at_limit_is_accepted(changes: dict[str, Any]) -> None:
    """Both ends of a range belong to it."""
    name, value = next(iter(changes.items()))
    assert getattr(codec.decode_transaction(_body(**changes)), name) == value


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"amount": -1}, "amount"),
        ({"amount": AMOUNT_MAX + 1}, "amount"),
        ({"amount": 10**30}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": 12.0}, "amount"),
        ({"amount": 12.5}, "amount"),
        ({"amount": "12"}, "amount"),
        ({"amount": None}, "amount"),
        ({"amount": {"value": 1}}, "amount"),
        ({"amount": ...}, "amount"),
        ({"event_id": ...}, "event_id"),
        ({"ts": ...}, "ts"),
        ({"ts": 1750000000}, "ts"),
        ({"ts": -1}, "ts"),
        ({"ts": 2**63}, "ts"),
        ({"ts": "2025-06-15"}, "ts"),
        ({"currency": 978}, "currency"),
        ({"card_id": ""}, "card_id"),
        ({"card_id": "x" * 129}, "card_id"),
        ({"card_id": "a\x00b"}, "card_id"),
        ({"event_id": "a\nb"}, "event_id"),
        ({"merchant_id": 7}, "merchant_id"),
        ({"ip": "\u202e"}, "ip"),
        ({"country": "de"}, "country"),
        ({"mcc": 10000}, "mcc"),
        ({"channel": "fax"}, "channel"),
        ({"lat": 91}, "lat"),
        ({"lat": "north"}, "lat"),
        ({"lon": ...}, "lon"),
        ({"amuont": 1}, "amuont"),
    ],
)
def test_decode_wrong_field_is_named(changes: dict[str, Any], field: str) -> None:
    """JSON whose content is wrong is a 422 that names the field."""
    error = _refused(_body(**changes))
    assert isinstance(error, InvalidEvent)
    assert error.field == field
    assert field in error.detail


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"  \n", "body"),
        (b"hello", "body"),
        (b"[]", "body"),
        (b"3", "body"),
        (b"null", "body"),
        (_body()[:-1], "body"),
        (_body() + b" x", "body"),
        (b"\xef\xbb\xbf" + _body(), "body"),
        (_body().decode().encode("utf-16"), "body"),
        (b"[" * 100_000, "body"),
        (_body().replace(b'"c1"', b'"\xff\xfe"'), "card_id"),
        (_body().replace(b'"c1"', b'"\\ud800"'), "card_id"),
        (_body().replace(b'"m1"', b'"m\x00"'), "merchant_id"),
        (_body().replace(b"1299", b"NaN"), "amount"),
        (_body().replace(b"52.5", b"-Infinity"), "lat"),
    ],
)
def test_decode_broken_json_is_malformed(body: bytes, field: str) -> None:
    """Bytes that are no JSON, or not an object, are a 400; the field is named where it can be told."""
    error = _refused(body)
    assert isinstance(error, MalformedBody)
    assert error.field == field


@pytest.mark.parametrize("value", [b"1e400", b"9" * 30_000, b"[" * 100_000])
def test_decode_hostile_number_names_field_in_a_short_message(value: bytes) -> None:
    """Numbers beyond any type and endless nesting are refused without echoing them."""
    error = _refused(_body().replace(b"1299", value))
    assert error.field == "amount"
    assert len(error.detail) < 200


def test_decode_unknown_field_name_is_sent_back_clean() -> None:
    """A field name made up by the caller comes back printable and short."""
    error = _refused(_body(**{"a`\n\x1b" + "x" * 500: 1}))
    assert error.field is not None
    assert error.field.isprintable()
    assert len(error.field) <= 40


def test_decode_duplicate_key_last_wins() -> None:
    """As in every common JSON parser."""
    assert codec.decode_transaction(_body().replace(b'"amount": 1299', b'"amount": 1, "amount": 2')).amount == 2


@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream", ""])
def test_split_batch_array(content_type: str) -> None:
    """An array gives its elements."""
    rows, form = codec.split_batch(b" [" + _body() + b"," + _body(event_id="t-2") + b"]", content_type, 10)
    assert [codec.decode_transaction(row).event_id for row in rows] == ["t-1", "t-2"]
    assert form == codec.JSON


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "application/octet-stream", "application/jsonl"])
def test_split_batch_ndjson(content_type: str) -> None:
    """Lines are told by the content type or by the first byte; empty lines and CRLF are let pass."""
    rows, form = codec.split_batch(_body() + b"\r\n\n" + _body(event_id="t-2"), content_type, 10)
    assert [codec.decode_transaction(row).event_id for row in rows] == ["t-1", "t-2"]
    assert form == codec.NDJSON


@pytest.mark.parametrize("content_type", ["application/msgpack", "application/x-msgpack"])
def test_split_batch_packed_array(content_type: str) -> None:
    """An array in MessagePack gives its elements; one that ends too early, or is none, is refused as a whole."""
    txs = [json.loads(_body()), json.loads(_body(event_id="t-2"))]
    body = msgspec.msgpack.encode(txs)
    rows, form = codec.split_batch(body, content_type, 10)
    assert [codec.decode_packed(row).event_id for row in rows] == ["t-1", "t-2"]
    assert form == codec.MSGPACK
    for bad in (body[:-1], b"", msgspec.msgpack.encode(txs[0]), body + b"\x00"):
        with pytest.raises(MalformedBody):
            codec.split_batch(bad, content_type, 10)


def test_split_batch_empty_is_empty() -> None:
    """An empty array and an empty NDJSON body are batches of no transactions."""
    assert codec.split_batch(b"[]", "application/json", 10) == ([], codec.JSON)
    assert codec.split_batch(b"", codec.NDJSON_TYPE, 10) == ([], codec.NDJSON)
    assert codec.split_batch(b"\x90", codec.MSGPACK_TYPE, 10) == ([], codec.MSGPACK)


def test_split_batch_rows_at_limit_and_above() -> None:
    """As many rows as allowed pass, one more is a 413."""
    assert len(codec.split_batch(b"[1,2]", "", 2)[0]) == 2
    with pytest.raises(BodyTooLarge, match="3 transactions"):
        codec.split_batch(b"[1,2,3]", "", 2)


@pytest.mark.parametrize("body", [b"[1,", b"", b"3", b'"x"', b"[" * 100_000, b"[{]"])
def test_split_batch_broken_array_is_malformed(body: bytes) -> None:
    """An array that cannot be taken apart is refused as a whole."""
    with pytest.raises(MalformedBody) as caught:
        codec.split_batch(body, "application/json", 10)
    assert caught.value.field == "body"


def test_split_batch_other_type_is_unsupported() -> None:
    """A type that is none of the three forms is a 415."""
    with pytest.raises(UnsupportedMedia, match="image/png"):
        codec.split_batch(b"[]", "image/png", 10)


@pytest.mark.parametrize("form", [codec.JSON, codec.MSGPACK])
def test_row_errors_carry_their_event_id(form: int) -> None:
    """A wrong row is an error in its place, with the event_id if it has one."""
    bad: list[Any] = [{**json.loads(_body(event_id="t-2")), "amount": -1}, 3, {"event_id": "t-4", "ts": "x"}]
    pack = msgspec.msgpack if form == codec.MSGPACK else msgspec.json
    decode = codec.decode_packed if form == codec.MSGPACK else codec.decode_transaction
    found = []
    for row in map(pack.encode, bad):
        with pytest.raises(WeirError) as caught:
            decode(row)
        found.append(pack.decode(codec.encode_row(row, caught.value, form)))
    assert [row.get("event_id") for row in found] == ["t-2", None, "t-4"]
    assert [row["error"]["status"] for row in found] == [422, 400, 422]
    assert [row["error"]["field"] for row in found] == ["amount", "body", "ts"]


@pytest.mark.parametrize("n_rows", [0, 1, 15, 16, 65_535, 65_536])
def test_array_head_is_that_of_an_array(n_rows: int) -> None:
    """Head and rows together are one MessagePack array."""
    assert msgspec.msgpack.decode(codec.array_head(n_rows) + b"\x07" * n_rows) == [7] * n_rows


def test_encode_decision_shape() -> None:
    """The reply has the fields of the contract; reasons and trace only when asked for."""
    decision = _decision(reasons=["SCORE_ABOVE_REVIEW_THRESHOLD"], degraded=["redis"])
    plain = json.loads(codec.encode_decision(decision))
    assert plain == {
        "event_id": "t-1",
        "score": 0.25,
        "outcome": "approve",
        "model": "cards-1",
        "scorer": "onnx",
        "lsn": 7,
        "replayed": False,
        "degraded": ["redis"],
    }
    assert json.loads(codec.encode_decision(decision, explain=True))["reasons"] == ["SCORE_ABOVE_REVIEW_THRESHOLD"]
    assert json.loads(codec.encode_decision(_decision(trace={"l1": 1})))["trace"] == {"l1": 1}


def test_decode_labels_valid() -> None:
    """An array of labels, possibly empty."""
    labels = codec.decode_labels(json.dumps([LABEL, {**LABEL, "label": "legit"}]).encode(), 2)
    assert [label.label for label in labels] == ["fraud", "legit"]
    assert codec.decode_labels(b"[]", 2) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"label": "maybe"}, "[1].label"),
        ({"label": 1}, "[1].label"),
        ({"ts": 1750000000}, "[1].ts"),
        ({"ts": 1.5}, "[1].ts"),
        ({"event_id": ""}, "[1].event_id"),
        ({"event_id": "a\n"}, "[1].event_id"),
        ({"why": "x"}, "[1].why"),
    ],
)
def test_decode_labels_wrong_one_refuses_all(changes: dict[str, Any], field: str) -> None:
    """One wrong label refuses the request and is named by its place."""
    with pytest.raises(InvalidEvent) as caught:
        codec.decode_labels(json.dumps([LABEL, {**LABEL, **changes}]).encode(), 10)
    assert caught.value.field == field


def test_decode_labels_other_container_and_too_many() -> None:
    """An object is a 400, more labels than allowed a 413."""
    with pytest.raises(MalformedBody):
        codec.decode_labels(json.dumps(LABEL).encode(), 10)
    with pytest.raises(BodyTooLarge):
        codec.decode_labels(json.dumps([LABEL, LABEL]).encode(), 1)


def test_encode_labels_counts_applied() -> None:
    """The reply lists every label and says how many changed something."""
    replies = [codec.LabelReply("a", "applied", 9), codec.LabelReply("b", "unknown_event")]
    assert json.loads(codec.encode_labels(replies)) == {
        "labels": [
            {"event_id": "a", "status": "applied", "lsn": 9},
            {"event_id": "b", "status": "unknown_event", "lsn": None},
        ],
        "applied": 1,
    }


def test_decode_list_body_checks_reason_and_expiry() -> None:
    """A reason is required, an expiry is optional and in ms."""
    assert codec.decode_list_body(b'{"reason": "stolen"}') == codec.ListBody("stolen")
    for body, field in [
        (b"{}", "reason"),
        (b'{"reason": ""}', "reason"),
        (b'{"reason": "a\\u0007"}', "reason"),
        (b'{"reason": "a", "expires": 1750000000}', "expires"),
        (b'{"reason": "a", "expires": "never"}', "expires"),
    ]:
        with pytest.raises(InvalidEvent) as caught:
            codec.decode_list_body(body)
        assert caught.value.field == field
