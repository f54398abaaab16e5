package main

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

var errHandle = errors.New("the handle is closed or was never given out")

const (
	pageSlots = 256
	pagesMax  = 1 << 12 // a million handles alive
)

// handles gives out numbers for values: low 32 bits a place, high 32 bits how often the place was used, so that a number is
// never valid twice. Looking one up takes no lock.
type handles[T any] struct {
	what  string
	mu    sync.Mutex
	free  []uint32
	n     uint32
	pages [pagesMax]atomic.Pointer[[pageSlots]slot[T]]
}

type slot[T any] struct {
	value atomic.Pointer[T]
	uses  atomic.Uint32
}

func (h *handles[T]) put(value *T) (uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var place uint32
	if last := len(h.free) - 1; last >= 0 {
		place, h.free = h.free[last], h.free[:last]
	} else {
		place = h.n
		if place == pageSlots*pagesMax {
			return 0, fmt.Errorf("%w: %d %ss are open", errArgument, place, h.what)
		}
		h.n++
		if place%pageSlots == 0 {
			h.pages[place/pageSlots].Store(new([pageSlots]slot[T]))
		}
	}
	s := h.at(place)
	uses := s.uses.Add(1)
	s.value.Store(value)
	return uint64(uses)<<32 | uint64(place), nil
}

func (h *handles[T]) at(place uint32) *slot[T] {
	return &h.pages[place/pageSlots].Load()[place%pageSlots]
}

func (h *handles[T]) get(handle uint64) (*T, error) {
	place, uses := uint32(handle), uint32(handle>>32)
	if place/pageSlots < pagesMax && h.pages[place/pageSlots].Load() != nil {
		s := h.at(place)
		if value := s.value.Load(); value != nil && s.uses.Load() == uses {
			return value, nil
		}
	}
	return nil, fmt.Errorf("%s %#x: %w", h.what, handle, errHandle)
}

// take gives the value back for the last time.
func (h *handles[T]) take(handle uint64) (*T, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	value, err := h.get(handle)
	if err != nil {
		return nil, err
	}
	h.at(uint32(handle)).value.Store(nil)
	h.free = append(h.free, uint32(handle))
	return value, nil
}
