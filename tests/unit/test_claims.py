"""`weir bench claims`: rules of verdicts at their limits, lines that follow from made-up figures, histograms of tiers."""

from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from loadgen.bench.children import BenchError
from loadgen.bench.claims.commands import parse_numbers, register
from loadgen.bench.claims.lines import make_lines
from loadgen.bench.claims.page import claims_markdown, claims_page
from loadgen.bench.claims.result import (
    ClaimsOptions,
    ClaimsResult,
    Evidence,
    Line,
    PathCost,
    ProfileCost,
    Tiered,
    Workers,
)
from loadgen.bench.claims.rules import at_least, at_most, line, published
from loadgen.bench.claims.run import missing_inputs, read_stacks
from loadgen.bench.claims.tiered import _Histogram, _Tier, latency_between, settings_of
from loadgen.bench.load.result import PERCENTILES
from loadgen.bench.scorers.result import EntityMemory
from loadgen.bench.stacks.result import Cell, Process, StacksOptions, StacksResult
from models.machine import machine


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(5.6, "holds"), (8.0, "holds"), (5.59, "holds partly"), (1.2, "holds partly"), (1.19, "does not hold"),
     (0.5, "does not hold"), (None, "cannot be tested here")],
)  # fmt: skip
def test_published_ratio_at_the_limits(ratio: float | None, verdict: str) -> None:
    """Of seven times: 80 % of it holds, ahead by 20 % is part of it."""
    assert published(ratio, 7.0)[0] == verdict


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [(10.0, "holds", "holds"), (10.1, "holds", "holds partly"), (5.0, "holds partly", "holds"), (4.9, "does not hold", "holds"),
     (20.1, "holds", "does not hold"), (None, "cannot be tested here", "cannot be tested here")],
)  # fmt: skip
def test_limits_of_our_own(value: float | None, least: str, most: str) -> None:
    """Half of the way, or twice the cap, is part of it."""
    assert at_least(value, 10.0)[0] == least
    assert at_most(value, 10.0)[0] == most


def test_line_without_a_figure_says_what_is_needed() -> None:
    """With one it says nothing of the kind."""
    untested = line("A", "claim", "how", "", None, published(None, 2.0), "a toolchain")
    tested = line("A", "claim", "how", "3x", 3.0, published(3.0, 2.0), "a toolchain")
    assert (untested.figure, untested.verdict, untested.needed) == ("–", "cannot be tested here", "a toolchain")
    assert (tested.figure, tested.verdict, tested.needed) == ("3x", "holds", "")


def cell(arm: str, rate: float, p95_us: int, pss: float, workload: str = "card", cores: int = 1, failures: float = 0.0) -> Cell:
    return Cell(
        arm=arm, workload=workload, cores=cores, workers=1, rows=1, requests_per_s=rate, rows_per_s=rate,
        failures_per_s=failures, mean_us=10 / rate * 1e6, percentiles={f"{q:g}": p95_us for q in PERCENTILES}, curve=[],
        cpu_ms_per_request=1.0, database_cpu_ms_per_request=1.0, server_cpu_share=1.0, pss_mb=pss, client_cpu_share=0.1,
        rounds_per_s=[rate], error="status 500" if failures else "",
    )  # fmt: skip


def stacks(*cells: Cell, skipped: dict[str, str] | None = None) -> StacksResult:
    languages = {"rust-candle": "Rust", "go": "Go", "cpp": "C++"}
    names = dict.fromkeys(c.arm for c in cells)
    return StacksResult(
        kind="bench stacks", created="then", command="", options=StacksOptions(), machine=machine(), limits={},
        client_cores=[1], cells=list(cells), sweeps=[],
        processes=[Process(n, n, languages.get(n, "Python"), [1.0], 1.0, 10.0, 10.0, 1.0, 1) for n in names],
        skipped=skipped or {}, took_s=0.0, caveats=[],
    )  # fmt: skip


def found(lines: list[Line], *words: str) -> Line:
    (one,) = [line for line in lines if all(word in line.claim + line.measured for word in words)]
    return one


def test_published_figures_hold_when_measured_as_published() -> None:
    """The published table itself makes every line of (A) that it can decide hold."""
    lines = make_lines(
        stacks(
            cell("rust-candle", 994, 20_000, 17), cell("fastapi-torch", 222, 95_000, 680),
            cell("fastapi-onnx", 80, 200_000, 680), cell("fastapi-onnx", 80, 200_000, 680, cores=2),
            cell("fastapi-onnx-tuned", 300, 20_000, 100, cores=2),
        ),
        Evidence(),
    )  # fmt: skip
    of_a = [line for line in lines if line.group == "A"]
    assert len(of_a) == 9
    assert {line.verdict for line in of_a} == {"holds"}
    assert found(lines, "994 against 222").value == pytest.approx(4.477, abs=0.001)


