"""A Parquet file read through a spec's Source: transactions in time order, their labels, and when those become known.

Naive times count as UTC. Amounts given as decimals must be whole minor units after scaling (half-even rounding removes
binary noise, anything more is refused). Integer ids become text with the spec's prefix; nulls become absent fields.
Only the needed columns and, where the file is sorted, row groups are read. Memory: 4 bytes per id column and row, each
distinct text is held once.
"""

import datetime as dt
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from features.spec import FieldSource, LabelSource, Source
from features.transaction import AMOUNT_MAX, TS_MAX, TS_SECONDS_MAX, Transaction

NEVER = 2**63 - 1  # label_ts of a label that never becomes known, ms
NOISE = 1e-6  # minor units: what rounding may remove from a scaled decimal amount
FIELDS = Transaction.__struct_fields__
REQUIRED = ("event_id", "ts", "amount", "currency", "card_id", "merchant_id")
_NUMBERS = ("mcc", "lat", "lon")
_PER_MS = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}  # unit -> times, then floor-divided by

Ints = NDArray[np.int64]
Objects = NDArray[np.object_]


class DatasetError(ValueError):
    """A file that cannot be read as transactions; the message names the file, the column and the way out."""


class Texts(msgspec.Struct, frozen=True):
    """A column of texts or numbers as places in a list of its distinct values; the last value is None (absent)."""

    codes: NDArray[np.int32]
    values: Objects

    def items(self, start: int, stop: int) -> list[Any]:
        """The values of rows [start, stop)."""
        return self.values[self.codes[start:stop]].tolist()  # type: ignore[no-any-return]  # numpy: tolist is Any


class Numbered(msgspec.Struct, frozen=True):
    """A column of distinct integers with a prefix: the text is made when asked for (1.5 million texts are 100 MB)."""

    numbers: Ints
    prefix: str

    def items(self, start: int, stop: int) -> list[Any]:
        """The texts of rows [start, stop)."""
        prefix = self.prefix
        return [f"{prefix}{number}" for number in self.numbers[start:stop].tolist()]


class Dataset(msgspec.Struct, frozen=True):
    """Rows sorted by ts, ties in file order.

    ts: int64 ms UTC; labels: int8, 1 fraud, 0 legit, -1 unknown; label_ts: int64 ms, when it becomes known, or NEVER.
    """

    n_rows: int
    ts: Ints
    amount: Ints
    labels: NDArray[np.int8]
    label_ts: Ints
    columns: dict[str, Texts | Numbered]

    @property
    def card_ids(self) -> list[str]:
        """The card of every row; equal ids are one object."""
        return self.columns["card_id"].items(0, self.n_rows)

    @property
    def event_ids(self) -> list[str]:
        """The event id of every row."""
        return self.columns["event_id"].items(0, self.n_rows)

    def transactions(self, start: int, stop: int) -> list[Transaction]:
        """Rows [start, stop) as transactions, about 1.5 µs each."""
        columns: list[Any] = []
        for field in FIELDS:
            if field == "ts":
                columns.append(self.ts[start:stop].tolist())
            elif field == "amount":
                columns.append(self.amount[start:stop].tolist())
            elif field in self.columns:
                columns.append(self.columns[field].items(start, stop))
            else:
                columns.append(repeat(None))
        return [Transaction(*row) for row in zip(*columns, strict=False)]  # repeat(None) has no end


def parse_time_ms(text: str) -> int:
    """ "2018-07-25" or "2018-07-25T12:00:00" as ms UTC (naive means UTC). Raises ValueError."""
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return int(moment.timestamp() * 1000)


