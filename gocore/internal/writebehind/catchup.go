package writebehind

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

const probeInterval = time.Second // between two attempts to reach a level that is down

// probe asks a level that is down whether it is there again. Then everything since its position is written again.
func (w *WriteBehind) probe(ctx context.Context, l *level) {
	if time.Now().Before(l.probeAt) {
		return
	}
	l.probeAt = time.Now().Add(w.pause)
	position, err := l.Tier.Position(ctx)
	if err != nil {
		return
	}
	if last := w.LastLSN(); position > last {
		// Its profiles would ignore our entries, which have lower LSNs. A start with the store there begins above it.
		l.complain(fmt.Sprintf("it knows LSN %d, the journal ends at %d; restart with it reachable", position, last))
		return
	}
	if !l.IsLocal {
		if expected := l.stored.Load(); position < expected {
			slog.Warn("level went back", "level", l.Tier.Name(), "position", position, "expected", expected)
		}
		// Also if its position is the expected one: profiles above it were written, and it may have lost those.
		l.stored.Store(position)
		if err := w.catchUp(ctx, l, position); err != nil {
			l.complain(fmt.Sprintf("it cannot be caught up from LSN %d: %v", position, err))
			return
		}
	}
	l.isDown.Store(false)
	slog.Info("level is back", "level", l.Tier.Name(), "dirty", l.nDirty.Load())
}

// complain says why a level that answers stays down, once.
func (l *level) complain(reason string) {
	if before := l.reason.Load(); before == nil || *before != reason {
		l.reason.Store(&reason)
		slog.Error("level stays down", "level", l.Tier.Name(), "problem", reason)
	}
}

// catchUp queues every profile that changed above position.
func (w *WriteBehind) catchUp(ctx context.Context, l *level, position uint64) error {
	kinds := map[string]int32{}
	for i := range w.Plan.Kinds {
		kinds[w.Plan.Kinds[i].Name] = int32(i)
	}
	seen := map[string]struct{}{}
	var found []entry
	err := w.Changed(ctx, position, func(key []byte, lsn uint64) {
		if _, ok := seen[string(key)]; ok {
			return
		}
		e := entry{key: string(key), lsn: lsn}
		kind, id, _ := strings.Cut(e.key, ":")
		e.kind, e.id = kinds[kind], id
		seen[e.key] = struct{}{}
		found = append(found, e)
	})
	if err != nil {
		return err
	}
	w.OnLoop(func() { l.beginOld(position) })
	for len(found) > 0 {
		n := min(len(found), marksMax)
		w.OnLoop(func() {
			for _, e := range found[:n] {
				l.addOld(e)
			}
			l.nDirty.Store(int64(len(l.state)))
		})
		found = found[n:]
	}
	return nil
}
