"""`weir bench overload`, entities and profile: the overload client against a server that refuses, and smoke runs of each."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from loadgen.bench.children import BenchError
from loadgen.bench.entities.result import EntitiesResult
from loadgen.bench.overload.job import OverloadJob, run_overload_job
from loadgen.bench.overload.result import OverloadResult
from loadgen.bench.profile import ProfileResult

pytestmark = pytest.mark.bench

ACCEPTED = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"score": 0.5}'
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}"


class Half(asyncio.Protocol):
    """Answers every second request with 429, in pieces; requests are told apart by their first line."""

    seen: int = 0
    bodies: ClassVar[list[bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._input = b""

    def data_received(self, data: bytes) -> None:
        *requests, self._input = (self._input + data).split(b'"channel":"ecom"}')
        out = b""
        for request in requests:
            Half.bodies.append(request)
            out += ACCEPTED if Half.seen % 2 == 0 else REFUSED
            Half.seen += 1
        self._transport.write(out[:7])
        self._transport.write(out[7:])


@pytest.fixture
async def port() -> AsyncIterator[int]:
    Half.seen, Half.bodies = 0, []
    server = await asyncio.get_running_loop().create_server(Half, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.mark.parametrize(("depth", "burst"), [(0, 1), (4, 1), (0, 4), (6, 4)])
async def test_client_sends_on_schedule_and_counts_by_status(port: int, depth: int, burst: int) -> None:
    """Everything that is due is sent, each a new event, and each reply is counted once with a latency; 429s name a time."""
    outcome = await run_overload_job(OverloadJob("127.0.0.1", port, "key", 2_000.0, 1.0, 8, depth, burst, first=500))
    by_status = {answers.status: answers for answers in outcome.answers}
    assert outcome.sent == Half.seen > 1_800
    assert outcome.due == 2_000
    assert outcome.lost == 0
    assert by_status[200].n + by_status[429].n == outcome.sent
    assert abs(by_status[200].n - by_status[429].n) <= 1
    assert outcome.retry_after == by_status[429].n
    assert by_status[200].latency_us.n == by_status[200].n == sum(by_status[200].per_second)
    ids = [body[body.index(b'"event_id":"') :][12:26] for body in Half.bodies]
    assert sorted(ids) == [b"b-%012d" % n for n in range(500, 500 + len(ids))]


async def test_client_without_a_server_says_so() -> None:
    """The end of its stderr is in the message."""
    with pytest.raises(BenchError, match="refused"):
        await run_overload_job(OverloadJob("127.0.0.1", 1, "key", 100.0, 1.0, 1))


def _bench(tmp_path: Path, *words: str, code: int = 0) -> tuple[bytes, str]:
    json_out = tmp_path / "result.json"
    command = [sys.executable, "-m", "service", "bench", *words, "--json", str(json_out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == code, done.stderr
    return json_out.read_bytes() if code == 0 else b"", done.stdout + done.stderr


def test_quick_overload_says_what_came_back(tmp_path: Path) -> None:
    """Capacity, goodput, memory and recovery are in the result and on the page; nothing had another status."""
    html_out = tmp_path / "o.html"
    options = ("--quick", "--scorer", "onnx", "--no-stores", "--connections", "16", "--html", str(html_out))
    raw, text = _bench(tmp_path, "overload", *options)
    result = msgspec.json.decode(raw, type=OverloadResult)
    assert result.capacity_closed > 0
    assert result.goodput > 0
    assert {answers.status for answers in result.outcome.answers} <= {200, 429}
    assert result.memory.most_mb >= result.memory.before_mb > 0
    assert "goodput, of capacity" in text
    assert html_out.read_text(encoding="utf-8").count('class="plot"') == 2


def test_quick_entities_fill_l1_and_overflow_it(tmp_path: Path) -> None:
    """All cards rest in the large L1, a part in the small one; every look-up of the first two was a hit."""
    html_out = tmp_path / "e.html"
    raw, text = _bench(tmp_path, "entities", "--quick", "--html", str(html_out))
    result = msgspec.json.decode(raw, type=EntitiesResult)
    few, many, spill = result.rows
    assert [row.errors for row in result.rows] == [0, 0, 0]
    assert few.profiles >= result.options.few
    assert many.profiles >= result.options.many
    assert 0 < spill.profiles < many.profiles / 2
    assert spill.hit_share is not None
    assert many.hit_share is not None
    assert spill.hit_share < many.hit_share
    assert result.spill_ratio > 0
    assert "p99, of that with 500 cards" in text
    assert html_out.read_text(encoding="utf-8").count('class="plot"') == 3


def test_profile_writes_flame_graph_and_table(tmp_path: Path) -> None:
    """Samples were taken, the service's own functions are among them, and both files are there; or ptrace is forbidden."""
    out = tmp_path / "p.svg"
    command = [sys.executable, "-m", "service", "bench", "profile", "--out", str(out), "--seconds", "1", "--no-stores"]
    options = ["--connections", "8", "--cards", "500", "--json", str(tmp_path / "p.json")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=180, check=False)
    if done.returncode == 2 and "ptrace is forbidden" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode((tmp_path / "p.json").read_bytes(), type=ProfileResult)
    assert result.samples > 10
    assert any("service/" in function.function for function in result.functions)
    assert "<svg" in out.read_text(encoding="utf-8")
    assert "self" in done.stdout
    assert out.with_suffix(".txt").read_text(encoding="utf-8").count("\n") > 10


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("overload", "--scorer", "rust"), "--scorer rust: expected go or onnx"),
        (("profile", "--mode", "fast"), "--mode fast: expected http, batch or stream"),
        (("profile", "--out", "/nosuch/p.svg"), "does not exist"),
        (("http", "--stores", "--set", "embedded=true"), "--stores gives each arm its own"),
        (("http", "--set", "server.fast_lane=true"), "leave it out of --arms"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    """Exit code 2 before anything is started."""
    _, text = _bench(tmp_path, *words, code=2)
    assert expected in text
    assert text.count("\n") == 1