def read_dataset(
    path: str | Path, source: Source, ts_from: int | None = None, ts_to: int | None = None, limit: int | None = None
) -> Dataset:
    """Transactions with ts_from <= ts < ts_to (ms UTC), at most the first `limit` in time. Raises DatasetError."""
    path = Path(path)
    missing = [f for f in REQUIRED if f not in source.fields]
    unknown = [f for f in source.fields if f not in FIELDS]
    if missing or unknown:
        raise DatasetError(f"the spec's [source.fields] lacks {missing} or has unknown fields {unknown}")
    table = _read_table(path, source, ts_from, ts_to)
    try:
        ts = _times(table, source.fields["ts"], "ts")
        order = _order(ts, limit)
        if order is not None:
            table, ts = table.take(pa.array(order)), ts[order]
        amount = _amounts(table, source.fields["amount"])
        columns = {
            field: _column(table, field, field_source)
            for field, field_source in source.fields.items()
            if field not in ("ts", "amount")
        }
        labels, label_ts = _labels(table, ts, source.label)
    except (DatasetError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: {error}") from None
    return Dataset(len(ts), ts, amount, labels, label_ts, columns)


def convert_amounts(dataset: Dataset, rates: Mapping[str, int], currency: str) -> Dataset:
    """The same rows with every amount in minor units of `currency`, at `rates` (millionths), rounded half up as profiles do.

    Raises DatasetError for a currency that has no rate.
    """
    given = dataset.columns["currency"]
    assert isinstance(given, Texts), "currencies are texts"
    codes = given.values[:-1].tolist()
    unknown = sorted(set(codes) - set(rates))
    if unknown:
        raise DatasetError(f"the file holds amounts in {', '.join(unknown)}; rates are known for {', '.join(rates)}")
    rate = np.array([*(rates[code] for code in codes), 0], np.int64)[given.codes]
    amount = (dataset.amount * rate + 500_000) // 1_000_000
    column = Texts(np.zeros(dataset.n_rows, np.int32), np.array([currency, None], object))
    return msgspec.structs.replace(dataset, amount=amount, columns=dataset.columns | {"currency": column})


def _read_table(path: Path, source: Source, ts_from: int | None, ts_to: int | None) -> pa.Table:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    try:
        parquet = ds.dataset(path, format="parquet")
        schema = parquet.schema
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    wanted = {f.column for f in source.fields.values() if f.column is not None}
    absent = sorted(wanted - set(schema.names))
    if absent:
        raise DatasetError(f"{path}: lacks the columns {', '.join(absent)}; it has {', '.join(schema.names)}")
    if source.label is not None:
        # An export of a live stream has no labels: they are optional in the file.
        optional = (source.label.column, source.label.ts_column)
        wanted |= {name for name in optional if name is not None and name in schema.names}
    condition = _condition(schema, source.fields["ts"], ts_from, ts_to)
    try:
        return parquet.to_table(columns=sorted(wanted), filter=condition)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def _condition(schema: pa.Schema, source: FieldSource, ts_from: int | None, ts_to: int | None) -> Any:
    """The time range as a filter on the file's own type, so that row groups outside are skipped."""
    if source.column is None:
        raise DatasetError("ts must come from a column")
    field, kind = pc.field(source.column), schema.field(source.column).type
    condition = None
    for bound, is_from in ((ts_from, True), (ts_to, False)):
        if bound is None:
            continue
        if pa.types.is_timestamp(kind):
            value = pa.scalar(bound, pa.timestamp("ms", kind.tz))
        else:
            value = pa.scalar(-(-bound // source.scale), pa.int64())
        part = field >= value if is_from else field < value
        condition = part if condition is None else condition & part
    return condition


def _order(ts: Ints, limit: int | None) -> Ints | None:
    """Row numbers in time order (stable), at most `limit`; None if all rows stand in order already."""
    is_sorted = bool(np.all(ts[1:] >= ts[:-1]))
    if is_sorted and (limit is None or limit >= len(ts)):
        return None
    order: Ints = np.arange(len(ts)) if is_sorted else np.argsort(ts, kind="stable")
    return order[:limit]


def _times(table: pa.Table, source: FieldSource, what: str) -> Ints:
    column = _whole(table, source.column or "", what)
    if pa.types.is_timestamp(column.type):
        times, divisor = _PER_MS[column.type.unit]
        ts: Ints = column.cast(pa.int64()).to_numpy() * times // divisor
    elif pa.types.is_integer(column.type):
        ts = column.cast(pa.int64()).to_numpy() * source.scale
    else:
        raise DatasetError(f"column {source.column} ({what}) is {column.type}, not a timestamp or integer milliseconds")
    if len(ts) and not (ts.min() >= TS_SECONDS_MAX and ts.max() <= TS_MAX):
        raise DatasetError(f"column {source.column} ({what}) holds {ts.min()} to {ts.max()}: not ms since 1970")
    return ts


def _amounts(table: pa.Table, source: FieldSource) -> Ints:
    column = _whole(table, source.column or "", "amount")
    if pa.types.is_integer(column.type):
        amount: Ints = column.cast(pa.int64()).to_numpy() * source.scale
    elif pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        scaled = column.cast(pa.float64()).to_numpy() * source.scale
        rounded = np.rint(scaled)
        if not np.all(np.abs(scaled - rounded) <= NOISE):
            worst = float(scaled[np.argmax(~(np.abs(scaled - rounded) <= NOISE))])
            raise DatasetError(f"column {source.column}: {worst} is not a whole number of minor units (scale it)")
        amount = rounded.astype(np.int64)
    else:
        raise DatasetError(f"column {source.column} (amount) is {column.type}, not a number")
    if len(amount) and not (amount.min() >= 0 and amount.max() <= AMOUNT_MAX):
        raise DatasetError(f"column {source.column}: amounts {amount.min()} to {amount.max()}, allowed 0 to {AMOUNT_MAX}")
    return amount


def _column(table: pa.Table, field: str, source: FieldSource) -> Texts | Numbered:
    if source.column is None:
        value = source.value if field in _NUMBERS else f"{source.prefix}{source.value}"
        return Texts(np.zeros(table.num_rows, np.int32), np.array([value, None], object))
    column = _whole(table, source.column, field) if field in REQUIRED else table[source.column]
    kind = column.type
    if field in _NUMBERS:
        if not (pa.types.is_integer(kind) or (pa.types.is_floating(kind) and field != "mcc")):
            raise DatasetError(f"column {source.column} ({field}) is {kind}, not a number")
    elif not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        if not pa.types.is_dictionary(kind):
            raise DatasetError(f"column {source.column} ({field}) is {kind}, not text or integers")
        column = column.cast(kind.value_type)
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), None, column)  # some writers say NaN for "no place"
    if field == "event_id" and pa.types.is_integer(kind):
        return Numbered(column.cast(pa.int64()).to_numpy(), source.prefix)
    encoded = column.combine_chunks().dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    if field not in _NUMBERS and (source.prefix or pa.types.is_integer(kind)):
        distinct = [f"{source.prefix}{value}" for value in distinct]
    values = np.empty(len(distinct) + 1, object)
    values[:-1] = distinct
    return Texts(encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False).astype(np.int32), values)


