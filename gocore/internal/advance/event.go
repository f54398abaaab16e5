// Package advance changes profiles: by an event, by a label, by merging two. Nothing else does.
//
// The rules are those of docs/reference/profile-format.md and, to the byte, of features/advance_one.py. One event touches the header
// of each of its profiles, and closed tiles only where a ring moves on or the event is late.
package advance

import (
	"weir/gocore/internal/plan"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/rings"
)

// golden is 2^64 / golden ratio: spreads CRC-32 over the 64 bits of a bitmap (Knuth 6.4).
const golden = 0x9E3779B97F4A7C15

const low32 = 0xFFFFFFFF

// Event is one transaction as columns. It is valid until its clock makes the next one.
type Event struct {
	Columns *[plan.Columns]int64
	LSN     int64
	adds    [8]int64 // by field code, what it adds; 0 for those that do not add
	clock   *Clock
}

// Clock makes events: it divides times by tile widths, and remembers the last tile of each, as stream times mostly stay in it.
type Clock struct {
	widths, tile, start []int64
	kinds               []plan.Kind
	latest              []int64 // for each kind, the latest start of its rings' tiles: nothing moves for who was seen since
	event               Event
}

// NewClock makes a clock for p.
func NewClock(p *plan.Plan) *Clock {
	n := len(p.Widths)
	c := &Clock{widths: p.Widths, tile: make([]int64, n), start: make([]int64, n), kinds: p.Kinds, latest: make([]int64, len(p.Kinds))}
	for i := range c.start {
		c.start[i] = -p.Widths[i] // a tile that no time lies in
	}
	c.event.clock = c
	return c
}

// At makes the event with these columns the current one. Times are never negative.
func (c *Clock) At(columns *[plan.Columns]int64, lsn int64) *Event {
	for i, width := range c.widths {
		if since := columns[plan.TS] - c.start[i]; since < 0 || since >= width {
			c.set(columns[plan.TS])
			break
		}
	}
	e := &c.event
	e.Columns, e.LSN = columns, lsn
	amount := columns[plan.Amount]
	e.adds[plan.Count], e.adds[plan.Sum] = 1, amount
	e.adds[plan.SquaresHigh], e.adds[plan.SquaresLow] = square(amount)
	return e
}

// Moves reports whether a ring of kind moves on when the current event comes to a profile whose newest one came at last.
func (c *Clock) Moves(kind *plan.Kind, last int64) bool { return last < c.latest[kind.Number] }

// set finds the tiles of ts.
func (c *Clock) set(ts int64) {
	for i, width := range c.widths {
		c.tile[i] = ts / width
		c.start[i] = ts - ts%width
	}
	for i := range c.kinds {
		c.latest[i] = 0
		for j := range c.kinds[i].Rings {
			c.latest[i] = max(c.latest[i], c.start[c.kinds[i].Rings[j].Width])
		}
	}
}

// Apply advances the profile p of kind by the event and writes the entity's observation, which is kind.Observed() long.
// An event that the profile already has (LSN not above the profile's) changes nothing. late has a counter per ring.
func Apply(kind *plan.Kind, p []int64, event *Event, observed, late []int64) {
	ts := event.Columns[plan.TS]
	header := p[:kind.HeaderWords]
	fresh := header[plan.WVersion]&0xFF == 0
	if fresh {
		begin(kind, header, event)
	}
	last := header[plan.WLastSeen]
	observed[plan.ObsPresent], observed[plan.ObsNew] = 1, 0
	observed[plan.ObsFirstSeen], observed[plan.ObsPreviousSeen] = header[plan.WFirstSeen], last
	if fresh {
		observed[plan.ObsNew], observed[plan.ObsPreviousSeen] = 1, -1
	}
	for i, word := range header[plan.FixedWords:kind.StateWord] { // a few words: a call to move them costs more
		observed[plan.ObsFixed+i] = word
	}
	state := observed[plan.ObsFixed+kind.StateWord-plan.FixedWords:]
	if ts >= last && event.LSN > header[plan.WLSN] {
		apply(kind, p, event, last, state)
		return
	}
	if event.LSN > header[plan.WLSN] {
		header[plan.WLSN] = event.LSN
		applyLate(kind, p, event, last, late)
	}
	copy(state, header[kind.StateWord:])
	if ts < last {
		observed[plan.ObsFirstSeen] = header[plan.WFirstSeen]
		observeLate(kind, p, event, last, observed)
	}
}

func begin(kind *plan.Kind, header []int64, event *Event) {
	header[plan.WVersion] |= profile.VersionWord(kind)
	header[plan.WLayout] = kind.Layout
	header[plan.WFirstLSN] = event.LSN
	header[plan.WFirstSeen] = event.Columns[plan.TS]
	header[plan.WLastSeen] = event.Columns[plan.TS]
}

// apply is for an event that is not older than the newest one, which came at last. state gets the header's words from
// kind.StateWord on: they are added to and observed in one go, which is most of what an event costs.
func apply(kind *plan.Kind, p []int64, event *Event, last int64, state []int64) {
	if clock := event.clock; clock.Moves(kind, last) {
		for i := range kind.Rings {
			ring := &kind.Rings[i]
			if last < clock.start[ring.Width] {
				rings.Move(ring, p, last/ring.TileMS, clock.tile[ring.Width])
			}
		}
	}
	header := p[:kind.HeaderWords]
	header[plan.WLSN], header[plan.WLastSeen] = event.LSN, event.Columns[plan.TS]
	if kind.Spike.Thousandths != 0 {
		event.adds[plan.Spikes] = spike(kind, header, event.Columns[plan.Amount])
	}
	words, codes := header[kind.StateWord:], kind.Adds
	state, codes = state[:len(words)], codes[:len(words)]
	for i := range words {
		word := words[i] + event.adds[codes[i]&7]
		words[i], state[i] = word, word
	}
	for i := range kind.Joins {
		join := &kind.Joins[i]
		value := event.Columns[plan.Amount]
		if join.Code == plan.Distinct {
			value = bitOf(event.Columns[join.Of])
		}
		for j := join.Start; j < join.Stop; j++ {
			word := rings.Combine(join.Code, header[j], value)
			header[j], state[j-kind.StateWord] = word, word
		}
	}
	remember(kind, header, event.Columns)
}

// spike is 1 if the amount is a spike for the profile as it stands before the event, else 0.
func spike(kind *plan.Kind, header []int64, amount int64) int64 {
	s := &kind.Spike
	if s.Thousandths == 0 || header[s.CountWord] <= 0 || amount*1000 <= s.Thousandths*(header[s.SumWord]/header[s.CountWord]) {
		return 0
	}
	return 1
}

// bitOf is the bitmap word with the bit of value set; nothing for an absent value.
func bitOf(value int64) int64 {
	if value < 0 {
		return 0
	}
	return int64(1 << (uint64(value) * golden >> 58))
}

// remember keeps what the event says, if nothing newer said it.
func remember(kind *plan.Kind, header []int64, columns *[plan.Columns]int64) {
	for i := range kind.Remembered {
		m := &kind.Remembered[i]
		if columns[m.Columns[0]] < 0 || columns[plan.TS] < header[m.TSWord] {
			continue
		}
		header[m.TSWord] = columns[plan.TS]
		for j, column := range m.Columns {
			header[m.TSWord+1+j] = columns[column] + 1
		}
	}
}
