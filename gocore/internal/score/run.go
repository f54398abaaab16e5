package score

import (
	"errors"
	"fmt"
	"unsafe"

	"weir/gocore/internal/advance"
	"weir/gocore/internal/ort"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/prefetch"
	"weir/gocore/internal/profile"
)

// Flags say what a run does.
type Flags uint32

// A run builds vectors only with Vectors or Risk, changes profiles only with Advance. Dry instead of Advance scores each row
// as if it were the next event, and changes nothing. With Undo, TakeBack can undo what the run has changed.
const (
	Advance Flags = 1 << iota
	Dry
	Vectors
	Risk
	Undo
	allFlags = Advance | Dry | Vectors | Risk | Undo
)

const (
	chunkRows = 32 // rows whose raw input is held at once: 27 KiB with `cards`, about the nearest cache; 16 to 64 differ by 5 %

	// Rows ahead of which headers are asked for. Memory answers in about 100 ns, a row takes 300: three would do on a quiet
	// machine (docs/results/scorers.md).
	aheadRows = 6

	tsMax     = 1 << 62
	amountMax = 1<<37 - 1 // base minor units; its square still fits the two words of a ring
)

// Claim takes the arena for one call; false while another has it. Who has it calls RunClaimed and then Release, or keeps it for
// ever, which ends the arena's use.
func (a *Arena) Claim() bool { return a.busy.CompareAndSwap(false, true) }

// Release gives a claimed arena back.
func (a *Arena) Release() { a.busy.Store(false) }

// Run is RunClaimed on an arena that is free; ErrBusy if it is not.
func (a *Arena) Run(model *ort.Model, first, n int, flags Flags) error {
	if !a.Claim() {
		return ErrBusy
	}
	defer a.Release()
	return a.RunClaimed(model, first, n, flags)
}

// RunClaimed works on rows [first, first+n) in order; an entity that comes twice sees itself. model is needed for Risk only.
// Errors wrap ErrRows before anything has changed; ort.ErrModel once profiles are advanced.
func (a *Arena) RunClaimed(model *ort.Model, first, n int, flags Flags) error {
	if flags&Undo != 0 {
		a.beginUndo(first)
	}
	if err := a.check(model, first, n, flags); err != nil {
		return err
	}
	for row := first; row < min(first+aheadRows, first+n); row++ {
		a.ask(row)
	}
	width := len(a.Plan.Features)
	for start := first; start < first+n; start += chunkRows {
		rows := min(chunkRows, first+n-start)
		raw := a.raw[:rows*a.Plan.RawWords]
		a.observe(start, rows, first+n, raw, flags)
		if flags&(Vectors|Risk) != 0 {
			a.builder.Build(raw, a.Vectors[start*width:])
		}
	}
	if flags&Risk == 0 {
		return nil
	}
	err := model.Score(a.Vectors[first*width:], a.Risk[first:], n)
	if errors.Is(err, ort.ErrClosed) { // meanwhile; a handle that was closed before is refused before anything changes
		return fmt.Errorf("%w: it was closed during the call", ort.ErrModel)
	}
	return err
}

// lane is what a row needs of one kind, laid out for the loop.
type lane struct {
	kind     *plan.Kind
	words    []int64 // the slab
	n        int     // words of a profile
	lines    int     // cache lines of its header
	from, to int     // its observation in the raw input
	late     []int64
}

func newLane(slab *profile.Slab) lane {
	kind := slab.Kind
	return lane{kind, slab.All(), kind.Words(), kind.HeaderWords / 8, kind.RawStart, kind.RawStart + kind.Observed(), slab.LateDropped}
}

// observe advances the profiles of rows [start, start+n) and fills raw, one raw input per row. end is the run's last row + 1.
func (a *Arena) observe(start, n, end int, raw []int64, flags Flags) {
	for row := start; row < start+n; row++ {
		if ahead := row + aheadRows; ahead < end {
			a.ask(ahead)
		}
		columns, slots := a.columns(row), a.slots(row)
		event := a.clock.At(columns, a.lsn(row))
		r := raw[(row-start)*a.Plan.RawWords:]
		*(*[plan.Columns]int64)(r) = *columns
		for k := range a.lanes {
			l := &a.lanes[k]
			observed := r[l.from:l.to]
			slot := int(slots[k])
			if slot < 0 {
				clear(observed)
				continue
			}
			p := l.words[slot*l.n : (slot+1)*l.n]
			if flags&Dry != 0 {
				a.dry(l, p, event, observed)
			} else {
				if flags&Undo != 0 {
					a.note(l, slot, p, columns[plan.TS])
				}
				advance.Apply(l.kind, p, event, observed, l.late)
			}
		}
	}
}

