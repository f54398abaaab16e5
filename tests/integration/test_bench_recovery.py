"""`weir bench recovery`: a smoke run of the command with the engines that can be here."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from loadgen.bench.recovery.result import RecoveryResult
from models.scorers import NAMES, missing_scorer

pytestmark = pytest.mark.bench

MISSING = {name: reason for name in NAMES if (reason := missing_scorer(name))}
COMMAND = [sys.executable, "-m", "service", "bench", "recovery"]


def test_quick_run_recovers_the_same_with_every_engine(tmp_path: Path) -> None:
    """Everything that was written is recovered, in each round by each engine, and the page and the terminal show it."""
    json_out, html_out = tmp_path / "recovery.json", tmp_path / "recovery.html"
    options = ["--quick", "--work-dir", str(tmp_path), "--json", str(json_out), "--html", str(html_out)]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(json_out.read_bytes(), type=RecoveryResult)
    present = [name for name in NAMES if name not in MISSING]
    assert result.skipped == MISSING
    n_batches = -(-result.options.events // result.options.batch_rows)
    n_events = n_batches * result.options.batch_rows
    n_labels = -(-n_events // result.options.label_every)
    assert [arm.scorer for arm in result.arms] == present == [run.scorer for run in result.runs]
    for run in result.runs:
        assert run.entries == result.entries == n_events + n_labels
        assert run.checksum == result.checksum
        assert 0 < run.seconds < run.ready_s
        assert run.cpu_s > 0
        assert 0 < run.memory_mb <= run.memory_max_mb
    page = html_out.read_text(encoding="utf-8")
    assert all(f"<td>{name}</td>" in page and name in done.stdout for name in present)
    assert result.checksum in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recovery.html", "recovery.json"]


def test_unknown_engine_is_one_line() -> None:
    """Exit code 2, before anything is started."""
    done = subprocess.run([*COMMAND, "--scorers", "rust"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "weir bench recovery: --scorers rust: expected some of go, onnx, with commas between them\n"
