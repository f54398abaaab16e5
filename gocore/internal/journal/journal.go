package journal

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Sync modes: what a power failure may lose, and what a reply waits for.
const (
	SyncGroup    = "group"    // nothing that was answered; the reply waits for an fsync that all share
	SyncInterval = "interval" // the last interval and one fsync
	SyncOS       = "os"       // what the kernel had not written yet
)

const (
	durableName = "durable"
	epochName   = "epoch"
)

// Options of Open. EpochFloor is the highest epoch that any store knows.
type Options struct {
	Sync         string
	Interval     time.Duration
	SegmentBytes int64
	EpochFloor   uint64
}

// Journal is the live log of one process.
type Journal struct {
	// CutBytes and CutReason: what this start cut off, if anything.
	CutBytes  int64
	CutReason string

	directory string
	options   Options
	next      uint64 // Append's goroutine only
	buffer    []byte // the same
	last      atomic.Uint64
	durable   atomic.Uint64
	trimmed   atomic.Uint64

	mu         sync.Mutex
	moved      *sync.Cond // durable, failure, closed or want changed
	segments   []segment
	file       *os.File   // the segment being written, nil before the first append
	retired    []*os.File // written before it, waiting for their fsync
	isDirDirty bool
	mark       *os.File
	failure    error
	want       uint64 // somebody waits for this LSN
	isClosed   bool
	workers    sync.WaitGroup
	stop       chan struct{}
}

// Open checks what is there, makes it durable and begins a new epoch, above EpochFloor and any seen here. The caller holds the
// lock of the data directory. Errors wrap ErrCorrupt, ErrVersion or ErrWrite.
func Open(directory string, options Options) (*Journal, error) {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return nil, fmt.Errorf("%w: cannot open %s: %w", ErrWrite, directory, err)
	}
	segments, err := listSegments(directory)
	if err != nil {
		return nil, fmt.Errorf("%w: cannot open %s: %w", ErrWrite, directory, err)
	}
	durable, err := ownMark(filepath.Join(directory, durableName), segments)
	if err != nil {
		return nil, err
	}
	epoch, err := ownMark(filepath.Join(directory, epochName), segments)
	if err != nil {
		return nil, err
	}
	found, err := check(segments, durable)
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) {
		return nil, err
	}
	if err == nil {
		epoch = max(epoch, options.EpochFloor, durable>>EpochShift, found.last>>EpochShift)
		if n := len(segments); n > 0 {
			epoch = max(epoch, segments[n-1].first>>EpochShift)
		}
		epoch++
		if epoch > epochMax {
			return nil, fmt.Errorf("%w: epoch %d is past the last one, %d: begin with a new data directory", ErrWrite, epoch, epochMax)
		}
		err = found.settle(directory, durable, epoch)
	}
	var mark *os.File
	if err == nil {
		mark, err = os.OpenFile(filepath.Join(directory, durableName), os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: cannot open the journal in %s: %w", ErrWrite, directory, err)
	}
	j := &Journal{
		CutBytes: found.cutBytes, CutReason: found.cutReason, directory: directory, options: options,
		next: epoch<<EpochShift | 1, segments: found.segments, mark: mark, stop: make(chan struct{}),
	}
	j.moved = sync.NewCond(&j.mu)
	j.last.Store(found.last)
	j.durable.Store(found.last)
	j.trimmed.Store(trimmedLSN(found.segments))
	j.start()
	return j, nil
}

// settle makes what was found durable and writes the marks: after a SIGKILL the tail may be in the page cache only.
func (c *checked) settle(directory string, durable, epoch uint64) error {
	for i, s := range c.segments {
		if i == len(c.segments)-1 || s.first > durable {
			if err := syncPath(s.path); err != nil {
				return err
			}
		}
	}
	return errors.Join(
		syncPath(directory),
		writeMark(filepath.Join(directory, durableName), c.last),
		writeMark(filepath.Join(directory, epochName), epoch),
	)
}

