"""Parquet files become transactions through a spec's column mapping."""

import datetime as dt
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.spec import FieldSource, LabelSource, Source, load_spec
from features.transaction import Transaction
from models.dataset import NEVER, DatasetError, convert_amounts, parse_time_ms, read_dataset
from models.generator import generate

T0 = 1_522_540_831_000
HANDBOOK = load_spec("handbook").source
CARDS = load_spec("cards").source


def _handbook(n: int = 4, **columns: Any) -> pa.Table:
    given = {
        "TRANSACTION_ID": pa.array(range(n), pa.int32()),
        "TX_DATETIME": pa.array([T0 + 1000 * i for i in range(n)], pa.timestamp("ms")),
        "CUSTOMER_ID": pa.array([i % 3 for i in range(n)], pa.int32()),
        "TERMINAL_ID": pa.array([7] * n, pa.int32()),
        "TX_AMOUNT": pa.array([57.16, 1108.85, 0.0, 0.29][:n], pa.float64()),
        "TX_FRAUD": pa.array([0, 1, 0, 0][:n], pa.int8()),
    }
    return pa.table(given | columns)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "stream.parquet"


def test_read_dataset_handbook_row_is_the_transaction(file: Path) -> None:
    """Ids get their prefix, decimals become minor units, constants are filled in, the rest is absent."""
    pq.write_table(_handbook(), file)
    dataset = read_dataset(file, HANDBOOK)
    expected = Transaction(event_id="h1", ts=T0 + 1000, amount=110885, currency="EUR", card_id="c1", merchant_id="m7")
    assert dataset.transactions(1, 2) == [expected]
    assert [tx.amount for tx in dataset.transactions(0, 4)] == [5716, 110885, 0, 29]
    assert dataset.card_ids == ["c0", "c1", "c2", "c0"]
    assert dataset.event_ids == ["h0", "h1", "h2", "h3"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_read_dataset_timestamp_units_agree(file: Path, unit: str) -> None:
    """Every Arrow time unit gives the same milliseconds, also as a filter."""
    times = pa.array([T0 + 1000 * i for i in range(4)], pa.timestamp("ms")).cast(pa.timestamp(unit))
    pq.write_table(_handbook(TX_DATETIME=times), file)
    assert read_dataset(file, HANDBOOK).ts.tolist() == [T0, T0 + 1000, T0 + 2000, T0 + 3000]
    assert read_dataset(file, HANDBOOK, T0 + 1000, T0 + 3000).ts.tolist() == [T0 + 1000, T0 + 2000]


def test_read_dataset_labels_are_known_a_week_later(file: Path) -> None:
    """With a delay, a label becomes known that much after its transaction; null is unknown and never comes."""
    pq.write_table(_handbook(TX_FRAUD=pa.array([0, 1, None, 0], pa.int8())), file)
    dataset = read_dataset(file, HANDBOOK)
    week = 7 * 86_400_000
    assert dataset.labels.tolist() == [0, 1, -1, 0]
    assert dataset.label_ts.tolist() == [T0 + week, T0 + 1000 + week, NEVER, T0 + 3000 + week]


def test_read_dataset_without_label_column_knows_none(file: Path) -> None:
    """An export of a live stream has no labels: all are unknown."""
    pq.write_table(_handbook().drop(["TX_FRAUD"]), file)
    dataset = read_dataset(file, HANDBOOK)
    assert dataset.labels.tolist() == [-1] * 4
    assert set(dataset.label_ts.tolist()) == {NEVER}


def test_read_dataset_unsorted_is_sorted_and_ties_keep_file_order(file: Path) -> None:
    """Rows come in time order; equal times stay as in the file; limit takes the earliest."""
    times = pa.array([T0 + 2, T0 + 1, T0 + 2, T0 + 1], pa.timestamp("ms"))
    pq.write_table(_handbook(TX_DATETIME=times), file)
    assert read_dataset(file, HANDBOOK).event_ids == ["h1", "h3", "h0", "h2"]
    limited = read_dataset(file, HANDBOOK, limit=3)
    assert limited.event_ids == ["h1", "h3", "h0"]
    assert limited.n_rows == len(limited.labels) == 3


def test_read_dataset_generated_stream_round_trips(file: Path) -> None:
    """A generated stream read back gives each field of each row, nulls as absent."""
    table = generate(1_000, seed=1)
    pq.write_table(table, file)
    dataset = read_dataset(file, CARDS)
    rows = table.select(list(CARDS.fields)).to_pylist()
    assert dataset.transactions(0, 1_000) == [Transaction(**row) for row in rows]
    assert dataset.transactions(990, 1_000)[0].event_id == "g1-990"
    assert dataset.labels.tolist() == table["label"].to_pylist()
    assert dataset.label_ts.tolist() == [NEVER if t is None else t for t in table["label_ts"].to_pylist()]


def test_read_dataset_nan_place_is_absent(file: Path) -> None:
    """Some writers say NaN for "no place"; it must not become a coordinate."""
    table = generate(1_000, seed=1)
    lat = np.full(1_000, np.nan)
    table = table.set_column(table.column_names.index("lat"), "lat", pa.array(lat))
    pq.write_table(table, file)
    assert {tx.lat for tx in read_dataset(file, CARDS).transactions(0, 1_000)} == {None}


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"TX_AMOUNT": pa.array([1.234, 1, 1, 1])}, "TX_AMOUNT.*123.4.*not a whole number"),
        ({"TX_AMOUNT": pa.array([float("nan"), 1, 1, 1])}, "TX_AMOUNT.*not a whole number"),
        ({"TX_AMOUNT": pa.array([-1.0, 1, 1, 1])}, "TX_AMOUNT.*-100"),
        ({"TX_AMOUNT": pa.array([10**8 + 0.01, 1, 1, 1])}, "TX_AMOUNT.*10000000001"),
        ({"TX_AMOUNT": pa.array(["1", "1", "1", "1"])}, "TX_AMOUNT.*string, not a number"),
        ({"TX_AMOUNT": pa.array([None, 1.0, 1.0, 1.0])}, "TX_AMOUNT.*1 nulls"),
        ({"CUSTOMER_ID": pa.array([None, 1, 1, 1])}, "CUSTOMER_ID.*card_id.*1 nulls"),
        ({"CUSTOMER_ID": pa.array([0.5, 1, 1, 1])}, "CUSTOMER_ID.*double, not text or integers"),
        ({"TX_DATETIME": pa.array([T0 // 1000] * 4)}, "TX_DATETIME.*not ms since 1970"),
        ({"TX_DATETIME": pa.array(["2018-04-01"] * 4)}, "TX_DATETIME.*string, not a timestamp"),
        ({"TX_FRAUD": pa.array([0, 2, 0, 0])}, "TX_FRAUD.*other values"),
        ({"TX_FRAUD": pa.array(["no"] * 4)}, "TX_FRAUD.*string"),
    ],
)
def test_read_dataset_bad_column_is_named(file: Path, columns: dict[str, pa.Array], problem: str) -> None:
    """A column that cannot be read is named with what is wrong in it."""
    pq.write_table(_handbook(**columns), file)
    with pytest.raises(DatasetError, match=problem):
        read_dataset(file, HANDBOOK)


def test_read_dataset_amount_noise_is_rounded_at_the_largest_amount(file: Path) -> None:
    """Binary noise goes away up to the largest amount allowed."""
    pq.write_table(_handbook(TX_AMOUNT=pa.array([0.07, 1.1 + 2.2, 99_999_999.99, 10.0**8])), file)
    assert read_dataset(file, HANDBOOK).amount.tolist() == [7, 330, 9_999_999_999, 10**10]


def test_read_dataset_wrong_columns_are_listed(file: Path) -> None:
    """A file of another layout says which columns are missing and which it has."""
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(DatasetError, match=r"lacks the columns CUSTOMER_ID, TERMINAL_ID.*it has a"):
        read_dataset(file, HANDBOOK)


def test_read_dataset_missing_and_damaged_files_are_refused(file: Path) -> None:
    """No file, and a file that is not Parquet, are each one clear line."""
    with pytest.raises(DatasetError, match="no such file"):
        read_dataset(file, HANDBOOK)
    file.write_bytes(b"PAR1 not really")
    with pytest.raises(DatasetError, match="not a Parquet file") as caught:
        read_dataset(file, HANDBOOK)
    assert "\n" not in str(caught.value)


def test_read_dataset_empty_range_is_empty(file: Path) -> None:
    """A range without rows gives no rows and no error."""
    pq.write_table(_handbook(), file)
    dataset = read_dataset(file, HANDBOOK, ts_from=T0 + 10_000)
    assert (dataset.n_rows, dataset.transactions(0, 0), dataset.card_ids) == (0, [], [])


def test_read_dataset_source_without_required_field_is_refused(file: Path) -> None:
    """A mapping that lacks a required field is refused before the file is read."""
    source = Source(fields={"ts": FieldSource(column="t")}, label=LabelSource(column="y"))
    with pytest.raises(DatasetError, match="event_id"):
        read_dataset(file, source)


def test_transactions_cost_about_a_microsecond(file: Path) -> None:
    """Making transactions stays cheap beside scoring them (measured 0.8 µs a row)."""
    pq.write_table(generate(20_000, seed=1), file)
    dataset = read_dataset(file, CARDS)
    start = time.perf_counter()
    dataset.transactions(0, 20_000)
    assert (time.perf_counter() - start) / 20_000 < 10e-6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2018-07-25", dt.datetime(2018, 7, 25, tzinfo=dt.UTC)),
        ("2018-07-25T12:30:00", dt.datetime(2018, 7, 25, 12, 30, tzinfo=dt.UTC)),
        ("2018-07-25T12:30:00+02:00", dt.datetime(2018, 7, 25, 10, 30, tzinfo=dt.UTC)),
    ],
)
def test_parse_time_ms_naive_is_utc(text: str, expected: dt.datetime) -> None:
    """A time without a zone is UTC."""
    assert parse_time_ms(text) == expected.timestamp() * 1000


