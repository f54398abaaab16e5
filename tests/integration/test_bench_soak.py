"""`weir bench soak` at its smallest: half a minute with restarts, outages, toggles; everything it compares has to agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.bench.stores import missing_stores

pytestmark = [pytest.mark.bench, pytest.mark.e2e]
DEADLINE_S = 240


@pytest.mark.skipif(missing_stores() is not None, reason=str(missing_stores()))
def test_soak_explains_every_error_and_counts_exactly(tmp_path: Path) -> None:
    """No incident without a cause, nothing wrong, both restarts done, and a page that loads nothing."""
    result_file, page = tmp_path / "soak.json", tmp_path / "soak.html"
    command = [sys.executable, "-m", "service", "bench", "soak", "--quick", "--json", str(result_file), "--html", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(result_file.read_bytes())
    assert result["unexplained"] == []
    assert result["violations"] == []
    assert all(check["problems"] == [] for check in result["checks"])
    n = {check["name"]: check["n"] for check in result["checks"]}
    assert n["acknowledged = journaled"] == n["journaled = in the ledger"] == result["counts"]["acknowledged"] > 100
    assert n["profiles in redis"] == n["profiles in postgres"] > 50
    assert n["counts of entities against a recount"] > 50
    assert {"restart by SIGKILL", "restart by SIGTERM"} <= {fault["name"] for fault in result["faults"]}
    assert [m["life"]["ending"] for m in result["memory"]] == ["SIGKILL", "SIGTERM", "SIGKILL", "SIGTERM"]
    assert result["verdict"] == "too short"
    assert "<script src=" not in page.read_text()
    assert "without a cause" in done.stdout
