package main

// #include "weir.h"
import "C"

import (
	"fmt"

	"weir/gocore/internal/copyrows"
)

const ledgerRowsMax = 1 << 30

//export weir_ledger_rows
func weir_ledger_rows(memory *C.weir_ledger_job) (status C.int32_t) {
	defer recoverTo(&status)
	var job copyrows.Job
	if err := ledgerJob(memory, &job); err != nil {
		return statusOf(err)
	}
	copyrows.Take(&job)
	memory.rows, memory.out_end = C.int64_t(job.Rows), C.int64_t(job.OutEnd)
	memory.taken, memory.before_lsn, memory.state = C.int64_t(job.Taken), C.int64_t(job.Before), C.int64_t(job.State)
	return C.WEIR_OK
}

// ledgerJob makes of the caller's memory a job that cannot write past it.
func ledgerJob(memory *C.weir_ledger_job, j *copyrows.Job) (err error) {
	switch {
	case memory == nil:
		return fmt.Errorf("job: %w", errNull)
	case memory.before_lsn < 0 || memory.from_lsn < 0 || memory.to_lsn < 0:
		return fmt.Errorf("%w: an LSN below 0", errArgument)
	case memory.rows_max < 1 || memory.rows_max > ledgerRowsMax:
		return fmt.Errorf("%w: %d rows, not 1 to %d", errArgument, int64(memory.rows_max), ledgerRowsMax)
	}
	if j.Blocks, err = spanAt(memory.blocks, memory.blocks_size, "blocks"); err != nil {
		return err
	}
	if j.Out, err = spanAt(memory.out, memory.out_size, "out"); err != nil {
		return err
	}
	j.Before, j.From, j.To = uint64(memory.before_lsn), uint64(memory.from_lsn), uint64(memory.to_lsn)
	j.RowsMax = int(memory.rows_max)
	return nil
}
