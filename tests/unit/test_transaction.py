"""What makes a transaction valid: its types at their limits and one past them, and what check adds."""

from typing import Any

import msgspec
import pytest

from features.columns import encode
from features.transaction import AMOUNT_MAX, CHANNELS, TS_MAX, TS_SECONDS_MAX, InvalidTransaction, Transaction, check

MINIMAL = {"event_id": "e", "ts": 1_750_000_000_000, "amount": 1299, "currency": "EUR", "card_id": "c", "merchant_id": "m"}


def decode(**changes: Any) -> Transaction:
    """MINIMAL with `changes` through JSON."""
    return msgspec.json.decode(msgspec.json.encode(MINIMAL | changes), type=Transaction)


@pytest.mark.parametrize(
    "changes",
    [
        {"event_id": "x" * 128}, {"card_id": "ü" * 128}, {"amount": 0}, {"amount": AMOUNT_MAX}, {"ts": TS_MAX},
        {"ts": TS_SECONDS_MAX}, {"country": "AA"}, {"country": None}, {"mcc": 0}, {"mcc": 9999}, {"lat": -90, "lon": 180},
        {"lat": 90.0, "lon": -180.0}, {"device_id": " "}, *({"channel": channel} for channel in CHANNELS),
    ],
)  # fmt: skip
def test_transaction_at_the_limit_is_accepted(changes: dict[str, Any]) -> None:
    """A value at its limit passes the types and check, and becomes columns that fit int64."""
    tx = decode(**changes)
    check(tx)
    assert all(-1 <= value < 2**63 for value in encode(tx, {"EUR": 1_000_000}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_id", ""), ("event_id", "x" * 129), ("card_id", ""), ("merchant_id", "x" * 129), ("device_id", ""),
        ("ip", "x" * 129),
        ("amount", -1), ("amount", AMOUNT_MAX + 1), ("amount", 12.5), ("amount", 12.0), ("amount", "12"), ("amount", True),
        ("ts", -1), ("ts", TS_MAX + 1), ("ts", 1.5), ("ts", None), ("country", "de"), ("country", "D"), ("country", "DEU"),
        ("country", "DE\n"), ("country", "ÄÖ"), ("mcc", -1), ("mcc", 10_000), ("lat", 90.000001), ("lat", -91),
        ("lon", 180.1), ("lon", -181), ("currency", None), ("channel", 1), ("unknown", 1),
    ],
)  # fmt: skip
def test_transaction_past_the_limit_is_refused_by_its_types(field: str, value: Any) -> None:
    """One past a limit, another type or an unknown field fails to decode and names the field."""
    with pytest.raises(msgspec.ValidationError, match=field):
        decode(**{field: value})


@pytest.mark.parametrize("field", ["event_id", "ts", "amount", "currency", "card_id", "merchant_id"])
def test_transaction_without_a_required_field_is_refused(field: str) -> None:
    """Each of the six required fields is missed by name."""
    body = {key: value for key, value in MINIMAL.items() if key != field}
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.json.decode(msgspec.json.encode(body), type=Transaction)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
def test_transaction_number_that_is_none_is_refused(number: str) -> None:
    """No way of writing infinity or not-a-number gets in."""
    body = msgspec.json.encode(MINIMAL)[:-1] + f',"lat":{number},"lon":1}}'.encode()
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(body, type=Transaction)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"event_id": "a\n"}, "event_id"), ({"card_id": "\0"}, "card_id"), ({"merchant_id": "m\u200b"}, "merchant_id"),
        ({"device_id": "d\x7f"}, "device_id"), ({"ip": "\t"}, "ip"), ({"ts": TS_SECONDS_MAX - 1}, "ts"), ({"ts": 0}, "ts"),
        ({"channel": "web"}, "channel"), ({"channel": ""}, "channel"), ({"lat": 1.0}, "lon"), ({"lon": 1.0}, "lat"),
    ],
)  # fmt: skip
def test_check_names_the_field_that_the_types_let_through(changes: dict[str, Any], field: str) -> None:
    """Unprintable ids, seconds for milliseconds, unknown channels and half a place are refused by field."""
    with pytest.raises(InvalidTransaction) as caught:
        check(decode(**changes))
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("amount", "rate", "expected"),
    [
        (1, 1_000_000, 1), (0, 920_000, 0), (100, 920_000, 92), (1, 499_999, 0), (1, 500_000, 1), (3, 500_000, 2),
        (AMOUNT_MAX, 10_000_000, 10**11),
    ],
)  # fmt: skip
def test_encode_amount_is_converted_half_up(amount: int, rate: int, expected: int) -> None:
    """Base minor units are rounded half up, in integers."""
    assert encode(decode(amount=amount, currency="XYZ"), {"XYZ": rate})[1] == expected


def test_encode_unknown_currency_is_refused_by_field() -> None:
    """A currency without a rate names the field, the value and the known ones."""
    with pytest.raises(InvalidTransaction, match="'XXX' has no rate; the spec knows EUR, USD") as caught:
        encode(decode(currency="XXX"), {"EUR": 1, "USD": 2})
    assert caught.value.field == "currency"


def test_encode_absent_fields_are_minus_one_and_present_ones_never() -> None:
    """-1 means absent, for every optional column, and no given value looks like it."""
    assert encode(decode(), {"EUR": 1_000_000})[2:5] == (-1, -1, -1)
    assert encode(decode(), {"EUR": 1_000_000})[7:] == (-1, -1, -1, -1)
    least = {"country": "AA", "mcc": 0, "channel": "ecom", "device_id": "d", "ip": "i", "lat": -90, "lon": -180}
    assert min(encode(decode(**least), {"EUR": 1_000_000})) == 0
