"""`weir bench stream`, overload, entities, profile without servers: replies taken apart, medians, goals, slopes, self times."""

import asyncio
import contextlib
import json

import pytest

from loadgen.bench.children import BenchError
from loadgen.bench.entities.result import limit_mb, paired_ratio
from loadgen.bench.http_goals import Goal, goals_table
from loadgen.bench.lag import LagPoint, slope_per_s, until_idle
from loadgen.bench.profile import _failure, self_times
from loadgen.bench.sizing import l1_setting, profile_bytes
from loadgen.bench.stream.commands import parse_stream_arms
from loadgen.bench.stream.replies import BadReply, Lines, Replies
from loadgen.sender import Target

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def _line(n: int) -> bytes:
    return json.dumps({"event_id": f"b-{n:012d}", "score": 0.5, "outcome": "approve"}).encode() + b"\n"


def _chunked(*parts: bytes) -> bytes:
    return HEAD + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_chunked_replies_are_counted_however_they_are_cut(size: int) -> None:
    """Lines across chunks and chunks across parts: each counts once, and the end is seen."""
    body = b"".join(_line(n) for n in range(40, 60))
    data = _chunked(body[:10], body[10:333], body[333:334], body[334:])
    lines = Lines(40)
    replies = Replies(lines)
    for at in range(0, len(data), size):
        assert replies.whole == 0
        replies.feed(data[at : at + size])
    assert (lines.n, lines.errors, replies.whole, lines.unfinished()) == (20, 0, 1, b"")
    assert lines.checked >= 1


def test_replies_with_a_length_follow_each_other() -> None:
    """Batches: the next head comes right behind a body; an empty one is whole too; 100 Continue is no reply."""
    bodies = [_line(0) + _line(1), b"", _line(2)]
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + b"".join(
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body) for body in bodies
    )
    lines = Lines(0)
    replies = Replies(lines)
    replies.feed(data[:70])
    replies.feed(data[70:])
    assert (lines.n, replies.whole) == (3, 3)


def test_refused_lines_are_counted_and_the_first_is_kept() -> None:
    """A problem in a line's place is an error, and its order is not looked at."""
    problem = b'{"event_id":"b-x","status":422,"title":"Refused"}\n'
    lines = Lines(0)
    Replies(lines).feed(_chunked(_line(0) + problem + _line(2), problem))
    assert (lines.n, lines.errors) == (4, 2)
    assert lines.error_example == problem.decode().strip()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_chunked(_line(1)), "out of order"),
        (_chunked(b"nonsense\n"), "not readable"),
        (b"HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\n\r\nbusy", "429: busy"),
        (b"SSH-2.0\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "neither a length nor chunks"),
        (HEAD + b"xyz\r\n", "not with its size"),
        (HEAD + b"0\r\nTrailer: 1\r\n\r\n", "something else"),
    ],
)
def test_replies_that_break_the_contract_are_told(data: bytes, expected: str) -> None:
    """Order, form and status: each has its own message."""
    with pytest.raises(BadReply, match=expected):
        Replies(Lines(0)).feed(data)


@pytest.mark.parametrize(("text", "expected"), [("go", ("go",)), ("go batch, onnx,go", ("go", "onnx", "go batch"))])
def test_stream_arms_are_taken_once_and_in_order(text: str, expected: tuple[str, ...]) -> None:
    """However they are written."""
    assert parse_stream_arms(text) == expected


@pytest.mark.parametrize("text", ["", "rust", "go,"])
def test_unknown_stream_arms_are_refused(text: str) -> None:
    """With those that there are; an empty name is none."""
    if text == "go,":
        assert parse_stream_arms(text) == ("go",)
        return
    with pytest.raises(BenchError, match="go, onnx, go batch, onnx batch"):
        parse_stream_arms(text)


@pytest.mark.parametrize(("lags", "is_idle", "n_asked"), [([7, 2, 0, 9], True, 3), ([0], True, 1), ([5] * 100, False, None)])
async def test_idle_is_when_no_consumer_lacks_anything(lags: list[int], is_idle: bool, n_asked: int | None) -> None:
    """Asked again and again until every lag is 0, or until the time is over."""
    left, has_ended = iter(lags), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                consumers = [{"name": "l2", "lag": 0}, {"name": "redis", "lag": next(left)}]
                body = json.dumps({"consumers": consumers}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()
        await writer.wait_closed()
        has_ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await until_idle(Target("127.0.0.1", port, "", "key"), 0.5) is is_idle
    await has_ended.wait()
    server.close()
    await server.wait_closed()
    assert n_asked is None or len(lags) - len(list(left)) == n_asked


def test_slope_of_lag_leaves_out_the_beginning() -> None:
    """The first quarter is the build-up; a consumer that is not there, or too few points, has no slope."""
    points = [LagPoint(float(n), {"ledger": 10_000 if n < 5 else 100 * n}) for n in range(20)]
    assert slope_per_s(points, "ledger") == pytest.approx(100)
    assert slope_per_s(points, "redis") is None
    assert slope_per_s(points[:2], "ledger") is None


def test_goals_are_met_at_their_limit_and_not_past_it() -> None:
    """At least and at most both include the limit; the table says so in words."""
    goals = [
        Goal("a", 2.2, 2.2, True),
        Goal("b", 2.19, 2.2, True),
        Goal("c", 20.0, 20.0, False),
        Goal("d", 20.1, 20.0, False, True),
    ]
    assert [goal.met for goal in goals] == [True, False, True, False]
    assert goals_table(goals)[2][3] == ["d", 20.1, "≤ 20 (stretch)", "NOT met"]


def test_limit_of_memory_is_profiles_and_200_bytes_each_and_150_mb() -> None:
    """In MiB."""
    assert limit_mb(1_000_000, 2**30) == pytest.approx(1024 + (200e6 + 150e6) / 2**20, abs=0.1)


def test_paired_ratios_leave_out_rounds_in_which_nothing_came() -> None:
    """A median of what is left, 0 if nothing is."""
    assert paired_ratio([1.0, 6.0, 9.0], [2.0, 3.0, 0.0]) == 1.25
    assert paired_ratio([1.0], [0.0]) == 0.0


def test_l1_has_room_for_every_profile_and_never_less_than_by_default() -> None:
    """Cards alone are fewer bytes than cards with devices and addresses."""
    assert profile_bytes(1_000_000, alone=True) < profile_bytes(1_000_000)
    assert l1_setting(10) == f"l1.bytes_max={256 << 20}"
    assert int(l1_setting(1_000_000).partition("=")[2]) > profile_bytes(1_000_000)


def test_self_times_add_up_the_lines_of_a_function() -> None:
    """The innermost frame has the time; a function that calls itself is on a stack once."""
    stacks = "main (a.py:1);work (b.py:7) 3\nmain (a.py:2);work (b.py:9) 1\nmain (a.py:2);main (a.py:3) 4\nnonsense\n"
    total, functions = self_times(stacks)
    assert total == 8
    assert [(f.function, f.self_share, f.total_share) for f in functions] == [
        ("work (b.py)", 0.5, 0.5),
        ("main (a.py)", 0.5, 1.0),
    ]
    assert self_times("") == (0, [])


def test_forbidden_ptrace_is_told_with_its_cure() -> None:
    """What to do stands in the message; another failure keeps py-spy's own."""
    assert "SYS_PTRACE" in _failure("Error: Permission denied (os error 13)")
    assert _failure("boom") == "py-spy failed: boom"
