"""Advance one profile by one event or label, in plain Python on the slab's memory.

The same rules as the vectorised path of advance.py, to the byte (tested), for what numpy does badly: single transactions
(each numpy call costs a microsecond), the long tail of an entity that repeats in a batch, and late events, whose windows are
summed tile by tile at the event's own time.
"""

from collections.abc import Sequence

from features.plan import (
    AMOUNT,
    DISTINCT,
    EDGES,
    FIXED_WORDS,
    FRAUDS,
    MAX,
    NEWEST,
    OBS_FIXED,
    SPIKES,
    TS,
    W_FIRST_LSN,
    W_FIRST_SEEN,
    W_LAST_SEEN,
    W_LATE_DROPPED,
    W_LAYOUT,
    W_LSN,
    W_VERSION,
    FieldPlan,
    KindPlan,
    RingPlan,
    WindowPlan,
)
from features.slab import Slab

PROFILE_VERSION = 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads CRC-32 over the 64 bits of a bitmap (Knuth 6.4)
LOW_32 = 0xFFFFFFFF
SIGN = 1 << 63


PARTIAL_FLAG = 1 << 16  # bit 0 of the flags: begun while the stored profile could not be asked for
ERASED_FLAG = 1 << 17  # bit 1: a tombstone, what erasure leaves in the tiers until every writer is past its LSN


def version_word(kind_number: int) -> int:
    """The first word of a profile: version, kind, flags."""
    return PROFILE_VERSION | kind_number << 8


def event_values(row: Sequence[int], of: int, spike: int) -> tuple[int, ...]:
    """What an event adds to each ring field, by field code: count, frauds, sum, max, two words of squares, bitmap bit, spike.

    The square is kept as high and low 32-bit parts, each summed on its own: no carries, so adding and merging are plain sums.
    """
    amount = row[AMOUNT]
    square = amount * amount
    bit = signed_bit(row[of]) if of >= 0 and row[of] >= 0 else 0
    return 1, 0, amount, amount, square >> 32, square & LOW_32, bit, spike


