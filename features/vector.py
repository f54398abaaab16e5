"""Feature vectors: from raw integers (columns and observations) to float32, one vectorised step per family of operators.

All arithmetic is float64 on exact integers, then rounded once to float32, so that engines agree exactly; only where log,
sqrt or trigonometry is involved may they differ by 2 float32 ulp. Absent is -1 (before scale), an absent entity gives zeros.
The cost of a lone vector is its number of numpy calls: operators that share arithmetic share a step.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.plan import AMOUNT, LAT, LON, OPS, TS, Plan
from features.spec import Op

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Columns = npt.NDArray[np.int64] | npt.NDArray[np.float64] | npt.NDArray[np.bool_]

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
NIGHT_LAST_HOUR = 6  # 00:00:00 to 06:59:59, as the Fraud Detection Handbook has it
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0
EARTH_KM = 6371.0088  # mean radius (IUGG)
RADIANS = np.pi / 180e6  # per millionth of a degree
BITMAP_BITS = 64
# Linear counting, n = -m ln(z/m) (Whang et al. 1990), by number of bits set; a full bitmap counts as if half a bit were free.
DISTINCT_BY_BITS = np.array([-BITMAP_BITS * np.log(max(BITMAP_BITS - b, 0.5) / BITMAP_BITS) for b in range(BITMAP_BITS + 1)])


class Family(NamedTuple):
    """Operators of one step: op -> which of the step's results is its own, and the number of operands that the step takes.

    The step gets the raw input and its operands, int64 (rows, n_operands, k), and returns arrays (rows, k).
    """

    step: Callable[[Int64s, Int64s], tuple[Columns, ...]]
    n_operands: int
    results: Mapping[Op, int]


class VectorBuilder:
    """Builds the vectors of one plan: each family's results stand side by side, from them every feature picks its column."""

    def __init__(self, plan: Plan) -> None:
        self.n_features = plan.n_features
        self._steps = []
        source = np.empty(plan.n_features, dtype=np.int64)
        width = 0
        for family in FAMILIES:
            members = [(n, OPS[f.op], f.operands) for n, f in enumerate(plan.features) if OPS[f.op] in family.results]
            if not members:
                continue
            distinct = sorted({operands for _, _, operands in members})
            for number, op, operands in members:
                source[number] = width + family.results[op] * len(distinct) + distinct.index(operands)
            width += (max(family.results.values()) + 1) * len(distinct)
            # An operator that reads less than its step takes is filled up with anything; it does not pick what comes of it.
            full = [(operands * family.n_operands)[: family.n_operands] for operands in distinct]
            self._steps.append((family.step, np.array(full, dtype=np.int64).reshape(len(distinct), -1).T.copy()))
        self._source = source
        scale = np.array([f.scale for f in plan.features])
        self._scale = None if (scale == 1.0).all() else scale
        self._log1p = np.flatnonzero([f.log1p for f in plan.features])

    def build(self, raw: Int64s) -> Float32s:
        """float32 (rows, n_features), C-contiguous, in the order of the spec, from int64 (rows, plan.n_raw)."""
        results: list[Columns] = []
        with np.errstate(divide="ignore", invalid="ignore"):  # _divide replaces what a division by zero gives
            for step, operands in self._steps:
                results += step(raw, raw.take(operands, axis=1))
        out = np.concatenate(results, axis=1, dtype=np.float64).take(self._source, axis=1)
        if self._scale is not None:
            out *= self._scale
        if self._log1p.size:
            part = out.take(self._log1p, axis=1)
            # log(1 + x) of what is not negative, the rest as it is: one of the two terms is always zero.
            out[:, self._log1p] = np.log1p(np.maximum(part, 0.0)) + np.minimum(part, 0.0)
        return out.astype(np.float32)


def _plain(raw: Int64s, operands: Int64s) -> tuple[Columns, ...]:
    return (operands[:, 0],)


def _clock(raw: Int64s, operands: Int64s) -> tuple[Columns, ...]:
    """Hour, weekday, night, weekend, of UTC."""
    ts = raw[:, TS, None]
    days = ts // DAY_MS
    hour, weekday = (ts - days * DAY_MS) // HOUR_MS, (days + EPOCH_WEEKDAY) % 7
    return hour, weekday, hour <= NIGHT_LAST_HOUR, weekday >= 5


