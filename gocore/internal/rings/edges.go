package rings

import "weir/gocore/internal/plan"

// slideEdge is the edge in tiles [newLow, newHigh] from the one in tiles up to oldHigh, which may have left.
func slideEdge(w *plan.Window, cells cells, value, oldHigh, newLow, newHigh, tileMS int64) int64 {
	stays := value > 0 && value-1 >= newLow*tileMS
	if w.Code == plan.Newest {
		if entered := find(w, cells, max(newLow, oldHigh+1), newHigh, tileMS); entered > 0 {
			return entered
		}
		if stays {
			return value
		}
		return 0
	}
	if stays {
		return value
	}
	if value == 0 {
		newLow = max(newLow, oldHigh+1)
	}
	return find(w, cells, newLow, newHigh, tileMS)
}

// edge is the edge in tiles [low, high] of a ring whose open tile holds openValue.
func edge(w *plan.Window, cells cells, low, high, open, openValue, tileMS int64) int64 {
	atOpen := int64(0)
	if high == open { // the cell of the open tile is zero
		high--
		if openValue != 0 {
			atOpen = open*tileMS + 1
		}
	}
	if w.Code == plan.Newest && atOpen > 0 {
		return atOpen
	}
	if found := find(w, cells, low, high, tileMS); found > 0 {
		return found
	}
	return atOpen
}

// find gives 1 + the start of the oldest or newest of tiles [low, high] whose cell is not zero, or 0.
func find(w *plan.Window, cells cells, low, high, tileMS int64) int64 {
	if w.Code == plan.Newest {
		for tile := high; tile >= low; tile-- {
			if cells.get(cells.place(tile)) != 0 {
				return tile*tileMS + 1
			}
		}
		return 0
	}
	place := cells.place(low)
	for tile := low; tile <= high; tile++ {
		if cells.get(place) != 0 {
			return tile*tileMS + 1
		}
		place = cells.next(place)
	}
	return 0
}
