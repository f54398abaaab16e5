"""Rival stacks: what a manifest may say, what is missing and why, builds, and what all stacks are given."""

import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from loadgen.bench.children import BenchError
from loadgen.stacks import build, launch
from loadgen.stacks.build import build_stack, installed_bytes, make_venv, wanted_packages
from loadgen.stacks.commands import app
from loadgen.stacks.launch import StackSettings, start_stack
from loadgen.stacks.manifest import (
    DATA,
    HERE,
    MANIFEST,
    Stack,
    filled,
    load_built,
    load_stack,
    load_stacks,
    missing,
    python_of,
    stack_names,
    venv_python,
)
from loadgen.stacks.mobilenet import initializers
from loadgen.stacks.pictures import body_of, decode_jpeg, jpeg_of, picture, tensor_of
from loadgen.stacks.reference import Reply, differs, outcome_of
from loadgen.stacks.seed import Population, card_id, merchant_id
from loadgen.stacks.weights import ModelFiles, card_weights, export_models, safetensors
from models.card import ARTIFACTS, INPUT_NAME, MODEL_FILE
from models.onnx_session import open_session

GOOD = {
    "title": '"A stack"',
    "language": '"Python"',
    "needs": "[]",
    "run": '["{python}", "{here}/server.py"]',
    "workloads": '["card"]',
}


def write(root: Path, folder_name: str = "one", **fields: str) -> Path:
    """A stack.toml with GOOD's lines, those in `fields` in their place."""
    folder = root / folder_name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {value}" for key, value in (GOOD | fields).items() if value]
    (folder / MANIFEST).write_text("\n".join(lines) + "\n")
    return folder


def test_manifest_of_every_packaged_stack_is_valid_and_has_a_readme() -> None:
    """What is shipped loads; each has ten lines that say what it is."""
    stacks = load_stacks()
    assert {stack.name for stack in stacks} >= {
        "fastapi-onnx",
        "fastapi-onnx-tuned",
        "fastapi-torch",
        "rust-candle",
        "go",
        "cpp",
    }
    for stack in stacks:
        assert 5 <= len((stack.here / "README.md").read_text().splitlines()) <= 15, stack.name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": '"red"'}, "unknown field `colour`"),
        ({"name": '"another"'}, "unknown field `name`"),
        ({"run": ""}, "missing required field `run`"),
        ({"run": "[]"}, "run is empty"),
        ({"run": '"server"'}, "Expected `array`"),
        ({"title": "7"}, "Expected `str`"),
        ({"workers_best": '"two"'}, "Expected `int`"),
        ({"workers_best": "0"}, "workers_best is 0: expected 1 to 64"),
        ({"workloads": "[]"}, "workloads is empty"),
        ({"workloads": '["cards"]'}, "'cards': expected some of card, image-json"),
        ({"needs": '["rustc"]'}, "'rustc': expected cargo, go, g++"),
        ({"needs": '["python:"]'}, "'python:': expected"),
        ({"run": '["{built}/server"]'}, "'{built}/server' holds an unknown placeholder"),
        ({"build": '["make", "{here"]'}, "unknown placeholder"),
        ({"title": '"no end'}, "Unclosed|Illegal|Unterminated|string"),
    ],
)
def test_manifest_with_a_mistake_is_refused_with_file_and_reason(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    """Nothing is guessed: the message names the file and what was expected."""
    write(tmp_path, **fields)
    with pytest.raises(BenchError, match=message) as caught:
        load_stack("one", tmp_path)
    assert str(tmp_path / "one" / MANIFEST) in str(caught.value)


def test_stack_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    """A wrong name shows the right ones."""
    write(tmp_path, "go")
    with pytest.raises(BenchError, match=r"no stack 'og': .* is missing; there are: go"):
        load_stack("og", tmp_path)
    assert stack_names(tmp_path) == ["go"]


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        ("python:no_such_package", "Python package no_such_package not installed; make stacks"),
        ("pkg:no-such-package-dev", "no-such-package-dev"),
    ],
)
def test_missing_need_is_named_with_the_fix(tmp_path: Path, need: str, reason: str) -> None:
    """A stack is skipped with a reason, never silently."""
    write(tmp_path, needs=f'["{need}"]', build='["make"]')
    assert reason in (missing(load_stack("one", tmp_path), tmp_path) or "")


