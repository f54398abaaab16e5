"""Engines for training: the very ones of the service, over a whole file's entities at once. The Go core where it is built.

A file's rows name their entities by number, so profiles need no index: the number is the slot. Rows come in as columns and
vectors go out through an arena, as in the service; nothing is made per row.
"""

from collections.abc import Callable
from typing import Final, Protocol
from zlib import crc32

import numpy as np
import numpy.typing as npt

from features.advance import advance
from features.advance_one import label_one
from features.columns import CHANNEL_CODES
from features.plan import COLUMNS, TS, Plan
from features.slab import Slab
from features.transaction import InvalidTransaction, is_blank
from features.vector import VectorBuilder
from gocore.binding import ADVANCE, VECTORS, load_core
from gocore.locate import missing_core
from models.arena import Arena
from models.dataset import Dataset, Texts

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
ENGINES: Final = ("go", "numpy")


class Engine(Protocol):
    """Profiles of a dataset's entities, and the two things that change them."""

    def vectors(self, first_lsn: int, slots: Int64s, columns: Int64s) -> Float32s:
        """Advance by rows in order; their vectors, (rows, n_features), valid until the next call."""

    def label(self, kind: int, slot: int, ts: int, lsn: int) -> None:
        """Add a fraud to the tile of `ts`, the labelled transaction's own time."""


class NumpyEngine:
    """The reference."""

    def __init__(self, plan: Plan, capacities: list[int], rows_max: int) -> None:
        self._plan = plan
        self._slabs = [Slab(kind, n) for kind, n in zip(plan.kinds, capacities, strict=True)]
        self._builder = VectorBuilder(plan)

    def vectors(self, first_lsn: int, slots: Int64s, columns: Int64s) -> Float32s:
        """See Engine."""
        lsns = np.arange(first_lsn, first_lsn + len(slots), dtype=np.int64)
        raw, _ = advance(self._plan, self._slabs, slots, columns, lsns)
        return self._builder.build(raw)

    def label(self, kind: int, slot: int, ts: int, lsn: int) -> None:
        """See Engine."""
        label_one(self._slabs[kind], slot, ts, 1, lsn)


class GoEngine:
    """The Go core over the same memory. Raises GoCoreError where the core cannot be used."""

    def __init__(self, plan: Plan, capacities: list[int], rows_max: int) -> None:
        self._core = load_core()
        handle = self._core.load_plan(plan.to_bytes())
        self._core.release_with(self, "weir_plan_close", handle)
        slabs = [Slab(kind, max(n, 1)) for kind, n in zip(plan.kinds, capacities, strict=True)]
        self._arena = Arena(plan, slabs, rows_max)
        self._core.bind(handle, self._arena)

    def vectors(self, first_lsn: int, slots: Int64s, columns: Int64s) -> Float32s:
        """See Engine."""
        arena, n = self._arena, len(slots)
        arena.lsns[:n] = np.arange(first_lsn, first_lsn + n)
        arena.slots[:n], arena.columns[:n] = slots, columns
        self._core.score(0, arena, 0, n, ADVANCE | VECTORS)
        return arena.vectors[:n]

    def label(self, kind: int, slot: int, ts: int, lsn: int) -> None:
        """See Engine."""
        self._core.label(self._arena, kind, slot, ts, 1, lsn)


def open_engine(plan: Plan, capacities: list[int], rows_max: int, name: str | None = None) -> Engine:
    """The engine `name`, by default go where its core is built. Room for `capacities` entities of each kind."""
    if (name or ("numpy" if missing_core() else "go")) == "go":
        return GoEngine(plan, capacities, rows_max)
    return NumpyEngine(plan, capacities, rows_max)


def slots_of(plan: Plan, dataset: Dataset) -> tuple[Int64s, list[int]]:
    """int64 (n_rows, kinds): the number of each row's entity, -1 where it has none; and how many there are of each kind."""
    slots = np.full((dataset.n_rows, len(plan.kinds)), -1, dtype=np.int64)
    capacities = []
    for kind in plan.kinds:
        column = dataset.columns.get(kind.id_field)
        numbers: list[int] = []
        if isinstance(column, Texts):
            numbers = [-1 if value is None or is_blank(value) else place for place, value in enumerate(column.values.tolist())]
            slots[:, kind.number] = np.array(numbers, dtype=np.int64)[column.codes]
        capacities.append(len(numbers))
    return slots, capacities


def columns_of(plan: Plan, dataset: Dataset) -> Int64s:
    """int64 (n_rows, len(COLUMNS)), what features.columns.encode gives for each row, made once per distinct value.

    Raises InvalidTransaction for a currency without a rate.
    """
    out = np.full((dataset.n_rows, len(COLUMNS)), -1, dtype=np.int64)
    out[:, TS] = dataset.ts
    rate = _mapped(dataset, "currency", lambda code: _rate(plan, code))
    # A product of Python's own integers: 10^10 minor units at 10^7 millionths still fit, and this says so.
    out[:, COLUMNS.index("amount")] = np.where(
        rate == 1_000_000, dataset.amount, (dataset.amount * rate + 500_000) // 1_000_000
    )
    encoders: dict[str, Callable[[str], int]] = {
        "country": lambda text: ord(text[0]) * 26 + ord(text[1]) - 65 * 27,
        "mcc": int,
        "channel": CHANNEL_CODES.__getitem__,
        "lat": lambda degrees: round(float(degrees) * 1e6) + 90_000_000,
        "lon": lambda degrees: round(float(degrees) * 1e6) + 180_000_000,
    }
    for name in COLUMNS[2:]:
        if name in dataset.columns:
            out[:, COLUMNS.index(name)] = _mapped(dataset, name, encoders.get(name, lambda text: crc32(text.encode())))
    return out


def _rate(plan: Plan, code: str) -> int:
    rate = plan.currencies.get(code)
    if rate is None:
        raise InvalidTransaction("currency", f"{code[:16]!r} has no rate; the spec knows {', '.join(plan.currencies)}")
    return rate


def _mapped(dataset: Dataset, name: str, encoder: Callable[[str], int]) -> Int64s:
    column = dataset.columns[name]
    assert isinstance(column, Texts), "only event ids are numbers"
    used = np.zeros(len(column.values), dtype=bool)
    used[column.codes] = True
    table = [-1 if value is None or not is_used else encoder(value) for value, is_used in zip(column.values, used, strict=True)]
    return np.array(table, dtype=np.int64)[column.codes]
