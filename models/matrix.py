"""The training matrix: the engine of the service run over transactions and labels in time order. There is no second one.

A label is applied at the time it becomes known, before transactions of equal ts, and never before its own transaction;
only frauds change a profile. Cost: the engine's, one call per run of transactions without a label between them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from features.plan import Plan
from models.dataset import NEVER, Dataset
from models.engines import columns_of, open_engine, slots_of

Progress = Callable[[str, int, int], None]  # step, done, total
ROWS_PER_CALL = 1024  # the engine's numpy waves gain nothing beyond, and progress moves


def build_matrix(
    plan: Plan, dataset: Dataset, first_row: int = 0, progress: Progress | None = None, engine: str | None = None
) -> NDArray[np.float32]:
    """Vectors of the rows from first_row on, float32 (n_rows - first_row, n_features); the rows before only warm up.

    `engine` is one of models.engines.ENGINES, by default the Go core where it is built: both give the same.
    Raises features.transaction.InvalidTransaction for a row that the engine refuses (an unknown currency).
    """
    slots, capacities = slots_of(plan, dataset)
    columns = columns_of(plan, dataset)
    running = open_engine(plan, capacities, ROWS_PER_CALL, engine)
    vectors = np.empty((dataset.n_rows - first_row, plan.n_features), np.float32)
    due, frauds = _label_calendar(dataset)
    stops = np.union1d(np.arange(0, dataset.n_rows, ROWS_PER_CALL), due[due < dataset.n_rows])
    stops = np.append(stops[stops > 0], dataset.n_rows)
    kinds = [kind.number for kind in plan.kinds if kind.keeps_frauds]
    next_label, row, lsn = 0, 0, 0
    for stop in stops.tolist():
        while next_label < len(due) and due[next_label] <= row:
            labelled = int(frauds[next_label])
            lsn += 1
            for kind in kinds:
                if slots[labelled, kind] >= 0:
                    running.label(kind, int(slots[labelled, kind]), int(dataset.ts[labelled]), lsn)
            next_label += 1
        if stop == row:
            continue  # no rows at all
        block = running.vectors(lsn + 1, slots[row:stop], columns[row:stop])
        lsn += stop - row
        if stop > first_row:
            vectors[max(row - first_row, 0) : stop - first_row] = block[max(first_row - row, 0) :]
        row = stop
        if progress is not None:
            progress("profiles and features", row, dataset.n_rows)
    return vectors


def _label_calendar(dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row before which it is applied, row of the fraud) of every fraud label that becomes known, in that order."""
    frauds = np.flatnonzero((dataset.labels == 1) & (dataset.label_ts < NEVER))
    frauds = frauds[np.argsort(dataset.label_ts[frauds], kind="stable")]
    due = np.maximum(np.searchsorted(dataset.ts, dataset.label_ts[frauds], "left"), frauds + 1)
    order = np.argsort(due, kind="stable")
    return due[order], frauds[order]
