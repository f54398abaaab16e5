"""The protocol by which the Fraud Detection Handbook publishes its figures, and those figures.

A fold has a training week, a week in which labels are awaited, and a test week. Test rows of cards that are known by then to be
defrauded are dropped: cards with a fraud in the training week, and for test day j (from 0) with a fraud on any day from the
training week's last one to j days after it. Days are UTC. The first fold is the book's single split.
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.plan import Plan
from models.card import MODEL_FILE, ModelCard, load_card
from models.dataset import Dataset, DatasetError, parse_time_ms
from models.matrix import Progress, build_matrix
from models.metrics import Quality, quality
from models.onnx_scorer import OnnxScorer
from models.scorer import ModelError

DAY_MS: Final = 86_400_000
WEEK_DAYS: Final = 7
TRAINING_WEEKS: Final = ("2018-07-25", "2018-08-01", "2018-08-08", "2018-08-15")
AP_MAX, CARD_PRECISION_MAX = 0.80, 0.33  # on the first test week; what is better has seen what it should not
ROWS_PER_CALL = 8192
FIGURES: Final = ("auc", "average_precision", "card_precision_at_100")

# What the book has: the best figures of any of its models on the first test week, and over the four (chapters 5 to 7).
PUBLISHED_WEEK: Final = {"the book's best, each": (0.871, 0.658, 0.291)}
PUBLISHED_WEEKS: Final = {
    "the book's best, each": (0.879, 0.694, 0.305),
    "XGBoost": (None, 0.694, None),
    "feed-forward network": (None, 0.675, None),
    "LSTM": (None, 0.665, None),
}

Floats = NDArray[np.float64]


class Fold(msgspec.Struct, frozen=True):
    """One test week: its training week's first day, its own, and the figures over the rows that are left of it."""

    training_week: str
    test_week: str
    figures: Quality


class Published(msgspec.Struct, frozen=True):
    """Every fold that was scored; mean and standard deviation (of the population) over them, in the order of FIGURES."""

    folds: list[Fold]
    mean: list[float]
    std: list[float]
    warnings: list[str]


def evaluate_published(dataset: Dataset, scores: Floats, weeks: Sequence[str] = TRAINING_WEEKS) -> Published:
    """Figures by the protocol. scores: float64 (n_rows,), nan for a row without one.

    A fold whose test week has no score at all is left out; raises DatasetError for one with some, or if none is left.
    """
    folds = []
    for week in weeks:
        start = parse_time_ms(week)
        chosen = rows_of_test_week(dataset, start)
        given = ~np.isnan(scores[chosen])
        if not len(chosen) or not given.any():
            continue
        if not given.all():
            raise DatasetError(
                f"test week from {_day(start + 14 * DAY_MS)}: {int((~given).sum())} of {len(chosen)} rows have no score;"
                " replay the whole week, or leave it out"
            )
        cards = np.array(dataset.card_ids, dtype=object)[chosen].tolist()
        figures = quality(scores[chosen], dataset.labels[chosen], dataset.ts[chosen], cards)
        folds.append(Fold(week, _day(start + 14 * DAY_MS), figures))
    if not folds:
        raise DatasetError(f"no test week has scores; the first begins on {_day(parse_time_ms(weeks[0]) + 14 * DAY_MS)}")
    table = np.array([[getattr(fold.figures, name) for name in FIGURES] for fold in folds])
    return Published(folds, table.mean(axis=0).tolist(), table.std(axis=0).tolist(), _warnings(folds))


def rows_of_test_week(dataset: Dataset, start: int) -> NDArray[np.int64]:
    """Rows of the test week of the training week that begins at `start` (ms), without cards known to be defrauded."""
    day = (dataset.ts - start) // DAY_MS
    numbers = np.unique(np.array(dataset.card_ids, dtype=str), return_inverse=True)[1]
    is_fraud = dataset.labels == 1
    known = np.zeros(int(numbers.max(initial=-1)) + 1, bool)
    known[numbers[is_fraud & (day >= 0) & (day < WEEK_DAYS)]] = True
    chosen = []
    for j in range(WEEK_DAYS):
        known[numbers[is_fraud & (day == WEEK_DAYS - 1 + j)]] = True
        chosen.append(np.flatnonzero((day == 2 * WEEK_DAYS + j) & ~known[numbers]))
    return np.concatenate(chosen)


def read_scores(paths: Sequence[Path], dataset: Dataset) -> Floats:
    """The score of every row, by event id, from files of `weir replay --scores`; an answer that was only given again does not
    count where there is a first one. Raises DatasetError."""
    first: dict[str, float] = {}
    repeated: dict[str, float] = {}
    for path in paths:
        try:
            table = pq.read_table(path, columns=["event_id", "score", "replayed"])
            scores = table["score"].cast(pa.float64()).to_pylist()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DatasetError(f"{path}: not a file of scores ({str(error).splitlines()[0]})") from None
        for event, score, again in zip(table["event_id"].to_pylist(), scores, table["replayed"].to_pylist(), strict=True):
            if score is not None:
                (repeated if again else first).setdefault(event, score)
    found = repeated | first
    return np.array([found.get(event, np.nan) for event in dataset.event_ids], np.float64)


def score_by_models(plan: Plan, dataset: Dataset, directories: Sequence[Path], progress: Progress | None = None) -> Floats:
    """Scores of each test week by the model that was trained up to the end of its training week. Raises ModelError."""
    by_end: dict[int, tuple[Path, ModelCard]] = {}
    for directory in directories:
        card = load_card(directory)
        card.check(plan)
        by_end[parse_time_ms(card.data["to"])] = directory, card
    ends = {parse_time_ms(week) + WEEK_DAYS * DAY_MS for week in TRAINING_WEEKS}
    strange = [str(directory) for end, (directory, _) in by_end.items() if end not in ends]
    if strange:
        raise ModelError(
            f"{strange[0]}: was not trained up to the end of a training week of the protocol"
            f" (--to {', '.join(sorted(map(_day, ends)))}), so no test week is its own"
        )
    scores = np.full(dataset.n_rows, np.nan)
    start, stop = min(by_end) + WEEK_DAYS * DAY_MS, max(by_end) + 2 * WEEK_DAYS * DAY_MS
    first, last = np.searchsorted(dataset.ts, [start, stop]).tolist()
    vectors = build_matrix(plan, dataset, first, progress)
    for end, (directory, _) in by_end.items():
        scorer = OnnxScorer(plan, directory / MODEL_FILE)
        low, high = np.searchsorted(dataset.ts, [end + WEEK_DAYS * DAY_MS, end + 2 * WEEK_DAYS * DAY_MS]).tolist()
        for at in range(low, min(high, last), ROWS_PER_CALL):
            rows = slice(at, min(at + ROWS_PER_CALL, high))
            scores[rows] = scorer.infer(vectors[rows.start - first : rows.stop - first])
    return scores


def _warnings(folds: Sequence[Fold]) -> list[str]:
    first = folds[0]
    if first.training_week != TRAINING_WEEKS[0]:
        return []
    found = []
    if first.figures.average_precision > AP_MAX:
        found.append(f"average precision above {AP_MAX} on the first test week: look for a leak")
    if first.figures.card_precision_at_100 > CARD_PRECISION_MAX:
        found.append(f"card precision@100 above {CARD_PRECISION_MAX} on the first test week: look for a leak")
    return found


def _day(ts_ms: int) -> str:
    return dt.datetime.fromtimestamp(ts_ms / 1000, dt.UTC).strftime("%Y-%m-%d")
