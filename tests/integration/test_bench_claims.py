"""`weir bench claims` at its small size: all evidence is gathered, every line has a verdict, all files are written."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from loadgen.bench.claims.page import VERDICTS
from loadgen.bench.claims.result import ClaimsResult
from loadgen.bench.stacks.arms import missing_here
from loadgen.bench.stores import missing_stores

pytestmark = pytest.mark.bench


def test_smoke_run_measures_its_own_stacks(tmp_path: Path) -> None:
    """Without --stacks-json a small run of the stacks comes first."""
    if (reason := missing_stores() or missing_here("fastapi-onnx", tmp_path)) is not None:
        pytest.skip(reason)
    files = [part for kind in ("json", "html", "markdown") for part in (f"--{kind}", str(tmp_path / f"out.{kind}"))]
    argv = [sys.executable, "-m", "service", "bench", "claims", "--quick", "--data-dir", str(tmp_path / "data"), *files]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode((tmp_path / "out.json").read_bytes(), type=ClaimsResult)
    assert result.evidence.missing == {}
    assert {line.group for line in result.lines} == {"A", "B", "C", "D"}
    assert all(line.verdict in VERDICTS and line.rule for line in result.lines)
    assert all(bool(line.needed) == (line.value is None) for line in result.lines)
    tiered = result.evidence.tiered
    assert len(tiered) == 4
    assert all(run.requests_per_s > 10 and run.failures == 0 for run in tiered)
    small, full = (next(t for t in tiered if t.l1_share == share and not t.has_l2) for share in (0.01, 1.0))
    assert small.l1_hit_ratio is not None
    assert full.l1_hit_ratio is not None
    assert small.l1_hit_ratio < full.l1_hit_ratio  # what L1 cannot hold was read
    assert any(tier.name == "redis" and tier.hits > 0 for tier in small.tiers)
    assert "Verdicts" in (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "needed: " in (tmp_path / "out.markdown").read_text(encoding="utf-8")
