"""One payment event as every stop sees it, and what its JSON types cannot say about its validity.

Money is int64 minor units of `currency`, times are int64 milliseconds UTC. A transaction is immutable.
"""

from typing import Annotated

import msgspec

ID_LENGTH_MAX = 128  # characters; the contract of POST /v1/score
AMOUNT_MAX = 10**10  # minor units; its square still fits the two words of a ring (features/rings.py)
TS_MAX = 2**62  # ms; anything above is a unit mistake, and differences of two times must fit an int64
TS_SECONDS_MAX = 10**11  # ms; 1973-03-03: a smaller ts is a time in seconds (until the year 5138), not in ms

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_LENGTH_MAX)]
Amount = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
Timestamp = Annotated[int, msgspec.Meta(ge=0, le=TS_MAX)]
Country = Annotated[str, msgspec.Meta(pattern="^[A-Z]{2}$", max_length=2)]  # "$" alone lets a newline follow
Mcc = Annotated[int, msgspec.Meta(ge=0, le=9999)]
Latitude = Annotated[float, msgspec.Meta(ge=-90, le=90)]
Longitude = Annotated[float, msgspec.Meta(ge=-180, le=180)]

# What an erased id becomes, character by character: unprintable, so that no id is ever one, and of the same length in UTF-8,
# so that a journal block keeps its size. By the bytes that the character took: a control character or one of private use.
BLANKS = ("\x00", "\x80", "\ue000", "\U000f0000")

CHANNELS = ("ecom", "pos", "atm", "moto", "other")  # the order is part of the plan: a channel's code is its place


class InvalidTransaction(ValueError):
    """A transaction that must be refused: `field` names the culprit, `problem` says what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class Transaction(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    """A payment event. Fields after `merchant_id` may be absent (None)."""

    event_id: Id
    ts: Timestamp
    amount: Amount
    currency: str
    card_id: Id
    merchant_id: Id
    device_id: Id | None = None
    ip: Id | None = None
    country: Country | None = None
    mcc: Mcc | None = None
    channel: str | None = None
    lat: Latitude | None = None
    lon: Longitude | None = None


def blank(text: str) -> str:
    """What is left of an id that was erased: as many characters and as many bytes of UTF-8, no information but those."""
    return "".join(BLANKS[len(character.encode()) - 1] for character in text)


def is_blank(text: str) -> bool:
    """True for an id that was erased."""
    return text[0] in BLANKS


def check(tx: Transaction) -> None:
    """Raise InvalidTransaction for what the types of Transaction cannot say. Currencies and clocks are checked elsewhere.

    Ids must be printable (str.isprintable), a channel one of CHANNELS, lat and lon given together, ts in milliseconds.
    """
    if not (tx.event_id.isprintable() and tx.card_id.isprintable() and tx.merchant_id.isprintable()):
        raise _unprintable(tx)
    if tx.device_id is not None and not tx.device_id.isprintable():
        raise _unprintable(tx)
    if tx.ip is not None and not tx.ip.isprintable():
        raise _unprintable(tx)
    if tx.ts < TS_SECONDS_MAX:
        raise InvalidTransaction("ts", f"{tx.ts} looks like seconds; send milliseconds since 1970 UTC")
    if tx.channel is not None and tx.channel not in CHANNELS:
        raise InvalidTransaction("channel", f"{tx.channel!r} is not one of {', '.join(CHANNELS)}")
    if (tx.lat is None) != (tx.lon is None):
        raise InvalidTransaction("lat" if tx.lat is None else "lon", "lat and lon must be given together")


def _unprintable(tx: Transaction) -> InvalidTransaction:
    for field in ("event_id", "card_id", "merchant_id", "device_id", "ip"):
        value = getattr(tx, field)
        if value is not None and not value.isprintable():
            return InvalidTransaction(field, f"{value!r} holds characters that cannot be printed")
    raise AssertionError("every id is printable")
