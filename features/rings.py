"""Rings in numpy: how closed tiles follow when time moves on, for many profiles at once.

A ring of n tiles lives in a profile as one open tile in the header (the tile of `last_seen`) and n cells, where the cell of
tile number T is T % n. The cell of the open tile is always zero: its content is in the header. So the same history gives the
same bytes, whichever engine wrote them. Cost: proportional to the moved rows and the lengths of the windows.
"""

import numpy as np
import numpy.typing as npt

from features.plan import DISTINCT, MAX, NARROW, FieldPlan, RingPlan
from features.slab import Slab

Int64s = npt.NDArray[np.int64]


def move(ring: RingPlan, slab: Slab, slots: Int64s, header: Int64s, old_tile: Int64s, new_tile: Int64s) -> None:
    """Close the open tile of each row and open `new_tile` (> old_tile), in the slab's cells and in `header` (rows, words).

    slots, old_tile, new_tile: int64 (rows,). `header` rows are copies of the header; only open tiles and windows change.
    """
    for field in ring.fields:
        cells = _cells(slab, field)
        cells[slots, field.cells + old_tile % ring.tiles] = header[:, field.open_word]
        header[:, field.open_word] = 0
    rows, gone = _passed_tiles(old_tile, new_tile, ring.tiles)
    for field in ring.fields:
        _cells(slab, field)[slots[rows], field.cells + gone % ring.tiles] = 0
    by_code = {field.code: field for field in ring.fields}
    for window in ring.windows:
        ages = np.arange(max(window.skip, 1), window.skip + window.tiles)
        field = by_code[window.code]
        where = field.cells + (new_tile[:, None] - ages) % ring.tiles
        values = _cells(slab, field)[slots[:, None], where]
        if window.code == MAX:
            header[:, window.word] = values.max(axis=1, initial=0)
        elif window.code == DISTINCT:
            header[:, window.word] = np.bitwise_or.reduce(values, axis=1)
        else:
            header[:, window.word] = values.sum(axis=1, dtype=np.int64)


def _cells(slab: Slab, field: FieldPlan) -> npt.NDArray[np.int64] | npt.NDArray[np.uint32]:
    return slab.halves if field.code in NARROW else slab.words


def _passed_tiles(old_tile: Int64s, new_tile: Int64s, n_tiles: int) -> tuple[Int64s, Int64s]:
    """(row, tile number) of every tile that a row enters, new_tile included, at most one turn of the ring."""
    gap = np.minimum(new_tile - old_tile, n_tiles)
    rows = np.repeat(np.arange(gap.size), gap)
    step = np.arange(rows.size) - np.repeat(np.cumsum(gap) - gap, gap)
    return rows, new_tile[rows] - step
