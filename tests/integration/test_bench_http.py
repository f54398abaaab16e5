"""`weir bench http`: smoke runs of the command with every arm that can be here, and with chosen ones."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from loadgen.bench.arms import AIOHTTP, ARMS, BARE, NULL, SCORERS, SYNCS, WEIR_ARMS, WEIR_GO, best_arm, missing_arm
from loadgen.bench.http_result import HttpResult

pytestmark = pytest.mark.bench

MISSING = {name: reason for name in ARMS if (reason := missing_arm(name))}


def _bench(tmp_path: Path, *options: str) -> tuple[HttpResult, str]:
    """Result and terminal text of a smoke run."""
    json_out = tmp_path / "http.json"
    command = [sys.executable, "-m", "service", "bench", "http", "--quick", "--json", str(json_out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(json_out.read_bytes(), type=HttpResult), done.stdout


def test_quick_run_measures_every_arm_or_says_why_not(tmp_path: Path) -> None:
    """Every arm is in the rates and in the process table, without an error, or is named with its reason."""
    html_out = tmp_path / "http.html"
    result, text = _bench(tmp_path, "--html", str(html_out))
    present = [name for name in ARMS if name not in MISSING]
    assert result.skipped == MISSING
    for mode, numbers in (("http", result.options.connections), ("batch", result.options.batch_connections)):
        expected = [name for name in present if (mode, name) != ("batch", NULL)]
        for n in numbers:
            assert [cell.arm for cell in result.cells if (cell.mode, cell.connections) == (mode, n)] == expected
    assert [cell.error_example for cell in result.cells if cell.errors] == []
    assert [process.arm for process in result.processes] == present
    for process in result.processes:
        assert process.ready_s > 0
        assert 0 < process.memory_start_mb <= process.memory_max_mb
        assert process.connections == max(result.options.connections)
        assert process.events > (result.options.cards if process.arm in WEIR_ARMS else 0)
    page = html_out.read_text(encoding="utf-8")
    assert all(f"<td>{name}</td>" in page and name in text for name in ARMS)
    assert all(reason in page and reason in text for reason in MISSING.values())
    assert page.count('class="plot"') == 5


@pytest.mark.skipif(any(name in MISSING for name in WEIR_ARMS), reason=f"not all arms can be here: {MISSING}")
def test_chosen_arms_get_the_settings_that_they_know(tmp_path: Path) -> None:
    """Only what --arms names runs; a setting that weir-go lacks is named in the result; no bare handler, no ratio."""
    options = ("--connections", "2", "--batch-connections", "1", "--set", "journal.sync=os", "--set", "bloom.backend=rbloom")
    result, text = _bench(tmp_path, "--arms", "weir-go,weir go", *options)
    assert {cell.arm for cell in result.cells} == {"weir go", WEIR_GO}
    assert {cell.ratio_to_bare for cell in result.cells} == {None}
    assert result.settings_not_in_weir_go == ["bloom.backend=rbloom"]
    assert "weir-go ran without bloom.backend=rbloom" in text
    assert any("weir-go ran without bloom.backend=rbloom" in caveat for caveat in result.caveats)
    assert BARE not in text
    assert set(SCORERS) - {cell.arm for cell in result.cells} == {"weir onnx", AIOHTTP}


def test_sync_modes_stand_side_by_side(tmp_path: Path) -> None:
    """One server per mode, each started with its own, all in the rates, the processes and the page; the disk is named."""
    html_out, work_dir = tmp_path / "http.html", tmp_path / "work"
    work_dir.mkdir()
    options = ("--sync", "all", "--connections", "1,4", "--batch-connections", "1", "--work-dir", str(work_dir))
    result, text = _bench(tmp_path, *options, "--html", str(html_out))
    names = [f"{best_arm()}, {sync}" for sync in SYNCS]
    assert result.options.syncs == SYNCS
    for mode, n in (("http", 1), ("http", 4), ("batch", 1)):
        assert [cell.arm for cell in result.cells if (cell.mode, cell.connections) == (mode, n)] == names
    assert [cell.error_example for cell in result.cells if cell.errors] == []
    assert [(p.arm, p.settings) for p in result.processes] == [
        (name, (f"journal.sync={sync}",)) for name, sync in zip(names, SYNCS, strict=True)
    ]
    assert all(name in text and f"<td>{name}</td>" in html_out.read_text(encoding="utf-8") for name in names)
    assert result.file_system not in ("", "unknown")
    assert result.fsync.p50_us > 0
    assert any("fsync does nothing" in caveat for caveat in result.caveats) is (result.file_system == "tmpfs")
    assert list(work_dir.iterdir()) == []


def test_unknown_sync_mode_is_one_line(tmp_path: Path) -> None:
    """A wrong mode ends with exit code 2 and the modes that exist."""
    command = [sys.executable, "-m", "service", "bench", "http", "--sync", "fsync"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "weir bench http: --sync fsync: expected group, interval, os or all\n"


def test_unknown_arm_is_one_line(tmp_path: Path) -> None:
    """A wrong name ends with exit code 2 and the names that exist, before anything is started."""
    command = [sys.executable, "-m", "service", "bench", "http", "--arms", "weir"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"weir bench http: --arms weir: expected some of {', '.join(ARMS)}, with commas between them\n"
