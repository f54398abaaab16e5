// Package rings moves the rings of time tiles in one profile.
//
// A ring of n tiles is one open tile in the header (the tile of last seen) and n cells, where the cell of tile number T is
// T mod n. The cell of the open tile is always zero: its content is in the header. So the same history gives the same
// bytes, whichever engine wrote them. All state is integers.
//
// Cost: sums slide, what leaves a window is subtracted and what enters is added; a maximum is searched again only if it
// was in a tile that left, a bitmap always. In steady state a ring does not move and nothing here is called.
package rings

import (
	"unsafe"

	"weir/gocore/internal/plan"
)

// Move closes the open tile of ring in the profile p and opens tile now (> old), the tile of last seen so far.
func Move(ring *plan.Ring, p []int64, old, now int64) {
	n := int64(ring.Tiles)
	gap := min(now-old, n)
	for i := range ring.Fields {
		cells := cellsOf(ring, &ring.Fields[i], p)
		cells.set(cells.place(old), p[ring.Fields[i].Open])
	}
	for i := range ring.Windows {
		w := &ring.Windows[i]
		p[w.Word] = slide(w, cellsOf(ring, &ring.Fields[w.Field], p), p[w.Word], old, now, ring.TileMS)
	}
	for i := range ring.Fields {
		f := &ring.Fields[i]
		cells := cellsOf(ring, f, p)
		p[f.Open] = 0
		place := cells.place(now - gap + 1)
		for range gap {
			cells.set(place, 0)
			place = cells.next(place)
		}
	}
}

// slide gives the value of w as of tile now from its value as of tile old; cells hold the tiles up to old, old included.
func slide(w *plan.Window, cells cells, value, old, now, tileMS int64) int64 {
	skip, tiles := int64(w.Skip), int64(w.Tiles)
	oldLow, oldHigh := old-skip-tiles+1, old-skip
	newLow, newHigh := now-skip-tiles+1, min(now-skip, old) // what is newer than old is empty
	switch {
	case newLow > newHigh:
		return 0
	case w.IsEdge():
		return slideEdge(w, cells, value, oldHigh, newLow, newHigh, tileMS)
	case w.Code == plan.Distinct:
		return cells.union(newLow, newHigh)
	case w.Code == plan.Max:
		if newLow <= oldHigh && cells.max(oldLow, newLow-1) < value {
			return max(value, cells.max(oldHigh+1, newHigh))
		}
		return cells.max(newLow, newHigh)
	case newLow > oldHigh: // nothing of it is left
		return cells.sum(newLow, newHigh)
	}
	return value - cells.sum(oldLow, newLow-1) + cells.sum(oldHigh+1, newHigh)
}

// Value is the value of w seen from tile at, from the tiles that the ring still has; open is its newest tile.
func Value(ring *plan.Ring, w *plan.Window, p []int64, at, open int64) int64 {
	high := at - int64(w.Skip)
	low := max(high-int64(w.Tiles)+1, open-int64(ring.Tiles)+1)
	if high < low {
		return 0
	}
	field := &ring.Fields[w.Field]
	cells := cellsOf(ring, field, p)
	if w.IsEdge() {
		return edge(w, cells, low, high, open, p[field.Open], ring.TileMS)
	}
	var value int64
	switch w.Code {
	case plan.Distinct:
		value = cells.union(low, high)
	case plan.Max:
		value = cells.max(low, high)
	default:
		value = cells.sum(low, high)
	}
	if high == open { // the cell of the open tile is zero
		value = Combine(w.Code, value, p[field.Open])
	}
	return value
}

// Combine joins two values of one field: the larger, the union, or the sum.
func Combine(code int, left, right int64) int64 {
	switch code {
	case plan.Max:
		return max(left, right)
	case plan.Distinct:
		return left | right
	}
	return left + right
}

// Tile is the content of one tile that the ring has: the open one's from the header, a closed one's from its cell.
func Tile(ring *plan.Ring, f *plan.Field, p []int64, tile, open int64) int64 {
	if tile == open {
		return p[f.Open]
	}
	cells := cellsOf(ring, f, p)
	return cells.get(cells.place(tile))
}

// SetTile is the inverse of Tile.
func SetTile(ring *plan.Ring, f *plan.Field, p []int64, tile, open, value int64) {
	if tile == open {
		p[f.Open] = value
		return
	}
	cells := cellsOf(ring, f, p)
	cells.set(cells.place(tile), value)
}

// cells are the closed tiles of one field: exactly one of the two slices is there.
type cells struct {
	wide   []int64
	narrow []uint32
	tiles  int64
}

func cellsOf(ring *plan.Ring, f *plan.Field, p []int64) cells {
	n := ring.Tiles
	if f.Narrow {
		halves := unsafe.Slice((*uint32)(unsafe.Pointer(&p[0])), 2*len(p))
		return cells{narrow: halves[f.Cells : f.Cells+n : f.Cells+n], tiles: int64(n)}
	}
	return cells{wide: p[f.Cells : f.Cells+n : f.Cells+n], tiles: int64(n)}
}

// place is where tile stands; tile numbers are never below -tiles.
func (c *cells) place(tile int64) int64 {
	place := tile % c.tiles
	if place < 0 {
		place += c.tiles
	}
	return place
}

func (c *cells) next(place int64) int64 {
	if place++; place == c.tiles {
		return 0
	}
	return place
}

func (c *cells) get(place int64) int64 {
	if c.narrow != nil {
		return int64(c.narrow[place])
	}
	return c.wide[place]
}

func (c *cells) set(place, value int64) {
	if c.narrow != nil {
		c.narrow[place] = uint32(value)
	} else {
		c.wide[place] = value
	}
}

func (c *cells) sum(low, high int64) int64 {
	var sum int64
	place := c.place(low)
	for range high - low + 1 {
		sum += c.get(place)
		place = c.next(place)
	}
	return sum
}

func (c *cells) max(low, high int64) int64 {
	var largest int64
	place := c.place(low)
	for range high - low + 1 {
		largest = max(largest, c.get(place))
		place = c.next(place)
	}
	return largest
}

func (c *cells) union(low, high int64) int64 {
	var union int64
	place := c.place(low)
	for range high - low + 1 {
		union |= c.get(place)
		place = c.next(place)
	}
	return union
}