def test_a_missing_stack_is_named_with_its_reason() -> None:
    """No toolchain, no verdict, and the reason in the line."""
    lines = make_lines(stacks(cell("fastapi-onnx", 80, 1, 1), skipped={"rust-candle": "cargo not on PATH"}), Evidence())
    rust = found(lines, "994 against 80")
    assert (rust.verdict, rust.needed) == ("cannot be tested here", "rust-candle: cargo not on PATH")
    assert "weir bench stacks --stacks" in found(lines, "222 against 80").needed


def test_a_stack_that_fails_decides_nothing() -> None:
    """More than 1 % of failures: its rate is no evidence."""
    lines = make_lines(stacks(cell("rust-candle", 994, 1, 1, failures=50), cell("fastapi-torch", 222, 1, 1)), Evidence())
    line = found(lines, "994 against 222")
    assert line.verdict == "cannot be tested here"
    assert "status 500" in line.needed


def test_closed_loop_latency_is_users_by_rate() -> None:
    """A mean that is off by more than 5 % does not follow from the rate."""
    off = cell("go", 100, 1, 1)
    off.mean_us *= 1.2
    assert found(make_lines(stacks(cell("cpp", 100, 1, 1), off), Evidence()), "no second finding").verdict == "does not hold"
    assert found(make_lines(stacks(cell("cpp", 100, 1, 1)), Evidence()), "no second finding").verdict == "holds"


