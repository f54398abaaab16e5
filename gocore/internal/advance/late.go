package advance

import (
	"math/bits"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/rings"
)

// values is what an event or label adds to a ring, by field code.
type values [plan.Spikes + 1]int64

// eventValues: the square is kept as high and low 32-bit parts, each summed on its own: no carries, so adding and merging
// are plain sums.
func eventValues(columns *[plan.Columns]int64, of int, spike int64) values {
	amount := columns[plan.Amount]
	high, low := square(amount)
	v := values{plan.Count: 1, plan.Sum: amount, plan.Max: amount, plan.SquaresHigh: high, plan.SquaresLow: low, plan.Spikes: spike}
	if of >= 0 {
		v[plan.Distinct] = bitOf(columns[of])
	}
	return v
}

// square is amount * amount as (bits above 32, low 32 bits). Amounts are below 2^37, so the first fits a word.
func square(amount int64) (high, low int64) {
	top, bottom := bits.Mul64(uint64(amount), uint64(amount))
	return int64(top<<32 | bottom>>32), int64(bottom & low32)
}

// applyLate adds an event that is older than the newest one to its own tile, if the ring still has it, and to the windows
// that hold that tile.
func applyLate(kind *plan.Kind, p []int64, event *Event, last int64, late []int64) {
	header := p[:kind.HeaderWords]
	header[plan.WFirstSeen] = min(header[plan.WFirstSeen], event.Columns[plan.TS])
	spikes := spike(kind, header, event.Columns[plan.Amount]) // before a ring changes what it is judged by
	for i := range kind.Rings {
		ring := &kind.Rings[i]
		v := eventValues(event.Columns, ring.Of, spikes)
		if !addToTile(ring, p, event.Columns[plan.TS], last, &v) {
			late[i]++
			header[plan.WLateDropped]++
		}
	}
	remember(kind, header, event.Columns)
}

// addToTile adds v to the tile of ts and to every window that holds it; false if the ring does not have that tile.
func addToTile(ring *plan.Ring, p []int64, ts, last int64, v *values) bool {
	tile, open := ts/ring.TileMS, last/ring.TileMS
	age := open - tile
	if age < 0 || age >= int64(ring.Tiles) {
		return false
	}
	for i := range ring.Fields {
		f := &ring.Fields[i]
		rings.SetTile(ring, f, p, tile, open, rings.Combine(f.Code, rings.Tile(ring, f, p, tile, open), v[f.Code]))
	}
	for i := range ring.Windows {
		w := &ring.Windows[i]
		switch {
		case age < int64(w.Skip) || age >= int64(w.Skip+w.Tiles):
		case w.IsEdge():
			p[w.Word] = rings.Value(ring, w, p, open, open)
		default:
			p[w.Word] = rings.Combine(w.Code, p[w.Word], v[w.Code])
		}
	}
	return true
}

// observeLate replaces every window of the observation by the window as of the event's own tile.
func observeLate(kind *plan.Kind, p []int64, event *Event, last int64, observed []int64) {
	for i := range kind.Rings {
		ring := &kind.Rings[i]
		tile, open := event.clock.tile[ring.Width], last/ring.TileMS
		for j := range ring.Windows {
			w := &ring.Windows[j]
			observed[plan.ObsFixed+w.Word-plan.FixedWords] = rings.Value(ring, w, p, tile, open)
		}
	}
}
