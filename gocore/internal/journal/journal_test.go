package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func open(t testing.TB, directory string, options Options) *Journal {
	t.Helper()
	if options.Sync == "" {
		options.Sync = SyncOS
	}
	if options.Interval == 0 {
		options.Interval = 5 * time.Millisecond
	}
	if options.SegmentBytes == 0 {
		options.SegmentBytes = 1 << 20
	}
	j, err := Open(directory, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func entries(bodies ...string) (list []Entry) {
	for _, body := range bodies {
		list = append(list, Entry{TX, []byte(body), []byte("decided " + body)})
	}
	return list
}

func appendAll(t testing.TB, j *Journal, bodies ...string) uint64 {
	t.Helper()
	first, err := j.Append(entries(bodies...))
	if err != nil {
		t.Fatal(err)
	}
	return first
}

// dump is every entry from an LSN on as "lsn:body".
func dump(t testing.TB, read func(uint64, func(*Block) error) error, from uint64) (list []string) {
	t.Helper()
	err := read(from, func(b *Block) error {
		for i, e := range b.Entries {
			list = append(list, fmt.Sprintf("%x:%s", b.First+uint64(i), e.Body))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func newestSegment(t testing.TB, directory string) string {
	t.Helper()
	segments, err := listSegments(directory)
	if err != nil || len(segments) == 0 {
		t.Fatalf("%v, %v", segments, err)
	}
	return segments[len(segments)-1].path
}

func TestOpen_WrittenByPython_ContinuesInANewEpoch(t *testing.T) {
	directory := t.TempDir()
	if err := os.CopyFS(directory, os.DirFS("testdata/python")); err != nil {
		t.Fatal(err)
	}
	j := open(t, directory, Options{})
	found := dump(t, j.Read, 0)
	if len(found) != 18 || found[0] != "1000000000001:body-0-0-0" || found[17] != "200000000000e:x" {
		t.Fatalf("%q", found)
	}
	if first := appendAll(t, j, "go"); first != 3<<EpochShift|1 {
		t.Fatalf("first LSN %x", first)
	}
	if found := dump(t, j.Read, 2<<EpochShift|14); !slices.Equal(found, []string{"200000000000e:x", "3000000000001:go"}) {
		t.Fatalf("%q", found)
	}
}

func TestAppend_ThenReadFrom_EntriesInOrder(t *testing.T) {
	directory := t.TempDir()
	j := open(t, directory, Options{})
	appendAll(t, j, "a", "b")
	j.Burn(3)
	appendAll(t, j, "c")
	want := []string{"1000000000001:a", "1000000000002:b", "1000000000006:c"}
	if found := dump(t, j.Read, 0); !slices.Equal(found, want) {
		t.Fatalf("%q", found)
	}
	if found := dump(t, j.Read, 1<<EpochShift|2); !slices.Equal(found, want[1:]) {
		t.Fatalf("%q", found)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	byPath := func(from uint64, visit func(*Block) error) error { return readDirectory(directory, from, visit) }
	if found := dump(t, byPath, 0); !slices.Equal(found, want) {
		t.Fatalf("%q", found)
	}
	if _, err := j.Append(entries("d")); !errors.Is(err, ErrWrite) {
		t.Fatalf("after Close: %v", err)
	}
}

func TestAppend_SegmentFull_BeginsAnother(t *testing.T) {
	directory := t.TempDir()
	j := open(t, directory, Options{SegmentBytes: 200})
	for i := range 10 {
		appendAll(t, j, strings.Repeat("x", 50)+fmt.Sprint(i))
	}
	if err := j.SyncTo(j.Last()); err != nil {
		t.Fatal(err)
	}
	segments, _ := listSegments(directory)
	if len(segments) != 10 || len(dump(t, j.Read, 0)) != 10 {
		t.Fatalf("%d segments", len(segments))
	}
	freed, err := j.Trim(1<<EpochShift|5, time.Hour)
	if err != nil || freed != 0 {
		t.Fatalf("kept for an hour: %d, %v", freed, err)
	}
	freed, err = j.Trim(1<<EpochShift|5, 0)
	if err != nil || freed == 0 || j.Trimmed() != 1<<EpochShift|4 || len(dump(t, j.Read, 0)) != 6 {
		t.Fatalf("freed %d, %v, trimmed %x", freed, err, j.Trimmed())
	}
	if _, err := j.Trim(1<<62, 0); err != nil || len(dump(t, j.Read, 0)) != 1 {
		t.Fatalf("the newest segment stays: %v", err)
	}
}

func TestOpen_EpochFloor_IsPassed(t *testing.T) {
	j := open(t, t.TempDir(), Options{EpochFloor: 7})
	if j.Next() != 8<<EpochShift|1 {
		t.Fatalf("%x", j.Next())
	}
}

func TestSyncTo_ManyWaiters_AllReturn(t *testing.T) {
	j := open(t, t.TempDir(), Options{Sync: SyncGroup})
	var wait sync.WaitGroup
	for i := range 100 {
		appendAll(t, j, fmt.Sprint(i))
		lsn := j.Last()
		wait.Go(func() {
			if err := j.SyncTo(lsn); err != nil || j.Durable() < lsn {
				t.Errorf("%v, durable %x", err, j.Durable())
			}
		})
	}
	wait.Wait()
}

func TestInterval_Elapsed_Durable(t *testing.T) {
	j := open(t, t.TempDir(), Options{Sync: SyncInterval})
	appendAll(t, j, "a")
	for range 200 {
		if j.Durable() == j.Last() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("never durable")
}

// crash leaves the directory as a killed process would: bytes written, marks as they were.
func crash(t *testing.T, bodies ...string) string {
	t.Helper()
	directory := t.TempDir()
	j := open(t, directory, Options{})
	appendAll(t, j, "durable")
	if err := j.SyncTo(j.Last()); err != nil {
		t.Fatal(err)
	}
	for _, body := range bodies {
		appendAll(t, j, body)
	}
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(directory)); err != nil {
		t.Fatal(err)
	}
	return copied
}

func TestOpen_TornTail_IsCut(t *testing.T) {
	for cut := int64(1); cut < 40; cut += 6 {
		directory := crash(t, "kept", "torn")
		path := newestSegment(t, directory)
		info, _ := os.Stat(path)
		if err := os.Truncate(path, info.Size()-cut); err != nil {
			t.Fatal(err)
		}
		j := open(t, directory, Options{})
		if found := dump(t, j.Read, 0); len(found) != 2 || j.CutReason == "" || j.CutBytes == 0 {
			t.Fatalf("cut %d: %q, %d bytes, %s", cut, found, j.CutBytes, j.CutReason)
		}
	}
}

func TestOpen_HolePastDurable_CutsWhatFollowsToo(t *testing.T) {
	directory := crash(t, "hole", "readable")
	path := newestSegment(t, directory)
	data, _ := os.ReadFile(path)
	copy(data[bytes.Index(data, []byte("hole")):], "HOLE")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := readDirectory(directory, 0, func(*Block) error { return nil }); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a reader skips a hole: %v", err)
	}
	j := open(t, directory, Options{})
	if found := dump(t, j.Read, 0); len(found) != 1 {
		t.Fatalf("%q", found)
	}
}

func TestOpen_DamageBelowDurable_RefusedNamingTheLSN(t *testing.T) {
	directory := t.TempDir()
	j := open(t, directory, Options{})
	appendAll(t, j, "first", "second")
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := newestSegment(t, directory)
	whole, _ := os.ReadFile(path)
	broken := bytes.Replace(whole, []byte("second"), []byte("SECOND"), 1)
	for name, damage := range map[string]func() error{
		"flipped":   func() error { return os.WriteFile(path, broken, 0o600) },
		"truncated": func() error { return os.Truncate(path, int64(len(whole)-1)) },
		"gone":      func() error { return os.Rename(path, path+".away") },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		_, err := Open(directory, Options{Sync: SyncOS})
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), fmt.Sprintf("first missing LSN %d", 1<<EpochShift|1)) &&
			!strings.Contains(err.Error(), "first missing LSN 1 ") {
			t.Errorf("%s: %v", name, err)
		}
		_ = os.Remove(path + ".away")
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(directory, durableName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(directory, Options{Sync: SyncOS}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("without its mark: %v", err)
	}
}

func TestOpen_NewerVersion_RefusedAndUntouched(t *testing.T) {
	directory := crash(t, "a")
	path := newestSegment(t, directory)
	data, _ := os.ReadFile(path)
	data[8] = 2
	header := data[:segmentHeaderBytes]
	crc := segmentHeaderCRC(header)
	data[12], data[13], data[14], data[15] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(directory, Options{Sync: SyncOS}); !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(path); !bytes.Equal(now, data) {
		t.Fatal("something was changed")
	}
}

func TestOpen_SegmentMissing_Refused(t *testing.T) {
	directory := t.TempDir()
	j := open(t, directory, Options{SegmentBytes: 1})
	for i := range 3 {
		appendAll(t, j, fmt.Sprint(i))
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	segments, _ := listSegments(directory)
	if err := os.Remove(segments[1].path); err != nil {
		t.Fatal(err)
	}
	err := readDirectory(directory, 0, func(*Block) error { return nil })
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), fmt.Sprint(uint64(1<<EpochShift|2))) {
		t.Fatal(err)
	}
}

func TestAppend_FileIsGone_ErrWriteAndNothingAppended(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	appendAll(t, j, "a")
	last := j.Last()
	if err := j.file.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(entries("b")); !errors.Is(err, ErrWrite) {
		t.Fatal(err)
	}
	if j.Last() != last || j.Next() != last+2 {
		t.Fatalf("last %x, next %x", j.Last(), j.Next())
	}
	if _, err := j.Append(entries("c")); !errors.Is(err, ErrWrite) {
		t.Fatalf("nothing may follow half a block: %v", err)
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, rows := range []int{1, 64} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			j := open(b, b.TempDir(), Options{SegmentBytes: 64 << 20})
			batch := make([]Entry, rows)
			for i := range batch {
				batch[i] = Entry{TX, make([]byte, 200), make([]byte, 60)}
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := j.Append(batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// readDirectory visits the blocks of a journal that nobody has open, without changing it.
func readDirectory(directory string, from uint64, visit func(*Block) error) error {
	durable, _, err := readMark(filepath.Join(directory, durableName))
	if err != nil {
		return err
	}
	segments, err := listSegments(directory)
	if err != nil {
		return err
	}
	return read(segments, from, durable, visit)
}
