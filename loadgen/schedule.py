"""When and through whom each row is sent: arrival times, the owner of a card, the stages between label barriers.

Invariants: a card's rows all have the same owner, in order; a stage's labels are posted before any of its rows; a
fraud label known at T stands before every row with ts >= T and after its own row, whatever the number of clients or
the batch size. So the feature a row sees does not depend on how the stream was sent. Legit labels change no profile
and make no barrier: they ride along with the next one.
"""

import zlib
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

STAGE_ROWS_MAX = 50_000  # rows encoded ahead in one piece while nothing is in flight: about 15 MB, 0.15 s


class Stage(msgspec.Struct, frozen=True):
    """Post the labels of `label_rows` (row numbers, in the order of becoming known), then send rows start..stop."""

    start: int
    stop: int
    label_rows: npt.NDArray[np.int64]


def constant(rate_per_s: float, n_rows: int) -> npt.NDArray[np.float64]:
    """Seconds from the start at which each row is due: evenly spaced. Raises ValueError on a rate <= 0."""
    if not rate_per_s > 0:
        raise ValueError(f"the rate is {rate_per_s:g} per second; it must be above 0")
    return np.arange(n_rows, dtype=np.float64) / rate_per_s


def poisson(rate_per_s: float, n_rows: int, seed: int) -> npt.NDArray[np.float64]:
    """Like `constant` with exponential gaps: arrivals of many independent cards. The first row is due at once."""
    if not rate_per_s > 0:
        raise ValueError(f"the rate is {rate_per_s:g} per second; it must be above 0")
    gaps = np.random.default_rng(seed).exponential(1.0 / rate_per_s, n_rows)
    due: npt.NDArray[np.float64] = np.cumsum(gaps)
    return due - due[0] if n_rows else due


def owners(card_ids: Sequence[str], n_clients: int) -> npt.NDArray[np.int32]:
    """The client of each row: crc32(card_id) mod n_clients, the same in every run and on every machine."""
    if n_clients == 1:
        return np.zeros(len(card_ids), dtype=np.int32)
    crc32 = zlib.crc32
    return np.fromiter((crc32(card.encode()) % n_clients for card in card_ids), dtype=np.int32, count=len(card_ids))


def stages(
    ts: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int8] | None = None,
    label_ts: npt.NDArray[np.int64] | None = None,
    *,
    label_every_ms: int = 0,
    rows_max: int = STAGE_ROWS_MAX,
) -> Iterator[Stage]:
    """Cut the rows (sorted by `ts`, ms) into stages. Without `labels` (1 fraud, 0 legit, -1 unknown): by size only.

    `label_every_ms` > 0 moves each label to the next multiple of it, which makes fewer barriers and later labels.
    A label that becomes known after the last row is not part of the stream.
    """
    n_rows = len(ts)
    if labels is None or label_ts is None:
        none = np.zeros(0, dtype=np.int64)
        for start in range(0, n_rows, rows_max):
            yield Stage(start, min(start + rows_max, n_rows), none)
        return
    if n_rows == 0:
        return
    known_at = np.minimum(label_ts, ts[-1] + 1)  # "never" is the largest int64: keep it from overflowing below
    if label_every_ms > 0:
        known_at = -(-known_at // label_every_ms) * label_every_ms
    # The first row that must see the label; never its own row or an earlier one, even if the file says so.
    before = np.maximum(np.searchsorted(ts, known_at, side="left"), np.arange(n_rows) + 1)
    known = np.flatnonzero((labels >= 0) & (before < n_rows))
    order = known[np.lexsort((known, label_ts[known], before[known]))]
    cuts = np.unique(before[order[labels[order] == 1]])
    sizes = np.arange(0, n_rows, rows_max)
    starts = np.unique(np.concatenate([sizes, cuts]))
    # A legit label belongs to the first stage that starts at or after its time.
    stage_of = np.searchsorted(starts, before[order], side="left")
    bounds = np.searchsorted(stage_of, np.arange(len(starts) + 1), side="left")
    for index, start in enumerate(starts):
        stop = int(starts[index + 1]) if index + 1 < len(starts) else n_rows
        yield Stage(int(start), stop, order[bounds[index] : bounds[index + 1]])


def groups(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """Rows of one client in one stage, in pieces of at most `size`."""
    return [rows[at : at + size] for at in range(0, len(rows), size)]
