"""Execution providers: asked for by a setting, checked at the start, used by the onnx scorer and by /v2 alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from features.plan import compile_plan
from features.spec import load_spec
from models import onnx_session, served
from models.card import ARTIFACTS, MODEL_FILE
from models.onnx_session import available_providers, check_providers, open_session
from models.scorer import CPU, ModelError
from models.scorers import NAMES, missing_scorer, open_scorer
from models.served import ModelSource, ServedModel
from service.app import load_model
from service.compare import handed_on
from service.doctor import run_checks
from service.errors import SettingsError
from service.settings import load_settings
from service.settings_page import default_of

PLAN = compile_plan(load_spec("cards"))
MODEL = ARTIFACTS / "cards" / MODEL_FILE
ABSENT = "NoSuchExecutionProvider"
TWO = '["AzureExecutionProvider", "CPUExecutionProvider"]'
Asked = list[list[str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What each session was asked to run on, newest last."""
    found: Asked = []
    make = onnxruntime.InferenceSession

    def noting(*args: Any, providers: Sequence[str]) -> onnxruntime.InferenceSession:
        found.append(list(providers))
        return make(*args, providers=list(CPU))

    monkeypatch.setattr(onnx_session, "check_providers", lambda providers: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", noting)
    return found


def test_providers_come_from_every_source(tmp_path: Path) -> None:
    """A list in the file, in the environment and on the command line; the CPU's alone by default."""
    assert load_settings().onnx.providers == CPU
    config = tmp_path / "weir.toml"
    config.write_text(f"[onnx]\nproviders = {TWO}\n")
    two = ("AzureExecutionProvider", "CPUExecutionProvider")
    assert load_settings(config).onnx.providers == two
    assert load_settings(env={"WEIR_ONNX__PROVIDERS": TWO}).onnx.providers == two
    assert load_settings(overrides=[f"onnx.providers={TWO}"]).onnx.providers == two


@pytest.mark.parametrize("value", ["[]", '["cpu"]', '["CPUExecutionProvider; rm"]', "CPUExecutionProvider", "[1]", "3"])
def test_providers_that_are_no_names_are_refused(value: str) -> None:
    """The message has the key, the value and what is allowed."""
    with pytest.raises(SettingsError, match=r"onnx\.providers is .*list of text like"):
        load_settings(overrides=[f"onnx.providers={value}"])


def test_providers_are_shown_and_handed_on_as_they_are_given() -> None:
    """The reference, and the child processes of a comparison, write the list as TOML."""
    assert default_of("onnx.providers") == '["CPUExecutionProvider"]'
    (setting,) = handed_on(load_settings(overrides=[f"onnx.providers={TWO}"]))
    assert setting == f"onnx.providers={TWO}"
    assert load_settings(overrides=[setting]).onnx.providers == ("AzureExecutionProvider", "CPUExecutionProvider")


@pytest.mark.parametrize("scorer", ["onnx", "auto"])
def test_provider_that_is_not_here_stops_the_start(scorer: str) -> None:
    """Whichever engine scores: /v2 would need it. The message lists those that there are."""
    settings = load_settings(overrides=[f"scorer={scorer}", f'onnx.providers=["{ABSENT}", "CPUExecutionProvider"]'])
    with pytest.raises(ModelError, match=rf"onnx\.providers: .* has no {ABSENT} here; it has .*CPUExecutionProvider"):
        load_model(settings)
    (check,) = [check for check in run_checks(settings) if check.name == "execution providers"]
    assert (check.state, ABSENT in check.detail) == ("bad", True)


def test_providers_of_this_build_are_accepted() -> None:
    """All of those that it lists, in any order."""
    check_providers(available_providers())
    check_providers(available_providers()[::-1])
    check_providers(CPU)


def test_onnx_scorer_and_v2_ask_for_the_same_and_go_for_none(asked: Asked) -> None:
    """The names reach onnxruntime in their order."""
    open_scorer("onnx", PLAN, MODEL, CPU)
    ServedModel(ModelSource("m", "1", MODEL), CPU)
    assert asked == [list(CPU)] * 2
    with pytest.raises(ModelError, match=f"onnxruntime has {ABSENT} and could not start it, its session runs on CPU"):
        open_scorer("onnx", PLAN, MODEL, (ABSENT, *CPU))
    with pytest.raises(ModelError, match="could not start it"):
        ServedModel(ModelSource("m", "1", MODEL), (ABSENT, *CPU))
    assert asked[2:] == [[ABSENT, *CPU]] * 2
    if missing_scorer("go") is None:
        open_scorer("go", PLAN, MODEL, (ABSENT, *CPU))
    assert len(asked) == 4


@pytest.mark.skipif(len(available_providers()) < 2, reason="this onnxruntime has the CPU's provider alone")
def test_another_provider_gives_the_same_scores() -> None:
    """What it cannot run, the CPU does."""
    providers = (available_providers()[0], *CPU)
    vectors = np.random.default_rng(5).normal(size=(3, PLAN.n_features)).astype(np.float32)
    expected = open_scorer("onnx", PLAN, MODEL).infer(vectors)
    for name in NAMES:
        if missing_scorer(name) is None:
            assert np.allclose(open_scorer(name, PLAN, MODEL, providers).infer(vectors), expected, atol=1e-6)
    assert tuple(open_session(MODEL, providers=providers).get_providers()) == providers
    model = served.ServedModel(ModelSource("m", "1", MODEL), providers)
    (risk,) = model.run({"features": vectors}, ["risk"], model.new_run())
    assert np.allclose(risk, expected, atol=1e-6)
