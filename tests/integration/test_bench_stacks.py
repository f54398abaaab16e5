"""`weir bench stacks` at its small size: a rival and Weir over real stores, every answer checked, all files written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from loadgen.bench.stacks.arms import missing_here
from loadgen.bench.stacks.result import StacksResult
from loadgen.bench.stores import descendants, is_running

pytestmark = pytest.mark.bench

STACKS = ("fastapi-onnx", "weir onnx", "fastapi-torch")


def test_smoke_run_of_a_rival_and_weir(tmp_path: Path) -> None:
    """Both answer rightly, with rates, CPU, memory and start; what is not built is in the table with its reason."""
    for name in STACKS[:2]:
        if (reason := missing_here(name, tmp_path / "data")) is not None:
            pytest.skip(f"{name}: {reason}")
    files = [part for kind in ("json", "html", "markdown") for part in (f"--{kind}", str(tmp_path / f"out.{kind}"))]
    argv = [sys.executable, "-m", "service", "bench", "stacks", "--quick", "--stacks", ",".join(STACKS)]
    done = subprocess.run(
        [*argv, "--data-dir", str(tmp_path / "data"), *files], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode((tmp_path / "out.json").read_bytes(), type=StacksResult)
    assert set(result.skipped) == {"fastapi-torch"}
    for name in STACKS[:2]:
        cell, process = result.cell(name), result.process(name)
        assert cell is not None
        assert process is not None
        assert cell.requests_per_s > 50
        assert cell.failures_per_s == 0
        assert 0 < cell.cpu_ms_per_request < 50
        assert cell.database_cpu_ms_per_request is not None
        assert process.pss_mb > 20
        assert process.installed_mb is not None
        assert process.installed_mb > 10
        assert 0.1 < process.first_answer_s[0] < 60
    assert {sweep.arm for sweep in result.sweeps} == set(STACKS[:2])
    assert "fastapi-torch" in (tmp_path / "out.markdown").read_text(encoding="utf-8")
    assert "Rate sweep" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_sigterm_leaves_no_process_behind(tmp_path: Path) -> None:
    """Stopped in the middle, with a rival and its database up: all of them end."""
    if (reason := missing_here("fastapi-onnx", tmp_path)) is not None:
        pytest.skip(reason)
    argv = [sys.executable, "-m", "service", "bench", "stacks", "--quick", "--stacks", "fastapi-onnx", "--seconds", "0.4"]
    process = subprocess.Popen([*argv, "--rounds", "50", "--data-dir", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "round 1" in line:
            break
    children = list(descendants(process.pid))
    assert len(children) > 3
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    deadline = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in children if is_running(pid)] == []