def spike_of(kind: KindPlan, header: Sequence[int], amount: int) -> int:
    """1 if the amount is a spike for the profile as it stands before the event, else 0."""
    if kind.spike is None:
        return 0
    thousandths, count, total = kind.spike.thousandths, header[kind.spike.count_word], header[kind.spike.sum_word]
    return int(count > 0 and amount * 1000 > thousandths * (total // count))


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
    kind = slab.kind
    # The header is worked on as a list: a word of it costs a third of one in the slab.
    header = slab.header(slot)
    ts = row[TS]
    new = header[W_VERSION] & 0xFF == 0
    if new:
        header[W_VERSION] |= version_word(kind.number)
        header[W_LAYOUT] = kind.layout
        header[W_FIRST_LSN] = lsn
        header[W_FIRST_SEEN] = header[W_LAST_SEEN] = ts
    last = header[W_LAST_SEEN]
    observed = [1, int(new), header[W_FIRST_SEEN], -1 if new else last]
    observed += header[FIXED_WORDS : kind.state_word]
    late = ts < last
    if lsn > header[W_LSN]:
        header[W_LSN] = lsn
        if late:
            _apply_late(slab, slot, header, row, last)
        else:
            _apply(slab, slot, header, row, last)
        slab.put_header(slot, header)
    observed += header[kind.state_word :]
    if late:
        observed[2] = header[W_FIRST_SEEN]
        _observe_late(slab, slot, header, ts, last, observed)
    return observed


def _apply(slab: Slab, slot: int, header: list[int], row: Sequence[int], last: int) -> None:
    kind, ts = slab.kind, row[TS]
    if ts != last:
        for ring in kind.rings:
            old_tile, new_tile = last // ring.tile_ms, ts // ring.tile_ms
            if new_tile != old_tile:
                _move(slab, slot, header, ring, old_tile, new_tile)
        header[W_LAST_SEEN] = ts
    values = event_values(row, -1, spike_of(kind, header, row[AMOUNT]))
    for code, of, start, stop in kind.blocks:
        value = values[code] if code != DISTINCT else signed_bit(row[of]) if row[of] >= 0 else 0
        if code == MAX:
            for word in range(start, stop):
                if value > header[word]:
                    header[word] = value
        elif code == DISTINCT:
            for word in range(start, stop):
                header[word] |= value
        else:
            for word in range(start, stop):
                header[word] += value
    _remember(kind, header, row)


def _remember(kind: KindPlan, header: list[int], row: Sequence[int]) -> None:
    for ts_word, columns in kind.remembered:
        if row[columns[0]] >= 0 and row[TS] >= header[ts_word]:
            header[ts_word] = row[TS]
            for word, column in enumerate(columns, ts_word + 1):
                header[word] = row[column] + 1


def _move(slab: Slab, slot: int, header: list[int], ring: RingPlan, old_tile: int, new_tile: int) -> None:
    n_tiles = ring.tiles
    entered = [tile % n_tiles for tile in range(max(old_tile + 1, new_tile - n_tiles + 1), new_tile + 1)]
    for field in ring.fields:
        cells, start = cells_of(slab, slot, field)
        cells[start + old_tile % n_tiles] = header[field.open_word]
        header[field.open_word] = 0
        for place in entered:
            cells[start + place] = 0
    for window in ring.windows:
        header[window.word] = sum_window(slab, slot, ring, window, new_tile, new_tile, 0)


def cells_of(slab: Slab, slot: int, field: FieldPlan) -> tuple[memoryview, int]:
    """The flat view that holds a field's closed tiles, and where those of the profile in `slot` begin in it."""
    if field.narrow:
        return slab.flat_halves, slot * (slab.kind.size >> 2) + field.cells
    return slab.flat_words, slot * (slab.kind.size >> 3) + field.cells


def sum_window(slab: Slab, slot: int, ring: RingPlan, window: WindowPlan, at_tile: int, open_tile: int, open_value: int) -> int:
    """The value of `window` seen from `at_tile`, from the tiles that the ring still has; `open_tile` is its newest one."""
    high = at_tile - window.skip
    low = max(high - window.tiles + 1, open_tile - ring.tiles + 1)
    if high < low:
        return 0
    cells, start = cells_of(slab, slot, window.field)
    first, past = low % ring.tiles, high % ring.tiles + 1
    if first < past:
        tiles = cells[start + first : start + past].tolist()
    else:
        tiles = cells[start + first : start + ring.tiles].tolist() + cells[start : start + past].tolist()
    if high == open_tile:
        tiles[-1] = open_value  # its cell is zero
    if window.code in EDGES:
        places = [place for place, tile in enumerate(tiles) if tile]
        return (low + places[-1 if window.code == NEWEST else 0]) * ring.tile_ms + 1 if places else 0
    if window.code == MAX:
        return int(max(tiles))
    if window.code == DISTINCT:
        union = 0
        for tile in tiles:
            union |= tile
        return union
    return int(sum(tiles))


def _apply_late(slab: Slab, slot: int, header: list[int], row: Sequence[int], last: int) -> None:
    """An event older than the newest one: its own tile, if the ring still has it, and the windows that hold that tile."""
    header[W_FIRST_SEEN] = min(header[W_FIRST_SEEN], row[TS])
    spike = spike_of(slab.kind, header, row[AMOUNT])  # before a ring changes what it is judged by
    for number, ring in enumerate(slab.kind.rings):
        values = event_values(row, ring.of, spike)
        if not _add_to_tile(slab, slot, header, ring, row[TS], last, values):
            slab.late_dropped[number] += 1
            header[W_LATE_DROPPED] += 1
    _remember(slab.kind, header, row)


def _add_to_tile(slab: Slab, slot: int, header: list[int], ring: RingPlan, ts: int, last: int, values: Sequence[int]) -> bool:
    open_tile = last // ring.tile_ms
    age = open_tile - ts // ring.tile_ms
    if not 0 <= age < ring.tiles:
        return False
    for field in ring.fields:
        value = values[field.code]
        if age == 0:
            header[field.open_word] = combine(field.code, header[field.open_word], value)
        else:
            cells, start = cells_of(slab, slot, field)
            where = start + ts // ring.tile_ms % ring.tiles
            cells[where] = combine(field.code, cells[where], value)
    for window in ring.windows:
        if not window.skip <= age < window.skip + window.tiles:
            continue
        if window.code in EDGES:
            open_value = header[window.field.open_word]
            header[window.word] = sum_window(slab, slot, ring, window, open_tile, open_tile, open_value)
        else:
            header[window.word] = combine(window.code, header[window.word], values[window.code])
    return True


def _observe_late(slab: Slab, slot: int, header: list[int], ts: int, last: int, observed: list[int]) -> None:
    for ring in slab.kind.rings:
        tile, open_tile = ts // ring.tile_ms, last // ring.tile_ms
        for window in ring.windows:
            open_value = header[window.field.open_word]
            value = sum_window(slab, slot, ring, window, tile, open_tile, open_value)
            observed[OBS_FIXED + window.word - FIXED_WORDS] = value


def label_one(slab: Slab, slot: int, ts: int, delta: int, lsn: int) -> bool:
    """Add `delta` (+1 fraud, -1 taken back) to the tile of `ts` in every ring that keeps frauds. False if nothing changed.

    `ts` is the labelled transaction's own time. Nothing changes if the profile already has `lsn`.
    """
    header = slab.header(slot)
    if header[W_VERSION] & 0xFF == 0 or lsn <= header[W_LSN]:
        return False
    header[W_LSN] = lsn
    last = header[W_LAST_SEEN]
    for number, ring in enumerate(slab.kind.rings):
        field = next((f for f in ring.fields if f.code == FRAUDS), None)
        if field is None:
            continue
        change = _fraud_change(slab, slot, header, ring, field, ts, last, delta)
        if change is None:
            slab.late_dropped[number] += 1
            header[W_LATE_DROPPED] += 1
        elif change:
            values = tuple(change if c == FRAUDS else 0 for c in range(SPIKES + 1))
            _add_to_tile(slab, slot, header, ring, ts, last, values)
    slab.put_header(slot, header)
    return True


def _fraud_change(
    slab: Slab, slot: int, header: list[int], ring: RingPlan, field: FieldPlan, ts: int, last: int, delta: int
) -> int | None:
    """`delta`, but never below zero frauds in the tile (an erased entity may lack the fraud that is taken back)."""
    tile, open_tile = ts // ring.tile_ms, last // ring.tile_ms
    if not 0 <= open_tile - tile < ring.tiles:
        return None
    if tile == open_tile:
        return max(delta, -header[field.open_word])
    cells, start = cells_of(slab, slot, field)
    return max(delta, -cells[start + tile % ring.tiles])
