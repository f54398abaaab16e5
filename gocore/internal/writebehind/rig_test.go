package writebehind

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/gocore/internal/l1"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/tiers"
)

var errDown = tiers.Unavailable("memory", errors.New("switched off"))

// memory is a tier whose failures are switched.
type memory struct {
	mu       sync.Mutex
	name     string
	profiles map[string][]byte
	position uint64
	isOff    bool
	isOther  bool // until its position is read
	puts     int

	saved         map[string][]byte
	savedPosition uint64
}

func newMemory(name string) *memory {
	return &memory{name: name, profiles: map[string][]byte{}, saved: map[string][]byte{}}
}

func (m *memory) Name() string { return m.name }

func (m *memory) Fill(_ context.Context, keys [][]byte) ([][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isOff || m.isOther {
		return nil, errDown
	}
	found := make([][]byte, len(keys))
	for i, key := range keys {
		found[i] = m.profiles[string(key)]
	}
	return found, nil
}

func (m *memory) Put(_ context.Context, profiles []tiers.Profile, position uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isOff || m.isOther {
		return errDown
	}
	m.puts++
	for _, p := range profiles {
		if old := m.profiles[string(p.Key)]; old == nil || profile.LSN(old) < p.LSN() {
			m.profiles[string(p.Key)] = bytes.Clone(p.Bytes)
		}
	}
	m.position = max(m.position, position)
	return nil
}

func (m *memory) Position(context.Context) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isOff {
		return 0, errDown
	}
	m.isOther = false
	return m.position, nil
}

// save makes what is there now what goBack restores.
func (m *memory) save() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saved, m.savedPosition = maps.Clone(m.profiles), m.position
}

// goBack makes it the store that it was when it was saved.
func (m *memory) goBack() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.profiles, m.position, m.isOther = maps.Clone(m.saved), m.savedPosition, true
}

func (m *memory) switchOff(isOff bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.isOff = isOff
}

// lsn is that of the stored profile, 0 without one.
func (m *memory) lsn(key string) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.profiles[key]; b != nil {
		return profile.LSN(b)
	}
	return 0
}

// rig is a write-behind whose loop is the test's own goroutine, and a journal that is a list of keys.
type rig struct {
	*WriteBehind
	t       testing.TB
	plan    *plan.Plan
	l1      *l1.L1
	loop    sync.Mutex // held while somebody is the loop
	last    atomic.Uint64
	durable atomic.Uint64
	journal []string // key by LSN - 1; under loop
	syncErr error
}

func newRig(t testing.TB, cards int, levels ...Level) *rig {
	t.Helper()
	r := &rig{t: t, plan: plantest.Load(t, "cards")}
	var err error
	r.l1, err = l1.New(r.plan, int64(cards*r.plan.Kinds[0].Size), 4, func(kind int, id string, slot int) {
		r.OnEvict(kind, id, slot)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.stop()
		r.running.Wait()
		for _, slab := range r.l1.Slabs() {
			_ = slab.Close()
		}
	})
	r.WriteBehind = New(Config{
		Plan: r.plan, L1: r.l1, Levels: levels, Interval: time.Millisecond, BatchMax: 10, ProfilesMax: 40,
		OnLoop:  r.onLoop,
		LastLSN: r.last.Load,
		SyncTo: func(lsn uint64) error {
			if r.syncErr == nil {
				r.durable.Store(max(r.durable.Load(), lsn))
			}
			return r.syncErr
		},
		Changed: func(_ context.Context, after uint64, mark func([]byte, uint64)) error {
			var keys []string
			r.onLoop(func() { keys = r.journal })
			for i := after; i < uint64(len(keys)); i++ {
				mark([]byte(keys[i]), i+1)
			}
			return nil
		},
	})
	return r
}

func (r *rig) onLoop(call func()) {
	r.loop.Lock()
	defer r.loop.Unlock()
	call()
}

// touch is a transaction of one card: its profile is found, wherever it is, and takes the next LSN. Loop only.
func (r *rig) touch(id string) {
	r.t.Helper()
	slot := r.place(id)
	lsn := r.last.Load() + 1
	b := r.l1.Slabs()[0].Bytes(slot)
	b[0] = profile.Version
	binary.LittleEndian.PutUint64(b[profile.LSNOffset:], lsn)
	r.journal = append(r.journal, "card:"+id)
	r.last.Store(lsn)
	r.Mark(0, slot, id, lsn)
	r.l1.Unpin(0, slot)
	r.l1.Trim()
}

// place is a fetch: L1, what waits, then the readable levels. Loop only.
func (r *rig) place(id string) int {
	r.t.Helper()
	if slot := r.l1.Find(0, id); slot >= 0 {
		return slot
	}
	key := "card:" + id
	b := r.TakeWaiting([]byte(key))
	for i, l := range r.levels {
		if b == nil && r.Readable(i, []byte(key)) {
			found, err := l.Tier.Fill(context.Background(), [][]byte{[]byte(key)})
			if err == nil {
				b = found[0]
			}
		}
	}
	want := r.newest(key)
	switch {
	case b == nil && want != 0:
		r.t.Fatalf("%s is nowhere; its LSN is %d", key, want)
	case b != nil && profile.LSN(b) != want:
		r.t.Fatalf("%s was found at LSN %d, it is at %d", key, profile.LSN(b), want)
	}
	slot := r.l1.Claim(0, id)
	copy(r.l1.Slabs()[0].Bytes(slot), b)
	return slot
}

// newest is the LSN of the last entry of key.
func (r *rig) newest(key string) uint64 {
	for i := len(r.journal); i > 0; i-- {
		if r.journal[i-1] == key {
			return uint64(i)
		}
	}
	return 0
}

func (r *rig) touchAll(ids ...string) {
	r.t.Helper()
	r.onLoop(func() {
		for _, id := range ids {
			r.touch(id)
		}
	})
}

func (r *rig) writeOnce(level int) (int, error) {
	return r.write(context.Background(), r.levels[level])
}

func known(tier tiers.Tier) Level { return Level{Tier: tier, Keeps: true, IsKnown: true} }

// checkPositions: every change up to a level's position is in it.
func (r *rig) checkPositions(levels ...*memory) {
	r.t.Helper()
	r.onLoop(func() {
		for _, m := range levels {
			m.mu.Lock()
			position := m.position
			m.mu.Unlock()
			for i := range position {
				if have := m.lsn(r.journal[i]); have < i+1 {
					r.t.Fatalf("%s has position %d, but %s at LSN %d of %d", m.name, position, r.journal[i], have, i+1)
				}
			}
			if position > r.durable.Load() {
				r.t.Fatalf("%s has position %d, durable is %d", m.name, position, r.durable.Load())
			}
		}
	})
}
