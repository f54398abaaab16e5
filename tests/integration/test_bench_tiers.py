"""`weir bench tiers`: a smoke run of the command, what it writes, and what it refuses before anything starts."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from loadgen.bench.stores import missing_stores
from loadgen.bench.tiers.result import TiersResult

pytestmark = pytest.mark.bench

COMMAND = [sys.executable, "-m", "service", "bench", "tiers"]


@pytest.mark.skipif(missing_stores() is not None, reason=str(missing_stores()))
def test_quick_run_compares_with_everything_on(tmp_path: Path) -> None:
    """Without L1 nothing is decided otherwise, without any tier every event is; a delayed L3 is as far away as was asked."""
    json_out, html_out = tmp_path / "tiers.json", tmp_path / "tiers.html"
    options = [
        "--quick",
        "--delays",
        "0,2",
        "--config",
        "no-l1 no-bloom no-l2",
        "--config",
        "none",
        "--work-dir",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*COMMAND, *options, "--json", str(json_out), "--html", str(html_out)],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(json_out.read_bytes(), type=TiersResult)
    assert [arm.name for arm in result.arms] == [
        "all",
        "all, 2 ms",
        "no-l1 no-bloom no-l2",
        "no-l1 no-bloom no-l2, 2 ms",
        "none",
    ]
    reference, _, near, far, none = result.arms
    assert reference.changes is None
    for arm in (near, far):
        assert arm.changes is not None
        assert (arm.changes.compared, arm.changes.decisions_changed, arm.changes.scores_changed) == (400, 0, 0)
        assert sum(tier.hits for tier in arm.tiers if tier.name == "redis") > 0
    assert far.measured.p50_us > near.measured.p50_us
    assert none.changes is not None
    assert none.changes.degraded == 400
    example = none.changes.examples[0]
    assert example.profiles["card"][1] == "unknown"
    assert any(f.kind == "card" and f.tier_here == "unknown" and f.all_on != f.here for f in example.features)
    distances = {distance.delay_ms: distance.measured_ms for distance in result.distances}
    assert distances[2.0] is not None
    assert 2.0 <= distances[2.0] < 6.0
    for arm in result.arms:
        assert arm.measured.failed == 0
        assert 0 < arm.measured.p50_us <= arm.measured.p99_us <= arm.measured.p99_9_us
        assert arm.measured.cpu_us_per_request > 0
        assert arm.name in html_out.read_text(encoding="utf-8")
    assert example.event_id in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiers.html", "tiers.json"]


def test_a_file_is_replayed_and_the_end_of_stdin_ends_it(tmp_path: Path) -> None:
    """DATA is read; with --progress json each line is a step, and whoever started it takes it down by letting go."""
    data = tmp_path / "data.parquet"
    generate = [sys.executable, "-m", "service", "generate", str(data), "--events", "1000"]
    subprocess.run(generate, check=True, capture_output=True)
    command = [*COMMAND, str(data), "--no-stores", "--rounds", "100", "--progress", "json", "--work-dir", str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    done = 0
    while done < 1_000:
        step = json.loads(process.stderr.readline())
        assert step["total"] == 1_000 * 6 * 101
        done = step["done"]
    started = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert time.monotonic() - started < 30
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "no-l3"], "--config 'no-l3': 'no-l3' is none of all, none, no-l1,"),
        (["--config", ""], "--config '': expected words such as all, no-l1 or onnx"),
        (["--config", "go onnx"], "--config 'go onnx': names more than one engine"),
        (["--config", "all no-l1"], "--config 'all no-l1': all tiers are on, or some are off"),
        (["--delays", "0,soon"], "--delays 0,soon: expected ms from 0 to 1000"),
        (["--delays=-1"], "--delays -1: expected ms from 0 to 1000"),
        (["--no-stores", "--delays", "2"], "there is no L3 to turn off or to delay: --no-stores"),
        (["--no-stores", "--config", "no-redis"], "there is no L3 to turn off or to delay: --no-stores"),
        (["--scorer", "rust"], "--scorer rust: expected go, onnx or auto"),
        (["--set", "data_dir=x"], "--set data_dir=x: the benchmark sets data_dir,"),
        (["--progress", "loud"], "--progress loud: expected bar or json"),
        (["missing.parquet"], "missing.parquet"),
        (["--spec", "nothing", "missing.parquet"], "nothing"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], message: str) -> None:
    """Exit code 2 and a line that names the option, before anything starts."""
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("weir bench tiers: ")
    assert message in done.stderr
