"""The model card: what is written is what is read, and nothing else is accepted."""

import hashlib
from pathlib import Path

import msgspec
import pytest

from features.plan import Plan, compile_plan
from features.spec import SPECS, load_spec
from models.card import (
    ARTIFACTS,
    CARD_FILE,
    CARD_VERSION,
    MODEL_FILE,
    Golden,
    ModelCard,
    Population,
    Thresholds,
    load_card,
    save_artifact,
)
from models.scorer import ModelError

MODEL = b"any bytes"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_plan(load_spec("cards"))


@pytest.fixture
def card(plan: Plan) -> ModelCard:
    digest = hashlib.sha256(MODEL).hexdigest()
    return ModelCard(
        card_version=CARD_VERSION,
        name="cards-mlp",
        version=digest[:12],
        sha256=digest,
        spec=plan.spec_name,
        plan_hash=plan.hash,
        feature_names=list(plan.feature_names),
        thresholds=Thresholds(0.1, 0.5),
        threshold_rule="picked by hand",
        metrics={"test_auc": 0.5},
        data={"rows": "0"},
        command="weir train",
        created="2026-01-01T00:00:00+00:00",
        made_with={},
    )


def test_load_card_saved_artifact_is_equal(tmp_path: Path, card: ModelCard, plan: Plan) -> None:
    """A saved artifact reads back equal, fits its plan and leaves no temporary file."""
    save_artifact(tmp_path / "new" / "cards", MODEL, card)
    loaded = load_card(tmp_path / "new" / "cards")
    assert loaded == card
    assert loaded.model == f"cards-mlp@{card.sha256[:12]}"
    loaded.check(plan)
    assert sorted(p.name for p in (tmp_path / "new" / "cards").iterdir()) == [CARD_FILE, MODEL_FILE]


def test_load_card_nothing_there_is_refused(tmp_path: Path) -> None:
    """A directory without a card says how to make one."""
    with pytest.raises(ModelError, match="weir train --out"):
        load_card(tmp_path)


def test_load_card_model_missing_is_refused(tmp_path: Path, card: ModelCard) -> None:
    """A card without its model is named as such."""
    save_artifact(tmp_path, MODEL, card)
    (tmp_path / MODEL_FILE).unlink()
    with pytest.raises(ModelError, match=MODEL_FILE):
        load_card(tmp_path)


@pytest.mark.parametrize("content", [b"", b"any byteS", b"any bytes "])
def test_load_card_changed_model_is_refused(tmp_path: Path, card: ModelCard, content: bytes) -> None:
    """One changed byte of the model is noticed."""
    save_artifact(tmp_path, MODEL, card)
    (tmp_path / MODEL_FILE).write_bytes(content)
    with pytest.raises(ModelError, match="sha256"):
        load_card(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "x"}', b"\xff"])
def test_load_card_not_a_card_is_refused(tmp_path: Path, card: ModelCard, content: bytes) -> None:
    """Text that is not a card is refused in one line."""
    save_artifact(tmp_path, MODEL, card)
    (tmp_path / CARD_FILE).write_bytes(content)
    with pytest.raises(ModelError, match="not a model card") as caught:
        load_card(tmp_path)
    assert "\n" not in str(caught.value)


def test_load_card_future_version_is_refused(tmp_path: Path, card: ModelCard) -> None:
    """A card of a later format is refused by its number."""
    save_artifact(tmp_path, MODEL, msgspec.structs.replace(card, card_version=CARD_VERSION + 1))
    with pytest.raises(ModelError, match=f"card version {CARD_VERSION + 1}"):
        load_card(tmp_path)


@pytest.mark.parametrize("thresholds", [Thresholds(0.6, 0.5), Thresholds(-0.1, 0.5), Thresholds(0.5, 1.1)])
def test_load_card_impossible_thresholds_are_refused(tmp_path: Path, card: ModelCard, thresholds: Thresholds) -> None:
    """Thresholds out of order or range would decide nonsense."""
    save_artifact(tmp_path, MODEL, msgspec.structs.replace(card, thresholds=thresholds))
    with pytest.raises(ModelError, match="review <= decline"):
        load_card(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"reference": [0.0]}, "reference has 1 values"),
        ({"golden": Golden([[0.0] * 40, [0.0] * 39], [0.5, 0.5])}, "golden needs vectors"),
        ({"golden": Golden([[0.0] * 40], [0.5, 0.5])}, "golden needs vectors"),
        ({"population": Population([[1.0]], [[0.5, 0.5]], [], [1.0])}, "population needs edges"),
        ({"population": Population([[1.0]] * 40, [[1.0]] * 40, [], [1.0])}, "population needs edges"),
    ],
)
def test_load_card_portrait_of_other_features_is_refused(
    tmp_path: Path, card: ModelCard, change: dict[str, object], problem: str
) -> None:
    """What the card says of features has to be said of all of them."""
    save_artifact(tmp_path, MODEL, msgspec.structs.replace(card, **change))
    with pytest.raises(ModelError, match=problem):
        load_card(tmp_path)


def test_check_other_spec_is_refused(card: ModelCard) -> None:
    """A model of one spec never runs on another one's features."""
    with pytest.raises(ModelError, match="handbook"):
        card.check(compile_plan(load_spec("handbook")))


@pytest.mark.parametrize("name", sorted(path.stem for path in SPECS.glob("*.toml")))
def test_packaged_model_fits_the_packaged_spec(name: str) -> None:
    """Each spec has an artifact that belongs to it; after a change of the spec, run its card's command again."""
    card = load_card(ARTIFACTS / name)
    card.check(compile_plan(load_spec(name)))
    assert card.reference
    assert card.golden is not None
    assert card.population is not None
    assert card.command.startswith("weir generate ")  # nothing committed was trained on other people's data


def test_packaged_handbook_model_says_what_it_is_not() -> None:
    """It makes the service start, no more: the card says so and how to train a real one."""
    card = load_card(ARTIFACTS / "handbook")
    assert "--columns cards" in card.command
    assert "generated stream" in card.note
    assert "weir train --spec handbook --data" in card.note


def test_save_artifact_unwritable_place_is_one_line(tmp_path: Path, card: ModelCard) -> None:
    """A file where the directory should be is a ModelError."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        save_artifact(tmp_path / "file", MODEL, card)
