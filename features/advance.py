"""Advance many profiles by a micro-batch of events: numpy where entities differ, plain Python where they repeat.

Kinds are independent of each other, so each is advanced on its own. Within a kind, the k-th event of an entity belongs to
wave k: a wave holds each entity at most once and is one vectorised step. Waves get smaller; once one is smaller than
ONE_BY_ONE_ROWS, the rest goes through advance_one, which costs about 10 µs an event whatever the batch.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features import rings
from features.advance_one import GOLDEN, LOW_32, advance_one, version_word
from features.plan import (
    AMOUNT,
    COUNT,
    DISTINCT,
    FIXED_WORDS,
    MAX,
    OBS_FIRST_SEEN,
    OBS_FIXED,
    OBS_NEW,
    OBS_PRESENT,
    OBS_PREVIOUS_SEEN,
    SPIKES,
    SQUARES_HIGH,
    SQUARES_LOW,
    TS,
    W_FIRST_LSN,
    W_FIRST_SEEN,
    W_LAST_SEEN,
    W_LAYOUT,
    W_LSN,
    W_VERSION,
    BlockPlan,
    KindPlan,
    Plan,
)
from features.slab import Slab

Int64s = npt.NDArray[np.int64]

ONE_BY_ONE_ROWS = 16  # rows; fewer are faster one by one; flat from 8 to 24 (tests/bench/bench_features.py)


def advance(plan: Plan, slabs: Sequence[Slab], slots: Int64s, columns: Int64s, lsns: Int64s) -> tuple[Int64s, int]:
    """Apply a batch in row order; return the raw input of the features and the number of vectorised waves.

    slots: int64 (rows, kinds), -1 where the entity is absent; columns: int64 (rows, len(COLUMNS)); lsns: int64 (rows,),
    increasing. Returns int64 (rows, plan.n_raw): the event's columns, then an observation per kind. A row whose profile
    already has its LSN changes nothing in that profile.
    """
    n_rows = columns.shape[0]
    if n_rows <= ONE_BY_ONE_ROWS:
        return _advance_few(plan, slabs, slots, columns, lsns), 0
    raw = np.zeros((n_rows, plan.n_raw), dtype=np.int64)
    raw[:, : columns.shape[1]] = columns
    n_waves = 0
    for kind, slab in zip(plan.kinds, slabs, strict=True):
        observed = raw[:, kind.raw_start : kind.raw_start + kind.n_observed]
        n_waves += _advance_kind(slab, slots[:, kind.number], columns, lsns, observed)
    return raw, n_waves


def _advance_few(plan: Plan, slabs: Sequence[Slab], slots: Int64s, columns: Int64s, lsns: Int64s) -> Int64s:
    # Each row starts as the event's columns and grows by one observation per kind, in the order of the raw input.
    rows: list[list[int]] = columns.tolist()
    slots_of, lsn_of = slots.tolist(), lsns.tolist()
    for kind, slab in zip(plan.kinds, slabs, strict=True):
        absent = [0] * kind.n_observed
        for row, entity_slots, lsn in zip(rows, slots_of, lsn_of, strict=True):
            slot = entity_slots[kind.number]
            row += advance_one(slab, slot, row, lsn) if slot >= 0 else absent
    return np.array(rows, dtype=np.int64).reshape(len(rows), plan.n_raw)


def _advance_kind(slab: Slab, slots: Int64s, columns: Int64s, lsns: Int64s, observed: Int64s) -> int:
    rows = np.flatnonzero(slots >= 0)
    n_waves = 0
    wave_of = _wave_numbers(slots[rows])
    while rows.size:
        now = wave_of == n_waves
        wave = rows[now]
        if wave.size < ONE_BY_ONE_ROWS:
            _one_by_one(slab, rows, slots, columns, lsns, observed)
            break
        _advance_wave(slab, wave, slots, columns, lsns, observed)
        rows, wave_of = rows[~now], wave_of[~now]
        n_waves += 1
    return n_waves


def _wave_numbers(slots: Int64s) -> Int64s:
    """For each row, how many earlier rows have the same slot."""
    order = np.argsort(slots, kind="stable")
    ordered = slots[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if slots.size else order
    lengths = np.diff(np.append(starts, slots.size))
    numbers = np.empty_like(order)
    numbers[order] = np.arange(slots.size) - np.repeat(starts, lengths)
    return numbers


def _one_by_one(slab: Slab, rows: Int64s, slots: Int64s, columns: Int64s, lsns: Int64s, observed: Int64s) -> None:
    for row in rows.tolist():
        observed[row] = advance_one(slab, int(slots[row]), columns[row].tolist(), int(lsns[row]))


def _advance_wave(slab: Slab, rows: Int64s, slots: Int64s, columns: Int64s, lsns: Int64s, observed: Int64s) -> None:
    """One event for each of `rows`, all with different slots. Late or already applied ones go one by one."""
    kind = slab.kind
    header = slab.words[slots[rows], : kind.header_words]
    new = header[:, W_VERSION] & 0xFF == 0
    in_order = (new | (columns[rows, TS] >= header[:, W_LAST_SEEN])) & (lsns[rows] > header[:, W_LSN])
    if not in_order.all():
        _one_by_one(slab, rows[~in_order], slots, columns, lsns, observed)
        rows, header, new = rows[in_order], header[in_order], new[in_order]
        if not rows.size:
            return
    event, where = columns[rows], slots[rows]
    ts = event[:, TS]
    if new.any():
        header[new, W_VERSION] |= version_word(kind.number)
        header[new, W_LAYOUT] = kind.layout
        header[new, W_FIRST_LSN] = lsns[rows][new]
        header[new, W_FIRST_SEEN] = header[new, W_LAST_SEEN] = ts[new]
    last = header[:, W_LAST_SEEN].copy()
    seen = observed[rows]
    seen[:, OBS_PRESENT] = 1
    seen[:, OBS_NEW] = new
    seen[:, OBS_FIRST_SEEN] = header[:, W_FIRST_SEEN]
    seen[:, OBS_PREVIOUS_SEEN] = np.where(new, -1, last)
    n_remembered = kind.state_word - FIXED_WORDS
    seen[:, OBS_FIXED : OBS_FIXED + n_remembered] = header[:, FIXED_WORDS : kind.state_word]
    _move_rings(slab, where, header, last, ts)
    header[:, W_LSN] = lsns[rows]
    header[:, W_LAST_SEEN] = ts
    spikes = _spikes(kind, header, event)
    for block in kind.blocks:
        _add(block, header, event, spikes)
    for ts_word, columns_given in kind.remembered:
        given = event[:, columns_given[0]] >= 0
        header[given, ts_word] = ts[given]
        for word, column in enumerate(columns_given, ts_word + 1):
            header[given, word] = event[given, column] + 1
    seen[:, OBS_FIXED + n_remembered :] = header[:, kind.state_word :]
    observed[rows] = seen
    slab.words[where, : kind.header_words] = header


def _move_rings(slab: Slab, slots: Int64s, header: Int64s, last: Int64s, ts: Int64s) -> None:
    for ring in slab.kind.rings:
        old_tile, new_tile = last // ring.tile_ms, ts // ring.tile_ms
        moved = np.flatnonzero(new_tile != old_tile)
        if moved.size:
            part = header[moved]
            rings.move(ring, slab, slots[moved], part, old_tile[moved], new_tile[moved])
            header[moved] = part


def _spikes(kind: KindPlan, header: Int64s, event: Int64s) -> Int64s | None:
    """(rows, 1): 1 where the amount is a spike for the profile before the event; None for a kind that has none."""
    if kind.spike is None:
        return None
    count, total = header[:, kind.spike.count_word, None], header[:, kind.spike.sum_word, None]
    mean = total // np.maximum(count, 1)
    return ((count > 0) & (event[:, AMOUNT, None] * 1000 > kind.spike.thousandths * mean)).astype(np.int64)


def _add(block: BlockPlan, header: Int64s, event: Int64s, spikes: Int64s | None) -> None:
    """Add each row's event to the header words of one block; see advance_one.event_values for the rules."""
    words = header[:, block.start : block.stop]
    amount = event[:, AMOUNT, None]
    if block.code == COUNT:
        words += 1
    elif block.code == MAX:
        np.maximum(words, amount, out=words)
    elif block.code == DISTINCT:
        value = event[:, block.of, None]
        place = (value.astype(np.uint64) * np.uint64(GOLDEN)) >> np.uint64(58)
        words |= np.where(value >= 0, (np.uint64(1) << place).astype(np.int64), 0)
    elif block.code == SQUARES_HIGH:
        top, low = amount >> 32, amount & LOW_32
        words += top * top * 2**32 + 2 * top * low + ((low * low).view(np.uint64) >> np.uint64(32)).astype(np.int64)
    elif block.code == SQUARES_LOW:
        low = (amount & LOW_32).astype(np.uint64)
        words += ((low * low) & np.uint64(LOW_32)).astype(np.int64)
    elif block.code == SPIKES:
        words += spikes  # type: ignore[arg-type]  # a kind with such a block has them
    else:
        words += amount
