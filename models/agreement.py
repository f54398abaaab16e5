"""How far features computed from a stream are from a published reference: value by value, joined by event.

An error is what tiles cost, a bug, or the reference's own rounding; figures cannot tell them apart, the spec's comment
says what tiles may cost. Values are compared as float32, the type of a feature vector.
"""

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.plan import Plan
from features.spec import FieldSource, Source
from models.dataset import DatasetError

EXACT = 1e-6  # relative: a float32 has 7 digits; a mean in another order of summing may differ in the last one


class FeatureAgreement(msgspec.Struct, frozen=True):
    """One feature. A relative error is |x - y| / max(|x|, |y|), in [0, 1] for values of one sign, 0 where both are 0."""

    name: str
    exact_share: float
    mean_absolute_error: float
    worst_absolute_error: float
    mean_relative_error: float
    worst_relative_error: float


class Agreement(msgspec.Struct, frozen=True):
    """`n_rows` events are in both files; `not_in_reference` names features that the reference lacks."""

    n_rows: int
    n_only_in_features: int
    n_only_in_reference: int
    not_in_reference: list[str]
    features: list[FeatureAgreement]


def compare_features(path: str | Path, reference: str | Path, plan: Plan, source: Source) -> Agreement:
    """Compare a file of `weir replay --features` with a reference whose columns are named like the plan's features.

    The reference's event ids are read as `source` says (column, prefix). Raises DatasetError: unreadable files, columns
    that lack, events that occur twice, nothing in common.
    """
    event_id = source.fields["event_id"]
    given = _read(Path(path), ["event_id", *plan.feature_names], "weir replay --features writes them")
    names = _schema(Path(reference)).names
    known = [name for name in plan.feature_names if name in names]
    if not known:
        raise DatasetError(f"{reference}: has no column named like a feature of spec {plan.spec_name}")
    expected = _read(Path(reference), [event_id.column or "", *known], "the event ids, as the spec's [source] names them")
    ours, theirs = _ids(given["event_id"], FieldSource()), _ids(expected[event_id.column or ""], event_id)
    for file, ids in ((path, ours), (reference, theirs)):
        if len(np.unique(ids)) != len(ids):
            raise DatasetError(f"{file}: an event occurs twice")
    common, at, place = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    if not len(common):
        raise DatasetError(f"{path} and {reference} have no event in common: {ours[:1]} and {theirs[:1]}")
    return Agreement(
        n_rows=len(common),
        n_only_in_features=len(ours) - len(common),
        n_only_in_reference=len(theirs) - len(common),
        not_in_reference=[name for name in plan.feature_names if name not in names],
        features=[_agreement(name, _values(given[name])[at], _values(expected[name])[place]) for name in known],
    )


def _agreement(name: str, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> FeatureAgreement:
    error = np.abs(ours - theirs)
    largest = np.maximum(np.abs(ours), np.abs(theirs))
    relative = np.divide(error, largest, out=np.zeros_like(error), where=largest != 0)  # NaN stays NaN
    return FeatureAgreement(
        name=name,
        exact_share=float((relative <= EXACT).mean()),
        mean_absolute_error=float(error.mean()),
        worst_absolute_error=float(error.max()),
        mean_relative_error=float(relative.mean()),
        worst_relative_error=float(relative.max()),
    )


def _schema(path: Path) -> pa.Schema:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


def _read(path: Path, columns: list[str], hint: str) -> pa.Table:
    absent = sorted(set(columns) - set(_schema(path).names))
    if absent:
        raise DatasetError(f"{path}: lacks the columns {', '.join(absent)}; {hint}")
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def _ids(column: pa.ChunkedArray, source: FieldSource) -> NDArray[np.str_]:
    return np.array([f"{source.prefix}{value}" for value in column.to_pylist()], np.str_)


def _values(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """As float32, in float64 arithmetic; a value that lacks is NaN and agrees with nothing."""
    values: NDArray[np.float64] = column.cast(pa.float64()).fill_null(np.nan).to_numpy().astype(np.float32).astype(np.float64)
    return values
