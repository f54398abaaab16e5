// Package advance changes profiles: by an event, by a label, by merging two. Nothing else does.
//
// The rules are those of docs/profile-format.md and, to the byte, of features/advance_one.py. One event touches the header
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

// Event is one transaction as columns, with the tile of its time at each width of tiles that the plan has.
type Event struct {
	Columns *[plan.Columns]int64
	LSN     int64
	clock   *Clock
}

// Clock divides times by tile widths, and remembers the last tile of each: stream times mostly stay in it.
type Clock struct {
	widths, tile, start []int64
}

// NewClock makes a clock for the widths of p.
func NewClock(p *plan.Plan) *Clock {
	n := len(p.Widths)
	c := &Clock{widths: p.Widths, tile: make([]int64, n), start: make([]int64, n)}
	for i := range c.start {
		c.start[i] = -p.Widths[i] // a tile that no time lies in
	}
	return c
}

// At makes the event with these columns the current one. Times are never negative.
func (c *Clock) At(columns *[plan.Columns]int64, lsn int64) Event {
	ts := columns[plan.TS]
	for i, width := range c.widths {
		if since := ts - c.start[i]; since < 0 || since >= width {
			c.tile[i] = ts / width
			c.start[i] = ts - ts%width
		}
	}
	return Event{columns, lsn, c}
}

// Apply advances the profile p of kind by the event and writes the entity's observation, which is kind.Observed() long.
// An event that the profile already has (LSN not above the profile's) changes nothing. late has a counter per ring.
func Apply(kind *plan.Kind, p []int64, event Event, observed, late []int64) {
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
	if event.LSN > header[plan.WLSN] {
		header[plan.WLSN] = event.LSN
		if ts < last {
			applyLate(kind, p, event, last, late)
		} else {
			apply(kind, p, event, last)
		}
	}
	copy(observed[plan.ObsFixed+kind.StateWord-plan.FixedWords:], header[kind.StateWord:])
	if ts < last {
		observed[plan.ObsFirstSeen] = header[plan.WFirstSeen]
		observeLate(kind, p, event, last, observed)
	}
}

func begin(kind *plan.Kind, header []int64, event Event) {
	header[plan.WVersion] |= profile.VersionWord(kind)
	header[plan.WLayout] = kind.Layout
	header[plan.WFirstLSN] = event.LSN
	header[plan.WFirstSeen] = event.Columns[plan.TS]
	header[plan.WLastSeen] = event.Columns[plan.TS]
}

// apply is for an event that is not older than the newest one, which came at last.
func apply(kind *plan.Kind, p []int64, event Event, last int64) {
	clock := event.clock
	for i := range kind.Rings {
		ring := &kind.Rings[i]
		if last < clock.start[ring.Width] {
			rings.Move(ring, p, last/ring.TileMS, clock.tile[ring.Width])
		}
	}
	header := p[:kind.HeaderWords]
	header[plan.WLastSeen] = event.Columns[plan.TS]
	amount := event.Columns[plan.Amount]
	high, low := square(amount)
	for i := range kind.Blocks {
		block := &kind.Blocks[i]
		words := header[block.Start:block.Stop]
		switch block.Code {
		case plan.Count:
			add(words, 1)
		case plan.Sum:
			add(words, amount)
		case plan.SquaresHigh:
			add(words, high)
		case plan.SquaresLow:
			add(words, low)
		case plan.Max:
			for j := range words {
				words[j] = max(words[j], amount)
			}
		case plan.Distinct:
			bit := bitOf(event.Columns[block.Of])
			for j := range words {
				words[j] |= bit
			}
		}
	}
	remember(kind, header, event.Columns)
}

func add(words []int64, value int64) {
	for i := range words {
		words[i] += value
	}
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
