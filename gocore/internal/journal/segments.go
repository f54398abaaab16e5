package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

const damagedSuffix = ".damaged" // the original of a segment that the Python service repaired; deleted together with it

var segmentPattern = regexp.MustCompile(`^[0-9a-f]{16}\.seg$`)

// segment is one file: no LSN in it is below first, all are below the first of the segment after it.
type segment struct {
	first uint64
	path  string
	size  int64
}

func listSegments(directory string) ([]segment, error) {
	entries, err := os.ReadDir(directory) // sorted by name, and so by LSN
	if err != nil {
		return nil, err
	}
	var segments []segment
	for _, entry := range entries {
		if !segmentPattern.MatchString(entry.Name()) {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			return nil, err
		}
		first, err := strconv.ParseUint(entry.Name()[:16], 16, 64)
		if err != nil {
			return nil, err
		}
		segments = append(segments, segment{first, filepath.Join(directory, entry.Name()), info.Size()})
	}
	return segments, nil
}

// damage is where a walk had to stop; last is the last LSN before it, isTail says that nothing readable comes after.
type damage struct {
	badBlock
	segment segment
	index   int
	last    uint64
	missing uint64
	isTail  bool
}

func (d *damage) Error() string { return d.problem }

func (d *damage) corrupt() error {
	return corrupt(d.problem, d.missing, d.segment.path, d.offset)
}

// corrupt names the first missing LSN.
func corrupt(problem string, lsn uint64, path string, offset int64) error {
	return fmt.Errorf("%w: %s; first missing LSN %d (epoch %d), %s at byte %d; restore the journal, or let"+
		" `weir serve --accept-loss` repair it", ErrCorrupt, problem, lsn, lsn>>EpochShift, path, offset)
}

// startIndex is the segment that would hold lsn; 0 if all are above it.
func startIndex(segments []segment, lsn uint64) int {
	n, _ := slices.BinarySearchFunc(segments, lsn, func(s segment, lsn uint64) int {
		if s.first <= lsn {
			return -1
		}
		return 1
	})
	return max(0, n-1)
}

// walk visits the blocks of segments start and later, and returns the last LSN. Unreadable bytes are a *damage.
func walk(segments []segment, start int, from uint64, visit func(*Block) error) (last uint64, err error) {
	for index := start; index < len(segments); index++ {
		if last, err = walkOne(segments, index, index == start, last, from, visit); err != nil {
			return last, err
		}
	}
	return last, nil
}

func walkOne(segments []segment, index int, isFirst bool, last, from uint64, visit func(*Block) error) (uint64, error) {
	seg := segments[index]
	isNewest := index == len(segments)-1
	file, err := os.Open(seg.path)
	if err != nil {
		return last, err
	}
	defer file.Close()
	reader, broken, err := newBlockReader(file, seg.size, seg.first)
	if err != nil {
		return last, err
	}
	if broken != nil {
		// A process killed between creating a segment and its first block leaves less than a header.
		return last, &damage{*broken, seg, index, last, max(last+1, seg.first), isNewest && seg.size <= segmentHeaderBytes}
	}
	if !isFirst && reader.previousLast != last {
		problem := bad(0, "segment follows LSN %d, the one before ends at %d", reader.previousLast, last)
		return last, &damage{*problem, seg, index, last, last + 1, false}
	}
	for {
		block, broken, err := reader.next(from)
		switch {
		case err != nil:
			return reader.last, err
		case broken != nil:
			follows, err := reader.hasBlockAfter(broken.offset)
			if err != nil {
				return reader.last, err
			}
			return reader.last, &damage{*broken, seg, index, reader.last, max(reader.last+1, seg.first), isNewest && !follows}
		case block == nil:
			return reader.last, nil
		}
		if err := visit(block); err != nil {
			return reader.last, err
		}
	}
}

// read visits every entry from from on, in blocks. Bad bytes at the very end, past durable and with nothing readable after
// them, end it silently; other damage is ErrCorrupt.
func read(segments []segment, from, durable uint64, visit func(*Block) error) error {
	last, err := walk(segments, startIndex(segments, from), from, visit)
	var found *damage
	if errors.As(err, &found) {
		if found.isTail && found.last >= durable {
			return nil
		}
		return found.corrupt()
	}
	if err != nil {
		return err
	}
	return checkLength(segments, last, durable)
}
