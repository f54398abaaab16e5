"""Training: matrix -> fit -> calibrate -> thresholds -> ONNX -> card. Needs the `train` extra (scikit-learn, onnx).

Time decides who may know what. A model is fitted on [from, valid_from), stopped, calibrated and given thresholds on
[valid_from, to) (trees are then fitted again on all of it), both with the labels known one label delay after `to`; it is tested
on the week after that moment. Rows before `from` only warm the profiles up. Deterministic: the same data, seed and machine give
the same model file.
"""

import datetime as dt
import hashlib
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.plan import Plan, compile_plan
from features.spec import Spec
from models.card import CARD_VERSION, ModelCard, Thresholds, save_artifact
from models.dataset import Dataset, DatasetError
from models.estimators import NETWORK, SHORT_NAMES, Fitted, fit_estimator, infer
from models.matrix import Progress, build_matrix
from models.metrics import Quality, quality, threshold_at_precision
from models.portrait import golden_rows, population_of, reference_vector
from models.rows import Rows, join

DAY_MS = 86_400_000
TEST_MS = 7 * DAY_MS
COLD_SHARE = 0.2  # of the stream up to `to`: profiles are still filling, so it is not fitted on by default
VALID_SHARE = 0.25  # of [from, to)
FRAUDS_MIN = 20  # in fit and in validation: below that nothing is learned and no threshold means anything
DECLINE_PRECISION = 0.8
REVIEW_SHARE = 0.01
DECLINED_MIN = 20  # validation rows behind the decline threshold

THRESHOLD_RULE = (
    f"decline: lowest validation score with precision >= {DECLINE_PRECISION} over at least {DECLINED_MIN} rows (else 1.0);"
    f" review: the next {REVIEW_SHARE:.0%} of all validation scores below it"
)


class TrainError(DatasetError):
    """Data that no model can be trained on; the message says what is missing."""


class Split(msgspec.Struct, frozen=True):
    """Times in ms: fit [fit_from, valid_from), validation [valid_from, to), test [test_from, test_to)."""

    fit_from: int
    valid_from: int
    to: int
    test_from: int
    test_to: int


def train_model(
    spec: Spec,
    dataset: Dataset,
    out_dir: str | Path,
    seed: int = 0,
    ts_from: int | None = None,
    ts_to: int | None = None,
    command: str = "",
    progress: Progress | None = None,
    note: str = "",
    estimator: str = NETWORK,
) -> ModelCard:
    """Train on [ts_from, ts_to) (ms, defaults in plan_split), write model.onnx and card.json to out_dir.

    `estimator` is one of models.estimators.SHORT_NAMES; `command` and `note` go into the card.

    Raises TrainError (too short, too few frauds), ModelError (out_dir), InvalidTransaction (a row the engine refuses).
    """
    plan = compile_plan(spec)
    delay_ms = spec.source.label.delay_ms if spec.source.label is not None else 0
    split = plan_split(dataset, delay_ms, ts_from, ts_to)
    # The times are in order, so each part is a range of rows.
    first, valid, end, test, last = np.searchsorted(dataset.ts, msgspec.structs.astuple(split)).tolist()
    _check_frauds(dataset, split, (first, valid), (valid, end))
    vectors = build_matrix(plan, dataset, first, progress)
    fit = _known(dataset, vectors, first, valid, first, split)
    validation = _known(dataset, vectors, valid, end, first, split)
    metadata = {"weir.spec": spec.name, "weir.plan_hash": plan.hash, "weir.seed": str(seed)}
    fitted = fit_estimator(estimator, fit, validation, seed, metadata, progress)
    thresholds = pick_thresholds(fitted.validation_risk, validation.frauds)
    risk = infer(fitted.model, vectors[test - first : last - first])
    cards = dataset.card_ids[test:last]
    figures = _metrics(quality(risk, dataset.labels[test:last], dataset.ts[test:last], cards), risk, thresholds)
    figures["n_parameters"] = fitted.n_parameters
    known = join(fit, validation)
    card = _card(plan, fitted, thresholds, figures, split, dataset.n_rows, seed, command, note)
    card = msgspec.structs.replace(
        card,
        name=f"{plan.spec_name}-{SHORT_NAMES[estimator]}",
        reference=reference_vector(known.vectors, known.frauds),
        golden=golden_rows(validation.vectors, infer(fitted.model, validation.vectors)),
        population=population_of(known.vectors, infer(fitted.model, known.vectors)),
    )
    save_artifact(out_dir, fitted.model, card)
    return card


