"""The load generator against servers that stall, refuse and lie, and smoke runs of `weir bench load`."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from loadgen.bench.arms import NULL, start_arm
from loadgen.bench.children import add_key, start_weir
from loadgen.bench.load.commands import register
from loadgen.bench.load.job import LoadJob
from loadgen.bench.load.result import LoadResult
from loadgen.bench.load.run import Watched, run_load
from loadgen.bench.load.scenarios import WRK_ROUNDS
from loadgen.bench.processes import tree

EVENT = re.compile(rb'"event_id":"(b-\d{12})"')
STALL_S = 0.5


class Server:
    """Answers every event. `silent_every`: one in so many gets no reply; `wrong_every`: another's; stalls when told to."""

    def __init__(self) -> None:
        self.silent_every = self.wrong_every = 0
        self.seen = 0
        self.blocked = asyncio.Event()
        self.blocked.set()
        self.is_warm = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                found = EVENT.search(await reader.readexactly(length))
                assert found is not None
                self.seen += 1
                if self.seen == 300:
                    self.is_warm.set()
                await self.blocked.wait()
                if self.silent_every and self.seen % self.silent_every == 0:
                    continue
                event = b"b-000000000000" if self.wrong_every and self.seen % self.wrong_every == 0 else found[1]
                body = b'{"event_id":"%s","score":0.5,"outcome":"review"}' % event
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
def server() -> Server:
    return Server()


async def listen(server: Server) -> tuple[asyncio.Server, int]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    return listening, listening.sockets[0].getsockname()[1]


async def test_silence_counts_as_the_deadline_and_load_goes_on(server: Server) -> None:
    """Every 50th request gets no reply: it fails after the deadline, its connection is made again, others are answered."""
    server.silent_every = 50
    listening, port = await listen(server)
    job = LoadJob("127.0.0.1", port, "key", connections=4, warm_s=0.1, seconds=1.5, deadline_s=0.2)
    run = await run_load("closed", job)
    assert [error.kind for error in run.errors] == ["deadline passed"]
    assert run.failures == run.errors[0].count >= 4
    assert run.percentiles["100"] >= 200_000
    assert run.percentiles["50"] < 150_000
    assert run.requests > 10 * run.failures
    assert not run.realtime  # a closed loop has no schedule to keep
    listening.close()


async def test_open_loop_charges_a_stall_to_all_that_were_due(server: Server) -> None:
    """A server stops for half a second: a sixth of the requests were due in it, and their latencies say so."""
    listening, port = await listen(server)
    job = LoadJob("127.0.0.1", port, "key", connections=8, rate=400.0, arrivals="constant", warm_s=0.2, seconds=3.0)

    async def stall() -> None:
        await server.is_warm.wait()
        server.blocked.clear()
        await asyncio.sleep(STALL_S)
        server.blocked.set()

    stalling = asyncio.create_task(stall())
    run = await run_load("open", job)
    await stalling
    assert run.failures == 0
    assert run.latency_us.n == 1_200
    assert run.waited > 100  # eight connections are busy; the rest of what is due waits for one
    assert run.latency_us.max >= 0.9 * STALL_S * 1e6
    assert run.percentiles["98"] >= 0.5 * STALL_S * 1e6  # 1,200 × 0.5 / 3 = 200 waited on average half of it
    assert run.offered_per_s == pytest.approx(400, rel=0.01)
    assert sum(i.answered for i in run.timeline) == run.requests
    listening.close()


async def test_a_wrong_answer_is_a_failure(server: Server) -> None:
    """Every tenth reply is about another event; two workers find it, and their counts are added."""
    server.wrong_every = 10
    listening, port = await listen(server)
    job = LoadJob("127.0.0.1", port, "key", connections=2, workers=2, warm_s=0.1, seconds=0.5, deadline_s=1.0)
    run = await run_load("closed", job)
    assert [error.kind for error in run.errors] == ["decision of another event"]
    assert run.failures == pytest.approx(run.requests / 9, rel=0.3)
    listening.close()