@pytest.mark.parametrize("tool", ["cargo", "go", "g++"])
def test_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    """Without anything on PATH, each tool is missed by its name."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("gocore.build.sys.executable", str(tmp_path / "python"))
    write(tmp_path, needs=f'["{tool}"]', build='["make"]')
    reason = missing(load_stack("one", tmp_path), tmp_path)
    assert reason is not None
    assert tool.lower() in reason.lower()


def test_python_of_takes_this_environment_where_it_has_all_and_else_the_stacks_own(tmp_path: Path) -> None:
    """A package that only the stacks' environment has makes the stack run there."""
    write(tmp_path, needs='["python:numpy"]')
    assert python_of(load_stack("one", tmp_path), tmp_path) == sys.executable
    write(tmp_path, needs='["python:numpy", "python:no_such_package"]')
    stack = load_stack("one", tmp_path)
    packages = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    (packages / "no_such_package").mkdir(parents=True)
    assert missing(stack, tmp_path) is None
    assert filled(stack, stack.run, tmp_path) == [str(tmp_path / "venv/bin/python"), str(stack.here / "server.py")]


def buildable(root: Path, program: str) -> Stack:
    """A stack whose build is this Python program; it runs {build}/server."""
    folder = write(root, build='["{python}", "{here}/make.py", "{build}"]', run='["{build}/server"]')
    (folder / "make.py").write_text(program)
    return load_stack("one", root)


def test_build_is_done_once_and_again_after_a_change(tmp_path: Path) -> None:
    """Built, as it was, stale, rebuilt: each state is told apart; the first build's time stays."""
    program = "import sys, pathlib\npathlib.Path(sys.argv[1], 'server').write_bytes(bytes(1000))\n"
    stack, said = buildable(tmp_path / "src", program), list[str]()
    data = tmp_path / "data"
    assert missing(stack, data) == "not built; make stacks builds it"
    first = build_stack(stack, said.append, data)
    assert first is not None
    assert (first.rebuild_s, first.installed_bytes, missing(stack, data)) == (None, 1_000, None)
    assert build_stack(stack, said.append, data) is None
    (stack.here / "make.py").write_text(program + "# changed\n")
    assert missing(stack, data) == "built from other sources; make stacks builds it"
    second = build_stack(stack, said.append, data)
    assert second is not None
    assert second.rebuild_s is not None
    assert (second.seconds, second.cpu_s, missing(stack, data)) == (first.seconds, first.cpu_s, None)
    third = build_stack(stack, said.append, data, again=True)
    assert third is not None
    assert third.rebuild_s is None


def test_build_that_fails_shows_the_end_of_its_output_and_leaves_nothing_built(tmp_path: Path) -> None:
    """The reason is in the message and in the log that it names."""
    stack = buildable(tmp_path / "src", "raise SystemExit('no such header: weir.h')")
    with pytest.raises(BenchError, match=r"code 1, .*build\.log: no such header: weir\.h"):
        build_stack(stack, lambda _: None, tmp_path / "data")
    assert load_built(stack, tmp_path / "data") is None
    write(tmp_path / "src", build='["/no/such/program"]')
    with pytest.raises(BenchError, match="/no/such/program cannot be started"):
        build_stack(load_stack("one", tmp_path / "src"), lambda _: None, tmp_path / "data")


def test_installed_bytes_counts_a_package_with_what_it_requires(tmp_path: Path) -> None:
    """FastAPI requires Starlette: naming both changes nothing."""

    def weight(needs: str) -> int:
        write(tmp_path, needs=needs, run='["{python}"]')
        return installed_bytes(load_stack("one", tmp_path), tmp_path)

    starlette, fastapi = weight('["python:starlette"]'), weight('["python:fastapi"]')
    both = weight('["python:fastapi", "python:starlette"]')
    assert starlette > 100_000
    assert fastapi > starlette + 100_000
    assert abs(both - fastapi) < 100  # the manifests themselves


