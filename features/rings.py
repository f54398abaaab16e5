"""Rings in numpy: how closed tiles follow when time moves on, for many profiles at once.

A ring of n tiles lives in a profile as one open tile in the header (the tile of `last_seen`) and n cells, where the cell of
tile number T is T % n. The cell of the open tile is always zero: its content is in the header. So the same history gives the
same bytes, whichever engine wrote them. Cost: proportional to the moved rows and the lengths of the windows.
"""

import numpy as np
import numpy.typing as npt

from features.plan import DISTINCT, MAX, FieldPlan, RingPlan
from features.slab import Slab

Int64s = npt.NDArray[np.int64]


def move(ring: RingPlan, slab: Slab, slots: Int64s, header: Int64s, old_tile: Int64s, new_tile: Int64s) -> None:
    """Close the open tile of each row and open `new_tile` (> old_tile), in the slab's cells and in `header` (rows, words).

    slots, old_tile, new_tile: int64 (rows,). `header` rows are copies of the header; only open tiles and windows change.
    """
    rows, entered = _entered_tiles(old_tile, new_tile, ring.tiles)
    places = (new_tile[:, None] - np.arange(ring.tiles)) % ring.tiles  # by age
    values: dict[int, npt.NDArray[np.int64] | npt.NDArray[np.uint32]] = {}
    for field in ring.fields:
        cells = _cells(slab, field)
        cells[slots, field.cells + old_tile % ring.tiles] = header[:, field.open_word]
        header[:, field.open_word] = 0
        cells[slots[rows], field.cells + entered % ring.tiles] = 0
        values[field.code] = cells[slots[:, None], field.cells + places]
    for window in ring.windows:
        tiles = values[window.code][:, window.skip : window.skip + window.tiles]
        if window.code == MAX:
            header[:, window.word] = tiles.max(axis=1)
        elif window.code == DISTINCT:
            header[:, window.word] = np.bitwise_or.reduce(tiles, axis=1)
        else:
            header[:, window.word] = tiles.sum(axis=1, dtype=np.int64)


def _cells(slab: Slab, field: FieldPlan) -> npt.NDArray[np.int64] | npt.NDArray[np.uint32]:
    return slab.halves if field.narrow else slab.words


def _entered_tiles(old_tile: Int64s, new_tile: Int64s, n_tiles: int) -> tuple[Int64s, Int64s]:
    """(row, tile number) of every tile that a row enters, new_tile included, at most one turn of the ring."""
    gap = np.minimum(new_tile - old_tile, n_tiles)
    rows = np.repeat(np.arange(gap.size), gap)
    step = np.arange(rows.size) - np.repeat(np.cumsum(gap) - gap, gap)
    return rows, new_tile[rows] - step
