"""wrk as a client: the script that it is given, what its output means, and a real run where wrk is installed."""

import json
from pathlib import Path

import pytest

from loadgen.bench.arms import NULL, start_arm
from loadgen.bench.children import BenchError
from loadgen.bench.http_wrk import WrkClient
from loadgen.bench.payloads import BODY, BODY_ALONE, DRAWS, Draws, Payloads
from loadgen.bench.rows import Rows
from loadgen.bench.wrk import MARK, RUNS_MAX, build_script, lua_string, missing_wrk, parse_output, run_wrk, wrk_version
from loadgen.sender import Target

TARGET = Target("127.0.0.1", 8080, "", "key%d")
NUMBERS = [2_000_000, 50_000, 0, 0, 0, 0, 0, 812.5, 700, 900, 1_000, 2_000, 3_000, 9_000]
needs_wrk = pytest.mark.skipif(missing_wrk() is not None, reason=f"{missing_wrk()}")


def test_parts_put_together_are_the_request_that_payloads_makes() -> None:
    """Head, id, time and tail give the very bytes of `one`; a percent sign in the key is none of a format."""
    payloads = Payloads(TARGET, 100)
    head, tails = payloads.parts()
    request = payloads.one()
    now = request[request.index(b'"ts":') :][5:18]
    assert head + b"b-000000000000" + b'","ts":' + now + tails[0] == request
    assert len(tails) == DRAWS
    assert b"Bearer key%d\r\n" in request


@pytest.mark.parametrize("raw", [b'a"b\\c\r\n\x00\xff', b"", b"plain"])
def test_lua_string_keeps_every_byte(raw: bytes) -> None:
    """Quotes, backslashes and what cannot be printed are written as numbers."""
    literal = lua_string(raw)
    assert literal.isascii()
    assert literal.isprintable()
    unescaped = literal[1:-1].encode()
    for code in range(256):
        unescaped = unescaped.replace(b"\\%03d" % code, bytes([code])) if code != 92 else unescaped
    assert unescaped.replace(b"\\092", b"\\") == raw


def test_script_has_its_values_and_no_place_left_open(tmp_path: Path) -> None:
    """Run and skip are in it, the draws beside it, one a line."""
    script = build_script(b"POST /\r\n\r\n{", [b",a}", b",b}"], 17, 1, tmp_path)
    text = script.read_text()
    assert "@" not in text
    assert '"00017-%05d"' in text
    assert (tmp_path / "draws.txt").read_bytes() == b",a}\n,b}\n"


def test_script_of_too_many_runs_is_refused(tmp_path: Path) -> None:
    """Ids have five digits for the run."""
    build_script(b"", [b""], RUNS_MAX - 1, 0, tmp_path)
    with pytest.raises(BenchError, match="room for 100000"):
        build_script(b"", [b""], RUNS_MAX, 0, tmp_path)


def test_output_becomes_a_summary_and_errors_have_names() -> None:
    """The numbers of `done`, wherever they stand; each kind of error that there was is in the example."""
    text = f"Running 2s test\n{MARK}{json.dumps(NUMBERS)}\n50000 requests\n"
    summary = parse_output(text)
    assert (summary.requests, summary.errors, summary.error_example) == (50_000, 0, "")
    assert (summary.latency().p99, summary.latency().max) == (2_000, 9_000)
    with_errors = [*NUMBERS[:2], 1, 0, 0, 7, 2, *NUMBERS[7:]]
    summary = parse_output(f"{MARK}{json.dumps(with_errors)}\n")
    assert (summary.errors, summary.error_example) == (10, "connect 1, status 7, timeout 2")


@pytest.mark.parametrize(("text", "expected"), [("", "nothing"), ("oops", "oops"), (MARK + "[1,2]\n", "not readable")])
def test_output_without_numbers_is_an_error(text: str, expected: str) -> None:
    """What wrk said instead is told."""
    with pytest.raises(BenchError, match=expected):
        parse_output(text)


@needs_wrk
async def test_run_counts_what_the_server_answered(tmp_path: Path) -> None:
    """A real wrk against the null server: requests without errors, with latencies, and its own CPU."""
    child = start_arm(NULL, tmp_path, tmp_path, ())
    try:
        target = Target.parse(child.url, "none")
        payloads = Payloads(target, 100)
        sample = await WrkClient(tmp_path).measure(child, target, payloads, 4, 0.2)
    finally:
        child.stop()
    assert (sample.errors, sample.error_example) == (0, "")
    assert sample.requests == payloads.n_events > 100
    assert 0.9 < sample.seconds < 1.5
    assert 0 < sample.latency_us.p50 <= sample.latency_us.p99 <= sample.latency_us.max
    assert 0 < sample.client_cpu_share <= 1.05
    assert wrk_version().startswith("wrk 4")


@needs_wrk
def test_run_without_a_server_is_an_error(tmp_path: Path) -> None:
    """wrk's own message is told."""
    script = build_script(b"GET / HTTP/1.1\r\n\r\n", [b""], 0, 0, tmp_path)
    with pytest.raises(BenchError, match="unable to connect"):
        run_wrk("http://127.0.0.1:1", script, 1, 1)


@pytest.mark.parametrize(("alone", "n_cards"), [(False, 300), (True, 300), (False, 70_000)])
def test_rows_are_the_bytes_that_the_format_makes(alone: bool, n_cards: int) -> None:
    """Every digit of every field, past the end of the draws too."""
    draws = Draws.make(n_cards, n=1024)
    rows = Rows(draws, b"head 1\r\n", b"\n", alone=alone)
    body, n_fields = (BODY_ALONE, 5) if alone else (BODY, 7)
    made = rows.make(99_999_999_000, 1_100, 1_790_000_000_123)
    assert made.shape == (1_100, rows.width)
    for n, row in enumerate(made, 99_999_999_000):
        at = n % 1024
        card = int(draws.cards[at])
        fields = (n, 1_790_000_000_123, int(draws.amounts[at]), card, int(draws.merchants[at]), card, card)[:n_fields]
        assert row.tobytes() == b"head 1\r\n" + body % fields + b"\n"


def test_rows_of_each_card_name_them_in_order() -> None:
    """One event a card, from the first asked for."""
    made = Rows(Draws.make(10)).each_card(5, 66_000, 3, 1_790_000_000_123)
    events = [json.loads(row.tobytes()) for row in made]
    assert [event["event_id"] for event in events] == [f"b-{n:012d}" for n in (5, 6, 7)]
    assert [event["card_id"] for event in events] == ["c00066000", "c00066001", "c00066002"]
    assert [event["ip"] for event in events] == [f"2001:db8::{card:08x}" for card in range(66_000, 66_003)]
