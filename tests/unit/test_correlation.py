"""Request ids and traceparents: what is taken, what is not, what is never logged."""

import pytest

from service.correlation import Parent, clean_request_id, loggable, parse_traceparent
from service.plain_head import PlainHeads

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "is_sampled"),
    [(f"00-{TRACE}-{SPAN}-01", True), (f"00-{TRACE}-{SPAN}-00", False), (f"00-{TRACE}-{SPAN}-03", True),
     (f"cc-{TRACE}-{SPAN}-01-what-comes", True), (f"cc-{TRACE}-{SPAN}-01", True)],
)  # fmt: skip
def test_valid_traceparent_is_read(text: str, is_sampled: bool) -> None:
    """Version 00, and later ones, of which only the known part is read."""
    assert parse_traceparent(text) == Parent(int(TRACE, 16), int(SPAN, 16), is_sampled)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_invalid_traceparent_counts_as_not_sent(text: str | None) -> None:
    """As the recommendation asks for."""
    assert parse_traceparent(text) is None


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [("a", True), ("A-1.b_c:d/e+f=g@h", True), ("a" * 128, True), ("a" * 129, False), ("", False), ("a b", False),
     ("ä", False), ('a"b', False), ("a\nb", False), ("a\r\nSet-Cookie: x", False), (None, False)],
)  # fmt: skip
def test_request_id_is_plain_or_not_taken(text: str | None, is_taken: bool) -> None:
    """1 to 128 harmless characters: what is given back must not end a header or quote JSON."""
    assert clean_request_id(text) == (text if is_taken else None)


@pytest.mark.parametrize(
    ("request_id", "is_shown"),
    [
        ("4111111111111111", False),
        ("tx-4111-1111-1111-1111", False),
        ("req5500000000000004x", False),
        ("4222222222223", True),  # a wrong check digit
        ("411111111111", True),  # twelve digits
        ("0193b7a2-8f1c-7cc3-b6b2-1f2a3b4c5d6e", True),
        ("r-1", True),
    ],
)
def test_card_number_in_a_request_id_is_not_logged(request_id: str, is_shown: bool) -> None:
    """Digits of that number whose check digit is right, alone or among others."""
    assert loggable(request_id) == (request_id if is_shown else "***")


def test_plain_heads_know_a_head_whatever_its_ids() -> None:
    """What differs in every request is cut out: one head is remembered, and each request keeps its own ids."""
    heads = PlainHeads(1_000)
    for number in range(50):
        lines = (f"X-Request-Id: r-{number}", f"traceparent: 00-{number + 1:032x}-{SPAN}-01", "tracestate: a=1, b=2")
        for order in (lines, tuple(reversed(lines))):
            text = "\r\n".join(["POST /v1/score HTTP/1.1", order[0], "Host: x", *order[1:], "Content-Length: 7", "", ""])
            head = heads.find(text.encode())
            assert head is not None
            assert (head.size - len(head.text), head.request_id, head.tracestate) == (7, f"r-{number}", "a=1, b=2")
            assert head.traceparent == f"00-{number + 1:032x}-{SPAN}-01"
    assert len(heads) == 1


def test_plain_heads_leave_ids_that_come_twice_to_aiohttp() -> None:
    """One judge for what is not plain."""
    text = "POST /v1/score HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\r\nx-request-id: b\r\nContent-Length: 7\r\n\r\n"
    assert PlainHeads(1_000).find(text.encode()) is None
