package bloom

import (
	"sync"

	"github.com/bits-and-blooms/bloom/v3"
)

const (
	rotations      = 4  // generations per window: keys outlive their window by a quarter at most
	generationsMax = 16 // bound on memory
)

// Rotating is a Maybe whose keys expire: each stays for at least the window after it was added, and a little longer.
//
// Every generation takes keys for a quarter of the window or until it is full, and is dropped when its newest key is past
// the window. If generationsMax are full before that, the oldest is dropped early and the answer is maybe until its
// newest key would have expired: bounded memory, and still never a wrong no.
type Rotating struct {
	mu           sync.Mutex
	isCovering   bool
	stats        Stats
	windowMS     int64
	capacity     int
	fpp          float64
	clock        func() int64
	newestMS     int64
	maybeUntilMS int64
	hasForgotten bool
	generations  []generation // oldest first
}

type generation struct {
	bloom           *bloom.BloomFilter
	room            int
	firstMS, lastMS int64
}

// NewRotating makes an empty set for capacity keys per window; clock gives ms of any origin.
func NewRotating(windowMS int64, capacity int, fpp float64, clock func() int64) *Rotating {
	return &Rotating{
		windowMS: windowMS,
		capacity: max(1, capacity/rotations),
		fpp:      fpp / (rotations + 1), // a look-up probes that many generations; more only above capacity
		clock:    clock,
		newestMS: clock(),
	}
}

// MaybeHas reports false if key was not added within the window. True means: ask the store.
func (r *Rotating) MaybeHas(key []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Lookups++
	if !r.isCovering || r.isUnsure() {
		return true
	}
	for i := len(r.generations) - 1; i >= 0; i-- {
		if r.generations[i].bloom.Test(key) {
			return true
		}
	}
	r.stats.Negatives++
	return false
}

// Add makes MaybeHas(key) true for at least the window.
func (r *Rotating) Add(key []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if n := len(r.generations); n == 0 || r.generations[n-1].room == 0 || now-r.generations[n-1].firstMS >= r.windowMS/rotations {
		r.rotate(now)
	}
	g := &r.generations[len(r.generations)-1]
	if !g.bloom.TestOrAdd(key) {
		g.room--
	}
	g.lastMS = now // also when it was in: a key that comes again, even as a false positive, starts anew
}

// Cover says that the set holds every key of the window: from here on absence counts.
func (r *Rotating) Cover() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isCovering = true
}

// ConfirmAbsent says that the store was asked about a key that MaybeHas let through, and it was not there.
func (r *Rotating) ConfirmAbsent() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isCovering && !r.isUnsure() {
		r.stats.FalsePositives++
	}
}

// Stats is a copy of the counters.
func (r *Rotating) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := r.stats
	found.Generations = len(r.generations)
	for _, g := range r.generations {
		found.Bytes += int64(g.bloom.Cap() / 8)
	}
	return found
}

func (r *Rotating) isUnsure() bool { return r.hasForgotten && r.now() <= r.maybeUntilMS }

// now is the newest time that the clock has shown: one that steps back keeps keys longer, never shorter.
func (r *Rotating) now() int64 {
	r.newestMS = max(r.newestMS, r.clock())
	return r.newestMS
}

func (r *Rotating) rotate(now int64) {
	for len(r.generations) > 0 && r.generations[0].lastMS+r.windowMS < now {
		r.generations = r.generations[1:]
	}
	if len(r.generations) >= generationsMax {
		until := r.generations[0].lastMS + r.windowMS
		if !r.hasForgotten || until > r.maybeUntilMS {
			r.maybeUntilMS, r.hasForgotten = until, true
		}
		r.generations = r.generations[1:]
	}
	r.generations = append(r.generations, generation{
		bloom: bloom.NewWithEstimates(uint(r.capacity), r.fpp), room: r.capacity, firstMS: now, lastMS: now,
	})
}
