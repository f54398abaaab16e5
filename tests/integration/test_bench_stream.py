"""`weir bench stream`: its client against a small server that answers line by line, and a smoke run of the whole."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from loadgen.bench.children import BenchError
from loadgen.bench.stream.job import Job, Outcome, run_job
from loadgen.bench.stream.result import StreamResult

pytestmark = pytest.mark.bench


class EchoServer:
    """Decisions for what comes, in order; `misbehave` says from which event on and how not."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.cards: list[str] = []
        self.misbehave: tuple[int, str] | None = None
        self.port = 0
        self.busy = asyncio.Event()

    def decide(self, line: bytes) -> bytes:
        tx = json.loads(line)
        self.events.append(tx["event_id"])
        self.busy.set()
        self.cards.append(tx["card_id"])
        reply: dict[str, Any] = {"event_id": tx["event_id"], "score": 0.5, "outcome": "approve"}
        if self.misbehave is not None and len(self.events) > self.misbehave[0]:
            if self.misbehave[1] == "swap":
                reply["event_id"] = "b-000000000000"
            elif self.misbehave[1] == "refuse":
                reply = {"event_id": tx["event_id"], "status": 422, "title": "Refused"}
        return json.dumps(reply).encode() + b"\n"

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for line in request.content:
            answer = self.decide(line)
            if self.misbehave is not None and len(self.events) > self.misbehave[0]:
                if self.misbehave[1] == "end":
                    break
                if self.misbehave[1] == "mute":
                    await asyncio.sleep(60)
            await response.write(answer)
        await response.write_eof()
        return response

    async def batch(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-ndjson"
        return web.Response(body=b"".join([self.decide(line) for line in (await request.read()).splitlines()]))


@pytest.fixture
async def server() -> AsyncIterator[EchoServer]:
    made = EchoServer()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/score/stream", made.stream)
    app.router.add_post("/v1/score/batch", made.batch)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


def _job(server: EchoServer, **changes: Any) -> Job:
    job = Job("127.0.0.1", server.port, "key", "stream", 2_000, 50, chunk_rows=128)
    return msgspec.structs.replace(job, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"connections": 3, "first": 7_000},
        {"mode": "batch"},
        {"mode": "batch", "connections": 2, "chunk_rows": 77},
        {"rate": 8_000.0},
        {"chunk_rows": 5_000},
    ],
    ids=["stream", "three", "batch", "two batches", "rate", "one chunk"],
)
async def test_client_sends_every_event_once_and_counts_every_reply(server: EchoServer, changes: dict[str, Any]) -> None:
    """However it is cut, each event is sent once, in order on its connection, and each reply counted; none is an error."""
    outcome = await run_job(_job(server, **changes), "echo")
    first = changes.get("first", 0)
    assert (outcome.replies, outcome.errors, outcome.problem) == (2_000, 0, "")
    assert sorted(server.events) == [f"b-{n:012d}" for n in range(first, first + 2_000)]
    if "connections" not in changes:
        assert server.events == sorted(server.events)
    assert set(server.cards) <= {f"c{n:08d}" for n in range(50)}
    assert outcome.checked > 0
    assert outcome.chunk_us.n > 0
    assert outcome.bytes_sent > 2_000 * 200
    if "rate" in changes:
        assert outcome.seconds >= 0.24


async def test_client_gives_each_card_its_event(server: EchoServer) -> None:
    """The warm pass: event n is of card n."""
    await run_job(_job(server, events=300, cards=300, each_card=True, first=1_000), "echo")
    assert server.cards == [f"c{n:08d}" for n in range(300)]


async def test_client_counts_refused_events(server: EchoServer) -> None:
    """A refusal in place is a reply and an error."""
    server.misbehave = (1_990, "refuse")
    outcome: Outcome = await run_job(_job(server), "echo")
    assert (outcome.replies, outcome.errors) == (2_000, 10)
    assert '"status": 422' in outcome.error_example


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("swap", "out of order"),
        ("end", "2,000 events were sent and 500 answered"),
        ("mute", "no reply for 0.5 s"),
    ],
)
async def test_client_tells_what_breaks_the_contract(server: EchoServer, how: str, expected: str) -> None:
    """Another event's reply, an early end and silence each end the pass with a message."""
    server.misbehave = (500, how)
    with pytest.raises(BenchError, match=expected):
        await run_job(_job(server, deadline_s=0.5), "echo")


async def test_client_without_a_server_says_so() -> None:
    """Refused connections are one line."""
    with pytest.raises(BenchError, match="refused"):
        await run_job(Job("127.0.0.1", 1, "key", "stream", 10, 10), "nobody")


async def test_cancelled_pass_ends_its_process(server: EchoServer) -> None:
    """Ctrl-C leaves no client behind."""
    server.misbehave = (0, "mute")
    task = asyncio.create_task(run_job(_job(server), "echo"))
    await asyncio.wait_for(server.busy.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def _bench(tmp_path: Path, *options: str) -> tuple[StreamResult, str, str]:
    json_out, html_out = tmp_path / "s.json", tmp_path / "s.html"
    command = [sys.executable, "-m", "service", "bench", "stream", "--quick", "--json", str(json_out), "--html", str(html_out)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(json_out.read_bytes(), type=StreamResult), done.stdout, html_out.read_text(encoding="utf-8")


def test_quick_run_streams_and_batches(tmp_path: Path) -> None:
    """Every arm answers every event without an error; rates, CPU, ledger and journal are in the result and on the page."""
    result, text, page = _bench(tmp_path, "--arms", "onnx,onnx batch", "--events", "3000")
    assert [arm.arm for arm in result.arms] == ["onnx", "onnx batch"]
    for run in result.runs:
        assert (run.events, run.errors) == (3_000, 0)
        assert run.events_per_s > 0
        assert run.server_cpu_us > 0
        assert run.journal_bytes > 3_000 * 50
        if result.options.stores:
            assert run.lag_end is not None
            assert run.level_s is not None
    assert "onnx batch" in text
    assert page.count('class="plot"') == 3


def test_quick_run_at_a_rate_has_a_series_of_lags(tmp_path: Path) -> None:
    """The pass takes as long as it should, and the lag is read meanwhile."""
    result, _, _ = _bench(tmp_path, "--rate", "1000", "--arms", "onnx", "--connections", "2")
    run = result.runs[0]
    assert (run.events, run.errors) == (3_000, 0)
    assert 2.9 < run.seconds < 10
    assert len(run.lags) >= 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--arms", "rust"), "expected some of go, onnx"),
        (("--rate", "0"), "--rate 0 is not above 0"),
        (("--set", "scorer=go"), "--arms chooses scorers"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    """Exit code 2 before anything is started."""
    command = [sys.executable, "-m", "service", "bench", "stream", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("weir bench stream: ")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