def plan_split(dataset: Dataset, delay_ms: int, ts_from: int | None = None, ts_to: int | None = None) -> Split:
    """The parts in time. Raises TrainError if one would be empty.

    Without ts_to: as late as leaves the label delay and a test week; without ts_from: after 20 % of the time up to ts_to.
    """
    if dataset.n_rows == 0:
        raise TrainError("the file holds no transactions in this range")
    start, end = int(dataset.ts[0]), int(dataset.ts[-1]) + 1
    to = ts_to if ts_to is not None else end - delay_ms - TEST_MS
    fit_from = ts_from if ts_from is not None else start + int((to - start) * COLD_SHARE)
    test_from = to + delay_ms
    if not (start <= fit_from < to and test_from < end):
        raise TrainError(
            f"the data lasts from {_day(start)} to {_day(end)}; training from {_day(fit_from)} to {_day(to)}, the label"
            f" delay of {delay_ms / DAY_MS:g} days and a test week do not fit into it"
        )
    valid_from = to - int((to - fit_from) * VALID_SHARE)
    return Split(fit_from, valid_from, to, test_from, min(test_from + TEST_MS, end))


def pick_thresholds(risk: NDArray[np.float32], frauds: NDArray[np.int8]) -> Thresholds:
    """Thresholds by THRESHOLD_RULE, from validation scores (n,) and known frauds (n,)."""
    decline = threshold_at_precision(risk, frauds, DECLINE_PRECISION, DECLINED_MIN)
    decline = 1.0 if decline is None else decline
    touched = float((risk >= decline).mean()) + REVIEW_SHARE
    return Thresholds(min(float(np.quantile(risk, 1 - touched)), decline), decline)


def _check_frauds(dataset: Dataset, split: Split, *parts: tuple[int, int]) -> None:
    for (start, stop), what in zip(parts, ("fit", "validation"), strict=True):
        n = int(((dataset.labels == 1) & (dataset.label_ts <= split.test_from))[start:stop].sum())
        if n < FRAUDS_MIN:
            raise TrainError(f"{n} known frauds in the {what} part ({stop - start} rows), at least {FRAUDS_MIN} are needed")


def _known(dataset: Dataset, vectors: NDArray[np.float32], start: int, stop: int, offset: int, split: Split) -> Rows:
    """Rows [start, stop) as they look at deployment: a fraud reported later counts as legit, as it would in life."""
    frauds = (dataset.labels[start:stop] == 1) & (dataset.label_ts[start:stop] <= split.test_from)
    usable = dataset.labels[start:stop] >= 0
    return Rows(vectors[start - offset : stop - offset][usable], frauds[usable].astype(np.int8))


def _metrics(test: Quality, risk: NDArray[np.float32], thresholds: Thresholds) -> dict[str, float]:
    figures = {f"test_{name}": value for name, value in msgspec.structs.asdict(test).items()}
    figures["test_mean_risk"] = float(risk.mean())  # calibrated: near the share of frauds
    figures["test_review_share"] = float(((risk >= thresholds.review) & (risk < thresholds.decline)).mean())
    figures["test_decline_share"] = float((risk >= thresholds.decline).mean())
    return {name: round(value, 6) for name, value in figures.items() if not np.isnan(value)}


def _card(
    plan: Plan,
    fitted: Fitted,
    thresholds: Thresholds,
    figures: dict[str, float],
    split: Split,
    n_rows: int,
    seed: int,
    command: str,
    note: str,
) -> ModelCard:
    digest = hashlib.sha256(fitted.model).hexdigest()
    times = {name: _day(value) for name, value in msgspec.structs.asdict(split).items()}
    return ModelCard(
        card_version=CARD_VERSION,
        name=plan.spec_name,
        version=digest[:12],
        sha256=digest,
        spec=plan.spec_name,
        plan_hash=plan.hash,
        feature_names=list(plan.feature_names),
        thresholds=thresholds,
        threshold_rule=THRESHOLD_RULE,
        metrics=figures,
        data={"rows": str(n_rows), "seed": str(seed), **times},
        command=command,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        made_with={name: version(name) for name in ("numpy", "scikit-learn", "onnx")},
        note=note,
    )


def _day(ts_ms: int) -> str:
    return dt.datetime.fromtimestamp(ts_ms / 1000, dt.UTC).isoformat(timespec="seconds")
