package writebehind

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"weir/gocore/internal/profile"
	"weir/gocore/internal/tiers"
)

const (
	marksMax      = 512 // marks handed to backlogs in one piece: 0.2 ms with three levels
	stuckTriesMax = 100 // stuck entries looked at per write
	sweepMax      = 100 // waiting profiles looked at per write
)

// shipment is one write to one level.
type shipment struct {
	profiles  []tiers.Profile
	elsewhere [][][]byte // by level: keys whose bytes that level has to be asked for
	entries   []entry
	position  uint64 // once everything is written
	lastLSN   uint64 // has to be durable before
	stored    uint64
}

// write sends one batch to one level, and the position that is true once it is there. It gives the number of profiles.
func (w *WriteBehind) write(ctx context.Context, l *level) (int, error) {
	w.spread()
	var s shipment
	w.OnLoop(func() { s = w.load(l) })
	w.fetch(ctx, l, &s)
	missing := s.missing()
	for _, e := range s.entries {
		if missing[e.key] {
			s.position = min(s.position, e.lsn-1)
		}
	}
	if len(s.profiles) > 0 || s.position > s.stored {
		err := w.SyncTo(s.lastLSN)
		if err == nil {
			err = l.Tier.Put(ctx, s.profiles, s.position)
		}
		if err != nil {
			w.OnLoop(func() {
				l.giveBack()
				if errors.Is(err, tiers.ErrUnavailable) {
					l.fail(err.Error())
					l.probeAt = time.Now().Add(w.pause)
				}
			})
			return 0, err
		}
		l.stored.Store(max(l.stored.Load(), s.position))
	}
	w.OnLoop(func() {
		l.land(missing)
		w.forget(s.profiles)
	})
	l.nWritten.Add(int64(len(s.profiles)))
	return len(s.profiles), nil
}

// spread hands marks to every backlog, in pieces, until none is left that was there before.
func (w *WriteBehind) spread() {
	for isMore := true; isMore; {
		w.OnLoop(func() {
			part := w.marks[:min(len(w.marks), marksMax)]
			number := w.nMarks - uint64(len(w.marks)) // of the mark before part[0]
			for i, e := range part {
				if at := &w.marked[e.kind][e.slot]; *at == number+uint64(i)+1 {
					*at = 0
				}
				e.key = string(tiers.EntityKey(w.Plan.Kinds[e.kind].Name, e.id))
				e.id = e.key[len(e.key)-len(e.id):] // the mark's id may be a part of a whole request: do not keep that
				for _, l := range w.levels {
					l.add(e)
				}
				if n := w.evicted[e.key]; n > 1 {
					w.evicted[e.key] = n - 1
				} else if n == 1 {
					delete(w.evicted, e.key)
				}
			}
			isMore = len(part) == marksMax
			w.marks.drop(len(part))
		})
	}
}

// load begins a flight of l and copies the bytes that are in RAM. Loop only.
func (w *WriteBehind) load(l *level) shipment {
	entries := l.take(w.BatchMax, func(e entry) bool { return w.isReady(l, e) })
	s := shipment{
		entries: entries, elsewhere: make([][][]byte, len(w.levels)),
		lastLSN: w.LastLSN(), stored: l.stored.Load(),
	}
	s.position = l.position(s.lastLSN, w.marks)
	size := 0
	for _, e := range entries {
		size += w.Plan.Kinds[e.kind].Size
	}
	buffer := make([]byte, 0, size)
	for _, e := range entries {
		b := w.inRAM(e)
		switch {
		case b == nil:
			if from := w.holder(l, e.key); from >= 0 {
				s.elsewhere[from] = append(s.elsewhere[from], []byte(e.key))
			}
		case !profile.IsPartial(b):
			start := len(buffer)
			buffer = append(buffer, b...)
			s.profiles = append(s.profiles, tiers.Profile{Key: []byte(e.key), Bytes: buffer[start:len(buffer):len(buffer)]})
		}
	}
	return s
}

// isReady reports whether bytes for an entry that was stuck may be had now. Loop only.
func (w *WriteBehind) isReady(l *level, e entry) bool {
	if b := w.inRAM(e); b != nil {
		return !profile.IsPartial(b)
	}
	return w.holder(l, e.key) >= 0
}

// inRAM is the newest bytes of an entry's profile in L1 or waiting, or nil. Loop only.
func (w *WriteBehind) inRAM(e entry) []byte {
	if b := w.L1.Peek(int(e.kind), e.id); b != nil {
		return b
	}
	return w.waiting[e.key]
}

// holder is the number of the first level other than l that has the newest bytes of key, or -1. Loop only.
func (w *WriteBehind) holder(l *level, key string) int {
	for i, other := range w.levels {
		if other != l && !other.isDown.Load() && !other.lacks(key) {
			return i
		}
	}
	return -1
}

// fetch asks other levels for profiles that left L1 once those had them.
func (w *WriteBehind) fetch(ctx context.Context, l *level, s *shipment) {
	for i, keys := range s.elsewhere {
		if len(keys) == 0 {
			continue
		}
		found, err := w.levels[i].Tier.Fill(ctx, keys)
		if err != nil { // that level's own write will find it down
			from := w.levels[i].Tier.Name()
			slog.Warn("profiles could not be read for another level", "from", from, "to", l.Tier.Name(), "problem", err)
			continue
		}
		for j, b := range found {
			if b != nil {
				s.profiles = append(s.profiles, tiers.Profile{Key: keys[j], Bytes: b})
			}
		}
	}
}

// missing are the keys of the flight without bytes: partial ones, and those that no level has. After a restart the
// journal brings them back, because the position stays below them.
func (s *shipment) missing() map[string]bool {
	if len(s.profiles) == len(s.entries) {
		return nil
	}
	has := make(map[string]bool, len(s.profiles))
	for _, p := range s.profiles {
		has[string(p.Key)] = true
	}
	missing := map[string]bool{}
	for _, e := range s.entries {
		if !has[e.key] {
			missing[e.key] = true
		}
	}
	return missing
}

// forget lets go of bytes that a readable level has: of those just written, and of some others. Loop only.
func (w *WriteBehind) forget(written []tiers.Profile) {
	if len(w.waiting) == 0 {
		return
	}
	for _, p := range written {
		w.forgetOne(string(p.Key))
	}
	tried := 0
	for key := range w.waiting { // what was evicted while a level was down, and that level had already
		if tried++; tried > sweepMax {
			break
		}
		w.forgetOne(key)
	}
}

func (w *WriteBehind) forgetOne(key string) {
	if b := w.waiting[key]; b != nil && !profile.IsPartial(b) && !w.mustWait(key) {
		delete(w.waiting, key)
	}
}
