// Package index finds the slots of entities by their ids: one Index per kind of entity.
//
// A table of 8 bytes an entry, at most two thirds full, and a cell of 24 bytes per slot that holds the id itself; only longer ids
// are kept elsewhere. There are no pointers in either, so the garbage collector never looks at them. An Index belongs to one
// caller at a time. Cost: 25 ns for an id whose entry and cell are in the processor's cache, two cache misses more otherwise
// (BenchmarkFind); independent ones overlap, so a list of ids costs less than as many calls.
package index

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"unsafe"

	"weir/gocore/internal/prefetch"
)

const (
	none       = -1
	cellBytes  = 24
	inlineMax  = cellBytes - 1
	isLong     = 0xff // in the place of the length: the id stands in long
	entriesMin = 64
	// SlotMax is the highest slot.
	SlotMax   = 1<<31 - 2
	separator = '\n' // no id holds one
	group     = 32   // ids that are looked for together
)

// ErrEntry is wrapped when an entry cannot be put or removed.
var ErrEntry = errors.New("not a possible entry of the index")

type cell [cellBytes]byte // the length, then the id; length 0: nobody has the slot

// Index maps ids to slots and back.
type Index struct {
	seed  maphash.Seed
	table []uint64 // 0, or hash<<32 | slot+1; an entry stands at its hash's place or, where that is taken, after it
	mask  uint32
	n     int
	cells []cell
	long  map[int]string
}

// New is an empty index.
func New() *Index {
	return &Index{seed: maphash.MakeSeed(), table: make([]uint64, entriesMin), mask: entriesMin - 1, long: map[int]string{}}
}

// Find is the slot of id, or -1.
func (x *Index) Find(id []byte) int {
	if len(id) == 0 {
		return none
	}
	at, ok := x.find(id, x.hash(id))
	if !ok {
		return none
	}
	return slotOf(x.table[at])
}

// FindMany finds len(slots) ids, each with a line feed after it; -1 for what is not here, and for an empty id, and how many that are
// not empty are not here. rest is what follows them.
//
// Ids of a group are looked for together: each step asks for the memory that the next one needs.
func (x *Index) FindMany(list []byte, slots []int64) (rest []byte, missing int, err error) {
	var ids [group][]byte
	var hashes [group]uint32
	for len(slots) > 0 {
		n := min(group, len(slots))
		for i := range n {
			end := bytes.IndexByte(list, separator)
			if end < 0 {
				return nil, 0, fmt.Errorf("%w: %d ids, each with a line feed, are missing from the list", ErrEntry, len(slots)-i)
			}
			ids[i], hashes[i] = list[:end], x.hash(list[:end])
			prefetch.Lines(unsafe.Pointer(&x.table[hashes[i]&x.mask]), 1)
			list = list[end+1:]
		}
		for _, hash := range hashes[:n] {
			if slot := slotOf(x.table[hash&x.mask]); slot >= 0 {
				prefetch.Lines(unsafe.Pointer(&x.cells[slot]), 1)
			}
		}
		for i, id := range ids[:n] {
			slots[i] = none
			if len(id) == 0 {
				continue
			}
			if at, ok := x.find(id, hashes[i]); ok {
				slots[i] = int64(slotOf(x.table[at]))
			} else {
				missing++
			}
		}
		slots = slots[n:]
	}
	return list, missing, nil
}

// Put gives id the slot. Errors wrap ErrEntry: the id is empty or has a slot, or the slot has an id.
func (x *Index) Put(id []byte, slot int) error {
	if len(id) == 0 || slot < 0 || slot > SlotMax {
		return fmt.Errorf("%w: an id of %d bytes in slot %d, slots reach from 0 to %d", ErrEntry, len(id), slot, SlotMax)
	}
	hash := x.hash(id)
	at, found := x.find(id, hash)
	if found {
		return fmt.Errorf("%w: %q has slot %d already", ErrEntry, id, slotOf(x.table[at]))
	}
	for slot >= len(x.cells) {
		x.cells = append(x.cells, cell{})
	}
	c := &x.cells[slot]
	if c[0] != 0 {
		return fmt.Errorf("%w: slot %d is that of %q", ErrEntry, slot, x.id(slot))
	}
	if len(id) > inlineMax {
		c[0] = isLong
		x.long[slot] = string(id)
	} else {
		c[0] = byte(len(id))
		copy(c[1:], id)
	}
	x.table[at] = uint64(hash)<<32 | uint64(slot+1)
	x.n++
	if 3*x.n > 2*len(x.table) {
		x.grow()
	}
	return nil
}

