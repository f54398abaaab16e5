package advance

import (
	"weir/gocore/internal/plan"
	"weir/gocore/internal/rings"
)

// Label adds delta frauds (+1, or -1 for one taken back) to the tile of ts in every ring of p that keeps them; ts is the
// labelled transaction's own time. It reports whether anything changed: nothing does in an empty profile, or in one that
// already has lsn. late has a counter per ring.
func Label(kind *plan.Kind, p []int64, ts, delta, lsn int64, late []int64) bool {
	if p[plan.WVersion]&0xFF == 0 || lsn <= p[plan.WLSN] {
		return false
	}
	p[plan.WLSN] = lsn
	last := p[plan.WLastSeen]
	for i := range kind.Rings {
		ring := &kind.Rings[i]
		field := ring.FraudsField()
		if field == nil {
			continue
		}
		tile, open := ts/ring.TileMS, last/ring.TileMS
		if open < tile || open-tile >= int64(ring.Tiles) {
			late[i]++
			p[plan.WLateDropped]++
			continue
		}
		// Never below zero frauds in a tile: an erased entity may lack the fraud that is taken back.
		v := values{plan.Frauds: max(delta, -rings.Tile(ring, field, p, tile, open))}
		addToTile(ring, p, ts, last, &v)
	}
	return true
}
