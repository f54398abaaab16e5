package encode

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/jsontext"
	"weir/gocore/internal/msgpack"
)

// newJob has rows with these risks, of two classes in turns, and room for what becomes of them.
func newJob(risk ...float32) *Job {
	n := len(risk)
	j := &Job{
		FirstLSN: 1<<48 | 1, Risk: risk, BodyEnds: make([]int64, n), Classes: make([]uint8, n), Separator: '\n',
		Entries: make([]byte, 1000*n), Stored: make([]byte, 1000*n), StoredEnds: make([]int64, n), Replies: make([]byte, 1000*n),
		ReplyEnds: make([]int64, n),
	}
	for row := range n {
		j.Bodies = append(j.Bodies, strings.Repeat("b", 200+row%2)...)
		j.BodyEnds[row] = int64(len(j.Bodies))
		j.EventIDs = fmt.Appendf(j.EventIDs, "event-%08d\n", row)
		j.Classes[row] = uint8(row % 2)
	}
	for _, degraded := range [][]string{nil, {"redis"}} {
		tail := msgpack.AppendString(msgpack.AppendString(msgpack.AppendString(nil, "approve"), "m"), "go")
		tail = msgpack.AppendStrings(msgpack.AppendStrings(tail, degraded), nil)
		for _, part := range [][]byte{
			tail, []byte(`,"outcome":"approve","model":"m","scorer":"go","lsn":`),
			append(jsontext.AppendStrings([]byte(`,"replayed":false,"degraded":`), degraded), '}'),
		} {
			j.Parts = append(j.Parts, part...)
			j.PartEnds = append(j.PartEnds, int64(len(j.Parts)))
		}
	}
	return j
}

func TestRun_EachRow_WhatIsMadeOneByOne(t *testing.T) {
	risk := []float32{0, 0.5, 0.1, 1e-7, 1}
	j := newJob(risk...)
	if err := Run(j); err != nil {
		t.Fatal(err)
	}
	var entries, stored, replies []byte
	start := int64(0)
	for row, risk := range risk {
		one := decisions.Stored{
			LSN: j.FirstLSN + uint64(row), Body: j.Bodies[start:j.BodyEnds[row]], Score: float64(risk), Outcome: "approve", Model: "m", Scorer: "go",
		}
		start = j.BodyEnds[row]
		degraded := `[]`
		if row%2 == 1 {
			one.Degraded, degraded = []string{"redis"}, `["redis"]`
		}
		outcome := one.AppendOutcome(nil)
		entries = append(entries, 1, byte(len(one.Body)), 0, 0, 0, byte(len(outcome)), 0, 0, 0)
		entries = append(append(entries, one.Body...), outcome...)
		stored = one.Append(stored)
		replies = fmt.Appendf(replies, `{"event_id":"event-%08d","score":%s,"outcome":"approve","model":"m","scorer":"go","lsn":%d,"replayed":false,"degraded":%s}`+"\n",
			row, jsontext.AppendFloat(nil, one.Score), one.LSN, degraded)
		if int(j.StoredEnds[row]) != len(stored) || int(j.ReplyEnds[row]) != len(replies) {
			t.Errorf("row %d ends at %d, %d; want %d, %d", row, j.StoredEnds[row], j.ReplyEnds[row], len(stored), len(replies))
		}
	}
	for what, pair := range map[string][2][]byte{
		"entries": {j.Entries[:j.EntriesEnd], entries}, "stored": {j.Stored[:len(stored)], stored}, "replies": {j.Replies[:len(replies)], replies},
	} {
		if !bytes.Equal(pair[0], pair[1]) {
			t.Errorf("%s:\n got  %q\n want %q", what, pair[0], pair[1])
		}
	}
}

func TestRun_WhatCannotBe_ErrRows(t *testing.T) {
	for name, change := range map[string]func(j *Job){
		"no LSN":           func(j *Job) { j.FirstLSN = 0 },
		"LSN too large":    func(j *Job) { j.FirstLSN = math.MaxInt64 - 1 },
		"LSN wraps":        func(j *Job) { j.FirstLSN = math.MaxUint64 },
		"NaN":              func(j *Job) { j.Risk[1] = float32(math.NaN()) },
		"infinite":         func(j *Job) { j.Risk[0] = float32(math.Inf(-1)) },
		"class":            func(j *Job) { j.Classes[1] = 2 },
		"body falls":       func(j *Job) { j.BodyEnds[1] = 1 },
		"body outside":     func(j *Job) { j.BodyEnds[1] = int64(len(j.Bodies)) + 1 },
		"part outside":     func(j *Job) { j.PartEnds[5]++ },
		"part below 0":     func(j *Job) { j.PartEnds[0] = -1 },
		"one id less":      func(j *Job) { j.EventIDs = j.EventIDs[:len(j.EventIDs)-1] },
		"one id more":      func(j *Job) { j.EventIDs = append(j.EventIDs, 'x', '\n') },
		"room for entries": func(j *Job) { j.Entries = j.Entries[:300] },
		"room for records": func(j *Job) { j.Stored = j.Stored[:300] },
		"room for replies": func(j *Job) { j.Replies = j.Replies[:150] },
	} {
		j := newJob(0.25, 0.5)
		change(j)
		if err := Run(j); !errors.Is(err, ErrRows) || j.EntriesEnd != 0 {
			t.Errorf("%s: %v; want ErrRows", name, err)
		}
	}
}

func TestRun_NoRows_Nothing(t *testing.T) {
	if err := Run(newJob()); err != nil {
		t.Error(err)
	}
}

func chunk() *Job {
	risk := make([]float32, 256)
	for i := range risk {
		risk[i] = float32(i) / 257
	}
	return newJob(risk...)
}

func TestRun_NoAllocation(t *testing.T) {
	j := chunk()
	if n := testing.AllocsPerRun(50, func() {
		if err := Run(j); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRun(b *testing.B) {
	j := chunk()
	b.ReportAllocs()
	for b.Loop() {
		if err := Run(j); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/256, "ns/row")
}