// Remove takes out whoever has the slot. Errors wrap ErrEntry: nobody has it.
func (x *Index) Remove(slot int) error {
	id := x.id(slot)
	if len(id) == 0 {
		return fmt.Errorf("%w: slot %d is empty", ErrEntry, slot)
	}
	at, ok := x.find(id, x.hash(id))
	if !ok || slotOf(x.table[at]) != slot {
		panic("an id without its entry")
	}
	x.close(at)
	x.n--
	if x.cells[slot][0] == isLong {
		delete(x.long, slot)
	}
	x.cells[slot] = cell{}
	return nil
}

// PutMany puts len(slots) ids, each with a line feed after it. Errors wrap ErrEntry: another number of ids, and nothing is put, or one
// that cannot be put; those before it stay.
func (x *Index) PutMany(list []byte, slots []int64) error {
	if n := bytes.Count(list, []byte{separator}); n != len(slots) || (n > 0 && list[len(list)-1] != separator) {
		return fmt.Errorf("%w: %d ids, each with a line feed, for %d slots", ErrEntry, n, len(slots))
	}
	for _, slot := range slots {
		end := bytes.IndexByte(list, separator)
		if err := x.Put(list[:end], int(slot)); err != nil {
			return err
		}
		list = list[end+1:]
	}
	return nil
}

// RemoveMany takes out whoever has these slots. Errors wrap ErrEntry; those before the slot that nobody has are gone.
func (x *Index) RemoveMany(slots []int64) error {
	for _, slot := range slots {
		if err := x.Remove(int(slot)); err != nil {
			return err
		}
	}
	return nil
}

// AppendIDs appends the ids that have these slots, a line feed after each; an empty one where nobody has it.
func (x *Index) AppendIDs(dst []byte, slots []int64) []byte {
	for _, slot := range slots {
		dst = append(append(dst, x.id(int(slot))...), separator)
	}
	return dst
}

// find is the place of id's entry, or, with false, where it would be.
func (x *Index) find(id []byte, hash uint32) (uint32, bool) {
	for at := hash & x.mask; ; at = (at + 1) & x.mask {
		entry := x.table[at]
		if entry == 0 {
			return at, false
		}
		if uint32(entry>>32) == hash && bytes.Equal(x.id(slotOf(entry)), id) {
			return at, true
		}
	}
}

// id is that of the slot, empty if there is none; valid until the slot has another.
func (x *Index) id(slot int) []byte {
	if slot < 0 || slot >= len(x.cells) {
		return nil
	}
	c := &x.cells[slot]
	if c[0] == isLong {
		return []byte(x.long[slot])
	}
	return c[1 : 1+c[0]]
}

// close takes the entry at a place out and moves up those behind it that may.
func (x *Index) close(gap uint32) {
	for at := (gap + 1) & x.mask; x.table[at] != 0; at = (at + 1) & x.mask {
		home := uint32(x.table[at]>>32) & x.mask
		if (at-home)&x.mask >= (at-gap)&x.mask { // its home is at the gap or before it
			x.table[gap] = x.table[at]
			gap = at
		}
	}
	x.table[gap] = 0
}

// grow doubles the table. The upper half of an entry is all that its place depends on, so no id is read.
func (x *Index) grow() {
	old := x.table
	x.table = make([]uint64, 2*len(old))
	x.mask = uint32(len(x.table) - 1)
	for _, entry := range old {
		if entry == 0 {
			continue
		}
		at := uint32(entry>>32) & x.mask
		for x.table[at] != 0 {
			at = (at + 1) & x.mask
		}
		x.table[at] = entry
	}
}

func (x *Index) hash(id []byte) uint32 { return uint32(maphash.Bytes(x.seed, id)) }

func slotOf(entry uint64) int { return int(uint32(entry)) - 1 }
