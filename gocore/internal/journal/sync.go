package journal

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// start begins the goroutine that fsyncs, and the one that asks for it in each interval.
func (j *Journal) start() {
	j.workers.Go(j.syncLoop)
	if j.options.Sync == SyncInterval {
		j.workers.Go(j.intervalLoop)
	}
}

// SyncTo returns when everything in the journal up to lsn is durable, in every mode. Whoever waits while an fsync runs shares
// the next one. Errors wrap ErrWrite; after one nothing is promised again, the kernel may have dropped the pages.
func (j *Journal) SyncTo(lsn uint64) error {
	lsn = min(lsn, j.last.Load()) // those above it are burnt, or not given out yet
	if lsn <= j.durable.Load() {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if lsn > j.want {
		j.want = lsn
		j.moved.Broadcast()
	}
	for lsn > j.durable.Load() && j.failure == nil {
		j.moved.Wait()
	}
	if lsn > j.durable.Load() {
		return j.failure
	}
	return nil
}

func (j *Journal) syncLoop() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		for j.failure == nil && !j.isClosed && j.want <= j.durable.Load() && len(j.retired) == 0 {
			j.moved.Wait()
		}
		if j.failure != nil || j.isClosed {
			return
		}
		retired, file, last, isDirDirty := j.retired, j.file, j.last.Load(), j.isDirDirty
		j.retired, j.isDirDirty = nil, false
		j.mu.Unlock()
		err := j.syncFiles(retired, file, isDirDirty, last)
		j.mu.Lock()
		if err != nil {
			j.fail(fmt.Errorf("%w: fsync failed, what it covered may be lost: %w", ErrWrite, err))
			return
		}
		j.durable.Store(last)
		j.moved.Broadcast()
	}
}

func (j *Journal) syncFiles(retired []*os.File, file *os.File, isDirDirty bool, last uint64) error {
	var err error
	for _, old := range retired {
		err = errors.Join(err, old.Sync(), old.Close())
	}
	err = errors.Join(err, file.Sync())
	if isDirDirty {
		err = errors.Join(err, syncPath(j.directory))
	}
	if err == nil {
		// Not fsynced itself: after a power failure an older, lower number only makes the next start less strict.
		_, err = j.mark.WriteAt(encodeMark(last), 0)
	}
	return err
}

func (j *Journal) intervalLoop() {
	ticker := time.NewTicker(j.options.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-j.stop:
			return
		case <-ticker.C:
			if j.SyncTo(j.Last()) != nil {
				return // every append says so from now on
			}
		}
	}
}

// Close makes everything durable and closes the files. Nobody may append any more.
func (j *Journal) Close() error {
	err := j.SyncTo(j.Last())
	j.mu.Lock()
	if j.isClosed {
		j.mu.Unlock()
		return nil
	}
	j.isClosed = true
	close(j.stop)
	j.moved.Broadcast()
	j.mu.Unlock()
	j.workers.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, file := range append(j.retired, j.file) {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
	}
	j.retired, j.file = nil, nil
	err = errors.Join(err, j.mark.Sync(), j.mark.Close())
	j.fail(fmt.Errorf("%w: the journal is closed", ErrWrite))
	return err
}

// Read visits every entry from from to the last one of this moment, in order; appends may go on meanwhile. It ends at visit's
// first error. Damage is ErrCorrupt: all of these entries have been accepted. Entries belong to the visitor.
func (j *Journal) Read(from uint64, visit func(*Block) error) error {
	j.mu.Lock()
	segments := append([]segment(nil), j.segments...)
	last := j.last.Load()
	j.mu.Unlock()
	return read(segments, from, last, visit)
}

// Trim deletes segments that hold only LSNs below below, never the newest; it returns the bytes freed. A segment that was
// written to within the last keep stays, and so do those after it. Errors wrap ErrWrite.
func (j *Journal) Trim(below uint64, keep time.Duration) (freed int64, err error) {
	for {
		j.mu.Lock()
		if len(j.segments) < 2 || j.segments[1].first > below {
			j.trimmed.Store(trimmedLSN(j.segments))
			j.mu.Unlock()
			return freed, nil
		}
		oldest := j.segments[0]
		j.mu.Unlock()
		info, err := os.Stat(oldest.path)
		if err == nil && time.Since(info.ModTime()) < keep {
			return freed, nil
		}
		if err == nil {
			err = os.Remove(oldest.path)
		}
		if err != nil {
			return freed, fmt.Errorf("%w: cannot delete %s: %w", ErrWrite, oldest.path, err)
		}
		if err := os.Remove(oldest.path + damagedSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return freed, fmt.Errorf("%w: %w", ErrWrite, err)
		}
		freed += oldest.size
		j.mu.Lock()
		j.segments = j.segments[1:]
		j.mu.Unlock()
	}
}
