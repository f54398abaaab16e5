package main

// #include "weir.h"
import "C"

import (
	"fmt"
	"unsafe"

	"weir/gocore/internal/replay"
	"weir/gocore/internal/score"
)

const (
	replayBytesMax = 8 << 30
	replayIDsMax   = 1 << 28
)

var splitters = handles[replay.Splitter]{what: "replay"}

//export weir_replay_open
func weir_replay_open(plan C.uint64_t, ids C.int64_t, handle *C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		p, err := plans.get(uint64(plan))
		if err != nil {
			return err
		}
		if ids < 0 || ids > replayIDsMax {
			return fmt.Errorf("%w: %d ids", errArgument, int64(ids))
		}
		splitter, err := replay.New(p.Plan, int(ids))
		if err != nil {
			return err
		}
		return give(&splitters, splitter, handle)
	}())
}

//export weir_replay_close
func weir_replay_close(handle C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	_, err := splitters.take(uint64(handle))
	return statusOf(err)
}

//export weir_replay
func weir_replay(handle, arena C.uint64_t, memory *C.weir_replay_job) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		splitter, err := splitters.get(uint64(handle))
		if err != nil {
			return err
		}
		b, err := arenas.get(uint64(arena))
		if err != nil {
			return err
		}
		if memory == nil {
			return fmt.Errorf("job: %w", errNull)
		}
		if !b.arena.Claim() {
			return score.ErrBusy
		}
		defer b.arena.Release()
		job, err := replayJob(b.arena, memory)
		if err != nil {
			return err
		}
		if err := splitter.Take(b.arena, job); err != nil {
			return err
		}
		memory.before_lsn, memory.last_lsn = C.int64_t(job.Before), C.int64_t(job.Last)
		memory.taken, memory.rows, memory.entries = C.int64_t(job.Taken), C.int64_t(job.Rows), C.int64_t(job.Entries)
		memory.n_others, memory.state = C.int64_t(job.NumOthers), C.int64_t(job.State)
		memory.forgot = 0
		if job.Forgot {
			memory.forgot = 1
		}
		return nil
	}())
}

// replayJob is the caller's memory as a job that cannot write past it.
func replayJob(arena *score.Arena, memory *C.weir_replay_job) (*replay.Job, error) {
	kinds, rows := int64(len(arena.Plan.Kinds)), int64(arena.Rows)
	if memory.before_lsn < 0 || memory.from_lsn < 0 || memory.to_lsn < 0 {
		return nil, fmt.Errorf("%w: an LSN below 0", errArgument)
	}
	if memory.id_bytes < 1 || int64(memory.id_bytes) > replayBytesMax/kinds {
		return nil, fmt.Errorf("%w: %d bytes for ids", errArgument, int64(memory.id_bytes))
	}
	j := &replay.Job{
		Before: uint64(memory.before_lsn), From: uint64(memory.from_lsn), To: uint64(memory.to_lsn), IDBytes: int(memory.id_bytes),
	}
	var err error
	for _, part := range []struct {
		what    string
		start   *C.uint8_t
		n       C.int64_t
		bytes   *[]byte
		skipped bool
	}{
		{"blocks", memory.blocks, memory.blocks_size, &j.Blocks, false},
		{"ids", memory.ids, memory.id_bytes * C.int64_t(kinds), &j.IDs, false},
		{"records", memory.records, memory.records_size, &j.Records, memory.records == nil},
	} {
		if part.skipped {
			continue
		}
		if *part.bytes, err = bytesAt(unsafe.Pointer(part.start), part.n, part.what, replayBytesMax); err != nil {
			return nil, err
		}
	}
	for _, part := range []struct {
		what  string
		start *C.int64_t
		n     int64
		words *[]int64
	}{
		{"record_ends", memory.record_ends, 2 * rows, &j.RecordEnds},
		{"id_ends", memory.id_ends, kinds, &j.IDEnds},
		{"n_new", memory.n_new, kinds, &j.NumNew},
		{"n_distinct", memory.n_distinct, kinds, &j.NumDistinct},
		{"numbers", memory.numbers, kinds * rows, &j.Numbers},
		{"first_rows", memory.first_rows, kinds * rows, &j.FirstRows},
		{"others", memory.others, int64(memory.others_max) * replay.OtherWords, &j.Others},
	} {
		if *part.words, err = wordsAt(part.start, C.int64_t(part.n), part.what); err != nil {
			return nil, err
		}
	}
	return j, nil
}
