"""Comparing features with a reference: joined by event, exact to float32, errors stated both ways."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.plan import compile_plan
from features.spec import load_spec
from models.agreement import compare_features
from models.dataset import DatasetError

SPEC = load_spec("handbook")
PLAN = compile_plan(SPEC)
COUNT, MEAN = "CUSTOMER_ID_NB_TX_1DAY_WINDOW", "CUSTOMER_ID_AVG_AMOUNT_1DAY_WINDOW"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Three events, out of order; every feature is 0 but the two that are compared."""
    columns = {name: pa.array([0.0, 0.0, 0.0], pa.float32()) for name in PLAN.feature_names}
    columns |= {COUNT: pa.array([4.0, 2.0, 0.0], pa.float32()), MEAN: pa.array([0.1, 30.0, 0.0], pa.float32())}
    path = tmp_path / "ours.parquet"
    pq.write_table(pa.table({"event_id": ["h3", "h1", "h2"], **columns}), path)
    return path


def _reference(tmp_path: Path, ids: list[int], counts: list[int], means: list[float]) -> Path:
    path = tmp_path / "reference.parquet"
    pq.write_table(pa.table({"TRANSACTION_ID": pa.array(ids, pa.int32()), COUNT: counts, MEAN: means}), path)
    return path


def test_compare_features_joins_by_event_and_measures_errors(ours: Path, tmp_path: Path) -> None:
    """Rows meet by the spec's event id; a double that rounds to our float32 is exact."""
    reference = _reference(tmp_path, [1, 2, 3, 9], [2, 0, 3, 7], [40.0, 0.0, 0.1, 7.0])
    agreement = compare_features(ours, reference, PLAN, SPEC.source)
    assert (agreement.n_rows, agreement.n_only_in_features, agreement.n_only_in_reference) == (3, 0, 1)
    assert "TX_AMOUNT" in agreement.not_in_reference
    count, mean = agreement.features
    assert (count.name, count.exact_share, count.mean_absolute_error, count.worst_absolute_error) == (COUNT, 2 / 3, 1 / 3, 1)
    assert (count.worst_relative_error, count.mean_relative_error) == (0.25, 0.25 / 3)
    assert (mean.name, mean.exact_share, mean.worst_absolute_error) == (MEAN, 2 / 3, 10.0)


def test_compare_features_missing_value_agrees_with_nothing(ours: Path, tmp_path: Path) -> None:
    """A null in the reference is no agreement and is not hidden in a mean."""
    path = tmp_path / "reference.parquet"
    pq.write_table(pa.table({"TRANSACTION_ID": [1, 2, 3], COUNT: pa.array([2, None, 4], pa.int16())}), path)
    (count,) = compare_features(ours, path, PLAN, SPEC.source).features
    assert count.exact_share == 2 / 3
    assert math.isnan(count.mean_absolute_error)


@pytest.mark.parametrize(
    ("ids", "problem"), [([7, 8, 9], "no event in common"), ([1, 1, 2], "an event occurs twice"), ([], "no event in common")]
)
def test_compare_features_wrong_events_are_refused(ours: Path, tmp_path: Path, ids: list[int], problem: str) -> None:
    """Files that do not belong together and ids that are no ids are told."""
    reference = _reference(tmp_path, ids, [1] * len(ids), [1.0] * len(ids))
    with pytest.raises(DatasetError, match=problem):
        compare_features(ours, reference, PLAN, SPEC.source)


def test_compare_features_wrong_columns_are_named(ours: Path, tmp_path: Path) -> None:
    """A file of scores in the place of features, and a reference without features or ids, name what lacks."""
    reference = _reference(tmp_path, [1], [1], [1.0])
    with pytest.raises(DatasetError, match="lacks the columns CUSTOMER_ID_AVG"):
        compare_features(reference, reference, PLAN, SPEC.source)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match="no column named like a feature"):
        compare_features(ours, tmp_path / "x.parquet", PLAN, SPEC.source)
    pq.write_table(pa.table({COUNT: [1]}), tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match="lacks the columns TRANSACTION_ID"):
        compare_features(ours, tmp_path / "x.parquet", PLAN, SPEC.source)
    with pytest.raises(DatasetError, match="no such file"):
        compare_features(ours, tmp_path / "none.parquet", PLAN, SPEC.source)
