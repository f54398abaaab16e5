"""The registry: every artifact that a service may load, by what decisions call it, `name@version`.

Artifacts are directories with a card and a model: the packaged ones, those in DATA_DIR/models, and the one that the setting
`model` names. They are read when they are asked for, so one that is put there is found, without a restart. An artifact that
cannot be used is listed with the reason.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from features.plan import Plan
from models.card import ARTIFACTS, CARD_FILE, MODEL_FILE, ModelCard, load_card
from models.scorer import ModelError, Scorer

MODELS_DIR: Final = "models"  # in the data directory
GOLDEN_TOLERANCE: Final = 1e-5  # of risk: sums of float32 in another order; a wrong model is farther off than that


class Listed(msgspec.Struct, frozen=True):
    """An artifact as it was found. `card` is None where it cannot be read; `problem` says why it cannot be used."""

    model: str
    directory: Path
    source: str
    card: ModelCard | None
    problem: str | None

    def describe(self) -> dict[str, Any]:
        """What GET /v1/models shows."""
        shown: dict[str, Any] = {"model": self.model, "source": self.source, "problem": self.problem}
        if self.card is not None:
            card = self.card
            shown |= {
                "sha256": card.sha256,
                "spec": card.spec,
                "plan_hash": card.plan_hash,
                "thresholds": card.thresholds,
                "metrics": card.metrics,
                "created": card.created,
                "note": card.note,
                "has": {
                    "golden": card.golden is not None,
                    "reference": bool(card.reference),
                    "population": card.population is not None,
                },
            }
        return shown


class Registry:
    """What one service may load. `configured` is the setting `model`."""

    def __init__(self, plan: Plan, data_dir: Path, configured: Path | None) -> None:
        self._plan = plan
        self._data_dir = data_dir
        self._configured = configured

    def artifacts(self) -> list[Listed]:
        """Every artifact, each model once. Reads files: call it on another thread."""
        found: dict[str, Listed] = {}
        for source, directory in self._directories():
            listed = self._look_at(source, directory)
            known = found.get(listed.model)
            if known is None or (known.problem is not None and listed.problem is None):
                found[listed.model] = listed
        return list(found.values())

    def find(self, model: str) -> tuple[Path, ModelCard]:
        """Directory and card of `name@version`, whose file is the card's and whose features are the plan's.

        Raises KeyError with the models that there are if there is none, ModelError if it cannot be used. Reads files.
        """
        artifacts = self.artifacts()
        for listed in artifacts:
            if listed.model == model:
                if listed.problem is not None or listed.card is None:
                    raise ModelError(listed.problem or "its card cannot be read")
                return listed.directory, listed.card
        raise KeyError([listed.model for listed in artifacts if listed.problem is None])

    def _directories(self) -> Iterator[tuple[str, Path]]:
        if self._configured is not None:
            yield "setting", self._configured
        for source, parent in (("data", self._data_dir / MODELS_DIR), ("packaged", ARTIFACTS)):
            if parent.is_dir():
                yield from ((source, path) for path in sorted(parent.iterdir()) if (path / CARD_FILE).is_file())

    def _look_at(self, source: str, directory: Path) -> Listed:
        try:
            card = load_card(directory)
        except ModelError as error:
            return Listed(_name_of(directory), directory, source, None, str(error))
        try:
            card.check(self._plan)
        except ModelError as error:
            return Listed(card.model, directory, source, card, str(error))
        return Listed(card.model, directory, source, card, None)


def check_golden(card: ModelCard, scorer: Scorer) -> None:
    """Raise ModelError unless the opened model gives the card's scores for the card's inputs."""
    if card.golden is None:
        raise ModelError(f"model {card.model} has no golden inputs in its card to be checked with; weir train writes them")
    inputs = np.array(card.golden.inputs, dtype=np.float32)
    expected = np.array(card.golden.scores, dtype=np.float64)
    risks = scorer.infer(inputs).astype(np.float64)
    off = np.abs(risks - expected)
    if not (off <= GOLDEN_TOLERANCE).all():  # one that is no number is not below either
        worst = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
        raise ModelError(
            f"model {card.model} gives {risks[worst]:.6f} for golden input {worst}, its card says {expected[worst]:.6f}"
            f" (tolerance {GOLDEN_TOLERANCE:g}): card and model do not belong together"
        )


def model_file(directory: Path) -> Path:
    """The ONNX file of an artifact."""
    return directory / MODEL_FILE


class _Name(msgspec.Struct):
    name: str
    version: str


def _name_of(directory: Path) -> str:
    """What a card that is refused calls its model; the directory's name if not even that can be read."""
    try:
        name = msgspec.json.decode((directory / CARD_FILE).read_bytes(), type=_Name)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return directory.name
    return f"{name.name}@{name.version}"
