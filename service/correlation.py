"""What a request brings along to be found again: X-Request-Id, and the W3C trace context (traceparent, tracestate).

A request id that the client sends is given back, stands in problems and in log lines. It is the client's text: only plain
ASCII is taken, and what looks like a card number is not logged.
"""

import re
from typing import Final, NamedTuple

REQUEST_ID: Final = "X-Request-Id"
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

REQUEST_ID_FORM: Final = "[A-Za-z0-9._:/+=@-]{1,128}"
_REQUEST_ID: Final = re.compile(REQUEST_ID_FORM)
_TRACEPARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_DIGITS: Final = re.compile(r"[0-9](?:[._:/+=@-]?[0-9]){12,}")
CARD_DIGITS: Final = range(13, 20)  # that a card number has
SAMPLED: Final = 0x01


class Parent(NamedTuple):
    """The caller's span. trace_id: 128 bits, span_id: 64 bits, neither 0."""

    trace_id: int
    span_id: int
    is_sampled: bool


def clean_request_id(text: str | None) -> str | None:
    """The client's id of a request, or None if it sent none that is taken."""
    return text if text is not None and _REQUEST_ID.fullmatch(text) else None


def loggable(request_id: str | None) -> str | None:
    """`request_id` for a log or a trace: one that may hold a card number is replaced."""
    if request_id is None:
        return None
    runs = [re.sub(r"[^0-9]", "", run) for run in _DIGITS.findall(request_id)]
    return "***" if any(_holds_card_number(run) for run in runs) else request_id


def parse_traceparent(text: str | None) -> Parent | None:
    """As W3C Trace Context has it; None for one that is invalid, which then counts as not sent."""
    match = _TRACEPARENT.fullmatch(text) if text is not None else None
    if match is None or (match[1] == "00" and match[5]):  # what follows the flags is of later versions
        return None
    return Parent(int(match[2], 16), int(match[3], 16), bool(int(match[4], 16) & SAMPLED))


def _holds_card_number(digits: str) -> bool:
    """Whether some part has the length of a card number, and its check digit (Luhn): by chance some do."""
    return any(_luhn(digits[at : at + n]) for n in CARD_DIGITS for at in range(len(digits) - n + 1))


def _luhn(digits: str) -> bool:
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0