def _divide(top: Int64s | Float64s, bottom: Float64s) -> Float64s:
    """top / bottom, and 0 where bottom is 0."""
    return np.where(bottom != 0, top / bottom, 0.0)


def _moments(raw: Int64s, operands: Int64s) -> tuple[Columns, ...]:
    """Mean (or fraud rate), ratio of the event's amount to the mean, standard deviation of the population as
    sqrt(E[x²] - E[x]²), and distance of the event's amount from the mean in standard deviations."""
    count, total, high, low = operands.transpose(1, 0, 2).astype(np.float64)
    amount = raw[:, AMOUNT, None]
    mean = _divide(total, count)
    std = np.sqrt(np.maximum(_divide(high * 4294967296.0 + low, count) - mean * mean, 0.0))
    return mean, _divide(amount, mean), std, _divide(amount - mean, std)


def _distinct(raw: Int64s, operands: Int64s) -> tuple[Columns, ...]:
    return (DISTINCT_BY_BITS.take(np.bitwise_count(operands[:, 0].view(np.uint64))),)


def _ages(raw: Int64s, operands: Int64s) -> tuple[Columns, ...]:
    """Seconds since the entity's last event (0 for a late one, -1 for the first), and since it was first seen."""
    present, first, previous = operands[:, 0], operands[:, 1], operands[:, 2]
    ts = raw[:, TS, None]
    since = np.where(previous < 0, -1.0, np.maximum(ts - previous, 0) / 1000.0)
    return since * present, (ts - first) / 1000.0 * present


def _changed(raw: Int64s, operands: Int64s) -> tuple[Columns, ...]:
    """1 where the event's value and the remembered one are both given and differ."""
    now, before = operands[:, 0], operands[:, 1]
    return ((now >= 0) & (before > 0) & (now != before - 1),)


def _speed_kmh(raw: Int64s, operands: Int64s) -> tuple[Columns, ...]:
    """Great-circle speed from the last known place (haversine), time counted as one minute at least; 0 if a place lacks."""
    lat0, lon0, ts0 = operands[:, 0], operands[:, 1], operands[:, 2]  # lat0 and lon0 are remembered, thus one too large
    lat1, lon1 = raw[:, LAT, None], raw[:, LON, None]
    up, right = np.sin((lat1 + 1 - lat0) * (RADIANS / 2)), np.sin((lon1 + 1 - lon0) * (RADIANS / 2))
    # Latitudes are stored shifted by 90 degrees, so the cosine of one is the sine of what is stored.
    chord = up * up + np.sin((lat0 - 1) * RADIANS) * np.sin(lat1 * RADIANS) * right * right
    km = 2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(chord, 1.0)))
    hours = np.maximum(raw[:, TS, None] - ts0, 60_000) / HOUR_MS
    return (np.where((lat0 > 0) & (lat1 >= 0), km / hours, 0.0),)


def _since_tile(raw: Int64s, operands: Int64s) -> tuple[Columns, ...]:
    """Seconds since the start of a tile that is given as 1 + its ms; -1 for none."""
    start = operands[:, 0]
    return (np.where(start > 0, (raw[:, TS, None] - (start - 1)) / 1000.0, -1.0),)


def _last_known(raw: Int64s, operands: Int64s) -> tuple[Columns, ...]:
    """1 where the newest tile with events has a fraud."""
    events, frauds = operands[:, 0], operands[:, 1]
    return ((events > 0) & (events == frauds),)


FAMILIES = (
    Family(_plain, 1, dict.fromkeys(("value", "count", "sum", "max", "present", "frauds", "spikes"), 0)),
    Family(_clock, 0, {"hour": 0, "weekday": 1, "night": 2, "weekend": 3}),
    Family(_moments, 4, {"mean": 0, "fraud_rate": 0, "spike_share": 0, "ratio": 1, "std": 2, "zscore": 3}),
    Family(_distinct, 1, {"distinct": 0}),
    Family(_ages, 3, {"since_last": 0, "age": 1}),
    Family(_changed, 2, {"changed": 0}),
    Family(_speed_kmh, 3, {"speed_kmh": 0}),
    Family(_since_tile, 1, {"since_first_fraud": 0, "since_last_fraud": 0}),
    Family(_last_known, 2, {"last_known": 0}),
)
