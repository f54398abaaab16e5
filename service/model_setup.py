"""What the composition root makes of the models: the switch with everything that it owns."""

import functools
from collections.abc import Sequence
from pathlib import Path

import structlog

from features.plan import Plan
from features.spec import load_spec
from models.card import ModelCard
from models.registry import Registry
from models.scorer import Scorer
from models.scorers import ScorerMissing, check_providers, missing_scorer, open_scorer
from models.words import Words
from service.decide import Policy
from service.dry_run import DryRun
from service.model_switch import ModelSwitch
from service.pipeline import Pipeline
from service.quality import Quality
from service.scorer_switch import ScorerSwitch
from service.settings import Settings
from service.vector_log import VectorLog
from service.watch import Watch

log = structlog.get_logger(__name__)


def open_models(
    settings: Settings,
    plan: Plan,
    card: ModelCard,
    pipeline: Pipeline,
    dry_run: DryRun,
    scorers: ScorerSwitch,
    quality: Quality,
) -> ModelSwitch:
    """The switch; `card` is of the model that `pipeline` scores with. Raises SpecError, OSError."""
    w = settings.watch
    vector_log = VectorLog(settings.data_dir, plan, w.log_bytes_max) if w.share and w.log_bytes_max else None
    watch = Watch(w.share, w.challenger_share, vector_log)
    registry = Registry(plan, settings.data_dir, settings.model)
    words = Words(load_spec(settings.spec))
    policy = functools.partial(policy_of, settings)
    return ModelSwitch(settings, plan, registry, card, words, pipeline, dry_run, scorers, watch, quality, policy)


def policy_of(settings: Settings, card: ModelCard) -> Policy:
    """The thresholds of a card, or those that are set, and what is done about the unknown."""
    d = settings.decide
    review = card.thresholds.review if d.review_threshold is None else d.review_threshold
    decline = card.thresholds.decline if d.decline_threshold is None else d.decline_threshold
    return Policy(review, decline, d.unknown_outcome, d.unknown_amount_min)


def open_engine_of(name: str, plan: Plan, model_file: Path, providers: Sequence[str]) -> Scorer:
    """The engine that is asked for; with "auto", go if its library is there and works, else onnx. Raises ModelError."""
    check_providers(providers)
    if name != "auto":
        return open_scorer(name, plan, model_file, providers)
    if missing_scorer("go") is not None:
        return open_scorer("onnx", plan, model_file, providers)
    try:
        return open_scorer("go", plan, model_file)
    except ScorerMissing as error:
        log.warning("scoring with onnx", problem=str(error))
        return open_scorer("onnx", plan, model_file, providers)
