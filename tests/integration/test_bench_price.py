"""`weir bench price`: smoke runs of the command, and the launcher of its arms against what the service promises."""

import asyncio
import subprocess
import sys
import urllib.request
from pathlib import Path

import msgspec
import pytest

from features.transaction import Transaction
from loadgen.bench.children import BenchError, Child, add_key, start_weir
from loadgen.bench.payloads import Payloads
from loadgen.bench.price.flip_result import FlipResult
from loadgen.bench.price.flip_run import OFF, ON
from loadgen.bench.price.result import CONTROL, DEFAULT_ARMS, NEITHER, SERVE, TIMED, PriceResult
from loadgen.bench.touch import touch_cards
from loadgen.sender import Client, Target

pytestmark = pytest.mark.bench

PARTS = {
    "append", "encode", "look-up", "remember", "fsync, on the loop", "fsync, its thread", "keeper: take",
    "keeper: write",
}  # fmt: skip
TX = Transaction("t-1", 1_750_000_000_000, 1299, "EUR", "c1", "m1")


def _launch(tmp_path: Path, name: str, *options: str) -> tuple[Child, Target]:
    """The launcher of the arms, ready, over an empty directory."""
    data_dir = tmp_path / name
    data_dir.mkdir()
    key = add_key(data_dir)
    argv = [sys.executable, "-m", "service.price_arm", *options, "--data-dir", str(data_dir), "--set", "server.port=0"]
    child = Child(name, [*argv, "--set", "time.clock=stream"], tmp_path)
    return child, Target.parse(child.url, key)


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        text: str = reply.read().decode()
        return text


async def _score_twice(target: Target) -> list[bytes]:
    """The replies to one and the same transaction, sent twice."""
    body = msgspec.json.encode(TX)
    request = b"%s%d\r\n\r\n%s" % (target.head("POST", "/v1/score"), len(body), body)
    client = Client(target, 10.0)
    try:
        replies = [await client.request(request) for _ in range(2)]
    finally:
        client.close()
    assert [reply.status for reply in replies] == [200, 200]
    return [reply.body for reply in replies]


def test_quick_run_prices_and_times_every_part(tmp_path: Path) -> None:
    """Each default arm is measured at each number of connections; the timed one names every part, with something in each."""
    json_out, html_out, work_dir = tmp_path / "price.json", tmp_path / "price.html", tmp_path / "work"
    work_dir.mkdir()
    command = [
        sys.executable,
        "-m",
        "service",
        "bench",
        "price",
        "--quick",
        "--connections",
        "1,4",
        "--work-dir",
        str(work_dir),
    ]
    done = subprocess.run(
        [*command, "--json", str(json_out), "--html", str(html_out)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(json_out.read_bytes(), type=PriceResult)
    assert {(s.arm, s.connections) for s in result.samples} == {(arm, n) for arm in DEFAULT_ARMS for n in (1, 4)}
    assert [(p.arm, p.of, p.connections, p.pairs) for p in result.prices] == [
        (arm, SERVE, n, 1) for arm in (CONTROL, NEITHER) for n in (1, 4)
    ]
    for sample in result.samples:
        assert sample.cpu_us > 0
        assert (set(sample.parts_us) == PARTS) is (sample.arm == TIMED)
        assert all(us > 0 for us in sample.parts_us.values())
    assert {(part.part, part.connections) for part in result.parts} == {(part, n) for part in PARTS for n in (1, 4)}
    assert "1 connections: journal and idempotency take" in done.stdout
    html = html_out.read_text(encoding="utf-8")
    assert all(f">{part}</td>" in html for part in PARTS)
    assert list(work_dir.iterdir()) == []


async def test_launcher_with_nothing_taken_out_keeps_the_promise(tmp_path: Path) -> None:
    """The control and the timed arm answer a repeated transaction with its decision, and journal it once."""
    for options in ((), ("--timed",)):
        child, target = _launch(tmp_path, f"whole{len(options)}", *options)
        try:
            first, second = await _score_twice(target)
        finally:
            child.stop()
        assert b'"replayed":false' in first
        assert b'"replayed":true' in second
        assert (
            sum(path.stat().st_size for path in (tmp_path / child.name / "journal").glob("*.seg")) > 24
        )  # more than its header


async def test_launcher_without_journal_and_index_breaks_it(tmp_path: Path) -> None:
    """A repeated transaction is new, nothing is in a journal; what was scored counts in profiles, and L2 is flushed."""
    child, target = _launch(tmp_path, "neither", "--without", "journal,index", "--set", "l2.flush_interval_ms=50")
    try:
        first, second = await _score_twice(target)
        await touch_cards(child, target, Payloads(target, 100), 100)
    finally:
        child.stop()
    assert b'"replayed":false' in first
    assert b'"replayed":false' in second
    assert first != second
    assert list((tmp_path / "neither" / "journal").glob("*.seg")) == []
    # What is left is no data directory: the service sees that the journal lacks what a store has.
    with pytest.raises(BenchError, match="are missing here; restore the journal"):
        start_weir(tmp_path / "neither", tmp_path)


async def test_metrics_are_switched_in_a_running_service(tmp_path: Path) -> None:
    """Replies stay the same, byte by byte but for the date; /metrics has what was counted while the switch was on, no more."""
    child, target = _launch(tmp_path, "flipped", "--flip", "metrics")
    try:
        counted = await _score_twice(target)
        before = await asyncio.to_thread(_read, f"{child.url}/metrics")
        child.signal(OFF)
        await asyncio.sleep(0.2)
        uncounted = await _score_twice(target)
        after = await asyncio.to_thread(_read, f"{child.url}/metrics")
        child.signal(ON)
        await asyncio.sleep(0.2)
        await _score_twice(target)
        again = await asyncio.to_thread(_read, f"{child.url}/metrics")
    finally:
        child.stop()
    assert counted[1] == uncounted[0] == uncounted[1]
    for text, n in ((before, 2), (after, 2), (again, 4)):
        assert f'weir_request_seconds_count{{route="score"}} {n}.0' in text
        assert f'weir_requests_total{{route="score",status="200"}} {n}.0' in text


def test_quick_flips_pair_on_and_off_for_each_part(tmp_path: Path) -> None:
    """A smoke run has its pairs, alternating in order, says that they are too few, and writes a page."""
    json_out, page = tmp_path / "flips.json", tmp_path / "flips.md"
    command = [sys.executable, "-m", "service", "bench", "price", "--quick", "--flip", "metrics;nothing", "--connections", "2"]
    done = subprocess.run(
        [*command, "--json", str(json_out), "--markdown", str(page)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(json_out.read_bytes(), type=FlipResult)
    assert [(p.flip, p.connections, p.pairs) for p in result.prices] == [("metrics", 2, 2), ("nothing", 2, 2)]
    assert [pair.on_came_first for pair in result.pairs] == [True, False] * 2
    assert all(min(pair.on_us, pair.off_us) > 0 for pair in result.pairs)
    assert "goal at most 2 %: undecided" in done.stdout
    assert 'weir bench price --flip "metrics; nothing" --rounds 1' in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("argument", ["price_arm", "--without", "--timed"])
def test_no_command_of_weir_leads_to_the_launcher(argument: str) -> None:
    """`weir serve` knows none of its options."""
    command = [sys.executable, "-m", "service", "serve", argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert argument in done.stderr
