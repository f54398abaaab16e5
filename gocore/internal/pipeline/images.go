package pipeline

import (
	"weir/gocore/internal/plan"
	"weir/gocore/internal/profile"
)

// images are pre-images: copies of the profiles that a batch is about to change, so that one that fails leaves no trace. The
// memory is kept from batch to batch.
type images struct {
	saved  []saved
	memory []int64
}

type saved struct {
	kind, slot int
	from       int // in memory
}

// size makes room for batches of that many rows.
func (im *images) size(p *plan.Plan, rows int) {
	words := 0
	for i := range p.Kinds {
		words += p.Kinds[i].Words()
	}
	im.memory = make([]int64, 0, rows*words)
	im.saved = make([]saved, 0, rows*len(p.Kinds))
}

// take copies the profiles in the slots of rows. One that comes twice is copied twice, both times as it was.
func (im *images) take(slabs []*profile.Slab, rows []*Row) {
	im.saved, im.memory = im.saved[:0], im.memory[:0]
	for _, row := range rows {
		for kind, slab := range slabs {
			if slot := row.slots[kind]; slot >= 0 {
				im.saved = append(im.saved, saved{kind, slot, len(im.memory)})
				im.memory = append(im.memory, slab.Words(slot)...)
			}
		}
	}
}

// restore puts every profile back as it was.
func (im *images) restore(slabs []*profile.Slab) {
	for _, s := range im.saved {
		words := slabs[s.kind].Words(s.slot)
		copy(words, im.memory[s.from:])
	}
}