def tiered(share: float, has_l2: bool, distance: float, p99_us: int, rate: float = 1_000.0) -> Tiered:
    return Tiered(share, has_l2, distance, distance, rate, p99_us // 2, p99_us, 0, 50.0, 5.0, 100.0, share, [])


def evidence() -> Evidence:
    kept = [EntityMemory(holder, "one event", 9, n) for holder, n in (("slab", 1_000), ("objects", 4_000))]
    return Evidence(
        paths=PathCost(30_000.0, 2_000.0, 9_000.0, 3_000.0, 10_000.0),
        profiles=ProfileCost(40.0, 4.0, 100.0, kept),
        workers=Workers(50.0, 95.0, 100.0, 4, 80.0, 110.0, 320.0),
        tiered=[
            tiered(share, has_l2, ms, p99, 500.0 if share < 1 else 1_000.0)
            for share, has_l2, ms, p99 in (
                (1.0, False, 0.0, 1_000), (1.0, False, 2.0, 1_250), (1.0, True, 0.0, 1_000), (1.0, True, 2.0, 1_000),
                (0.1, True, 0.0, 2_000), (0.1, True, 2.0, 2_600), (0.1, False, 0.0, 3_000), (0.1, False, 2.0, 9_000),
                (0.01, True, 0.0, 2_500), (0.01, True, 2.0, 2_500), (0.01, False, 0.0, 9_000), (0.01, False, 2.0, 9_000),
            )
        ],
        providers=["CPUExecutionProvider"],
    )  # fmt: skip


def test_reasons_and_tiers_follow_from_the_evidence() -> None:
    """Each figure at one side of its limit."""
    lines = make_lines(stacks(cell("weir go", 9_000, 1_000, 1), cell("go", 3_000, 2_000, 1)), evidence())
    expected = {
        ("GIL",): ("does not hold", 0.95),
        ("Pointer chasing",): ("holds", 10.0),
        ("take more memory",): ("holds", 4.0),
        ("Serialisation",): ("holds", 3.0),
        ("holds a copy of the model",): ("holds partly", 2.909),
        ("accelerators",): ("cannot be tested here", None),
        ("3 times as many requests as go",): ("holds", 3.0),
        ("lower p99 than go",): ("holds", 0.5),
        ("With all entities in L1",): ("holds", 1.25),
        ("rest in L2",): ("holds partly", 1.3),
        ("L2 is worth something",): ("holds", 3.462),
        ("half of the requests",): ("holds", 0.5),
        ("typed costs less",): ("holds", 0.2),
        ("without objects",): ("holds", 0.1),
    }
    for words, (verdict, value) in expected.items():
        line = found(lines, *words)
        assert (line.verdict, line.value) == (verdict, value), line
    assert "onnxruntime-gpu" in found(lines, "accelerators").needed


def test_pages_show_lines_tables_and_what_is_needed() -> None:
    """HTML and Markdown; the JSON comes back as it was."""
    result = ClaimsResult(
        kind="bench claims", created="now", command="weir bench claims", options=ClaimsOptions(), machine=machine(),
        stacks_created="then", stacks_commit="abc", evidence=evidence(), lines=make_lines(stacks(), evidence()),
        missing=["rust-candle: cargo not on PATH"], caveats=["made up"],
    )  # fmt: skip
    for page in (claims_page(result), claims_markdown(result)):
        assert all(
            word in page
            for word in ("Pointer chasing", "cannot be tested here; needed: ", "MobileNetV2", "made up", "cargo not on PATH")
        )
    assert msgspec.json.decode(msgspec.json.encode(result), type=ClaimsResult) == result


def test_tier_latency_between_two_looks() -> None:
    """Differences of counters; quantiles are upper bounds of cells, above all of them there is none."""
    before = _Tier("l2", 10, 5, _Histogram([0.001, 0.01], [5, 0, 0]))
    after = _Tier("l2", 110, 55, _Histogram([0.001, 0.01], [55, 50, 0]))
    latency = latency_between(before, after)
    assert (latency.lookups, latency.hits, latency.reads, latency.p50_us, latency.p99_us) == (100, 50, 100, 1_000.0, 10_000.0)
    assert latency_between(None, _Tier("l2", 1, 1, _Histogram([0.001], [0, 3]))).p50_us == float("inf")
    assert latency_between(before, before).p99_us is None


def test_settings_of_the_tiered_runs() -> None:
    """Without L2 at every distance, with it at the ends only."""
    plan = settings_of(ClaimsOptions())
    assert len(plan) == len(set(plan)) == 15
    assert settings_of(ClaimsOptions(l1_shares=(1.0,), distances_ms=(0.0,))) == [(1.0, False, 0.0), (1.0, True, 0.0)]


def test_stacks_json_that_is_none(tmp_path: Path) -> None:
    """A missing file, another program's file and another benchmark's are told apart."""
    with pytest.raises(BenchError, match=r"--stacks-json .*none.json: No such file"):
        read_stacks(tmp_path / "none.json")
    other = tmp_path / "other.json"
    other.write_text('{"kind": "bench http"}')
    with pytest.raises(BenchError, match="not a result of weir bench stacks"):
        read_stacks(other)
    good = tmp_path / "good.json"
    good.write_bytes(msgspec.json.encode(stacks(cell("go", 1, 1, 1))))
    assert read_stacks(good).cells[0].arm == "go"
    good.write_bytes(msgspec.json.encode(msgspec.structs.replace(stacks(), kind="bench tiers")))
    with pytest.raises(BenchError, match="expected 'bench stacks'"):
        read_stacks(good)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--distances", "-1"], "--distances -1: expected numbers from 0 to 1000"),
        (["--l1-shares", "2"], "--l1-shares 2: expected numbers from 0.0001 to 1"),
        (["--l1-shares", "a"], "--l1-shares a"),
        (["--html", "/nowhere/x"], "--html /nowhere/x: the directory"),
        (["--stacks-json", "/nowhere.json"], "--stacks-json /nowhere.json: No such file"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(options: list[str], words: str, tmp_path: Path) -> None:
    """The option, its value, and what is expected."""
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, [*options, "--data-dir", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.startswith("weir bench claims: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert parse_numbers("--distances", "2,0.5", 10.0) == (0.5, 2.0)


def test_every_rival_has_a_line_measured_or_not() -> None:
    """A stack that is not there is no reason to leave its claim out."""
    some = stacks(cell("weir go", 9_000, 1_000, 1), cell("go", 3_000, 2_000, 1), skipped={"cpp": "no g++"})
    lines = make_lines(some, Evidence(missing=dict.fromkeys(("paths", "profiles", "workers", "tiered"), "a reason")))
    assert found(lines, "3 times as many requests as go").verdict == "holds"
    cpp, torch = found(lines, "3 times as many requests as cpp"), found(lines, "10 times as many requests as fastapi-torch")
    assert (cpp.verdict, cpp.needed) == ("cannot be tested here", "cpp: no g++")
    assert (torch.verdict, "fastapi-torch was not measured" in torch.needed) == ("cannot be tested here", True)
    assert all(line.needed for line in lines if line.verdict == "cannot be tested here")


def test_missing_inputs_are_named_with_what_measures_them() -> None:
    """Stacks that were skipped or not asked for, workloads, cores, parts of the evidence."""
    some = stacks(cell("weir go", 9_000, 1_000, 1), skipped={"rust-candle": "cargo not on PATH"})
    said = missing_inputs(some, Evidence(paths=PathCost(None, 1.0, None, None, 1.0), missing={"tiered": "no Valkey"}))
    assert said[0] == "rust-candle: cargo not on PATH"
    assert said[1].startswith("fastapi-torch, fastapi-onnx, fastapi-onnx-tuned, go, cpp")
    for word in ("two cores", "images", "tiered: no Valkey", "Pydantic", "make go"):
        assert any(word in text for text in said), word
    assert "rust-candle" not in said[1]


def test_deployment_needs_both_build_times() -> None:
    """An installation that was never timed is no installation of no time."""
    both = stacks(cell("cpp", 1, 1, 1), cell("fastapi-onnx-tuned", 1, 1, 1))
    for process, seconds in zip(both.processes, (34.0, None), strict=True):
        process.build_cpu_s = seconds
    assert found(make_lines(both, Evidence()), "get deployed").verdict == "cannot be tested here"
    both.processes[1].build_cpu_s = 10.0
    assert found(make_lines(both, Evidence()), "get deployed").value == 3.4
