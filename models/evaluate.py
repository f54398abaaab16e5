"""How good a model or a file of scores is: figures over the transactions whose label is known.

Scores come from `weir replay --scores` (columns score, label, ts, card_id), or are made here by the engine of the service
over a Parquet file, labels applied when they become known.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.plan import Plan
from models.card import MODEL_FILE, load_card
from models.dataset import Dataset, DatasetError
from models.matrix import Progress, build_matrix
from models.metrics import Quality, quality
from models.onnx_scorer import OnnxScorer

SCORE_COLUMNS = ("score", "label", "ts", "card_id")
ROWS_PER_CALL = 8192  # bounds the activations: 8192 x 256 float32 are 8 MiB


def evaluate_scores(path: str | Path) -> Quality:
    """Figures of a file of scores; rows without a label or a score are left out. Raises DatasetError."""
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    try:
        names = pq.read_schema(path).names
        absent = [name for name in SCORE_COLUMNS if name not in names]
        if absent:
            raise DatasetError(f"{path}: lacks the columns {', '.join(absent)}; weir replay --scores writes them")
        table = pq.read_table(path, columns=list(SCORE_COLUMNS))
        scores = table["score"].cast(pa.float64()).fill_null(np.nan).to_numpy()
        labels = table["label"].cast(pa.int8()).fill_null(-1).to_numpy()
        ts = table["ts"].cast(pa.int64()).to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a file of scores ({str(error).splitlines()[0]})") from None
    labels = np.where(np.isnan(scores), -1, labels)
    return quality(scores, labels, ts, table["card_id"].to_pylist())


def evaluate_model(
    plan: Plan, dataset: Dataset, directory: str | Path, ts_from: int | None = None, progress: Progress | None = None
) -> Quality:
    """Figures of the artifact in `directory` on the rows from ts_from (ms) on; earlier rows warm the profiles up.

    Raises ModelError (missing, damaged, made for another spec) and InvalidTransaction (a row that the engine refuses).
    """
    load_card(directory).check(plan)
    scorer = OnnxScorer(plan, Path(directory) / MODEL_FILE)
    first = 0 if ts_from is None else int(np.searchsorted(dataset.ts, ts_from, "left"))
    vectors = build_matrix(plan, dataset, first, progress)
    scores = _infer(scorer, vectors)
    return quality(scores, dataset.labels[first:], dataset.ts[first:], dataset.card_ids[first:])


def _infer(scorer: OnnxScorer, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    parts = [scorer.infer(vectors[at : at + ROWS_PER_CALL]) for at in range(0, len(vectors), ROWS_PER_CALL)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