// ownMark reads a mark that was written before the first segment; without it a torn tail and a loss look the same.
func ownMark(path string, segments []segment) (uint64, error) {
	value, ok, err := readMark(path)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrWrite, err)
	}
	if _, err := os.Stat(path); err != nil && len(segments) > 0 {
		ok = false
	}
	if ok {
		return value, nil
	}
	first := uint64(1)
	if n := len(segments); n > 0 {
		first = segments[n-1].first
	}
	return 0, corrupt(fmt.Sprintf("the mark %q is missing or damaged", filepath.Base(path)), first, path, 0)
}

// SyncedBeforeReply is true in the mode group: nobody is answered before SyncTo has returned.
func (j *Journal) SyncedBeforeReply() bool { return j.options.Sync == SyncGroup }

// Next is the LSN that the next entry will get. It belongs to the goroutine that appends.
func (j *Journal) Next() uint64 { return j.next }

// Last is the LSN of the last entry that is in the journal; 0 if it never had one.
func (j *Journal) Last() uint64 { return j.last.Load() }

// Durable is the LSN up to which everything survives a power failure.
func (j *Journal) Durable() uint64 { return j.durable.Load() }

// Trimmed is the highest LSN that is no longer here; a consumer whose position is below it cannot catch up.
func (j *Journal) Trimmed() uint64 { return j.trimmed.Load() }

// Bytes is the size of all segments.
func (j *Journal) Bytes() (total int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range j.segments {
		total += j.segments[i].size
	}
	return total
}

// Append appends entries, one at least, as one block and returns the LSN of the first. It never waits for the disk. After an
// error, which wraps ErrWrite, the file is as it was before and the LSNs are burnt; the next append may succeed.
func (j *Journal) Append(entries []Entry) (uint64, error) {
	first := j.next
	j.next += uint64(len(entries))
	j.buffer = appendBlock(j.buffer[:0], first, entries)
	size := int64(len(j.buffer))
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure != nil {
		return 0, j.failure
	}
	if size > math.MaxUint32 {
		return 0, fmt.Errorf("%w: a block of %d bytes", ErrWrite, size)
	}
	if n := len(j.segments); j.file == nil || j.segments[n-1].size > segmentHeaderBytes && j.segments[n-1].size > j.options.SegmentBytes-size {
		if err := j.beginSegment(first); err != nil {
			return 0, err
		}
	}
	current := &j.segments[len(j.segments)-1]
	if _, err := j.file.Write(j.buffer); err != nil {
		j.undo(current)
		return 0, fmt.Errorf("%w: cannot append %d bytes to %s: %w", ErrWrite, size, current.path, err)
	}
	current.size += size
	j.last.Store(j.next - 1)
	return first, nil
}

// Burn skips n LSNs: those of a batch that failed after it had been numbered.
func (j *Journal) Burn(n int) { j.next += uint64(n) }

func (j *Journal) beginSegment(first uint64) error {
	path := filepath.Join(j.directory, segmentName(first))
	header := encodeSegmentHeader(j.last.Load())
	// 0600: bodies are people's payments.
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err == nil {
		if _, err = file.Write(header); err != nil {
			err = errors.Join(err, file.Close(), os.Remove(path))
		}
	}
	if err != nil {
		return fmt.Errorf("%w: cannot begin segment %s: %w", ErrWrite, path, err)
	}
	if j.file != nil {
		j.retired = append(j.retired, j.file)
	}
	j.file = file
	j.segments = append(j.segments, segment{first, path, int64(len(header))})
	j.isDirDirty = true
	j.moved.Broadcast()
	return nil
}

// undo cuts the segment back after a failed write. If that fails too, half a block may stand at the end, and anything
// appended after it would be unreadable: the journal takes nothing more.
func (j *Journal) undo(current *segment) {
	if err := j.file.Truncate(current.size); err != nil {
		j.fail(fmt.Errorf("%w: cannot cut %s back to %d bytes: %w", ErrWrite, current.path, current.size, err))
	}
}

func (j *Journal) fail(err error) {
	if j.failure == nil {
		j.failure = err
	}
	j.moved.Broadcast()
}
