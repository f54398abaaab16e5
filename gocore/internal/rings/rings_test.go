package rings_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/rings"
)

var codes = []int{plan.Count, plan.Frauds, plan.Sum, plan.Max, plan.SquaresHigh, plan.SquaresLow, plan.Distinct}

// ringOf makes a ring of n tiles that keeps every field, with all windows that fit if it is short, else random ones, and
// gives the words that a profile with that ring alone needs.
func ringOf(rng *rand.Rand, n int) (*plan.Ring, int) {
	ring := &plan.Ring{Name: "r", TileMS: 1000, Tiles: n, Of: plan.MCC}
	word := plan.FixedWords
	for _, code := range codes {
		ring.Fields = append(ring.Fields, plan.Field{Code: code, Open: word, Narrow: code == plan.Count || code == plan.Frauds})
		word++
	}
	for place, code := range codes {
		for range 6 {
			skip := rng.IntN(n)
			w := plan.Window{Code: code, Skip: skip, Tiles: 1 + rng.IntN(n-skip), Word: word, Field: place}
			if rng.IntN(3) == 0 { // the usual ones: not delayed
				w.Skip = 0
			}
			ring.Windows = append(ring.Windows, w)
			word++
		}
	}
	for range 12 { // edges of counts (place 0) and frauds
		skip := rng.IntN(n)
		ring.Windows = append(ring.Windows, plan.Window{
			Code: plan.Oldest + rng.IntN(2), Skip: skip, Tiles: 1 + rng.IntN(n-skip), Word: word, Field: rng.IntN(2),
		})
		word++
	}
	at := word * 8
	for i := range ring.Fields {
		f := &ring.Fields[i]
		width := 8
		if f.Narrow {
			width = 4
		}
		f.Cells = at / width
		at += (n*width + 7) / 8 * 8
	}
	return ring, at / 8
}

// history is what a ring stands for: the content of every tile that ever was, by tile and place of the field.
type history map[int64][7]int64

func (h history) window(w *plan.Window, at, open int64, tiles int) int64 {
	if w.IsEdge() {
		return h.edge(w, at, open, tiles)
	}
	var value int64
	for tile := at - int64(w.Skip) - int64(w.Tiles) + 1; tile <= at-int64(w.Skip); tile++ {
		if tile > open-int64(tiles) && tile <= open {
			value = rings.Combine(w.Code, value, h[tile][w.Field])
		}
	}
	return value
}

func (h history) edge(w *plan.Window, at, open int64, tiles int) int64 {
	var value int64
	for tile := at - int64(w.Skip) - int64(w.Tiles) + 1; tile <= at-int64(w.Skip); tile++ {
		if tile > open-int64(tiles) && tile <= open && h[tile][w.Field] != 0 && (value == 0 || w.Code == plan.Newest) {
			value = tile*1000 + 1
		}
	}
	return value
}

func TestMove_RandomHistory_EveryWindowIsWhatItsTilesGive(t *testing.T) {
	rng := plantest.Seeded(t)
	for range 150 {
		n := []int{1, 2, 3, 5, 12, 38, 70}[rng.IntN(7)]
		ring, words := ringOf(rng, n)
		p, known := make([]int64, words), history{}
		open := rng.Int64N(1_000_000)
		for range 40 {
			add(rng, ring, p, known, open)
			now := open + 1 + rng.Int64N(int64(2*n)+2)*rng.Int64N(2)
			rings.Move(ring, p, open, now)
			open = now
			check(t, rng, ring, p, known, open)
		}
	}
}

// add gives the open tile something, or nothing, and the windows that hold it.
func add(rng *rand.Rand, ring *plan.Ring, p []int64, known history, open int64) {
	tile := known[open]
	for range rng.IntN(3) {
		for i, f := range ring.Fields {
			value := rng.Int64N(1000) * rng.Int64N(2)
			if f.Code == plan.Distinct {
				value = 1 << value % 64
			}
			tile[i] = rings.Combine(f.Code, tile[i], value)
			p[f.Open] = tile[i]
			for _, w := range ring.Windows {
				switch {
				case w.Field != i || w.Skip != 0:
				case w.IsEdge():
					p[w.Word] = rings.Value(ring, &w, p, open, open)
				default:
					p[w.Word] = rings.Combine(w.Code, p[w.Word], value)
				}
			}
		}
	}
	known[open] = tile
}

