package copyrows

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/tx"
)

const first = 7<<48 | 1

// block is the bytes of a block as they stand in a segment.
func block(first uint64, entries ...journal.Entry) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 8), first)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(entries)))
	for _, e := range entries {
		b = append(append(journal.AppendEntryHead(b, e.Kind, len(e.Body), len(e.Decision)), e.Body...), e.Decision...)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)-8))
	binary.LittleEndian.PutUint32(b[4:], journal.Checksum(b[8:]))
	return b
}

func event(number int) (tx.Transaction, decisions.Stored) {
	return tx.Transaction{
			EventID: fmt.Sprintf("e%d", number), TS: 1_750_000_000_000 + int64(number), Amount: 10_000_000_000, Currency: "EUR",
			CardID: "c1", MerchantID: "mü", DeviceID: "d", Country: "DE", MCC: 5411, Channel: "pos", HasPlace: true, Lat: 1.5, Lon: -3,
		}, decisions.Stored{
			Score: 0.25, Outcome: "review", Model: "cards-1", Scorer: "go", Degraded: []string{"L3"}, Reasons: []string{"R1", "é2"},
		}
}

func entry(t tx.Transaction, s decisions.Stored) journal.Entry {
	return journal.Entry{Kind: journal.TX, Body: t.AppendBody(nil), Decision: s.AppendOutcome(nil)}
}

func entries(n int) (list []journal.Entry) {
	for i := range n {
		list = append(list, entry(event(i)))
	}
	return list
}

func newJob(blocks ...[]byte) *Job {
	return &Job{
		Blocks: slices.Concat(blocks...), Before: first - 1, From: first - 1, To: math.MaxInt64, RowsMax: 1000, Out: make([]byte, 1<<16),
	}
}

