"""Advance one profile by one event or label, in plain Python on the slab's memory.

The same rules as the vectorised path of advance.py, to the byte (tested), for what numpy does badly: single transactions
(each numpy call costs a microsecond), the long tail of an entity that repeats in a batch, and late events, whose windows are
summed tile by tile at the event's own time.
"""

from collections.abc import Sequence

from features.plan import (
    AMOUNT,
    DISTINCT,
    FIXED_WORDS,
    FRAUDS,
    LAT,
    LON,
    MAX,
    OBS_FIXED,
    TS,
    W_FIRST_LSN,
    W_FIRST_SEEN,
    W_LAST_SEEN,
    W_LATE_DROPPED,
    W_LAYOUT,
    W_LSN,
    W_VERSION,
    RingPlan,
    WindowPlan,
)
from features.slab import Slab

PROFILE_VERSION = 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads CRC-32 over the 64 bits of a bitmap (Knuth 6.4)
LOW_32 = 0xFFFFFFFF
SIGN = 1 << 63


def version_word(kind_number: int) -> int:
    """The first word of a profile: version, kind, flags."""
    return PROFILE_VERSION | kind_number << 8


def event_values(row: Sequence[int], of: int) -> tuple[int, ...]:
    """What an event adds to each ring field, by field code: count, frauds, sum, max, two words of squares, bitmap bit.

    The square is kept as high and low 32-bit parts, each summed on its own: no carries, so adding and merging are plain sums.
    """
    amount = row[AMOUNT]
    square = amount * amount
    bit = signed_bit(row[of]) if of >= 0 and row[of] >= 0 else 0
    return 1, 0, amount, amount, square >> 32, square & LOW_32, bit


def signed_bit(value: int) -> int:
    """The bitmap word with the bit of `value` set, as a signed word."""
    bit = 1 << (value * GOLDEN >> 58 & 63)
    return bit - (1 << 64) if bit & SIGN else bit


def combine(code: int, left: int, right: int) -> int:
    """Join two values of one field: the larger, the union, or the sum."""
    if code == MAX:
        return left if left > right else right
    return left | right if code == DISTINCT else left + right


def advance_one(slab: Slab, slot: int, row: Sequence[int], lsn: int) -> list[int]:
    """Apply one event (its columns, Python ints) to the profile in `slot` and return the entity's observation.

    An event that the profile already has (lsn not above the profile's) changes nothing.
    """
    kind, words = slab.kind, slab.flat_words
    base = slot * (kind.size >> 3)
    ts = row[TS]
    new = words[base + W_VERSION] == 0
    if new:
        words[base + W_VERSION] = version_word(kind.number)
        words[base + W_LAYOUT] = kind.layout
        words[base + W_FIRST_LSN] = lsn
        words[base + W_FIRST_SEEN] = words[base + W_LAST_SEEN] = ts
    last = words[base + W_LAST_SEEN]
    observed = [1, int(new), words[base + W_FIRST_SEEN], -1 if new else last]
    observed += words[base + FIXED_WORDS : base + kind.state_word].tolist()
    late = ts < last
    if lsn > words[base + W_LSN]:
        words[base + W_LSN] = lsn
        if late:
            _apply_late(slab, slot, row, last)
        else:
            _apply(slab, slot, row, last)
    observed += words[base + kind.state_word : base + kind.header_words].tolist()
    if late:
        _observe_late(slab, slot, ts, words[base + W_LAST_SEEN], observed)
        observed[2] = words[base + W_FIRST_SEEN]
    return observed


def _apply(slab: Slab, slot: int, row: Sequence[int], last: int) -> None:
    kind, words = slab.kind, slab.flat_words
    base = slot * (kind.size >> 3)
    ts = row[TS]
    if ts != last:
        for ring in kind.rings:
            old_tile, new_tile = last // ring.tile_ms, ts // ring.tile_ms
            if new_tile != old_tile:
                _move(slab, slot, ring, old_tile, new_tile)
        words[base + W_LAST_SEEN] = ts
    values = event_values(row, -1)
    for code, of, start, stop in kind.blocks:
        value = values[code] if code != DISTINCT else signed_bit(row[of]) if row[of] >= 0 else 0
        if code == MAX:
            for word in range(base + start, base + stop):
                if value > words[word]:
                    words[word] = value
        elif code == DISTINCT:
            for word in range(base + start, base + stop):
                words[word] |= value
        else:
            for word in range(base + start, base + stop):
                words[word] += value
    for column, word in kind.remembered:
        if row[column] >= 0:
            words[base + word] = row[column] + 1
    if kind.place_ts_word >= 0 and row[LAT] >= 0 and row[LON] >= 0:
        words[base + kind.place_ts_word] = ts


def _move(slab: Slab, slot: int, ring: RingPlan, old_tile: int, new_tile: int) -> None:
    base = slot * (slab.kind.size >> 3)
    words = slab.flat_words
    for field in ring.fields:
        cells, start = cells_of(slab, slot, field.narrow)
        start += field.cells
        cells[start + old_tile % ring.tiles] = words[base + field.open_word]
        words[base + field.open_word] = 0
        for tile in range(max(old_tile + 1, new_tile - ring.tiles + 1), new_tile + 1):
            cells[start + tile % ring.tiles] = 0
    for window in ring.windows:
        words[base + window.word] = sum_window(slab, slot, ring, window, new_tile, new_tile)


