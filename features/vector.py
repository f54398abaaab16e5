"""Feature vectors: from raw integers (columns and observations) to float32, one vectorised step per operator.

All arithmetic is float64 on exact integers, then rounded once to float32, so that engines agree exactly; only where log,
sqrt or trigonometry is involved may they differ by 2 float32 ulp. An absent value stays -1 and an absent entity gives zeros.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from features.plan import COLUMNS, LAT, LON, OPS, TS, FeaturePlan, Plan

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
AMOUNT = COLUMNS.index("amount")

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
NIGHT_LAST_HOUR = 6  # 00:00:00 to 06:59:59, as the Fraud Detection Handbook has it
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0
EARTH_KM = 6371.0088  # mean radius (IUGG)
BITMAP_BITS = 64
# Linear counting, n = -m ln(z/m) (Whang et al. 1990), by number of bits set; a full bitmap counts as if half a bit were free.
DISTINCT_BY_BITS = np.array([-BITMAP_BITS * np.log(max(BITMAP_BITS - b, 0.5) / BITMAP_BITS) for b in range(BITMAP_BITS + 1)])


class VectorBuilder:
    """Builds the vectors of one plan. Features of one operator are computed together."""

    def __init__(self, plan: Plan) -> None:
        self.n_features = plan.n_features
        groups: dict[int, list[int]] = {}
        for number, feature in enumerate(plan.features):
            groups.setdefault(feature.op, []).append(number)
        self._steps = [(OPERATORS[OPS[op]], *_operands(plan.features, numbers)) for op, numbers in groups.items()]
        scale = np.array([f.scale for f in plan.features])
        self._scale = None if (scale == 1.0).all() else scale
        self._log1p = np.flatnonzero([f.log1p for f in plan.features])

    def build(self, raw: Int64s) -> Float32s:
        """float32 (rows, n_features), C-contiguous, in the order of the spec, from int64 (rows, plan.n_raw)."""
        out = np.empty((raw.shape[0], self.n_features), dtype=np.float64)
        for operator, operands, numbers in self._steps:
            out[:, numbers] = operator(raw, operands)
        if self._scale is not None:
            out *= self._scale
        if self._log1p.size:
            part = out[:, self._log1p]
            out[:, self._log1p] = np.where(part < 0, part, np.log1p(np.maximum(part, 0)))
        return out.astype(np.float32)


def _operands(features: Sequence[FeaturePlan], numbers: list[int]) -> tuple[list[Int64s], Int64s]:
    """Per operand position, the raw columns of the features `numbers`."""
    table = np.array([features[n].operands for n in numbers], dtype=np.int64).reshape(len(numbers), -1)
    return [np.ascontiguousarray(table[:, i]) for i in range(table.shape[1])], np.array(numbers)


def _plain(raw: Int64s, operands: list[Int64s]) -> Float64s:
    return raw[:, operands[0]].astype(np.float64)


def _hour(raw: Int64s, operands: list[Int64s]) -> Float64s:
    return (raw[:, TS, None] % DAY_MS // HOUR_MS).astype(np.float64)


def _weekday(raw: Int64s, operands: list[Int64s]) -> Float64s:
    return ((raw[:, TS, None] // DAY_MS + EPOCH_WEEKDAY) % 7).astype(np.float64)


def _night(raw: Int64s, operands: list[Int64s]) -> Float64s:
    return (_hour(raw, operands) <= NIGHT_LAST_HOUR).astype(np.float64)


def _weekend(raw: Int64s, operands: list[Int64s]) -> Float64s:
    return (_weekday(raw, operands) >= 5).astype(np.float64)


def _divide(top: Float64s, bottom: Float64s) -> Float64s:
    """top / bottom, and 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def _mean(raw: Int64s, operands: list[Int64s]) -> Float64s:
    count, total = operands[:2]
    return _divide(raw[:, total].astype(np.float64), raw[:, count].astype(np.float64))


