"""Rings in numpy: how closed tiles follow when time moves on, for many profiles at once.

A ring of n tiles lives in a profile as one open tile in the header (the tile of `last_seen`) and n cells, where the cell of
tile number T is T % n. The cell of the open tile is always zero: its content is in the header. So the same history gives the
same bytes, whichever engine wrote them.

Cost: windows of a short ring are summed again, one gather for all of them. Sums over a long ring slide: what enters is added,
what leaves is subtracted, so a month in hours costs the tiles that have passed, not 890 of them.
"""

import numpy as np
import numpy.typing as npt

from features.plan import DISTINCT, EDGES, MAX, NEWEST, FieldPlan, RingPlan, WindowPlan
from features.slab import Slab

Int64s = npt.NDArray[np.int64]

SHORT_RING_TILES = 64  # tiles; up to here summing again is faster than sliding (38 is the longest ring of `cards`)


def move(ring: RingPlan, slab: Slab, slots: Int64s, header: Int64s, old_tile: Int64s, new_tile: Int64s) -> None:
    """Close the open tile of each row and open `new_tile` (> old_tile), in the slab's cells and in `header` (rows, words).

    slots, old_tile, new_tile: int64 (rows,). `header` rows are copies of the header; only open tiles and windows change.
    """
    gap = np.minimum(new_tile - old_tile, ring.tiles)
    starts = np.cumsum(gap) - gap
    rows = np.repeat(np.arange(gap.size), gap)
    entered = new_tile[rows] - (np.arange(rows.size) - starts[rows])  # every tile that a row enters, at most one turn
    sliding = [w for w in ring.windows if w.code not in (MAX, DISTINCT, *EDGES)] if ring.tiles > SHORT_RING_TILES else []
    for field in ring.fields:
        _cells(slab, field)[slots, field.cells + old_tile % ring.tiles] = header[:, field.open_word]
        header[:, field.open_word] = 0
    for window in sliding:
        header[:, window.word] -= _sums(slab, window, ring, slots[rows], entered - window.skip - window.tiles, starts)
    for field in ring.fields:
        _cells(slab, field)[slots[rows], field.cells + entered % ring.tiles] = 0
    for window in sliding:
        if window.skip:  # what enters an undelayed window is still empty
            header[:, window.word] += _sums(slab, window, ring, slots[rows], entered - window.skip, starts)
        far = np.flatnonzero(gap >= window.tiles)  # the whole window has passed: nothing of it is left to slide
        if far.size:
            ages = np.arange(window.skip, window.skip + window.tiles)
            header[far, window.word] = _join(window, _tiles(slab, window.field, ring, slots[far], new_tile[far], ages))
    ages = np.arange(ring.tiles)
    again = [w for w in ring.windows if w not in sliding]
    values = {w.field.code: _tiles(slab, w.field, ring, slots, new_tile, ages) for w in again}
    for window in again:
        tiles = values[window.field.code][:, window.skip : window.skip + window.tiles]
        if window.code in EDGES:
            header[:, window.word] = _edge(window, tiles, new_tile - window.skip, ring.tile_ms)
        else:
            header[:, window.word] = _join(window, tiles)


def _cells(slab: Slab, field: FieldPlan) -> npt.NDArray[np.int64] | npt.NDArray[np.uint32]:
    return slab.halves if field.narrow else slab.words


def _sums(slab: Slab, window: WindowPlan, ring: RingPlan, slots: Int64s, tiles: Int64s, starts: Int64s) -> Int64s:
    """Per row, the sum over its part of `tiles`; the parts begin at `starts` and none is empty."""
    values = _cells(slab, window.field)[slots, window.field.cells + tiles % ring.tiles]
    sums: Int64s = np.add.reduceat(values, starts, dtype=np.int64)
    return sums


def _tiles(
    slab: Slab, field: FieldPlan, ring: RingPlan, slots: Int64s, new_tile: Int64s, ages: Int64s
) -> npt.NDArray[np.int64]:
    """The field's tiles of these ages, (rows, ages)."""
    places = (new_tile[:, None] - ages) % ring.tiles
    tiles: npt.NDArray[np.int64] = _cells(slab, field)[slots[:, None], field.cells + places]
    return tiles


def _join(window: WindowPlan, tiles: npt.NDArray[np.int64]) -> Int64s:
    """The window's value from its tiles."""
    if window.code == MAX:
        return tiles.max(axis=1)  # type: ignore[no-any-return]  # numpy types it by the array's shape
    if window.code == DISTINCT:
        return np.bitwise_or.reduce(tiles, axis=1)  # type: ignore[no-any-return]
    return tiles.sum(axis=1, dtype=np.int64)  # type: ignore[no-any-return]


def _edge(window: WindowPlan, tiles: npt.NDArray[np.int64], newest: Int64s, tile_ms: int) -> Int64s:
    """1 + the start of the newest or oldest tile that is not 0, or 0; tiles (rows, ages) stand from `newest` back."""
    some = tiles != 0
    age = some.argmax(axis=1) if window.code == NEWEST else tiles.shape[1] - 1 - some[:, ::-1].argmax(axis=1)
    return np.where(some.any(axis=1), (newest - age) * tile_ms + 1, 0)
