"""The registry finds artifacts where they are put, says what is wrong with them, and checks opened models by golden scores."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from features.plan import Plan, compile_plan
from features.spec import load_spec
from models.card import ARTIFACTS, CARD_FILE, MODEL_FILE, ModelCard, load_card
from models.registry import MODELS_DIR, Registry, check_golden
from models.scorer import ModelError
from models.scorers import NAMES, missing_scorer, open_scorer

MakeModel = Callable[..., ModelCard]
PACKAGED = sorted(path.name for path in ARTIFACTS.iterdir() if (path / CARD_FILE).is_file())


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_plan(load_spec("cards"))


@pytest.mark.parametrize("engine", NAMES)
@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_model_passes_its_golden_check(name: str, engine: str) -> None:
    """Every model that comes with the program gives its card's scores, whichever engine opens it."""
    if missing_scorer(engine) is not None:
        pytest.skip(str(missing_scorer(engine)))
    card = load_card(ARTIFACTS / name)
    check_golden(card, open_scorer(engine, compile_plan(load_spec(card.spec)), ARTIFACTS / name / MODEL_FILE))


def test_registry_lists_packaged_data_and_configured(tmp_path: Path, plan: Plan, make_model: MakeModel) -> None:
    """Three sources; what is put there later is found; files and directories without a card are left alone."""
    mine, other = make_model(tmp_path / MODELS_DIR / "mine"), make_model(tmp_path / "elsewhere", seed=2)
    (tmp_path / MODELS_DIR / "empty").mkdir()
    (tmp_path / MODELS_DIR / "README").write_text("x")
    registry = Registry(plan, tmp_path, tmp_path / "elsewhere")
    found = {listed.model: (listed.source, listed.problem is None) for listed in registry.artifacts()}
    assert found[mine.model] == ("data", True)
    assert found[other.model] == ("setting", True)
    assert found[load_card(ARTIFACTS / "cards").model] == ("packaged", True)
    assert found[load_card(ARTIFACTS / "handbook").model] == ("packaged", False)
    late = make_model(tmp_path / MODELS_DIR / "late", seed=3)
    assert registry.find(late.model) == (tmp_path / MODELS_DIR / "late", late)


def test_registry_names_a_damaged_artifact_as_its_card_does(tmp_path: Path, plan: Plan, make_model: MakeModel) -> None:
    """By name and version if these can be read, else by its directory; asking for it gives the reason."""
    card = make_model(tmp_path / MODELS_DIR / "a")
    (tmp_path / MODELS_DIR / "a" / MODEL_FILE).write_bytes(b"x")
    (tmp_path / MODELS_DIR / "b").mkdir()
    (tmp_path / MODELS_DIR / "b" / CARD_FILE).write_bytes(b"\xff{")
    registry = Registry(plan, tmp_path, None)
    problems = {listed.model: listed.problem or "" for listed in registry.artifacts()}
    assert "sha256" in problems[card.model]
    assert "not a model card" in problems["b"]
    for name in (card.model, "b"):
        with pytest.raises(ModelError):
            registry.find(name)
    with pytest.raises(KeyError):
        registry.find("nobody")
    for listed in registry.artifacts():
        assert msgspec.json.encode(listed.describe())


def test_registry_good_copy_comes_before_a_damaged_one(tmp_path: Path, plan: Plan, make_model: MakeModel) -> None:
    """The same model twice: the copy that can be used is the one."""
    card = make_model(tmp_path / MODELS_DIR / "a")
    make_model(tmp_path / MODELS_DIR / "b")
    (tmp_path / MODELS_DIR / "a" / MODEL_FILE).unlink()
    assert Registry(plan, tmp_path, None).find(card.model)[0] == tmp_path / MODELS_DIR / "b"
