package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func checkLength(segments []segment, last, durable uint64) error {
	if last >= durable {
		return nil
	}
	path, size := "no segment", int64(0)
	if n := len(segments); n > 0 {
		path, size = segments[n-1].path, segments[n-1].size
	}
	return corrupt(fmt.Sprintf("the journal ends at LSN %d, but was durable up to %d", last, durable), last+1, path, size)
}

// checked is what a start found, and what it cut.
type checked struct {
	segments  []segment
	last      uint64
	cutBytes  int64
	cutReason string
}

// check verifies the segments from the durable LSN on, and cuts what is bad past it.
func check(segments []segment, durable uint64) (checked, error) {
	found := checked{segments: segments}
	last, err := walk(segments, startIndex(segments, durable), 0, func(*Block) error { return nil })
	found.last = last
	var broken *damage
	if errors.As(err, &broken) {
		if broken.last < durable {
			return found, broken.corrupt()
		}
		found.last = broken.last
		err = found.cut(broken)
	}
	if err != nil {
		return found, err
	}
	return found, checkLength(found.segments, found.last, durable)
}

// cut drops everything from the damage on, newest file first: if this is interrupted, the next start repeats it.
func (c *checked) cut(at *damage) error {
	keep := at.offset
	if keep <= segmentHeaderBytes {
		keep = 0
	}
	for _, s := range c.segments[at.index:] {
		c.cutBytes += s.size
	}
	c.cutBytes -= keep
	c.cutReason = fmt.Sprintf("%s (%s at byte %d)", at.problem, filepath.Base(at.segment.path), at.offset)
	kept := at.index
	if keep > 0 {
		kept++
	}
	for i := len(c.segments) - 1; i >= kept; i-- {
		if err := os.Remove(c.segments[i].path); err != nil {
			return err
		}
	}
	c.segments = c.segments[:kept]
	if keep > 0 {
		if err := os.Truncate(at.segment.path, keep); err != nil {
			return err
		}
		c.segments[at.index].size = keep
	}
	return syncPath(filepath.Dir(at.segment.path))
}

// trimmedLSN is the highest LSN that is no longer here because it was trimmed away; 0 if nothing was.
func trimmedLSN(segments []segment) uint64 {
	if len(segments) == 0 {
		return 0
	}
	file, err := os.Open(segments[0].path)
	if err != nil {
		return 0
	}
	defer file.Close()
	header := make([]byte, segmentHeaderBytes)
	n, _ := file.Read(header)
	last, _, _ := decodeSegmentHeader(header[:n])
	return last
}

// readMark is the number in a mark file: 0 if there is none or it is empty; ok is false if it is damaged.
func readMark(path string) (value uint64, ok bool, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		return 0, true, nil
	}
	if err != nil {
		return 0, false, err
	}
	value, ok = decodeMark(data)
	return value, ok, nil
}

// writeMark replaces a mark file durably: afterwards it holds the old number or the new one.
func writeMark(path string, value uint64) error {
	temporary := path + ".tmp"
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(encodeMark(value))
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		err = syncPath(filepath.Dir(path))
	}
	return err
}

// syncPath is fsync of a file or directory that nobody has open.
func syncPath(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.Fsync(int(file.Fd()))
}