def test_wanted_packages_are_those_of_the_extra_alone() -> None:
    """PyTorch is among them, this project's own dependencies are not."""
    names = " ".join(wanted_packages())
    assert "torch" in names
    assert "rocksdict" not in names


def test_environment_that_pip_cannot_fill_is_reported_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an index nothing can be installed: the package is named, and no time is written down."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(build, "wanted_packages", lambda: ["no-such-package-of-weir"])
    python = venv_python(tmp_path)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')  # making a real environment takes 3 s
    python.chmod(0o755)
    with pytest.raises(BenchError, match=r"pip failed: [\s\S]*no-such-package-of-weir"):
        make_venv(lambda _: None, tmp_path)
    assert not (tmp_path / build.VENV_TOOK).exists()


def settings() -> StackSettings:
    files = ModelFiles(*(Path("nowhere") for _ in range(4)))
    return StackSettings("key", "postgresql://nobody@127.0.0.1:1/none", files)


def test_stack_that_ends_at_once_is_reported_with_its_words(tmp_path: Path) -> None:
    """The end of its stderr is in the error."""
    folder = write(tmp_path)
    (folder / "server.py").write_text("import os; raise SystemExit('no database at ' + os.environ['STACK_DATABASE_URL'])")
    with pytest.raises(BenchError, match=r"one ended with code 1 .* no database at postgresql://nobody"):
        start_stack(load_stack("one", tmp_path), settings(), tmp_path)


def test_stack_that_never_listens_is_stopped_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs does not hang the benchmark, and is gone afterwards."""
    monkeypatch.setattr(launch, "READY_DEADLINE_S", 0.3)
    folder = write(tmp_path)
    (folder / "server.py").write_text(
        f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    with pytest.raises(BenchError, match=r"did not answer /healthz with 200 within"):
        start_stack(load_stack("one", tmp_path), settings(), tmp_path)
    if (tmp_path / "pid").exists():  # a slow machine may not have come that far
        assert not Path("/proc", (tmp_path / "pid").read_text()).exists()


def test_stack_that_is_missing_is_not_started(tmp_path: Path) -> None:
    """The reason is the one of the table."""
    write(tmp_path, needs='["python:no_such_package"]')
    with pytest.raises(BenchError, match="one: Python package no_such_package not installed"):
        start_stack(load_stack("one", tmp_path), settings(), tmp_path, tmp_path)


def test_list_shows_why_a_stack_is_skipped(tmp_path: Path) -> None:
    """With nothing built, those that need a build say so; the others are ready."""
    result = CliRunner().invoke(app, ["list", "--data-dir", str(tmp_path)])
    assert result.exit_code == 0
    assert "rust-candle is skipped: " in result.output
    assert "fastapi-onnx is skipped" not in result.output


def test_build_of_an_unknown_stack_is_one_line(tmp_path: Path) -> None:
    """Exit code 2, and the names that there are."""
    result = CliRunner().invoke(app, ["build", "nothing", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "no stack 'nothing'" in result.output


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"needs": '["pkg:no-such-package-dev"]', "build": '["make"]'}, 0, "one is skipped: "),
        ({"build": '["{python}", "-c", "raise SystemExit(3)"]'}, 1, "failed: one: the build ended with code 3"),
    ],
)
def test_build_skips_what_cannot_be_built_and_fails_where_a_build_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], code: int, words: str
) -> None:
    """A tool that is not here is no failure; a build that breaks is, and the next stack is built all the same."""
    write(tmp_path / "src", **fields)
    write(tmp_path / "src", "two", build='["{python}", "-c", "pass"]')
    monkeypatch.setattr("loadgen.stacks.commands.load_stacks", lambda: load_stacks(tmp_path / "src"))
    monkeypatch.setattr("loadgen.stacks.commands.OWN", {})  # they take minutes
    result = CliRunner().invoke(app, ["build", "--data-dir", str(tmp_path / "data")])
    assert result.exit_code == code
    assert words in result.output
    assert "\ntwo: " in result.output


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """A safetensors file, read as its specification says."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
    }


