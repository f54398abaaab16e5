"""`weir bench toggles`: a smoke run of the command, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from loadgen.bench.stores import missing_stores
from loadgen.bench.toggles.result import TogglesResult
from models.scorers import NAMES, missing_scorer

pytestmark = pytest.mark.bench

COMMAND = [sys.executable, "-m", "service", "bench", "toggles"]


def test_quick_run_toggles_everything_under_load(tmp_path: Path) -> None:
    """Each tier and the engine there and back again; nothing fails, every request is in one of the windows."""
    json_out, html_out = tmp_path / "toggles.json", tmp_path / "toggles.html"
    options = ["--quick", "--work-dir", str(tmp_path), "--json", str(json_out), "--html", str(html_out)]
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(json_out.read_bytes(), type=TogglesResult)
    names = ["l1", "bloom", "l2"] + ([] if missing_stores() else ["redis", "postgres"])
    names += ["scorer"] if all(missing_scorer(name) is None for name in NAMES) else []
    assert [toggled.name for toggled in result.toggled] == names
    assert sum(toggled.n for toggled in result.toggled) == result.options.toggles == 12
    assert result.failed == 0
    assert (result.quiet.n, result.toggling.n) == (150, 200)
    assert 0 < result.quiet.p50 <= result.quiet.p99
    assert "p99 with toggles is" in done.stdout
    assert "left alone" in html_out.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toggles.html", "toggles.json"]


def test_wrong_options_are_told() -> None:
    """Exit code 2, before anything starts."""
    done = subprocess.run([*COMMAND, "--rate", "0"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--rate" in done.stderr
