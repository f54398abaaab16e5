package pipeline

import (
	"sync/atomic"

	"weir/gocore/internal/problem"
)

// Clock is what "now" is, and which event times are refused for it. It never decides what a window counts. With Stream, now is the
// newest accepted ts and nothing is too far ahead.
type Clock struct {
	Stream                 bool
	FutureMSMax, PastMSMax int64
	WallMS                 func() int64

	newest atomic.Int64
}

// NowMS is ms UTC.
func (c *Clock) NowMS() int64 {
	if c.Stream {
		return c.newest.Load()
	}
	return c.WallMS()
}

// Note says that an event of this time was accepted. One goroutine calls it.
func (c *Clock) Note(ts int64) {
	if ts > c.newest.Load() {
		c.newest.Store(ts)
	}
}

// Check is a problem of kind InvalidEvent for a ts that is too far from now.
func (c *Clock) Check(ts int64) error {
	now := c.NowMS()
	if now-ts > c.PastMSMax {
		return problem.New(problem.InvalidEvent, "ts", "ts: %d is %d ms old, more than time.past_ms_max = %d ms before now, %d",
			ts, now-ts, c.PastMSMax, now)
	}
	if !c.Stream && ts-now > c.FutureMSMax {
		return problem.New(problem.InvalidEvent, "ts",
			"ts: %d lies %d ms ahead, more than time.future_ms_max = %d ms after now, %d; is it in milliseconds?",
			ts, ts-now, c.FutureMSMax, now)
	}
	return nil
}