// tuples takes rows apart into their fields.
func tuples(t testing.TB, b []byte) (rows [][][]byte) {
	t.Helper()
	for len(b) > 0 {
		var fields [][]byte
		n := binary.BigEndian.Uint16(b)
		b = b[2:]
		for range n {
			size := binary.BigEndian.Uint32(b)
			fields = append(fields, b[4:4+size])
			b = b[4+size:]
		}
		rows = append(rows, fields)
	}
	return rows
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func TestTake_Transaction_ColumnsInOrder(t *testing.T) {
	e, made := event(5)
	none := made
	none.Reasons = nil
	gone := e
	gone.CardID, gone.MerchantID = "\x00\x00", "\u0080x"
	j := newJob(block(first, entry(e, made), entry(e, none)), block(first+9, entry(gone, made)))
	Take(j)
	if j.State != More || j.Rows != 3 || j.Taken != len(j.Blocks) || j.Before != first+9 {
		t.Fatalf("%+v", j)
	}
	reasons := []byte("\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x19\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x02R1\x00\x00\x00\x03é2")
	empty := []byte("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x19")
	want := [][]byte{
		number(first), []byte("e5"), number(1_750_000_000_005), []byte("c1"), []byte("mü"), number(10_000_000_000), []byte("EUR"),
		number(math.Float64bits(0.25)), []byte("review"), []byte("cards-1"), []byte("go"), reasons, e.AppendBody(nil),
	}
	rows := tuples(t, j.Out[:j.OutEnd])
	if !reflect.DeepEqual(rows[0], want) {
		t.Errorf("%q\nnot %q", rows[0], want)
	}
	want[0], want[11] = number(first+1), empty
	if !reflect.DeepEqual(rows[1], want) {
		t.Errorf("without reasons %q", rows[1])
	}
	if len(rows[2][3])+len(rows[2][4]) != 0 || string(rows[2][12]) != string(gone.AppendBody(nil)) {
		t.Errorf("erased ids are %q", rows[2])
	}
}

func TestTake_WhatItDoesNotTake_LeftWithItsWholeBlock(t *testing.T) {
	good := entry(event(1))
	change := func(f func(*tx.Transaction, *decisions.Stored)) journal.Entry {
		e, made := event(2)
		f(&e, &made)
		return entry(e, made)
	}
	whole := good.Decision[0]
	cases := map[string]journal.Entry{
		"label":                {Kind: journal.Label, Body: good.Body},
		"list":                 {Kind: journal.List},
		"unknown kind":         {Kind: 9, Body: good.Body, Decision: good.Decision},
		"no decision":          {Kind: journal.TX, Body: good.Body},
		"seven fields":         {Kind: journal.TX, Body: good.Body, Decision: append([]byte{whole + 1}, append(good.Decision[1:], 0)...)},
		"five fields":          {Kind: journal.TX, Body: good.Body, Decision: append([]byte{whole - 1}, good.Decision[1:]...)},
		"more after decision":  {Kind: journal.TX, Body: good.Body, Decision: append(slices.Clone(good.Decision), 0)},
		"score is an integer":  {Kind: journal.TX, Body: good.Body, Decision: append([]byte{whole, 1}, good.Decision[10:]...)},
		"half a decision":      {Kind: journal.TX, Body: good.Body, Decision: good.Decision[:20]},
		"no body":              {Kind: journal.TX, Decision: good.Decision},
		"half a body":          {Kind: journal.TX, Body: good.Body[:30], Decision: good.Decision},
		"more after body":      {Kind: journal.TX, Body: append(slices.Clone(good.Body), 0), Decision: good.Decision},
		"zero byte in event":   change(func(e *tx.Transaction, _ *decisions.Stored) { e.EventID = "a\x00" }),
		"zero byte in card":    change(func(e *tx.Transaction, _ *decisions.Stored) { e.CardID = "a\x00" }),
		"zero byte, currency":  change(func(e *tx.Transaction, _ *decisions.Stored) { e.Currency = "\x00" }),
		"zero byte in reason":  change(func(_ *tx.Transaction, s *decisions.Stored) { s.Reasons[1] = "\x00" }),
		"no UTF-8 in card":     change(func(e *tx.Transaction, _ *decisions.Stored) { e.CardID = "\xff" }),
		"no UTF-8 in model":    change(func(_ *tx.Transaction, s *decisions.Stored) { s.Model = "\xff" }),
		"no UTF-8 in reason":   change(func(_ *tx.Transaction, s *decisions.Stored) { s.Reasons[0] = "\xed\xa0\x80" }),
		"no UTF-8 in degraded": change(func(_ *tx.Transaction, s *decisions.Stored) { s.Degraded[0] = "\xff" }),
		"empty event":          change(func(e *tx.Transaction, _ *decisions.Stored) { e.EventID = "" }),
		"card of 129":          change(func(e *tx.Transaction, _ *decisions.Stored) { e.CardID = strings.Repeat("c", 129) }),
		"amount below 0":       change(func(e *tx.Transaction, _ *decisions.Stored) { e.Amount = -1 }),
		"unknown channel":      change(func(e *tx.Transaction, _ *decisions.Stored) { e.Channel = "fax" }),
	}
	for name, bad := range cases {
		front := block(first, good, good)
		j := newJob(front, block(first+2, good, bad), block(first+4, good))
		Take(j)
		if j.State != Left || j.Rows != 2 || j.Taken != len(front) || j.Before != first+1 || len(tuples(t, j.Out[:j.OutEnd])) != 2 {
			t.Errorf("%s: state %d, %d rows, %d bytes, LSN %d", name, j.State, j.Rows, j.Taken, j.Before-first)
		}
	}
}

func TestTake_DamagedBlock_NotTaken(t *testing.T) {
	front, back := block(first, entries(2)...), block(first+2, entries(3)...)
	for at := range back {
		bad := slices.Clone(back)
		bad[at] ^= 0x10
		j := newJob(front, bad)
		Take(j)
		if (j.State != Left && j.State != More) || j.Rows != 2 || j.Taken != len(front) {
			t.Fatalf("byte %d: state %d, %d rows, %d bytes", at, j.State, j.Rows, j.Taken)
		}
	}
	for size := range back {
		j := newJob(front, back[:size])
		Take(j)
		if j.State != More || j.Rows != 2 {
			t.Fatalf("%d bytes: state %d, %d rows", size, j.State, j.Rows)
		}
	}
	j := newJob(block(math.MaxInt64, entries(2)...)) // the second LSN would be negative in Postgres
	j.To = math.MaxUint64
	if Take(j); j.State != Left || j.Rows != 0 {
		t.Errorf("state %d, %d rows", j.State, j.Rows)
	}
}

func TestTake_FromAndTo_RowsBetween(t *testing.T) {
	blocks := [][]byte{block(first, entries(4)...), block(first+4, entries(4)...), block(first+8, entries(4)...)}
	for _, c := range []struct {
		from, to          uint64
		rows, taken, last int
		state             int
	}{
		{first - 1, math.MaxInt64, 12, 3, 11, More},
		{first + 3, math.MaxInt64, 8, 3, 11, More},
		{first + 5, math.MaxInt64, 6, 3, 11, More},
		{first + 11, math.MaxInt64, 0, 3, 11, More},
		{first - 1, first + 7, 8, 2, 7, Beyond},
		{first - 1, first + 6, 4, 1, 3, Beyond}, // a block is taken whole or not at all
		{first - 1, first - 1, 0, 0, -1, Beyond},
	} {
		j := newJob(blocks...)
		j.From, j.To = c.from, c.to
		Take(j)
		taken := len(slices.Concat(blocks[:c.taken]...))
		if j.Rows != c.rows || j.Taken != taken || j.Before != uint64(first+c.last) || j.State != c.state {
			t.Errorf("%+v: %d rows, %d of %d bytes, LSN %d, state %d", c, j.Rows, j.Taken, taken, j.Before-first, j.State)
		}
		rows := tuples(t, j.Out[:j.OutEnd])
		if len(rows) > 0 && !slices.Equal(rows[0][0], number(c.from+1)) {
			t.Errorf("%+v: begins with %x", c, rows[0][0])
		}
	}
}

func TestTake_NoRoom_Full(t *testing.T) {
	blocks := [][]byte{block(first, entries(3)...), block(first+3, entries(3)...)}
	j := newJob(blocks...)
	Take(j)
	for room := range j.OutEnd {
		small := newJob(blocks...)
		small.Out = make([]byte, room)
		Take(small)
		if small.State != Full || small.Rows%3 != 0 || small.OutEnd > room || !slices.Equal(small.Out[:small.OutEnd], j.Out[:small.OutEnd]) {
			t.Fatalf("%d bytes: state %d, %d rows", room, small.State, small.Rows)
		}
	}
	for most, rows := range map[int]int{1: 3, 3: 3, 5: 3, 6: 6} { // the first block is taken however large it is
		few := newJob(blocks...)
		few.RowsMax = most
		if Take(few); few.Rows != rows || (few.State == Full) != (rows == 3) {
			t.Errorf("at most %d rows: %d, state %d", most, few.Rows, few.State)
		}
	}
}

func TestTake_NoAllocation(t *testing.T) {
	j := newJob(block(first, entries(64)...))
	if n := testing.AllocsPerRun(10, func() { j.Before = first - 1; Take(j) }); n != 0 || j.Rows != 64 {
		t.Errorf("%v allocations for %d rows", n, j.Rows)
	}
}

// FuzzTake gives it entries of any bytes in blocks whose checksum is right, and blocks of any bytes.
func FuzzTake(f *testing.F) {
	good := entry(event(1))
	f.Add(good.Body, good.Decision, byte(1), []byte{})
	f.Add([]byte{}, []byte{}, byte(2), block(first+2, good))
	f.Fuzz(func(t *testing.T, body, decision []byte, kind byte, more []byte) {
		j := newJob(block(first, good, journal.Entry{Kind: kind, Body: body, Decision: decision}), more)
		Take(j)
		if j.State < More || j.State > Left || j.Taken > len(j.Blocks) || len(tuples(t, j.Out[:j.OutEnd])) != j.Rows {
			t.Fatalf("%+v", j)
		}
		for _, row := range tuples(t, j.Out[:j.OutEnd]) {
			if len(row) != columns {
				t.Fatalf("%q", row)
			}
		}
		j = newJob(more)
		j.Before, j.From = 0, 0
		Take(j)
	})
}

func BenchmarkTake(b *testing.B) {
	var blocks [][]byte
	for i := range uint64(32) {
		blocks = append(blocks, block(first+256*i, entries(256)...))
	}
	j := newJob(blocks...)
	j.Out, j.RowsMax = make([]byte, 8<<20), 1<<14
	b.ReportAllocs()
	for b.Loop() {
		j.Before = first - 1
		Take(j)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*j.Rows), "ns/row")
}
