package profile

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/gocore/internal/plan"
)

// ErrSlab is returned by View for memory that cannot be a slab.
var ErrSlab = errors.New("not usable as a slab")

// Slab is one buffer of equal-sized profiles of one kind. LateDropped counts, per ring, the events and labels that the
// ring no longer had a tile for. Whoever made the buffer owns it.
type Slab struct {
	Kind        *plan.Kind
	Capacity    int
	LateDropped []int64
	words       []int64
	memory      []byte // mapped by NewSlab; nil for a View
}

// NewSlab maps zeroed memory for capacity profiles; pages are committed when they are first touched. Pages are small:
// zeroing huge ones makes a batch of new entities wait (docs/results/first.md).
func NewSlab(kind *plan.Kind, capacity int) (*Slab, error) {
	memory, err := unix.Mmap(-1, 0, max(capacity, 1)*kind.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("%d profiles of %d bytes: %w", capacity, kind.Size, err)
	}
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE) // a kernel without huge pages refuses it, and has none
	late := make([]int64, len(kind.Rings))
	slab, err := View(kind, unsafe.Pointer(&memory[0]), int64(kind.Size), int64(capacity), late)
	if err != nil {
		return nil, err
	}
	slab.memory = memory
	return slab, nil
}

// View makes a slab of memory that somebody else owns and keeps: capacity profiles at base, stride bytes apart.
// lateDropped has a counter per ring. All errors wrap ErrSlab.
func View(kind *plan.Kind, base unsafe.Pointer, stride, capacity int64, lateDropped []int64) (*Slab, error) {
	switch {
	case base == nil:
		return nil, fmt.Errorf("%s: %w: its pointer is null", kind.Name, ErrSlab)
	case uintptr(base)%8 != 0:
		return nil, fmt.Errorf("%s: %w: its address is no multiple of 8", kind.Name, ErrSlab)
	case stride != int64(kind.Size):
		return nil, fmt.Errorf("%s: %w: stride %d, a profile has %d bytes", kind.Name, ErrSlab, stride, kind.Size)
	case capacity < 0 || capacity > (1<<46)/stride:
		return nil, fmt.Errorf("%s: %w: capacity %d is not within 0 to %d", kind.Name, ErrSlab, capacity, (1<<46)/stride)
	case len(lateDropped) < len(kind.Rings):
		return nil, fmt.Errorf("%s: %w: %d counters of late events, it has %d rings", kind.Name, ErrSlab, len(lateDropped), len(kind.Rings))
	}
	words := unsafe.Slice((*int64)(base), capacity*stride/8)
	return &Slab{Kind: kind, Capacity: int(capacity), LateDropped: lateDropped[:len(kind.Rings)], words: words}, nil
}

// Close unmaps memory that NewSlab mapped; nobody may hold slices of it.
func (s *Slab) Close() error {
	memory := s.memory
	s.memory, s.words, s.Capacity = nil, nil, 0
	if memory == nil {
		return nil
	}
	return unix.Munmap(memory)
}

// Words is the profile in slot, in place.
func (s *Slab) Words(slot int) []int64 {
	n := s.Kind.Words()
	return s.words[slot*n : (slot+1)*n : (slot+1)*n]
}

// Bytes is the profile in slot, in place, as bytes.
func (s *Slab) Bytes(slot int) []byte {
	return AsBytes(s.Words(slot))
}

// All is every profile, one after the other, in place.
func (s *Slab) All() []int64 { return s.words }