func check(t *testing.T, rng *rand.Rand, ring *plan.Ring, p []int64, known history, open int64) {
	t.Helper()
	early := open - rng.Int64N(int64(ring.Tiles)+3)
	for i := range ring.Windows {
		w := &ring.Windows[i]
		if want := known.window(w, open, open, ring.Tiles); p[w.Word] != want {
			t.Fatalf("ring of %d tiles at %d, window %+v slid to %d, its tiles give %d", ring.Tiles, open, *w, p[w.Word], want)
		}
		for _, at := range []int64{open, early} {
			if got, want := rings.Value(ring, w, p, at, open), known.window(w, at, open, ring.Tiles); got != want {
				t.Fatalf("ring of %d tiles at %d, window %+v seen from %d is %d, its tiles give %d", ring.Tiles, open, *w, at, got, want)
			}
		}
	}
	for i := range ring.Fields {
		f := &ring.Fields[i]
		for tile := open - int64(ring.Tiles) + 1; tile <= open; tile++ {
			if got := rings.Tile(ring, f, p, tile, open); got != known[tile][i] {
				t.Fatalf("field %d of tile %d is %d, want %d", f.Code, tile, got, known[tile][i])
			}
		}
		before := p[f.Open]
		rings.SetTile(ring, f, p, open-int64(ring.Tiles), open, 0) // the cell of the open tile, which has to be zero already
		if p[f.Open] != before || rings.Tile(ring, f, p, open-int64(ring.Tiles), open) != 0 {
			t.Fatalf("field %d: the open tile's cell is not its own", f.Code)
		}
	}
}

func TestMove_OpenTile_LeavesAZeroCell(t *testing.T) {
	rng := plantest.Seeded(t)
	ring, words := ringOf(rng, 4)
	p := make([]int64, words)
	for _, f := range ring.Fields {
		p[f.Open] = 9
	}
	rings.Move(ring, p, 10, 11)
	for i := range ring.Fields {
		f := &ring.Fields[i]
		if got := rings.Tile(ring, f, p, 10, 11); got != 9 {
			t.Errorf("field %d: the closed tile holds %d, want 9", f.Code, got)
		}
		if p[f.Open] != 0 || rings.Tile(ring, f, p, 7, 11) != 0 { // tile 7 has the cell of 11
			t.Errorf("field %d: open tile %d, its cell %d; want 0 and 0", f.Code, p[f.Open], rings.Tile(ring, f, p, 7, 11))
		}
	}
	clearAll := slices.Clone(p)
	rings.Move(ring, clearAll, 11, 15) // one turn and no more
	for i := range ring.Fields {
		for tile := int64(12); tile <= 15; tile++ {
			if got := rings.Tile(ring, &ring.Fields[i], clearAll, tile, 15); got != 0 {
				t.Errorf("field %d: tile %d holds %d after a whole turn", ring.Fields[i].Code, tile, got)
			}
		}
	}
}

func TestSetTile_ThenTile_GivesItBack(t *testing.T) {
	ring, words := ringOf(plantest.Seeded(t), 5)
	p := make([]int64, words)
	for i := range ring.Fields {
		for tile := int64(3); tile <= 7; tile++ {
			rings.SetTile(ring, &ring.Fields[i], p, tile, 7, tile*10+int64(i))
		}
	}
	for i := range ring.Fields {
		for tile := int64(3); tile <= 7; tile++ {
			if got := rings.Tile(ring, &ring.Fields[i], p, tile, 7); got != tile*10+int64(i) {
				t.Errorf("field %d of tile %d is %d", ring.Fields[i].Code, tile, got)
			}
		}
	}
}