// dry observes what the event would do to p, on a copy.
func (a *Arena) dry(l *lane, p []int64, event *advance.Event, observed []int64) {
	copied, lsn := a.scratch[:l.n], event.LSN
	copy(copied, p)
	event.LSN = copied[plan.WLSN] + 1 // above what the profile has
	advance.Apply(l.kind, copied, event, observed, a.uncounted[:len(l.late)])
	event.LSN = lsn
}

// ask has the headers of a row's profiles on their way to the cache.
func (a *Arena) ask(row int) {
	slots := a.slots(row)
	for k := range a.lanes {
		l := &a.lanes[k]
		if slot := int(slots[k]); slot >= 0 {
			prefetch.Lines(unsafe.Pointer(&l.words[slot*l.n]), l.lines)
		}
	}
}

// check refuses what cannot be scored, before anything changes.
func (a *Arena) check(model *ort.Model, first, n int, flags Flags) error {
	switch {
	case n < 1 || first < 0 || first > a.Rows-n:
		return fmt.Errorf("%w: %d rows from row %d on, of an arena of %d", ErrRows, n, first, a.Rows)
	case flags&^allFlags != 0 || flags&(Advance|Dry) == 0 || flags&(Advance|Dry) == Advance|Dry:
		return fmt.Errorf("%w: flags %#x: either advance or dry, and no others than %#x", ErrRows, flags, allFlags)
	case flags&Risk != 0 && model == nil:
		return fmt.Errorf("%w: risk is wanted, and no model given", ErrRows)
	case flags&Risk != 0 && model.Features() != len(a.Plan.Features):
		return fmt.Errorf("%w: the model takes %d features, the plan gives %d", ErrRows, model.Features(), len(a.Plan.Features))
	}
	for row := first; row < first+n; row++ {
		if err := a.checkRow(row); err != nil {
			return err
		}
	}
	return nil
}

func (a *Arena) checkRow(row int) error {
	columns := a.columns(row)
	if ts := columns[plan.TS]; ts < 0 || ts > tsMax {
		return fmt.Errorf("%w: row %d: ts %d is not within 0 to 2^62", ErrRows, row, ts)
	}
	if amount := columns[plan.Amount]; amount < 0 || amount > amountMax {
		return fmt.Errorf("%w: row %d: amount %d is not within 0 to %d", ErrRows, row, amount, int64(amountMax))
	}
	if lsn := a.lsn(row); lsn < 1 {
		return fmt.Errorf("%w: row %d: lsn %d is below 1", ErrRows, row, lsn)
	}
	slots := a.slots(row)
	for k, slab := range a.Slabs {
		if slot := slots[k]; slot < -1 || slot >= int64(slab.Capacity) {
			return fmt.Errorf("%w: row %d: slot %d of kind %s, whose slab has %d", ErrRows, row, slot, slab.Kind.Name, slab.Capacity)
		}
	}
	return nil
}

// Label adds delta frauds to the profile in slot: see advance.Label. It reports whether anything changed.
func (a *Arena) Label(kind, slot int, ts, delta, lsn int64) (bool, error) {
	if !a.Claim() {
		return false, ErrBusy
	}
	defer a.Release()
	switch {
	case kind < 0 || kind >= len(a.Slabs):
		return false, fmt.Errorf("%w: kind %d, the plan has %d", ErrRows, kind, len(a.Slabs))
	case slot < 0 || slot >= a.Slabs[kind].Capacity:
		return false, fmt.Errorf("%w: slot %d of kind %s, whose slab has %d", ErrRows, slot, a.Plan.Kinds[kind].Name, a.Slabs[kind].Capacity)
	case ts < 0 || ts > tsMax:
		return false, fmt.Errorf("%w: ts %d is not within 0 to 2^62", ErrRows, ts)
	case delta != 1 && delta != -1:
		return false, fmt.Errorf("%w: a label adds 1 or -1 frauds, not %d", ErrRows, delta)
	case lsn < 1:
		return false, fmt.Errorf("%w: lsn %d is below 1", ErrRows, lsn)
	}
	slab := a.Slabs[kind]
	return advance.Label(slab.Kind, slab.Words(slot), ts, delta, lsn, slab.LateDropped), nil
}
