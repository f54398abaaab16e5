package main

// #include "weir.h"
import "C"

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/gocore/internal/express"
	"weir/gocore/internal/ort"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/score"
)

// bound is an arena with the job that was submitted last, and the memory of the one that goes by express, for who has claimed it.
type bound struct {
	arena   *score.Arena
	mu      sync.Mutex
	job     job
	express express.Job
	rooms   rooms
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
		late, err := wordsAt(slab.late_dropped, slab.n_late_dropped, p.Kinds[i].Name+": late_dropped")
		if err != nil {
			return nil, err
		}
		view, err := profile.View(&p.Kinds[i], slab.base, int64(slab.stride), int64(slab.capacity), late)
		if err != nil {
			return nil, err
		}
		slabs = append(slabs, view)
	}
	var rows score.Rows
	for _, side := range []struct {
		name   string
		memory C.weir_rows
		words  *[]int64
		stride *int
	}{
		{"lsns", memory.lsns, &rows.LSNs, &rows.LSNStride},
		{"slots", memory.slots, &rows.Slots, &rows.SlotStride},
		{"columns", memory.columns, &rows.Columns, &rows.ColumnStride},
	} {
		if side.memory.stride%8 != 0 || side.memory.stride < 8 {
			return nil, fmt.Errorf("%w: %s: a stride of %d bytes, which is no multiple of 8 from 8 on", errArgument, side.name, int64(side.memory.stride))
		}
		*side.stride = int(side.memory.stride / 8)
		if *side.words, err = wordsAt(side.memory.start, side.memory.size/8, side.name); err != nil {
			return nil, err
		}
	}
	vectors, err := floatsAt(memory.vectors, memory.n_vectors, "vectors")
	if err != nil {
		return nil, err
	}
	risk, err := floatsAt(memory.risk, memory.n_risk, "risk")
	if err != nil {
		return nil, err
	}
	return score.Bind(p.Plan, slabs, n, rows, vectors, risk)
}

// countMax bounds the words or floats of one array.
const countMax = 1 << 40

// wordsAt is n words of the caller's memory.
func wordsAt(start *C.int64_t, n C.int64_t, what string) ([]int64, error) {
	if err := checkArray(unsafe.Pointer(start), int64(n), 8, what); err != nil {
		return nil, err
	}
	return unsafe.Slice((*int64)(unsafe.Pointer(start)), int(n)), nil
}

// floatsAt is n floats of the caller's memory.
func floatsAt(start *C.float, n C.int64_t, what string) ([]float32, error) {
	if err := checkArray(unsafe.Pointer(start), int64(n), 4, what); err != nil {
		return nil, err
	}
	return unsafe.Slice((*float32)(start), int(n)), nil
}

func checkArray(start unsafe.Pointer, n, width int64, what string) error {
	switch {
	case start == nil:
		return fmt.Errorf("%s: %w", what, errNull)
	case int64(uintptr(start))%width != 0:
		return fmt.Errorf("%w: %s: its address is no multiple of %d", errArgument, what, width)
	case n < 0 || n > countMax:
		return fmt.Errorf("%w: %s: %d elements, not 0 to %d", errArgument, what, n, int64(countMax))
	}
	return nil
}

//export weir_unbind
func weir_unbind(handle C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		b, err := arenas.get(uint64(handle))
		if err != nil {
			return err
		}
		if !b.arena.Claim() { // never given back: who found the arena a moment ago is refused from here on
			return fmt.Errorf("a call works on it: %w", score.ErrBusy)
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
		fd, err := unix.FcntlInt(uintptr(eventFD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%w: event descriptor %d: %w", errArgument, int32(eventFD), err)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.job.state != idle || !b.arena.Claim() {
			_ = unix.Close(fd) // it was made here, and nothing was written
			return fmt.Errorf("a call works on it, or a submitted one was not collected: %w", score.ErrBusy)
		}
		b.job = job{state: running}
		if err := hand(submission{b, m, int(first), int(n), score.Flags(flags), fd}); err != nil {
			_ = unix.Close(fd)
			b.job = job{}
			b.arena.Release()
			return err
		}
		return nil
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

//export weir_undo
func weir_undo(arena C.uint64_t, lsn C.int64_t) (status C.int32_t) {
	defer recoverTo(&status)
	b, err := arenas.get(uint64(arena))
	if err == nil {
		err = b.arena.TakeBack(int64(lsn))
	}
	return statusOf(err)
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
