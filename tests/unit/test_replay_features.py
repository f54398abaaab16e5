"""The file of feature vectors that a replay writes."""

from pathlib import Path

import pyarrow.parquet as pq

from loadgen.features import Features


def test_features_write_only_rows_that_have_a_vector(tmp_path: Path) -> None:
    """Rows in the order of the stream, in float32, null and missing values as NaN; rows without a vector are left out."""
    features = Features(4)
    features.add(3, {"a": 0.1, "b": 2.0})
    features.add(0, {"b": None, "a": 7.0})
    features.add(1, {"a": 1.0})
    features.write(tmp_path / "f.parquet", ["e0", "e1", "e2", "e3"])
    table = pq.read_table(tmp_path / "f.parquet")
    assert features.n_known == 3
    assert (table["event_id"].to_pylist(), [str(t) for t in table.schema.types[1:]]) == (["e0", "e1", "e3"], ["float", "float"])
    assert [f"{value:.6g}" for value in table["a"].to_pylist()] == ["7", "1", "0.1"]
    assert [f"{value:.6g}" for value in table["b"].to_pylist()] == ["nan", "nan", "2"]


def test_features_write_without_any_vector_is_an_empty_file(tmp_path: Path) -> None:
    """When every decision was known before there is nothing to write, and the file says so."""
    Features(2).write(tmp_path / "f.parquet", ["e0", "e1"])
    assert (pq.read_table(tmp_path / "f.parquet").num_rows, pq.read_schema(tmp_path / "f.parquet").names) == (0, ["event_id"])
