// Package express takes a chunk of transactions through every stop in one call: decode, look up, score, encode. It goes on as long
// as nothing is out of the ordinary: every row decoded here, every profile in its slab, no event that may be known, no time that may be
// refused, every score low enough that its row is surely approved. At the first stop where that is not so it ends, and the caller
// goes on from there as if it had made the calls one by one. The crossing of the boundary is paid once, which for a handful of rows
// is most of what they cost.
package express

import (
	"errors"
	"fmt"
	"time"

	"weir/gocore/internal/encode"
	"weir/gocore/internal/intake"
	"weir/gocore/internal/ort"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/score"
)

// Stages: how far a chunk came.
const (
	Taken   = iota // as after intake.Take; no profile has changed
	Scored         // as after score.Arena.Run with Advance, Risk and Undo
	Encoded        // as after encode.Run, all rows in the first class
)

// Stops whose time is told.
const (
	decodeStop = iota
	lookUpStop
	scoreStop
	encodeStop
	Stops // how many
)

// RowsMax bounds a chunk.
const RowsMax = 256

// ErrRows is wrapped when a chunk has no rows, or more than there is room for.
var ErrRows = errors.New("rows that cannot go by express")

// first is the class of all rows.
var first [RowsMax]uint8

// Job is a chunk. Of Encode the parts of the classes and the memory for what comes out are given; the rest is filled in here.
type Job struct {
	Intake   *intake.Intake
	Take     intake.Job
	Model    *ort.Model
	Encode   encode.Job
	FirstLSN int64   // of the first row
	Earliest int64   // times that are surely not refused, with Latest
	Latest   int64   //
	Below    float64 // every score below this is approved
	Stage    int
	LastTS   int64        // the latest time of a row, from Scored on
	Took     [Stops]int64 // ns
}

// Run takes the chunk as far as it goes, in an arena that the caller has claimed. After an error from Scored on profiles may be half
// advanced, until score.Arena.TakeBack.
func Run(j *Job, arena *score.Arena) error {
	n := len(j.Take.Ends)
	j.Stage, j.LastTS, j.Took = Taken, 0, [Stops]int64{}
	if n < 1 || n > min(RowsMax, arena.Rows) {
		return fmt.Errorf("%w: %d rows, not 1 to %d", ErrRows, n, min(RowsMax, arena.Rows))
	}
	watch := stopwatch{time.Now(), &j.Took}
	j.Intake.Decode(&j.Take)
	watch.stop(decodeStop)
	j.Intake.LookUp(&j.Take)
	watch.stop(lookUpStop)
	if j.Take.NumLeft+j.Take.Missing+j.Take.NumSuspects > 0 || !j.inTime() {
		return nil
	}
	j.Stage = Scored
	arena.Fill(j.FirstLSN, n, j.Take.Slots, j.Take.Columns)
	err := arena.RunClaimed(j.Model, 0, n, score.Advance|score.Risk|score.Undo)
	watch.stop(scoreStop)
	if err != nil || !j.approved(arena.Risk[:n]) {
		return err
	}
	if err := encode.Run(&j.Encode); err != nil {
		return err
	}
	watch.stop(encodeStop)
	j.Stage = Encoded
	return nil
}

// inTime notes the latest time, and reports whether all times are within bounds.
func (j *Job) inTime() bool {
	for at := plan.TS; at < len(j.Take.Columns); at += plan.Columns {
		ts := j.Take.Columns[at]
		if ts < j.Earliest || ts > j.Latest {
			return false
		}
		j.LastTS = max(j.LastTS, ts)
	}
	return true
}

// approved makes the rows an encode.Job, unless the score of one may need more than approval.
func (j *Job) approved(risk []float32) bool {
	for _, r := range risk {
		if !(float64(r) < j.Below) { // nor if it is no number
			return false
		}
	}
	n, take, e := len(risk), &j.Take, &j.Encode
	e.FirstLSN, e.Risk, e.Classes = uint64(j.FirstLSN), risk, first[:n]
	e.BodyEnds, e.Bodies, e.EventIDs = take.BodyEnds, take.Bodies[:take.BodyEnds[n-1]], take.IDs[:take.IDEnds[0]]
	return true
}

type stopwatch struct {
	since time.Time
	took  *[Stops]int64
}

func (w *stopwatch) stop(stop int) {
	now := time.Now()
	w.took[stop] = int64(now.Sub(w.since))
	w.since = now
}
