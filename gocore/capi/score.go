package main

// #include "weir.h"
import "C"

import (
	"fmt"
	"sync"
	"unsafe"

	"weir/gocore/internal/ort"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/score"
)

// bound is an arena with the job that was submitted last.
type bound struct {
	arena *score.Arena
	mu    sync.Mutex
	job   job
}

type job struct {
	state int
	err   error
}

const (
	idle = iota
	running
	finished
)

var arenas = handles[bound]{what: "arena"}

//export weir_bind
func weir_bind(plan C.uint64_t, memory *C.weir_arena, handle *C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		arena, err := bind(uint64(plan), memory)
		if err != nil {
			return err
		}
		return give(&arenas, &bound{arena: arena}, handle)
	}())
}

func bind(handle uint64, memory *C.weir_arena) (*score.Arena, error) {
	p, err := plans.get(handle)
	if err != nil {
		return nil, err
	}
	switch {
	case memory == nil || memory.slabs == nil:
		return nil, fmt.Errorf("arena or slabs: %w", errNull)
	case memory.rows < 1 || memory.rows > score.RowsMax:
		return nil, fmt.Errorf("%w: %d rows, not 1 to %d", errArgument, int64(memory.rows), score.RowsMax)
	case int(memory.n_slabs) != len(p.Kinds):
		return nil, fmt.Errorf("%w: %d slabs, the plan has %d kinds", errArgument, int64(memory.n_slabs), len(p.Kinds))
	}
	n := int(memory.rows)
	var slabs []*profile.Slab
	for i, slab := range unsafe.Slice(memory.slabs, len(p.Kinds)) {
		view, err := profile.View(&p.Kinds[i], slab.base, int64(slab.stride), int64(slab.capacity), unsafe.Pointer(slab.late_dropped))
		if err != nil {
			return nil, err
		}
		slabs = append(slabs, view)
	}
	var rows score.Rows
	for _, side := range []struct {
		name    string
		pointer *C.int64_t
		stride  C.int64_t
		width   int
		words   *[]int64
		in      *int
	}{
		{"lsns", memory.lsns, memory.lsn_stride, 1, &rows.LSNs, &rows.LSNStride},
		{"slots", memory.slots, memory.slot_stride, len(p.Kinds), &rows.Slots, &rows.SlotStride},
		{"columns", memory.columns, memory.column_stride, 11, &rows.Columns, &rows.ColumnStride},
	} {
		if *side.words, err = wordsAt(side.pointer, side.stride, n, side.width, side.name); err != nil {
			return nil, err
		}
		*side.in = int(side.stride / 8)
	}
	if memory.vectors == nil || memory.risk == nil {
		return nil, fmt.Errorf("vectors or risk: %w", errNull)
	}
	vectors := unsafe.Slice((*float32)(memory.vectors), n*len(p.Features))
	return score.Bind(p, slabs, n, rows, vectors, unsafe.Slice((*float32)(memory.risk), n))
}

// wordsAt is n rows of width words, stride bytes apart, in the caller's memory.
func wordsAt(pointer *C.int64_t, stride C.int64_t, n, width int, what string) ([]int64, error) {
	switch {
	case pointer == nil:
		return nil, fmt.Errorf("%s: %w", what, errNull)
	case uintptr(unsafe.Pointer(pointer))%8 != 0 || stride%8 != 0:
		return nil, fmt.Errorf("%w: %s: address or stride %d is no multiple of 8", errArgument, what, int64(stride))
	case int64(stride) < int64(width)*8 || stride > 1<<19:
		return nil, fmt.Errorf("%w: %s: a stride of %d bytes, not %d to %d", errArgument, what, int64(stride), width*8, 1<<19)
	}
	return unsafe.Slice((*int64)(unsafe.Pointer(pointer)), (n-1)*int(stride/8)+width), nil
}

//export weir_unbind
func weir_unbind(handle C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		b, err := arenas.get(uint64(handle))
		if err != nil {
			return err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.job.state == running { // its thread still writes to the caller's memory
			return score.ErrBusy
		}
		_, err = arenas.take(uint64(handle))
		return err
	}())
}

//export weir_score
func weir_score(model, arena C.uint64_t, first, n C.int64_t, flags C.uint32_t) (status C.int32_t) {
	defer recoverTo(&status)
	b, m, err := find(uint64(model), uint64(arena))
	if err == nil {
		err = b.arena.Run(m, int(first), int(n), score.Flags(flags))
	}
	if err == nil { // the way of every batch
		return C.WEIR_OK
	}
	return statusOf(err)
}

func find(model, arena uint64) (b *bound, m *ort.Model, err error) {
	if b, err = arenas.get(arena); err != nil || model == 0 {
		return b, nil, err
	}
	m, err = models.get(model)
	return b, m, err
}

//export weir_submit
func weir_submit(model, arena C.uint64_t, first, n C.int64_t, flags C.uint32_t, eventFD C.int32_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		b, m, err := find(uint64(model), uint64(arena))
		if err != nil {
			return err
		}
		if eventFD < 0 {
			return fmt.Errorf("%w: event descriptor %d", errArgument, int32(eventFD))
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.job.state != idle {
			return fmt.Errorf("a submitted call runs, or was not collected: %w", score.ErrBusy)
		}
		b.job = job{state: running}
		err = hand(submission{b, m, int(first), int(n), score.Flags(flags), int(eventFD)})
		if err != nil {
			b.job = job{}
		}
		return err
	}())
}

//export weir_collect
func weir_collect(arena C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		b, err := arenas.get(uint64(arena))
		if err != nil {
			return err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		switch b.job.state {
		case idle:
			return fmt.Errorf("%w: nothing was submitted on this arena", errArgument)
		case running:
			return score.ErrBusy
		}
		err = b.job.err
		b.job = job{}
		return err
	}())
}

//export weir_label
func weir_label(arena C.uint64_t, kind, slot, ts, delta, lsn C.int64_t, changed *C.int32_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		b, err := arenas.get(uint64(arena))
		if err != nil {
			return err
		}
		if changed == nil {
			return fmt.Errorf("changed: %w", errNull)
		}
		did, err := b.arena.Label(int(kind), int(slot), int64(ts), int64(delta), int64(lsn))
		*changed = 0
		if did {
			*changed = 1
		}
		return err
	}())
}
