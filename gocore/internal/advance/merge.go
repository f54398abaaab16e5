package advance

import (
	"slices"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/rings"
)

// Merge joins two profiles of one entity that saw different events into out, which is all zero. Both were checked
// (profile.Check). It is commutative and associative: docs/reference/profile-format.md says what is joined how.
func Merge(kind *plan.Kind, left, right, out []int64) {
	mergeHeader(kind, left, right, out)
	for i := range kind.Rings {
		mergeRing(&kind.Rings[i], left, right, out)
	}
}

// mergeHeader joins everything of the header but the rings. The result is partial only if both are.
func mergeHeader(kind *plan.Kind, left, right, out []int64) {
	out[plan.WVersion] = left[plan.WVersion] & right[plan.WVersion]
	out[plan.WLayout] = left[plan.WLayout]
	out[plan.WLSN] = max(left[plan.WLSN], right[plan.WLSN])
	out[plan.WFirstLSN] = min(left[plan.WFirstLSN], right[plan.WFirstLSN])
	out[plan.WFirstSeen] = min(left[plan.WFirstSeen], right[plan.WFirstSeen])
	out[plan.WLastSeen] = max(left[plan.WLastSeen], right[plan.WLastSeen])
	out[plan.WLateDropped] = left[plan.WLateDropped] + right[plan.WLateDropped]
	for _, m := range kind.Remembered {
		from, to := m.TSWord, m.TSWord+1+len(m.Columns)
		newer := left[from:to]
		if slices.Compare(newer, right[from:to]) < 0 {
			newer = right[from:to]
		}
		copy(out[from:to], newer)
	}
}

// mergeRing joins the tiles of both as of the later last seen, then computes the windows.
func mergeRing(ring *plan.Ring, left, right, out []int64) {
	sides := [2][]int64{left, right}
	top := out[plan.WLastSeen] / ring.TileMS
	n := int64(ring.Tiles)
	for i := range ring.Fields {
		f := &ring.Fields[i]
		for age := min(n-1, top); age >= 0; age-- { // by age: a damaged last seen may be the greatest number that there is
			tile := top - age
			var value int64
			for _, p := range sides {
				if open := p[plan.WLastSeen] / ring.TileMS; tile <= open && tile > open-n {
					value = rings.Combine(f.Code, value, rings.Tile(ring, f, p, tile, open))
				}
			}
			rings.SetTile(ring, f, out, tile, top, value)
		}
	}
	for i := range ring.Windows {
		w := &ring.Windows[i]
		out[w.Word] = rings.Value(ring, w, out, top, top)
	}
}