def test_safetensors_hold_the_champion_for_a_plain_forward_pass() -> None:
    """numpy over the exported weights gives the risk that onnxruntime gives, within 1e-5."""
    model = (ARTIFACTS / "cards" / MODEL_FILE).read_bytes()
    weights = unpack(safetensors(card_weights(initializers(model))))
    vectors = Population.make(64).vectors(np.arange(64), np.arange(64))
    x = np.clip((vectors - weights["mean"]) * weights["inverse_std"], -weights["clip"], weights["clip"])
    for layer in range(3):
        x = x @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]
        x = np.maximum(x, 0) if layer < 2 else 1 / (1 + np.exp(-x))
    (expected,) = open_session(model, "champion").run(None, {INPUT_NAME: vectors})
    np.testing.assert_allclose(x[:, 0], expected, atol=1e-5)
    assert np.ptp(expected) > 0.3


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """The models that stacks are given."""
    return export_models(tmp_path_factory.mktemp("models"))


def test_image_model_has_the_published_size_and_tells_pictures_apart(exported: ModelFiles) -> None:
    """3.5 million parameters; ten pictures are not all of one class."""
    n_parameters = sum(tensor.size for tensor in unpack(exported.image_weights.read_bytes()).values())
    assert 3.4e6 < n_parameters < 3.6e6
    session = open_session(exported.image)
    classes = {int(session.run(None, {"image": tensor_of(picture(seed))})[0].argmax()) for seed in range(200, 210)}
    assert len(classes) >= 5


def test_image_weights_are_those_of_the_onnx_file(exported: ModelFiles) -> None:
    """Both files come from the same numbers."""
    constants = initializers(exported.image.read_bytes())
    for name, tensor in unpack(exported.image_weights.read_bytes()).items():
        np.testing.assert_array_equal(tensor, constants[name])


def test_bodies_of_one_picture_carry_the_same_tensor() -> None:
    """JSON within its digits, binary to the bit, JPEG within what compression changes."""
    pixels = picture(3)
    tensor = tensor_of(pixels)
    np.testing.assert_array_equal(np.frombuffer(body_of("image-binary", pixels), "<f4").reshape(tensor.shape), tensor)
    np.testing.assert_allclose(json.loads(body_of("image-json", pixels))["tensor"], tensor, atol=1e-6)
    decoded = decode_jpeg(jpeg_of(pixels))
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < 5


def test_population_of_more_cards_begins_with_the_same_ones() -> None:
    """A larger benchmark asks about the cards of a smaller one as well, merchants stay."""
    small, large = Population.make(10), Population.make(1_000)
    np.testing.assert_array_equal(small.cards, large.cards[:10])
    np.testing.assert_array_equal(small.merchants, large.merchants)
    assert (card_id(7), merchant_id(7)) == ("c00000007", "m00007")


@pytest.mark.parametrize(("risk", "outcome"), [(0.4999, "approve"), (0.5, "review"), (0.8999, "review"), (0.9, "decline")])
def test_outcome_follows_the_thresholds(risk: float, outcome: str) -> None:
    """At a threshold the stricter one counts."""
    assert outcome_of(risk) == outcome


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, None),
        ({"score": 0.300009}, None),
        ({"score": 0.30002}, "score"),
        ({"score": float("nan")}, "score"),
        ({"event_id": "f"}, "event_id"),
        ({"outcome": "decline"}, "outcome"),
    ],
)
def test_differs_names_what_is_wrong(changes: dict[str, object], wrong: str | None) -> None:
    """Within 1e-5 is equal, NaN never is."""
    expected = Reply("e", 0.3, "approve")
    found = differs(msgspec.structs.replace(expected, **changes), expected)
    assert (found is None) if wrong is None else (found is not None and wrong in found)


def test_paths_are_those_that_the_makefile_names() -> None:
    """`make stacks` and the documentation speak of data/stacks; sources are in the package."""
    assert Path("data/stacks") == DATA
    assert HERE.name == "stacks"
    assert build.EXTRA == "stacks"
