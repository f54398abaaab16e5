"""The build time of Weir's own programs: timed once for the same sources, told per arm, absent where nothing is compiled."""

from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from loadgen.bench.children import BenchError
from loadgen.bench.stacks.sizes import size_and_build
from loadgen.stacks import own
from loadgen.stacks.build import LOG, build_stack, distributions_of, installed_bytes
from loadgen.stacks.manifest import BUILT, Built, lacking, load_stack
from loadgen.stacks.own import OWN, load_own, measure_own, own_sources


def note(data: Path, arm: str, sources: str) -> None:
    """A measurement of before: 65 s, 35 of CPU."""
    folder = data / own.FOLDER / OWN[arm].name
    folder.mkdir(parents=True)
    (folder / BUILT).write_bytes(msgspec.json.encode(Built(65.0, 35.0, None, 10, sources, "2026-12-01T00:00:00Z")))


@pytest.mark.parametrize("arm", list(OWN))
def test_build_time_of_an_arm_is_its_own_programs(tmp_path: Path, arm: str) -> None:
    """Seconds and CPU seconds stand beside the size; without a measurement they are unknown."""
    assert size_and_build(arm, tmp_path)[1:] == (None, None)
    note(tmp_path, arm, own_sources())
    size_mb, *took = size_and_build(arm, tmp_path)
    assert size_mb is not None
    assert (size_mb > 10, took) == (True, [65.0, 35.0])
    assert size_and_build("weir onnx", tmp_path)[1:] == (None, None)


def test_build_is_timed_again_only_for_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sources: nothing is built. Others, or --again: it is, and fails here because there is no Go."""
    note(tmp_path, "weir go", own_sources())
    assert measure_own("weir go", lambda _: None, tmp_path) is None
    monkeypatch.setattr(own, "lacking", lambda *_: "no Go that is new enough")
    with pytest.raises(BenchError, match="weir go: no Go"):
        measure_own("weir go", lambda _: None, tmp_path, again=True)
    (tmp_path / own.FOLDER / OWN["weir go"].name / BUILT).unlink()
    note(tmp_path, "weir-go", "other")
    with pytest.raises(BenchError, match="weir-go: no Go"):
        measure_own("weir-go", lambda _: None, tmp_path)
    assert load_own("weir go", tmp_path) is None


def test_build_that_fails_tells_the_end_of_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves no measurement."""
    monkeypatch.setattr(own, "build_command", lambda *_: ["/bin/sh", "-c", "echo no such header; exit 2"])
    if reason := lacking("go"):
        pytest.skip(reason)
    with pytest.raises(BenchError, match="code 2: no such header"):
        measure_own("weir-go", lambda _: None, tmp_path)
    assert load_own("weir-go", tmp_path) is None


def test_python_packages_are_weighed_by_the_names_of_their_distributions(tmp_path: Path) -> None:
    """PIL is Pillow's; what is not installed has no name."""
    stack = load_stack("fastapi-image")
    if find_spec("PIL") is None:
        pytest.skip("no Pillow here")
    assert "pillow" in {name.lower() for name in distributions_of(stack)}
    without = msgspec.structs.replace(stack, needs=[need for need in stack.needs if need != "python:PIL"])
    assert installed_bytes(stack, tmp_path) - installed_bytes(without, tmp_path) > 1_000_000


def test_installation_that_cannot_be_fetched_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made up: the reason is said, the stack is there all the same, and nothing stays behind."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    needs = ["python:msgspec"]
    stack = msgspec.structs.replace(load_stack("fastapi-onnx"), needs=needs)
    built = build_stack(stack, said.append, tmp_path)
    assert built is not None
    assert (built.seconds, built.cpu_s, built.installed_bytes > 0) == (0.0, 0.0, True)
    assert "how long they take to install stays unknown" in said[-1]
    assert {path.name for path in (tmp_path / stack.name).iterdir()} == {BUILT, LOG}
