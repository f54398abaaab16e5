"""`weir bench stacks`: limits, options, medians, goals, tables and pages, from results that are made up here."""

import os
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from loadgen.bench.load.result import PERCENTILES
from loadgen.bench.markdown import text
from loadgen.bench.stacks.arms import missing_here, parse_stacks, workloads_of
from loadgen.bench.stacks.caveats import make_caveats
from loadgen.bench.stacks.commands import parse_sweep, register
from loadgen.bench.stacks.goals import make_goals
from loadgen.bench.stacks.limits import NEEDED, SELF, SERVER, Limits, on_cores
from loadgen.bench.stacks.page import stacks_markdown, stacks_page
from loadgen.bench.stacks.result import Cell, Process, StacksOptions, StacksResult, order_of, ratio
from models.machine import machine


def cell(arm: str, rates: list[float], p99_us: int, workload: str = "card", rows: int = 1, cores: int = 1) -> Cell:
    return Cell(
        arm=arm, workload=workload, cores=cores, workers=1, rows=rows, requests_per_s=sorted(rates)[len(rates) // 2],
        rows_per_s=rates[0] * rows, failures_per_s=0.0, mean_us=p99_us / 2,
        percentiles={f"{q:g}": p99_us for q in PERCENTILES}, curve=[(2.0, 100), (10.0, p99_us)], cpu_ms_per_request=0.5,
        database_cpu_ms_per_request=None, server_cpu_share=0.9, pss_mb=10.0, client_cpu_share=0.2, rounds_per_s=rates, error="",
    )  # fmt: skip


def stacks_result(*cells: Cell) -> StacksResult:
    languages = {"fastapi-onnx": "Python", "rust-candle": "Rust"}
    return StacksResult(
        kind="bench stacks", created="2026-12-01T00:00:00Z", command="weir bench stacks", options=StacksOptions(),
        machine=machine(), limits={"1": "pinned to core 0"}, client_cores=[1], cells=list(cells), sweeps=[],
        processes=[
            Process(c.arm, c.arm.title(), languages.get(c.arm, "Go"), [1.0, 0.8], 10.0, None, None, 50.0, 1) for c in cells
        ],
        skipped={"cpp": "g++ not on PATH"}, took_s=1.0, caveats=["made up"],
    )  # fmt: skip


def test_ratio_is_the_median_of_the_rounds() -> None:
    """A slow minute that hits both sides cancels out; a stalled rival is no division by zero."""
    assert ratio(cell("a", [100, 50, 100], 1), cell("b", [10, 5, 20], 1)) == 10.0
    assert ratio(cell("a", [100], 1), cell("b", [0.0], 1)) == float("inf")


def test_goals_need_ten_times_python_and_three_times_others_at_a_lower_p99() -> None:
    """Each rival has a limit for the rate by its language, and one for p99."""
    result = stacks_result(
        cell("weir go", [30_000], 900), cell("fastapi-onnx", [3_001], 9_000), cell("rust-candle", [10_000], 899),
        cell("weir-go", [60_000], 10), cell("rust-candle", [90_000], 10, cores=2),
    )  # fmt: skip
    met = {goal.what: goal.met for goal in make_goals(result)}
    assert met == {
        "weir go, requests/s, times fastapi-onnx": False,
        "weir go, p99 in terms of fastapi-onnx's": True,
        "weir go, requests/s, times rust-candle": True,
        "weir go, p99 in terms of rust-candle's": False,
    }
    assert make_goals(stacks_result(cell("fastapi-onnx", [1], 1))) == []


def test_order_of_tables() -> None:
    """The published rivals first, others by name, Weir last."""
    names = ["weir-go", "zig", "cpp", "weir go", "fastapi-torch", "fastapi-pool", "weir onnx"]
    assert sorted(names, key=order_of) == ["fastapi-torch", "cpp", "fastapi-pool", "zig", "weir onnx", "weir go", "weir-go"]


def test_pages_hold_every_stack_and_the_reason_of_those_left_out() -> None:
    """HTML and Markdown have the percentile table, what is missing and why, and the caveats."""
    result = stacks_result(
        cell("weir go", [30_000], 900), cell("fastapi-onnx", [3_000], 9_000), cell("weir go", [9], 9, "image-json")
    )
    html, markdown = stacks_page(result), stacks_markdown(result)
    for page in (html, markdown):
        assert all(word in page for word in ("fastapi-onnx", "99.99 %", "left out: g++ not on PATH", "made up", "MobileNetV2"))
    assert "| weir go | 30,000 | 0 | 0.9 |" in markdown
    assert "    weir bench stacks\n" in markdown
    assert msgspec.json.decode(msgspec.json.encode(result), type=StacksResult) == result


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.000123, "0.000123"), (12.345, "12.3"), (999.6, "1,000"), (12_345.6, "12,346"), (7, "7")],
)
def test_markdown_numbers(value: float | None, shown: str) -> None:
    """Three significant digits below a thousand, whole numbers above."""
    assert text(value) == shown


