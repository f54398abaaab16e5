// Package score runs a micro-batch: advance the profiles in row order, build the vectors, ask the model.
//
// An Arena is the memory that a caller and this package share: slabs, rows of events in, vectors and risk out. It is bound
// once; a call names a range of rows. Input is checked as a whole before anything changes, so a call that is refused has
// changed nothing. One call at a time: a second one on the same arena is refused while the first runs. No allocation.
package score

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"weir/gocore/internal/advance"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/vector"
)

// ErrArena is wrapped when memory cannot be an arena.
var ErrArena = errors.New("not usable as an arena")

// ErrRows is wrapped when a range of rows, or what stands in one, cannot be scored. Nothing was changed.
var ErrRows = errors.New("rows that cannot be scored")

// ErrBusy is returned while another call works on the arena.
var ErrBusy = errors.New("the arena is in use by another call")

// RowsMax bounds the rows of an arena.
const RowsMax = 1 << 20

// Rows are the events of an arena as strided int64 words: row r of LSNs stands at r*stride, and so on. Strides count words.
type Rows struct {
	LSNs, Slots, Columns                []int64
	LSNStride, SlotStride, ColumnStride int
}

// Arena is bound memory. Vectors is (rows, features) and Risk (rows,), filled by Run.
type Arena struct {
	Plan    *plan.Plan
	Slabs   []*profile.Slab
	Rows    int
	Vectors []float32
	Risk    []float32

	rows    Rows
	lanes   []lane
	clock   *advance.Clock
	builder *vector.Builder
	raw     []int64 // the raw input of chunkRows rows
	busy    atomic.Bool
	memory  []byte // that New mapped; nil for Bind's
	// For dry runs: a copy of one profile, and late events of it, which nobody counts.
	scratch, uncounted []int64
	// Of the last run with Undo: LSN of its first row, profiles before they changed, where each ends, counters of late events.
	undoLSN  int64
	undo     []int64
	undoEnds []int
	undoLate []int64
}

// New makes an arena for rowsMax rows over slabs, one per kind, in memory of its own that no garbage collector moves.
func New(p *plan.Plan, slabs []*profile.Slab, rowsMax int) (*Arena, error) {
	if rowsMax < 1 || rowsMax > RowsMax {
		return nil, fmt.Errorf("%w: %d rows, not 1 to %d", ErrArena, rowsMax, RowsMax)
	}
	width, nFeatures := 1+len(p.Kinds)+plan.Columns, len(p.Features)
	memory, err := unix.Mmap(-1, 0, rowsMax*(width*8+(nFeatures+1)*4), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("%w: memory for %d rows: %w", ErrArena, rowsMax, err)
	}
	inputs := unsafe.Slice((*int64)(unsafe.Pointer(&memory[0])), rowsMax*width)
	outputs := unsafe.Slice((*float32)(unsafe.Pointer(&memory[rowsMax*width*8])), rowsMax*(nFeatures+1))
	rows := Rows{
		LSNs: inputs, Slots: inputs[1:], Columns: inputs[1+len(p.Kinds):],
		LSNStride: width, SlotStride: width, ColumnStride: width,
	}
	arena, err := Bind(p, slabs, rowsMax, rows, outputs[:rowsMax*nFeatures], outputs[rowsMax*nFeatures:])
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(memory))
	}
	arena.memory = memory
	return arena, nil
}

// Close frees the memory of an arena that New made; nobody may hold slices of it. Slabs stay.
func (a *Arena) Close() error {
	memory := a.memory
	a.memory, a.Rows, a.rows, a.Vectors, a.Risk = nil, 0, Rows{}, nil, nil
	if memory == nil {
		return nil
	}
	return unix.Munmap(memory)
}

// Bind makes an arena of memory that the caller owns and keeps until the arena is dropped. All errors wrap ErrArena.
func Bind(p *plan.Plan, slabs []*profile.Slab, n int, rows Rows, vectors, risk []float32) (*Arena, error) {
	switch {
	case n < 1 || n > RowsMax:
		return nil, fmt.Errorf("%w: %d rows, not 1 to %d", ErrArena, n, RowsMax)
	case len(slabs) != len(p.Kinds):
		return nil, fmt.Errorf("%w: %d slabs, the plan has %d kinds", ErrArena, len(slabs), len(p.Kinds))
	case len(vectors) < n*len(p.Features) || len(risk) < n:
		return nil, fmt.Errorf("%w: %d floats for vectors and %d for risk, %d rows need %d and %d", ErrArena, len(vectors), len(risk), n, n*len(p.Features), n)
	}
	for _, side := range []struct {
		name   string
		words  []int64
		stride int
		width  int
	}{
		{"lsns", rows.LSNs, rows.LSNStride, 1},
		{"slots", rows.Slots, rows.SlotStride, len(p.Kinds)},
		{"columns", rows.Columns, rows.ColumnStride, plan.Columns},
	} {
		if side.stride < side.width || side.stride > 1<<16 {
			return nil, fmt.Errorf("%w: %s: a stride of %d words, not %d to %d", ErrArena, side.name, side.stride, side.width, 1<<16)
		}
		if need := (n-1)*side.stride + side.width; len(side.words) < need {
			return nil, fmt.Errorf("%w: %s: %d words, %d rows need %d", ErrArena, side.name, len(side.words), n, need)
		}
	}
	longest, lanes := 0, make([]lane, 0, len(slabs))
	for i := range slabs {
		if slabs[i].Kind != &p.Kinds[i] {
			return nil, fmt.Errorf("%w: slab %d is not of kind %s of this plan", ErrArena, i, p.Kinds[i].Name)
		}
		longest = max(longest, p.Kinds[i].Words())
		lanes = append(lanes, newLane(slabs[i]))
	}
	return &Arena{
		Plan: p, Slabs: slabs, Rows: n, Vectors: vectors, Risk: risk,
		rows: rows, lanes: lanes, clock: advance.NewClock(p), builder: vector.NewBuilder(p),
		raw: make([]int64, chunkRows*p.RawWords), scratch: make([]int64, longest), uncounted: make([]int64, p.Rings),
	}, nil
}

// Put writes one row: its LSN, a slot per kind (-1: the entity is absent) and the event's columns.
func (a *Arena) Put(row int, lsn int64, slots []int, columns *[plan.Columns]int64) {
	a.rows.LSNs[row*a.rows.LSNStride] = lsn
	at := row * a.rows.SlotStride
	for kind, slot := range slots {
		a.rows.Slots[at+kind] = int64(slot)
	}
	copy(a.rows.Columns[row*a.rows.ColumnStride:], columns[:])
}

// Fill writes the first n rows, with the LSNs from first on: slots (n, kinds), columns (n, plan.Columns). Only for who has claimed the
// arena, and n is at most its Rows.
func (a *Arena) Fill(first int64, n int, slots, columns []int64) {
	kinds := len(a.lanes)
	for row := range n {
		a.rows.LSNs[row*a.rows.LSNStride] = first + int64(row)
		copy(a.slots(row), slots[row*kinds:(row+1)*kinds])
		*a.columns(row) = *(*[plan.Columns]int64)(columns[row*plan.Columns:])
	}
}

func (a *Arena) columns(row int) *[plan.Columns]int64 {
	at := row * a.rows.ColumnStride
	return (*[plan.Columns]int64)(a.rows.Columns[at : at+plan.Columns])
}

func (a *Arena) lsn(row int) int64 { return a.rows.LSNs[row*a.rows.LSNStride] }

func (a *Arena) slots(row int) []int64 {
	at := row * a.rows.SlotStride
	return a.rows.Slots[at : at+len(a.lanes)]
}