def test_convert_amounts_rounds_as_profiles_do(file: Path) -> None:
    """Amounts become base units at the spec's rates, half up, and the currency is one; the original stays as it is."""
    spec = load_spec("cards")
    given = {"currency": ["EUR", "HUF", "USD"], "amount": [1299, 200, 50]}
    ids = {name: ["a", "b", "c"] for name in ("event_id", "card_id", "merchant_id")}
    absent = {name: pa.nulls(3, pa.string()) for name in ("device_id", "ip", "country", "channel")}
    places = {"mcc": pa.nulls(3, pa.int16()), "lat": pa.nulls(3, pa.float64()), "lon": pa.nulls(3, pa.float64())}
    pq.write_table(pa.table({**ids, "ts": [T0, T0 + 1, T0 + 2], **given, **absent, **places}), file)
    dataset = read_dataset(file, spec.source)
    converted = convert_amounts(dataset, spec.currencies, "EUR").transactions(0, 3)
    assert [(tx.amount, tx.currency) for tx in converted] == [(1299, "EUR"), (1, "EUR"), (46, "EUR")]
    assert [tx.currency for tx in dataset.transactions(0, 3)] == ["EUR", "HUF", "USD"]
    with pytest.raises(DatasetError, match="amounts in HUF, USD; rates are known for EUR"):
        convert_amounts(dataset, {"EUR": 1_000_000}, "EUR")


def test_parse_time_ms_nonsense_raises() -> None:
    """What is not a date is a ValueError."""
    with pytest.raises(ValueError, match="yesterday"):
        parse_time_ms("yesterday")
