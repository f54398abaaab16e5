"""What /metrics reads of the models: which are in use, how they do, how far the stream has moved from their training."""

from collections.abc import Callable
from typing import Any

from models.drift import SCORE
from service.challenger import SCORE_BOUNDS, Challenger
from service.metrics import Metrics
from service.model_switch import ModelSwitch

FROM = [f"{edge:g}" for edge in (0.0, *SCORE_BOUNDS)]  # the lower ends of the bins of scores

Numbers = dict[Any, float]


def watch_models(metrics: Metrics, models: ModelSwitch) -> None:
    """Register the gauges."""
    watch, quality = models.watch, models.quality

    def of_challenger(read: Callable[[Challenger], Numbers]) -> Callable[[], Numbers]:
        return lambda: {} if watch.challenger is None else read(watch.challenger)

    def in_use() -> Numbers:
        found: Numbers = {("champion", models.card.model): 1.0}
        if watch.challenger is not None:
            found["challenger", watch.challenger.card.model] = 1.0
        return found

    def stability() -> dict[str, float]:
        return {} if watch.drift is None else watch.drift.stability()

    def score_stability() -> Numbers:
        known = stability()
        return {(models.card.model,): known[SCORE]} if known else {}

    def calibration(field: str) -> Callable[[], Numbers]:
        return lambda: {
            (model, FROM[place]): _number(bin_[field])
            for model, counted in quality.models.items()
            for place, bin_ in enumerate(counted.calibration())
            if bin_["rows"]
        }

    metrics.watch("model", in_use)
    metrics.watch("drift_rows", lambda: 0.0 if watch.drift is None else watch.drift.n_rows)
    metrics.watch("population_stability", lambda: {name: psi for name, psi in stability().items() if name != SCORE})
    metrics.watch("score_stability", score_stability)
    metrics.watch("labelled", lambda: {
        (model, outcome, label): n
        for model, counted in quality.models.items()
        for outcome, numbers in counted.outcomes.items()
        for label, n in zip(("legit", "fraud"), numbers, strict=True)
    })  # fmt: skip
    metrics.watch("live_precision", lambda: quality.rates("precision"))
    metrics.watch("live_recall", lambda: quality.rates("recall"))
    for gauge, field in (("rows", "rows"), ("score", "mean_score"), ("fraud", "fraud_share")):
        metrics.watch(f"calibration_{gauge}", calibration(field))
    metrics.watch("challenger_rows", of_challenger(lambda s: {(s.card.model,): s.n_rows}))
    metrics.watch("challenger_agreement", of_challenger(lambda s: {(s.card.model,): s.agreement}))
    metrics.watch("challenger_outcomes", of_challenger(lambda s: dict(s.n_agreements)))
    metrics.watch("challenger_scores", of_challenger(lambda s: {
        (side, FROM[place]): n
        for side, counts in (("champion", s.champion_scores), ("challenger", s.challenger_scores))
        for place, n in enumerate(counts.tolist())
    }))  # fmt: skip


def count_models(metrics: Metrics, models: ModelSwitch) -> None:
    """Copy what is counted in plain attributes."""
    watch = models.watch
    metrics.reasons_left[()] = models.n_unexplained
    for use, count in watch.n_dropped.items():
        metrics.watch_dropped[use,] = count
    if watch.vector_log is not None:
        metrics.vector_log["written",] = watch.vector_log.n_written
        metrics.vector_log["failed",] = watch.vector_log.n_failed


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
