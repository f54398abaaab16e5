"""Choosing an engine, and what is said where the Go core is not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from features.plan import compile_plan
from features.spec import load_spec
from gocore import binding, build, locate
from models.card import ARTIFACTS, MODEL_FILE
from models.scorer import ModelError
from models.scorers import missing_scorer, open_scorer
from service.app import load_model
from service.doctor import run_checks
from service.settings import load_settings

PLAN = compile_plan(load_spec("cards"))
MODEL = ARTIFACTS / "cards" / MODEL_FILE


@pytest.fixture
def no_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which the Go core was never built."""
    monkeypatch.setattr(locate, "LIBRARY", tmp_path / "libweir.so")
    monkeypatch.setattr(binding, "_load_once", binding._load_once.__wrapped__)  # what other tests loaded is not here


@pytest.mark.usefixtures("no_core")
def test_go_scorer_without_its_library_is_refused_and_auto_takes_onnx() -> None:
    """`--scorer go` says how to build it; `auto` scores with onnx."""
    assert "make go" in (missing_scorer("go") or "")
    with pytest.raises(
        ModelError, match=r"the go scorer cannot be used: libweir.so is not built; make go .* use --scorer onnx"
    ):
        load_model(load_settings(None, ["scorer=go"]))
    assert load_model(load_settings(None, ["scorer=auto"]))[2].name == "onnx"


@pytest.mark.usefixtures("no_core")
def test_doctor_says_what_the_go_core_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library, no Go and no compiler are each named, with the way out, and none of them is bad."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    found = {check.name: check for check in run_checks(load_settings())}
    assert {found[name].state for name in ("go", "c compiler", "go core")} == {"absent"}
    assert "make go" in found["go"].detail
    assert "gcc" in found["c compiler"].detail
    assert "make go" in found["go core"].detail


def test_library_that_does_not_load_is_bad_where_it_is_asked_for_and_passed_over_where_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A damaged library, or one of another machine: `go` refuses, doctor says so, `auto` scores with onnx."""
    library = tmp_path / "libweir.so"
    library.write_bytes(b"no library")
    monkeypatch.setattr(locate, "LIBRARY", library)
    monkeypatch.setattr(binding, "LIBRARY", library)
    monkeypatch.setattr(binding, "_load_once", binding._load_once.__wrapped__)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(load_settings(None, ["scorer=go"]))
    assert load_model(load_settings(None, ["scorer=auto"]))[2].name == "onnx"
    for scorer, state in (("go", "bad"), ("auto", "absent"), ("onnx", "absent")):
        found = {check.name: check.state for check in run_checks(load_settings(None, [f"scorer={scorer}"]))}
        assert found["go core"] == state


def test_model_file_that_is_none_is_refused_by_every_engine(tmp_path: Path) -> None:
    """The message names the file, whichever engine reads it."""
    broken, empty = tmp_path / "model.onnx", tmp_path / "empty.onnx"
    broken.write_bytes(b"no model")
    empty.write_bytes(b"")
    for name in ("onnx", "go"):
        if missing_scorer(name) is None:
            for path in (broken, empty, tmp_path / "nothing.onnx"):
                with pytest.raises(ModelError, match=path.name):
                    open_scorer(name, PLAN, path)


@pytest.mark.skipif(missing_scorer("go") is not None, reason="the Go core is not built")
def test_go_scorer_does_not_import_onnxruntime() -> None:
    """A process that scores with `go` alone never loads onnxruntime's Python side."""
    program = (
        "import sys; from pathlib import Path; from features.plan import compile_plan; from features.spec import load_spec\n"
        "import service.app; from models.scorers import open_scorer\n"
        f"open_scorer('go', compile_plan(load_spec('cards')), Path({str(MODEL)!r}))\n"
        "print('onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("found", "wanted", "usable"), [("go1.26.8", "1.26.0", True), ("go1.25.3", "1.26.0", False), ("", "1.26", False)]
)
def test_go_that_is_too_old_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: str, wanted: str, usable: bool
) -> None:
    """go.mod says which Go can build the module; an older one on PATH counts as none."""
    go = tmp_path / "go"
    go.write_text(f"#!/bin/sh\necho {found}\n" if found else "no program")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(build, "_wanted", lambda: wanted)
    assert (build.find_go() is not None) == usable


def test_build_without_go_exits_with_its_own_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Not built is no failure of make: exit code 3 and one line that says what is missing."""
    monkeypatch.setattr(build, "find_go", lambda: None)
    monkeypatch.setattr(sys, "argv", ["build"])
    assert build.main() == build.NOT_POSSIBLE
    assert "no Go" in capsys.readouterr().err
    monkeypatch.setattr(build, "find_go", lambda: "/usr/bin/go")
    for compiler in ("no-such-compiler", "/bin/false"):
        monkeypatch.setenv("CC", compiler)
        assert build.c_compiler() is None
    assert build.main() == build.NOT_POSSIBLE
    assert "no C compiler" in capsys.readouterr().err


def test_doctor_lists_the_execution_providers() -> None:
    """Those that this onnxruntime has, and which one models run on."""
    (check,) = [check for check in run_checks(load_settings()) if check.name == "execution providers"]
    assert check.state == "ok"
    assert "CPUExecutionProvider; models run on CPUExecutionProvider" in check.detail