async def test_cpu_and_memory_of_the_server_are_measured(tmp_path: Path) -> None:
    """The null server's own CPU and PSS, per request."""
    child = await asyncio.to_thread(start_arm, NULL, tmp_path, tmp_path, ())
    try:
        port = int(child.url.rpartition(":")[2])
        job = LoadJob("127.0.0.1", port, "", payload="null", connections=2, warm_s=0.1, seconds=0.5)
        run = await run_load("single-stream", job, Watched(lambda: tree(child.pid), lambda: []))
    finally:
        child.stop()
    assert run.server is not None
    assert 0 < run.server.cpu_ms_per_request < 5
    assert run.server.database_cpu_ms_per_request == 0
    assert run.server.pss_mb > 1


def weir(*arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "service", "bench", "load", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scenario", "open"], "needs --rate"),
        (["--scenario", "open", "--rate", "-5"], "--rate -5: expected requests per second above 0"),
        (["--scenario", "open", "--rate", "10,x"], "--rate 10,x"),
        (["--rate", "10"], "--scenario open takes rates"),
        (["--payload", "image"], "--payload image: expected weir"),
        (["--json", "/nowhere/at/all.json"], "--json /nowhere/at/all.json: the directory"),
        (["--server-pid", "999999999"], "--server-pid 999999999: there is no such process"),
        (["--scenario", "open", "--rate", "10", "--wrk"], "--wrk"),
        ([], "cannot reach 127.0.0.1:9"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(options: list[str], words: str) -> None:
    """Each names the option, the value and what is expected."""
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, ["--url", "http://127.0.0.1:9", "--quick", "--no-ceiling", *options])
    lines = [line for line in done.stderr.splitlines() if line.startswith("weir bench load: ")]
    assert done.exit_code == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert words in lines[0]


@pytest.mark.bench
@pytest.mark.parametrize(
    "options",
    [
        ["--scenario", "closed", "--connections", "8"],
        ["--scenario", "open", "--rate", "200,400", "--workers", "2"],
        ["--scenario", "single-stream"],
        ["--scenario", "server", "--p99-ms", "50"],
        ["--scenario", "offline", "--rows", "32"],
        ["--wrk", "--connections", "4"],
    ],
    ids=lambda options: "-".join(options)[:40],
)
def test_every_scenario_against_the_service(options: list[str], tmp_path: Path) -> None:
    """Each runs against `weir serve`, checks all replies and leaves JSON and a page."""
    (tmp_path / "data").mkdir()
    key = add_key(tmp_path / "data")
    child = start_weir(tmp_path / "data", tmp_path)
    try:
        files = ("--json", str(tmp_path / "load.json"), "--html", str(tmp_path / "load.html"))
        more = ("--cards", "100", "--zipf", "1", "--server-pid", str(child.pid))
        done = weir("--url", child.url, "--key", key, "--quick", *options, *more, *files)
    finally:
        child.stop()
    if "--wrk" in options and "wrk is not on PATH" in done.stderr:
        pytest.skip(done.stderr.strip())
    result = msgspec.json.decode((tmp_path / "load.json").read_bytes(), type=LoadResult)
    assert done.returncode == (1 if any(run.void for run in result.runs) else 0), done.stderr
    assert all(run.requests > 0 and run.failures == 0 for run in result.runs if run.scenario != "server")
    assert all(run.server is not None and run.server.pss_mb > 10 for run in result.runs)
    assert result.ceiling is not None
    assert result.ceiling.requests_per_s > 1_000
    if "--wrk" in options:
        assert result.wrk is not None
        assert result.wrk.wrk_per_s > 0
        assert len(result.wrk.ratios) == WRK_ROUNDS
        assert f"beside wrk: {result.wrk.own_per_s:,.0f} requests/s ours" in done.stdout
        assert result.wrk.verdict in done.stdout
    page = (tmp_path / "load.html").read_text(encoding="utf-8")
    assert "Latency by percentile" in page
    assert "Time line" in page