def test_caveats_name_busy_and_idle_cores() -> None:
    """A client at its limit, and a server that nobody kept busy, are named."""
    busy, idle = cell("go", [1], 1), cell("cpp", [1], 1)
    busy.client_cpu_share, idle.server_cpu_share = 0.95, 0.5
    found = " ".join(make_caveats(StacksOptions(), [busy, idle], {}, [0, 1]))
    assert "filled its core (go)" in found
    assert "filled a core (cpp)" in found
    assert "quote no rates" not in found
    unsteady = " ".join(make_caveats(StacksOptions(), [cell("go", [100, 131], 1)], {}, [0, 1]))
    assert "differ by up to 1.3 times (go)" in unsteady


def test_limits_pin_and_say_what_they_enforce() -> None:
    """A child started inside has the cores; outside it is as before. Memory is limited, or the reason is given."""
    before = os.sched_getaffinity(0)
    core = min(before)
    with Limits([core], 1 << 30) as limits:
        with limits.entered():
            assert os.sched_getaffinity(0) == {core}
        assert os.sched_getaffinity(0) == before
        assert f"pinned to core {core}" in limits.how
        assert "memory.max of 1,024 MiB" in limits.how or "memory is not limited" in limits.how
    with on_cores([]):
        assert os.sched_getaffinity(0) == before


def test_limits_write_a_cgroup_where_there_are_controllers(tmp_path: Path) -> None:
    """cpu.max and memory.max of the server's group; this process goes in and comes out again."""
    own = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "0::/")
    base = tmp_path / own[3:].lstrip("/")
    base.mkdir(parents=True, exist_ok=True)
    (base / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    with Limits([min(os.sched_getaffinity(0))], 256 << 20, tmp_path) as limits:
        group, leaf = (base / f"{name}-{os.getpid()}" for name in (SERVER, SELF))
        assert (base / "cgroup.subtree_control").read_text() == " ".join(f"+{name}" for name in NEEDED)
        assert (group / "cpu.max").read_text() == "100000 100000"
        assert (group / "memory.max").read_text() == str(256 << 20)
        assert "cgroup v2: cpu.max of 1 core(s), memory.max of 256 MiB" in limits.how
        with limits.entered():
            assert (group / "cgroup.procs").read_text() == str(os.getpid())
        assert (leaf / "cgroup.procs").read_text() == str(os.getpid())


@pytest.mark.parametrize("controllers", ["cpuset io", "cpu io"])
def test_limits_without_controllers_say_which_are_missing(tmp_path: Path, controllers: str) -> None:
    """Pinning remains, and the reason names the controller."""
    own = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "0::/")
    base = tmp_path / own[3:].lstrip("/")
    base.mkdir(parents=True, exist_ok=True)
    (base / "cgroup.controllers").write_text(controllers)
    with Limits([min(os.sched_getaffinity(0))], 1, tmp_path) as limits:
        assert "memory is not limited" in limits.how
        assert "memory" in limits.how.partition("no controller")[2]


def test_parse_stacks_and_workloads() -> None:
    """Named ones in the order of tables; Weir's own answer to their own paths."""
    assert parse_stacks("weir go, fastapi-onnx") == ("fastapi-onnx", "weir go")
    assert {"fastapi-torch", "weir onnx"} <= set(parse_stacks(None))
    assert workloads_of("fastapi-onnx")["card"] == "stack"
    assert workloads_of("weir go") == {"card": "weir", "image-json": "v2-json", "image-binary": "v2-binary"}
    assert workloads_of("weir-go") == {"card": "weir"}


def test_a_stack_that_was_never_built_has_a_reason(tmp_path: Path) -> None:
    """What needs a build says so, or says which tool is missing."""
    assert missing_here("rust-candle", tmp_path) if "rust-candle" in parse_stacks(None) else True
    assert parse_sweep("") == ()
    assert parse_sweep("1,0.5") == (0.5, 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stacks", "cobol"], "--stacks cobol: no stack 'cobol'; there are: "),
        (["--stacks", ","], "--stacks ,: no name"),
        (["--rows", "0"], "--rows 0: expected numbers above 0"),
        (["--rows", "2000"], "at most 1,024"),
        (["--sweep", "-1"], "--sweep -1: expected shares above 0"),
        (["--sweep", "a"], "--sweep a"),
        (["--json", "/nowhere/x.json"], "--json /nowhere/x.json: the directory /nowhere does not exist"),
        (["--markdown", "/"], "--markdown /: is a directory"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(options: list[str], words: str) -> None:
    """The option, its value, and what is expected."""
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 2
    assert done.stderr.startswith("weir bench stacks: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [["--rounds", "0"], ["--seconds", "-1"], ["--users", "0"]])
def test_numbers_out_of_range_are_refused_by_name(options: list[str]) -> None:
    """typer names the option and its range; exit code 2."""
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 2
    assert options[0] in done.stderr