def cells_of(slab: Slab, slot: int, narrow: bool) -> tuple[memoryview, int]:
    """The flat view that holds a field's closed tiles, and where the profile in `slot` begins in it."""
    size = slab.kind.size
    return (slab.flat_halves, slot * (size >> 2)) if narrow else (slab.flat_words, slot * (size >> 3))


def sum_window(slab: Slab, slot: int, ring: RingPlan, window: WindowPlan, at_tile: int, open_tile: int) -> int:
    """The value of `window` seen from `at_tile`, from the tiles that the ring still has; `open_tile` is its newest."""
    field = next(f for f in ring.fields if f.code == window.code)
    cells, start = cells_of(slab, slot, field.narrow)
    start += field.cells
    high = at_tile - window.skip
    low = max(high - window.tiles + 1, open_tile - ring.tiles + 1)
    if high < low:
        return 0
    first, past = low % ring.tiles, high % ring.tiles + 1
    if first < past:
        tiles = cells[start + first : start + past].tolist()
    else:
        tiles = cells[start + first : start + ring.tiles].tolist() + cells[start : start + past].tolist()
    if low <= open_tile <= high:
        tiles.append(slab.flat_words[slot * (slab.kind.size >> 3) + field.open_word])
    if window.code == MAX:
        return int(max(tiles))
    if window.code == DISTINCT:
        union = 0
        for tile in tiles:
            union |= tile
        return union
    return int(sum(tiles))


def _apply_late(slab: Slab, slot: int, row: Sequence[int], last: int) -> None:
    """An event older than the newest one: its own tile, if the ring still has it, and the windows that hold that tile."""
    base = slot * (slab.kind.size >> 3)
    words = slab.flat_words
    words[base + W_FIRST_SEEN] = min(words[base + W_FIRST_SEEN], row[TS])
    for number, ring in enumerate(slab.kind.rings):
        values = event_values(row, ring.of)
        if not _add_to_tile(slab, slot, ring, row[TS], last, values):
            slab.late_dropped[number] += 1
            words[base + W_LATE_DROPPED] += 1


def _add_to_tile(slab: Slab, slot: int, ring: RingPlan, ts: int, last: int, values: Sequence[int]) -> bool:
    base = slot * (slab.kind.size >> 3)
    words = slab.flat_words
    age = last // ring.tile_ms - ts // ring.tile_ms
    if not 0 <= age < ring.tiles:
        return False
    for field in ring.fields:
        value = values[field.code]
        if age == 0:
            words[base + field.open_word] = combine(field.code, words[base + field.open_word], value)
        else:
            cells, start = cells_of(slab, slot, field.narrow)
            where = start + field.cells + ts // ring.tile_ms % ring.tiles
            cells[where] = combine(field.code, cells[where], value)
    for window in ring.windows:
        if window.skip <= age < window.skip + window.tiles:
            words[base + window.word] = combine(window.code, words[base + window.word], values[window.code])
    return True


def _observe_late(slab: Slab, slot: int, ts: int, last: int, observed: list[int]) -> None:
    for ring in slab.kind.rings:
        for window in ring.windows:
            value = sum_window(slab, slot, ring, window, ts // ring.tile_ms, last // ring.tile_ms)
            observed[OBS_FIXED + window.word - FIXED_WORDS] = value


def label_one(slab: Slab, slot: int, ts: int, delta: int, lsn: int) -> bool:
    """Add `delta` (+1 fraud, -1 taken back) to the tile of `ts` in every ring that keeps frauds. False if nothing changed.

    `ts` is the labelled transaction's own time. Nothing changes if the profile already has `lsn`.
    """
    base = slot * (slab.kind.size >> 3)
    words = slab.flat_words
    if words[base + W_VERSION] == 0 or lsn <= words[base + W_LSN]:
        return False
    words[base + W_LSN] = lsn
    last = words[base + W_LAST_SEEN]
    for number, ring in enumerate(slab.kind.rings):
        field = next((f for f in ring.fields if f.code == FRAUDS), None)
        if field is None:
            continue
        change = _fraud_change(slab, slot, ring, field.open_word, field.cells, ts, last, delta)
        if change is None:
            slab.late_dropped[number] += 1
            words[base + W_LATE_DROPPED] += 1
        elif change:
            _add_to_tile(slab, slot, ring, ts, last, tuple(change if c == FRAUDS else 0 for c in range(DISTINCT + 1)))
    return True


def _fraud_change(
    slab: Slab, slot: int, ring: RingPlan, open_word: int, field_cells: int, ts: int, last: int, delta: int
) -> int | None:
    """`delta`, but never below zero frauds in the tile (an erased entity may lack the fraud that is taken back)."""
    tile, open_tile = ts // ring.tile_ms, last // ring.tile_ms
    if not 0 <= open_tile - tile < ring.tiles:
        return None
    if tile == open_tile:
        have = slab.flat_words[slot * (slab.kind.size >> 3) + open_word]
    else:
        cells, start = cells_of(slab, slot, narrow=True)
        have = cells[start + field_cells + tile % ring.tiles]
    return max(delta, -have)
