package main

// #include "weir.h"
import "C"

import (
	"fmt"

	"weir/gocore/internal/express"
	"weir/gocore/internal/intake"
	"weir/gocore/internal/score"
)

//export weir_express
func weir_express(
	plan, model, arena C.uint64_t, take *C.weir_intake_job, encoded *C.weir_encode_job, memory *C.weir_express_job,
) (status C.int32_t) {
	defer recoverTo(&status)
	b, m, err := find(uint64(model), uint64(arena))
	if err != nil {
		return statusOf(err)
	}
	if !b.arena.Claim() {
		return statusOf(fmt.Errorf("a call works on it: %w", score.ErrBusy))
	}
	defer b.arena.Release()
	job := &b.express
	job.Model = m
	if err := expressJob(uint64(plan), b, take, encoded, memory); err != nil {
		return statusOf(err)
	}
	err = express.Run(job, b.arena)
	taken(take, &job.Take)
	encoded.rows, encoded.entries_end = take.rows, C.int64_t(job.Encode.EntriesEnd)
	memory.stage, memory.last_ts = C.int64_t(job.Stage), C.int64_t(job.LastTS)
	for stop, ns := range job.Took {
		memory.took[stop] = C.int64_t(ns)
	}
	if err != nil {
		return statusOf(err)
	}
	return C.WEIR_OK
}

// expressJob makes of the caller's memory the arena's job, which cannot write past it.
func expressJob(plan uint64, b *bound, take *C.weir_intake_job, encoded *C.weir_encode_job, memory *C.weir_express_job) (err error) {
	job := &b.express
	if memory == nil || encoded == nil {
		return fmt.Errorf("job: %w", errNull)
	}
	memory.stage = express.Taken
	job.Take = intake.Job{} // the next lines set only what there is
	if job.Intake, err = takeJob(plan, take, &job.Take, &b.rooms); err != nil {
		return err
	}
	switch {
	case memory.first_lsn < 1:
		return fmt.Errorf("%w: an LSN below 1", errArgument)
	case len(job.Take.Slots) != len(b.arena.Slabs)*len(job.Take.Ends):
		return fmt.Errorf("%w: there are no indexes of the arena's %d kinds", errArgument, len(b.arena.Slabs))
	case take.rows > encoded.rows_max:
		return fmt.Errorf("%w: %d rows with room for %d to be encoded", errArgument, int64(take.rows), int64(encoded.rows_max))
	}
	job.FirstLSN, job.Earliest, job.Latest = int64(memory.first_lsn), int64(memory.earliest), int64(memory.latest)
	job.Below = float64(memory.below)
	return encodeRooms(encoded, int(take.rows), &job.Encode)
}
