package main

// #include "weir.h"
import "C"

import (
	"fmt"
	"unsafe"

	"weir/gocore/internal/encode"
	"weir/gocore/internal/index"
	"weir/gocore/internal/intake"
	"weir/gocore/internal/maybe"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/score"
)

const (
	chunkBytesMax = 8 << 30
	partsBytesMax = 1 << 24
	classesMax    = 256 // a class is a byte
	fewKinds      = 8   // up to here no memory is asked for
)

// rooms are memory for what a job refers to, so that none is asked for.
type rooms struct {
	indexes [fewKinds]*index.Index
	filters [fewFilters]*maybe.Filter
}

//export weir_intake
func weir_intake(handle C.uint64_t, memory *C.weir_intake_job) (status C.int32_t) {
	defer recoverTo(&status)
	var job intake.Job
	var r rooms
	in, err := takeJob(uint64(handle), memory, &job, &r)
	if err != nil {
		return statusOf(err)
	}
	in.Take(&job)
	taken(memory, &job)
	return C.WEIR_OK
}

// takeJob makes of the caller's memory a job that cannot write past it, and says who does it.
func takeJob(handle uint64, memory *C.weir_intake_job, job *intake.Job, r *rooms) (*intake.Intake, error) {
	p, err := plans.get(handle)
	if err == nil {
		err = p.intakeErr
	}
	if err == nil {
		err = intakeJob(p.intake, memory, job)
	}
	if err == nil && memory.n_indexes != 0 {
		job.Indexes, err = indexesAt(memory.indexes, memory.n_indexes, p.intake.Lists()-1, r.indexes[:0])
	}
	if err == nil && job.Indexes != nil {
		job.Slots, err = wordsAt(memory.slots, memory.rows*memory.n_indexes, "slots")
	}
	if err == nil && memory.n_filters != 0 {
		if job.Filters, err = filtersAt(memory.filters, memory.n_filters, r.filters[:0]); err == nil {
			job.Suspects, err = spanAt(memory.suspects, memory.rows, "suspects")
		}
	}
	if err != nil {
		return nil, err
	}
	return p.intake, nil
}

// taken tells what became of the rows.
func taken(memory *C.weir_intake_job, job *intake.Job) {
	memory.n_left, memory.n_missing, memory.n_suspects = C.int64_t(job.NumLeft), C.int64_t(job.Missing), C.int64_t(job.NumSuspects)
}

// intakeJob makes of the caller's memory a job that cannot write past it.
func intakeJob(in *intake.Intake, memory *C.weir_intake_job, j *intake.Job) (err error) {
	if memory == nil {
		return fmt.Errorf("job: %w", errNull)
	}
	n, err := rowsOf(memory.rows, memory.rows_max)
	if err != nil {
		return err
	}
	lists := C.int64_t(in.Lists())
	switch {
	case memory.format != C.WEIR_JSON && memory.format != C.WEIR_MSGPACK:
		return fmt.Errorf("%w: format %d", errArgument, int64(memory.format))
	case memory.id_bytes < C.int64_t(n) || memory.id_bytes > chunkBytesMax/lists:
		return fmt.Errorf("%w: %d bytes for the ids of %d rows", errArgument, int64(memory.id_bytes), n)
	}
	j.Packed, j.IDBytes = memory.format == C.WEIR_MSGPACK, int(memory.id_bytes)
	for _, part := range [...]struct {
		what  string
		start *C.uint8_t
		n     C.int64_t
		bytes *[]byte
	}{
		{"text", memory.text, memory.text_size, &j.Text}, {"status", memory.status, C.int64_t(n), &j.Status},
		{"bodies", memory.bodies, memory.bodies_size, &j.Bodies}, {"ids", memory.ids, lists * memory.id_bytes, &j.IDs},
	} {
		if *part.bytes, err = spanAt(part.start, part.n, part.what); err != nil {
			return err
		}
	}
	for _, part := range [...]struct {
		what  string
		start *C.int64_t
		n     C.int64_t
		words *[]int64
	}{
		{"ends", memory.ends, C.int64_t(n), &j.Ends}, {"columns", memory.columns, C.int64_t(n * plan.Columns), &j.Columns},
		{"body_ends", memory.body_ends, C.int64_t(n), &j.BodyEnds}, {"id_ends", memory.id_ends, lists, &j.IDEnds},
	} {
		if *part.words, err = wordsAt(part.start, part.n, part.what); err != nil {
			return err
		}
	}
	return encode.CheckEnds(j.Ends, len(j.Text), "body")
}

