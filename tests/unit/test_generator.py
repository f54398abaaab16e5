"""The generated stream: deterministic, well formed, and not trivially separable."""

import time
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from features.spec import load_spec
from features.transaction import Transaction, check
from models.generator import FRAUD_KINDS, START_MS, generate
from models.metrics import auc

DAY_MS = 86_400_000
COLUMNS = {
    "event_id": pa.string(), "ts": pa.int64(), "amount": pa.int64(), "currency": pa.string(), "card_id": pa.string(),
    "merchant_id": pa.string(), "device_id": pa.string(), "ip": pa.string(), "country": pa.string(), "mcc": pa.int64(),
    "channel": pa.string(), "lat": pa.float64(), "lon": pa.float64(), "label": pa.int8(), "label_ts": pa.int64(),
    "fraud_kind": pa.string(),
}  # fmt: skip


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return generate(40_000, seed=5)


def test_generate_same_seed_same_table() -> None:
    """The same arguments give the same bytes."""
    assert generate(3_000, seed=3).equals(generate(3_000, seed=3))


def test_generate_other_seed_other_table() -> None:
    """Another seed gives another stream."""
    assert not generate(3_000, seed=3).drop(["event_id"]).equals(generate(3_000, seed=4).drop(["event_id"]))


def test_generate_columns_as_promised(table: pa.Table) -> None:
    """Names, order and types are the contract of a transaction plus the labels."""
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == COLUMNS
    assert table.column_names == list(COLUMNS)


@pytest.mark.parametrize("n_events", [1_000, 1_001, 12_345])
def test_generate_asked_for_rows_gives_exactly_them_in_order(n_events: int) -> None:
    """Exactly n rows come, sorted by time, with unique event ids."""
    table = generate(n_events, seed=1)
    ts = table["ts"].to_numpy()
    assert table.num_rows == n_events == len(pc.unique(table["event_id"]))
    assert np.all(np.diff(ts) >= 0)
    assert ts[0] >= START_MS
    assert ts[-1] < START_MS + 45 * DAY_MS


def test_generate_every_row_is_a_valid_transaction(table: pa.Table) -> None:
    """Every row passes the service's own check and has a currency of the cards spec."""
    from_row = load_spec("cards").source.fields
    known = load_spec("cards").currencies
    rows: list[dict[str, Any]] = table.select(list(from_row)).to_pylist()
    from_json = _convert(rows)
    for tx in from_json:
        check(tx)
    assert {tx.currency for tx in from_json} == {"EUR", "USD", "GBP", "CHF"} <= set(known)


def test_generate_fraud_share_and_kinds(table: pa.Table) -> None:
    """One row in a hundred is fraud, every kind occurs, and the label says so."""
    kinds = np.array(table["fraud_kind"].to_pylist())
    labels = table["label"].to_numpy()
    assert labels.sum() == 400
    assert set(kinds) == set(FRAUD_KINDS)
    assert np.array_equal(labels == 1, kinds != "")


def test_generate_labels_come_later_or_never(table: pa.Table) -> None:
    """A label follows its transaction; a few come after two weeks, a few never."""
    fraud = table.filter(pc.equal(table["label"], 1))
    delay = pc.subtract(fraud["label_ts"], fraud["ts"])
    assert pc.min(delay).as_py() > 0
    assert 0 < delay.null_count < 0.1 * len(delay)
    assert 0 < pc.sum(pc.greater(delay, 14 * DAY_MS)).as_py() < 0.15 * len(delay)


def test_generate_pos_has_no_device_and_places_come_in_pairs(table: pa.Table) -> None:
    """Only online payments name a device or address; a latitude never comes without its longitude."""
    offline = table.filter(pc.not_equal(table["channel"], "ecom"))
    assert offline["device_id"].null_count == offline["ip"].null_count == offline.num_rows
    assert pc.all(pc.equal(pc.is_null(table["lat"]), pc.is_null(table["lon"]))).as_py()
    assert 0 < table["lat"].null_count < table.num_rows / 2


def test_generate_card_testing_is_tiny_amounts_in_bursts(table: pa.Table) -> None:
    """Card testing is small money at one merchant within minutes."""
    burst = table.filter(pc.equal(table["fraud_kind"], "card_testing")).sort_by(
        [("merchant_id", "ascending"), ("ts", "ascending")]
    )
    assert np.median(burst["amount"].to_numpy()) < 400
    same = np.array(burst["merchant_id"].to_pylist())
    gap = np.diff(burst["ts"].to_numpy())[same[1:] == same[:-1]]
    assert np.median(gap) < 5 * 60_000


def test_generate_no_single_column_gives_fraud_away(table: pa.Table) -> None:
    """Neither an amount, an hour, a missing device nor a far country separates fraud: each is common in genuine life."""
    labels = table["label"].to_numpy()
    amount, hour = table["amount"].to_numpy(), table["ts"].to_numpy() % DAY_MS
    for column in (amount, -amount, hour, -hour, amount % 10, amount % 100):
        assert auc(column, labels) < 0.75
    online = pc.equal(table["channel"], "ecom").to_numpy()
    no_device = online & pc.is_null(table["device_id"]).to_numpy()
    far = online & pc.is_in(table["country"], pa.array(["BR", "TH", "NG", "VN", "MA"])).to_numpy()
    assert labels[no_device].mean() < 0.1
    assert labels[far].mean() < 0.5


def test_generate_speed_is_some_microseconds_an_event() -> None:
    """100,000 events take seconds at most (a tenth of that on the machine this was written on)."""
    start = time.perf_counter()
    generate(100_000, seed=2)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"n_events": 999}, "at least 1000"),
        ({"days": 9}, "at least 10"),
        ({"fraud_share": 0.0}, "must lie in"),
        ({"fraud_share": 0.21}, "must lie in"),
    ],
)
def test_generate_bad_arguments_are_named(arguments: dict[str, Any], problem: str) -> None:
    """An impossible request says what is allowed."""
    with pytest.raises(ValueError, match=problem):
        generate(**{"n_events": 1_000, "seed": 1, **arguments})


def _convert(rows: list[dict[str, Any]]) -> list[Transaction]:
    return msgspec.convert(rows, list[Transaction])