def _std(raw: Int64s, operands: list[Int64s]) -> Float64s:
    """Population standard deviation, sqrt(E[x²] - E[x]²)."""
    count, _, high, low = operands
    squares = raw[:, high].astype(np.float64) * 4294967296.0 + raw[:, low].astype(np.float64)
    mean = _mean(raw, operands)
    return np.sqrt(np.maximum(_divide(squares, raw[:, count].astype(np.float64)) - mean * mean, 0.0))


def _ratio(raw: Int64s, operands: list[Int64s]) -> Float64s:
    """The event's amount over the window's mean; 0 for an absent entity."""
    mean = _mean(raw, operands)
    return _divide(np.broadcast_to(raw[:, AMOUNT, None], mean.shape).astype(np.float64), mean)


def _zscore(raw: Int64s, operands: list[Int64s]) -> Float64s:
    return _divide(raw[:, AMOUNT, None].astype(np.float64) - _mean(raw, operands), _std(raw, operands))


def _distinct(raw: Int64s, operands: list[Int64s]) -> Float64s:
    return DISTINCT_BY_BITS[np.bitwise_count(raw[:, operands[0]].view(np.uint64))]


def _since_last(raw: Int64s, operands: list[Int64s]) -> Float64s:
    """Seconds since the entity's last event, 0 for a late one, -1 for the first."""
    present, _, previous = operands
    since = np.maximum(raw[:, TS, None] - raw[:, previous], 0) / 1000.0
    out: Float64s = np.where(raw[:, previous] < 0, -1.0, since) * raw[:, present]
    return out


def _age(raw: Int64s, operands: list[Int64s]) -> Float64s:
    """Seconds since the entity was first seen."""
    present, first, _ = operands
    return (raw[:, TS, None] - raw[:, first]) / 1000.0 * raw[:, present]


def _changed(raw: Int64s, operands: list[Int64s]) -> Float64s:
    """1 where the event's value and the remembered one are both given and differ."""
    now, before = raw[:, operands[0]], raw[:, operands[1]]
    return ((now >= 0) & (before > 0) & (now != before - 1)).astype(np.float64)


def _speed_kmh(raw: Int64s, operands: list[Int64s]) -> Float64s:
    """Great-circle speed from the last known place (haversine), time counted as one minute at least; 0 if a place lacks."""
    lat0, lon0 = ((raw[:, o] - 1) * 1e-6 for o in operands[:2])
    lat1, lon1 = raw[:, LAT, None] * 1e-6, raw[:, LON, None] * 1e-6
    known = (raw[:, operands[0]] > 0) & (raw[:, LAT, None] >= 0)
    up, right = np.radians(lat1 - lat0) / 2, np.radians(lon1 - lon0) / 2
    # latitudes are stored shifted by 90 degrees
    chord = np.sin(up) ** 2 + np.cos(np.radians(lat0 - 90)) * np.cos(np.radians(lat1 - 90)) * np.sin(right) ** 2
    km = 2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(chord, 1.0)))
    hours = np.maximum(raw[:, TS, None] - raw[:, operands[2]], 60_000) / HOUR_MS
    return np.where(known, km / hours, 0.0)


def _fraud_rate(raw: Int64s, operands: list[Int64s]) -> Float64s:
    count, frauds = operands
    return _divide(raw[:, frauds].astype(np.float64), raw[:, count].astype(np.float64))


OPERATORS: dict[str, Callable[[Int64s, list[Int64s]], Float64s]] = {
    "value": _plain,
    "hour": _hour,
    "weekday": _weekday,
    "night": _night,
    "weekend": _weekend,
    "count": _plain,
    "sum": _plain,
    "mean": _mean,
    "max": _plain,
    "std": _std,
    "ratio": _ratio,
    "zscore": _zscore,
    "distinct": _distinct,
    "since_last": _since_last,
    "age": _age,
    "changed": _changed,
    "speed_kmh": _speed_kmh,
    "fraud_rate": _fraud_rate,
    "present": _plain,
}