//export weir_encode
func weir_encode(memory *C.weir_encode_job) (status C.int32_t) {
	defer recoverTo(&status)
	var job encode.Job
	err := encodeJob(memory, &job)
	if err == nil {
		err = encode.Run(&job)
	}
	if err != nil {
		return statusOf(err)
	}
	memory.entries_end = C.int64_t(job.EntriesEnd)
	return C.WEIR_OK
}

// encodeJob makes of the caller's memory a job that cannot write past it.
func encodeJob(memory *C.weir_encode_job, j *encode.Job) error {
	if memory == nil {
		return fmt.Errorf("job: %w", errNull)
	}
	n, err := rowsOf(memory.rows, memory.rows_max)
	if err != nil {
		return err
	}
	if memory.first_lsn < 0 {
		return fmt.Errorf("%w: an LSN below 0", errArgument)
	}
	j.FirstLSN = uint64(memory.first_lsn)
	if j.Risk, err = floatsAt(memory.risk, C.int64_t(n), "risk"); err != nil {
		return err
	}
	if j.BodyEnds, err = wordsAt(memory.body_ends, C.int64_t(n), "body_ends"); err != nil {
		return err
	}
	for _, part := range [...]bytesPart{
		{"bodies", memory.bodies, memory.bodies_size, &j.Bodies}, {"event_ids", memory.event_ids, memory.event_ids_size, &j.EventIDs},
		{"classes", memory.classes, C.int64_t(n), &j.Classes},
	} {
		if *part.bytes, err = spanAt(part.start, part.n, part.what); err != nil {
			return err
		}
	}
	return encodeRooms(memory, n, j)
}

type bytesPart struct {
	what  string
	start *C.uint8_t
	n     C.int64_t
	bytes *[]byte
}

// encodeRooms is the half of encodeJob that does not depend on the rows but on how many they are: the classes, and where the bytes go.
func encodeRooms(memory *C.weir_encode_job, n int, j *encode.Job) (err error) {
	switch {
	case memory.n_classes < 0 || memory.n_classes > classesMax:
		return fmt.Errorf("%w: %d classes, not 0 to %d", errArgument, int64(memory.n_classes), classesMax)
	case memory.separator < 0 || memory.separator > 255:
		return fmt.Errorf("%w: separator %d is no byte", errArgument, int64(memory.separator))
	case memory.parts_size > partsBytesMax:
		return fmt.Errorf("%w: %d bytes of parts, at most %d", errArgument, int64(memory.parts_size), partsBytesMax)
	}
	j.Separator = byte(memory.separator)
	for _, part := range [...]bytesPart{
		{"parts", memory.parts, memory.parts_size, &j.Parts}, {"entries", memory.entries, memory.entries_size, &j.Entries},
		{"stored", memory.stored, memory.stored_size, &j.Stored}, {"replies", memory.replies, memory.replies_size, &j.Replies},
	} {
		if *part.bytes, err = spanAt(part.start, part.n, part.what); err != nil {
			return err
		}
	}
	for _, part := range [...]struct {
		what  string
		start *C.int64_t
		n     C.int64_t
		words *[]int64
	}{
		{"part_ends", memory.part_ends, encode.PartsOfClass * memory.n_classes, &j.PartEnds},
		{"stored_ends", memory.stored_ends, C.int64_t(n), &j.StoredEnds}, {"reply_ends", memory.reply_ends, C.int64_t(n), &j.ReplyEnds},
	} {
		if *part.words, err = wordsAt(part.start, part.n, part.what); err != nil {
			return err
		}
	}
	return nil
}

// rowsOf is the number of rows of a chunk.
func rowsOf(rows, most C.int64_t) (int, error) {
	if most < 0 || most > score.RowsMax || rows < 0 || rows > most {
		return 0, fmt.Errorf("%w: %d rows with room for %d, at most %d", errArgument, int64(rows), int64(most), score.RowsMax)
	}
	return int(rows), nil
}

// spanAt is n bytes of the caller's memory, maybe none.
func spanAt(start *C.uint8_t, n C.int64_t, what string) ([]byte, error) {
	switch {
	case start == nil:
		return nil, fmt.Errorf("%s: %w", what, errNull)
	case n < 0 || n > chunkBytesMax:
		return nil, fmt.Errorf("%w: %s: %d bytes, not 0 to %d", errArgument, what, int64(n), int64(chunkBytesMax))
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(start)), int(n)), nil
}
