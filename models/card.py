"""The model card: what a model is, which spec it belongs to, how good it was and how it was made. A JSON file beside it.

An artifact is a directory with `model.onnx` and `card.json`. The card names the model's sha256: a file that does not match
is refused, and so is a card whose plan hash differs from the running plan's, as the features would not mean the same.
"""

import hashlib
import os
from pathlib import Path

import msgspec

from features.plan import Plan
from models.scorer import ModelError

ARTIFACTS = Path(__file__).parent / "artifacts"  # the packaged models: one directory per spec that has one
CARD_FILE = "card.json"
MODEL_FILE = "model.onnx"
CARD_VERSION = 1
INPUT_NAME = "features"  # float32 (n_rows, n_features)
OUTPUT_NAME = "risk"  # float32 (n_rows,), in [0, 1]


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Risk scores from which on a transaction is reviewed or declined (inclusive); review <= decline."""

    review: float
    decline: float


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Vectors and the scores that the model gave for them when it was made: who loads the model can ask it again."""

    inputs: list[list[float]]
    scores: list[float]


class Population(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the training rows were spread: per feature ascending inner edges, and the share of rows in each bin between them.

    n edges make n + 1 bins; bin i holds edges[i - 1] <= x < edges[i] (`np.searchsorted(edges, x, side="right")`). The same of
    the scores. Shares of one list sum to 1.
    """

    edges: list[list[float]]
    shares: list[list[float]]
    score_edges: list[float]
    score_shares: list[float]


class ModelCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`version` is the start of `sha256`, the digest of model.onnx; times are ISO 8601 UTC; `note` is for who deploys it.

    `reference` is the median vector of the legit training rows; it, `golden` and `population` lack in cards made before them.
    """

    card_version: int
    name: str
    version: str
    sha256: str
    spec: str
    plan_hash: str
    feature_names: list[str]
    thresholds: Thresholds
    threshold_rule: str
    metrics: dict[str, float]
    data: dict[str, str]
    command: str
    created: str
    made_with: dict[str, str]
    note: str = ""
    reference: list[float] = []
    golden: Golden | None = None
    population: Population | None = None

    @property
    def model(self) -> str:
        """What a decision says about the model: name and version."""
        return f"{self.name}@{self.version}"

    def check(self, plan: Plan) -> None:
        """Raise ModelError unless the model was trained on exactly this plan's features."""
        if self.plan_hash != plan.hash or self.feature_names != list(plan.feature_names):
            raise ModelError(
                f"model {self.model} was trained for spec {self.spec!r} with plan {self.plan_hash[:12]}, this is spec"
                f" {plan.spec_name!r} with plan {plan.hash[:12]}; train one: weir train --spec {plan.spec_name} ..."
            )


def load_card(directory: str | Path) -> ModelCard:
    """Read the card of an artifact and check the model file against it. Raises ModelError."""
    directory = Path(directory)
    try:
        card = msgspec.json.decode((directory / CARD_FILE).read_bytes(), type=ModelCard)
    except OSError as error:
        raise ModelError(f"{directory / CARD_FILE}: {error.strerror}; weir train --out {directory} makes one") from None
    except msgspec.DecodeError as error:
        raise ModelError(f"{directory / CARD_FILE}: not a model card ({error})") from None
    if card.card_version != CARD_VERSION:
        raise ModelError(f"{directory / CARD_FILE}: card version {card.card_version}, this program reads {CARD_VERSION}")
    _check_thresholds(card, directory)
    _check_widths(card, directory)
    actual = hashlib.sha256(read_model(directory)).hexdigest()
    if actual != card.sha256:
        raise ModelError(
            f"{directory / MODEL_FILE}: sha256 {actual[:12]} is not the card's {card.sha256[:12]}; the file is damaged"
            " or belongs to another card"
        )
    return card


def _check_thresholds(card: ModelCard, directory: Path) -> None:
    if not 0 <= card.thresholds.review <= card.thresholds.decline <= 1:
        raise ModelError(f"{directory / CARD_FILE}: thresholds must be 0 <= review <= decline <= 1: {card.thresholds}")


def _check_widths(card: ModelCard, directory: Path) -> None:
    """What the card says of features has to have one value, or list, for each of them."""
    width = len(card.feature_names)
    wrong = ""
    if card.reference and len(card.reference) != width:
        wrong = f"reference has {len(card.reference)} values"
    elif card.golden is not None and (
        {width} != {len(row) for row in card.golden.inputs} or len(card.golden.inputs) != len(card.golden.scores)
    ):
        wrong = "golden needs vectors of all features and a score for each"
    elif card.population is not None:
        edges = [*card.population.edges, card.population.score_edges]
        shares = [*card.population.shares, card.population.score_shares]
        if [len(e) + 1 for e in edges] != [len(s) for s in shares] or len(edges) != width + 1:
            wrong = "population needs edges, and one share more, for each"
    if wrong:
        raise ModelError(f"{directory / CARD_FILE}: {wrong}; the model has {width} features; train it again")


def read_model(directory: str | Path) -> bytes:
    """The model file's bytes, unchecked (load_card checks them). Raises ModelError."""
    try:
        return (Path(directory) / MODEL_FILE).read_bytes()
    except OSError as error:
        raise ModelError(f"{Path(directory) / MODEL_FILE}: {error.strerror}") from None


def save_artifact(directory: str | Path, model: bytes, card: ModelCard) -> None:
    """Write model and card, each atomically, the card last: a crash leaves the old pair or one that load_card refuses.

    Raises ModelError if the directory cannot be written.
    """
    directory = Path(directory)
    assert card.sha256 == hashlib.sha256(model).hexdigest(), "the card describes another model"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / MODEL_FILE, model)
        _write(directory / CARD_FILE, msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
    except OSError as error:
        raise ModelError(f"{directory}: cannot be written: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
