package score

import (
	"fmt"

	"weir/gocore/internal/plan"
)

// A run with Undo notes what stands in each profile before it changes, so that the whole run can be taken back. Of a profile whose
// rings do not move that is its header, about four cache lines which the event needs anyway; of any other one, all of it.

// undoHead is what stands before the words of a profile in the log: kind, slot, number of words.
const undoHead = 3

// note appends to the log what row's event is about to change.
func (a *Arena) note(l *lane, slot int, p []int64, ts int64) {
	n := l.kind.HeaderWords
	if last := p[plan.WLastSeen]; p[plan.WVersion]&0xFF != 0 && (ts < last || a.clock.Moves(l.kind, last)) {
		n = l.n
	}
	a.undo = append(a.undo, int64(l.kind.Number), int64(slot), int64(n))
	a.undo = append(a.undo, p[:n]...)
	a.undoEnds = append(a.undoEnds, len(a.undo))
}

// beginUndo forgets the run before, and notes by which LSN this one begins and the counters of late events.
func (a *Arena) beginUndo(first int) {
	a.undoLSN = 0
	if first >= 0 && first < a.Rows {
		a.undoLSN = a.lsn(first)
	}
	a.undo, a.undoEnds, a.undoLate = a.undo[:0], a.undoEnds[:0], a.undoLate[:0]
	for _, slab := range a.Slabs {
		a.undoLate = append(a.undoLate, slab.LateDropped...)
	}
}

// TakeBack restores what the last run with Undo has changed, however far it came, if lsn is that of its first row; once, then there
// is nothing to take back. ErrBusy while another call works on the arena. The caller makes sure that nobody has changed those
// profiles since.
func (a *Arena) TakeBack(lsn int64) error {
	if !a.Claim() {
		return fmt.Errorf("a call works on it: %w", ErrBusy)
	}
	defer a.Release()
	if lsn != a.undoLSN {
		return nil
	}
	for i := len(a.undoEnds) - 1; i >= 0; i-- { // the last first: a profile that came twice ends as it was at first
		start := 0
		if i > 0 {
			start = a.undoEnds[i-1]
		}
		entry := a.undo[start:a.undoEnds[i]]
		copy(a.Slabs[entry[0]].Words(int(entry[1])), entry[undoHead:])
	}
	late := a.undoLate
	for _, slab := range a.Slabs {
		if len(late) > 0 {
			late = late[copy(slab.LateDropped, late):]
		}
	}
	a.undoLSN = 0
	return nil
}
