package writebehind

import (
	"sync/atomic"
	"time"
)

// What a level's state says of a key; a key without any is not lacked.
const (
	queued = 1 << iota // in a queue, with bytes that the level was not sent
	flying             // being written now
	stuck              // partial, or nowhere to be had, when it was its turn
)

// entry is one profile that changed: its entity, and the LSN of the first change that was not written.
type entry struct {
	kind, slot int32 // slot: of a mark
	id         string
	key        string // of an entry in a backlog
	lsn        uint64
}

// fifo is a queue of entries.
type fifo []entry

func (f *fifo) push(e entry) { *f = append(*f, e) }

// drop takes n entries out; their memory is given back when the queue is next moved to grow.
func (f *fifo) drop(n int) {
	clear((*f)[:n])
	*f = (*f)[n:]
}

// level is one tier and its backlog: what it lacks. Fields that are not atomic belong to the goroutine that owns L1.
//
// A key stands in the queue once as long as it is not being written; what changes while it is, is queued again. If the
// write fails, the flight's entries are simply not dropped from the queue, so the order and with it the position hold.
type level struct {
	Level
	queue    fifo   // in order of LSN
	old      fifo   // what catch-ups found, beside what is new
	oldMin   uint64 // no entry of old has a lower LSN
	state    map[string]uint8
	stuck    map[string]entry
	stuckMin uint64 // no stuck entry has a lower LSN
	flight   []entry
	unstuck  int       // entries of stuck that belong to the flight
	taken    [2]int    // entries of old and queue that belong to the flight
	probeAt  time.Time // of the level's own goroutine

	isDown   atomic.Bool
	reason   atomic.Pointer[string]
	nDirty   atomic.Int64
	nWritten atomic.Int64
	stored   atomic.Uint64 // the level's position
}

func newLevel(l Level) *level {
	made := &level{Level: l, state: map[string]uint8{}, stuck: map[string]entry{}}
	made.stored.Store(l.Position)
	if !l.IsKnown {
		made.fail("not asked yet")
	}
	return made
}

// fail marks the level as down; it is neither read nor written until a probe has been answered.
func (l *level) fail(reason string) {
	l.reason.Store(&reason)
	l.isDown.Store(true)
}

func (l *level) lacks(key string) bool { return l.state[key] != 0 }

// add queues a change; an earlier one that was not written stays the first.
func (l *level) add(e entry) {
	if state := l.state[e.key]; state&queued == 0 {
		l.state[e.key] = state | queued
		l.queue.push(e)
	}
}

// beginOld says that a catch-up from position on will add to old.
func (l *level) beginOld(position uint64) {
	if len(l.old) == 0 || position < l.oldMin {
		l.oldMin = position + 1
	}
}

// addOld queues what a catch-up found, also if a later change is queued.
func (l *level) addOld(e entry) {
	l.state[e.key] |= queued
	l.old.push(e)
}

// take begins a flight of up to n entries, the oldest first, and of those that were stuck and isReady calls ready now.
func (l *level) take(n int, isReady func(e entry) bool) []entry {
	tried := 0
	for key, e := range l.stuck { // in random order, so that each gets its turn
		if tried++; tried > stuckTriesMax || len(l.flight) == n {
			break
		}
		if l.state[key]&queued == 0 && isReady(e) {
			l.state[key] |= flying
			l.flight = append(l.flight, e)
			l.unstuck++
		}
	}
	for i, from := range []*fifo{&l.old, &l.queue} {
		for _, e := range *from {
			if len(l.flight) == n {
				break
			}
			l.taken[i]++
			if state := l.state[e.key]; state&queued != 0 { // else its bytes go, or went, with an earlier entry
				l.state[e.key] = state&^queued | flying
				l.flight = append(l.flight, e)
			}
		}
	}
	return l.flight
}

// position is what the level will have stored once the flight is written: everything up to lastLSN is in the backlog or in marks.
func (l *level) position(lastLSN uint64, marks fifo) uint64 {
	lowest := lastLSN + 1
	if len(marks) > 0 {
		lowest = min(lowest, marks[0].lsn)
	}
	if len(l.old) > l.taken[0] {
		lowest = min(lowest, l.oldMin)
	}
	if rest := l.queue[l.taken[1]:]; len(rest) > 0 {
		lowest = min(lowest, rest[0].lsn)
	}
	if len(l.stuck) > l.unstuck {
		lowest = min(lowest, l.stuckMin)
	}
	return lowest - 1
}

// land ends the flight: written, but for those that missing names, which get stuck.
func (l *level) land(missing map[string]bool) {
	l.old.drop(l.taken[0])
	l.queue.drop(l.taken[1])
	for _, e := range l.flight {
		state := l.state[e.key] &^ flying
		if missing[e.key] {
			state |= stuck
			if len(l.stuck) == 0 {
				l.stuckMin = e.lsn
			}
			l.stuckMin = min(l.stuckMin, e.lsn)
			if before, ok := l.stuck[e.key]; !ok || e.lsn < before.lsn {
				l.stuck[e.key] = e
			}
		} else {
			state &^= stuck
			delete(l.stuck, e.key)
		}
		l.set(e.key, state)
	}
	l.flight, l.taken, l.unstuck = l.flight[:0], [2]int{}, 0
	l.nDirty.Store(int64(len(l.state)))
}

// giveBack ends the flight: nothing of it counts as written.
func (l *level) giveBack() {
	for _, e := range l.flight {
		state := l.state[e.key] &^ flying
		if state&stuck == 0 || l.stuck[e.key].lsn != e.lsn {
			state |= queued
		}
		l.set(e.key, state)
	}
	l.flight, l.taken, l.unstuck = l.flight[:0], [2]int{}, 0
	l.nDirty.Store(int64(len(l.state)))
}

func (l *level) set(key string, state uint8) {
	if state == 0 {
		delete(l.state, key)
		return
	}
	l.state[key] = state
}