def _labels(table: pa.Table, ts: Ints, source: LabelSource | None) -> tuple[NDArray[np.int8], Ints]:
    n = len(ts)
    if source is None or source.column not in table.column_names:
        return np.full(n, -1, np.int8), np.full(n, NEVER)
    column = table[source.column]
    if not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        raise DatasetError(f"column {source.column} (label) is {column.type}, not 0, 1 or null")
    labels = column.cast(pa.int8()).fill_null(-1).to_numpy()
    if not np.isin(labels, (-1, 0, 1)).all():
        raise DatasetError(f"column {source.column} (label) holds other values than 0, 1 and null")
    if source.ts_column is None:
        label_ts: Ints = ts + source.delay_ms
    else:
        if source.ts_column not in table.column_names:
            raise DatasetError(f"lacks the column {source.ts_column} (when a label becomes known)")
        known = table[source.ts_column]
        if pa.types.is_timestamp(known.type):
            times, divisor = _PER_MS[known.type.unit]
            label_ts = known.cast(pa.int64()).fill_null(0).to_numpy() * times // divisor
        else:
            label_ts = known.cast(pa.int64()).fill_null(0).to_numpy()
        label_ts = np.where(known.is_null().to_numpy(), NEVER, label_ts)
    return labels, np.where(labels < 0, NEVER, label_ts)


def _whole(table: pa.Table, column: str, field: str) -> pa.ChunkedArray:
    """A required column: no nulls."""
    values = table[column]
    if values.null_count:
        raise DatasetError(f"column {column} ({field}) holds {values.null_count} nulls; every transaction needs one")
    return values
