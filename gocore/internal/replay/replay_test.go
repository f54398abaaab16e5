package replay

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/score"
	"weir/gocore/internal/tx"
)

const segmentHeader = 24 // bytes

func newArena(tb testing.TB, p *plan.Plan, rows int) *score.Arena {
	tb.Helper()
	var slabs []*profile.Slab
	for i := range p.Kinds {
		slab, err := profile.NewSlab(&p.Kinds[i], 4)
		if err != nil {
			tb.Fatal(err)
		}
		slabs = append(slabs, slab)
	}
	arena, err := score.New(p, slabs, rows)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = arena.Close() })
	return arena
}

func newJob(p *plan.Plan, arena *score.Arena, blocks []byte, records int) *Job {
	kinds := len(p.Kinds)
	j := &Job{
		Blocks: blocks, To: math.MaxInt64, IDs: make([]byte, kinds*1024), IDBytes: 1024, IDEnds: make([]int64, kinds),
		NumNew: make([]int64, kinds), NumDistinct: make([]int64, kinds), Numbers: make([]int64, kinds*arena.Rows),
		FirstRows: make([]int64, kinds*arena.Rows), RecordEnds: make([]int64, 2*arena.Rows), Others: make([]int64, 2*OtherWords),
	}
	if records > 0 {
		j.Records = make([]byte, records)
	}
	return j
}

func entry(number int, card, device string) journal.Entry {
	t := tx.Transaction{
		EventID: fmt.Sprintf("e%d", number), TS: 1_750_000_000_000 + int64(number), Amount: 100, Currency: "EUR",
		CardID: card, MerchantID: "m", DeviceID: device, MCC: -1,
	}
	stored := decisions.Stored{Score: 0.5, Outcome: "approve", Model: "m", Scorer: "go"}
	return journal.Entry{Kind: journal.TX, Body: t.AppendBody(nil), Decision: stored.AppendOutcome(nil)}
}

// written is the bytes of these blocks as they stand in a segment, and the LSN before the first of them.
func written(tb testing.TB, blocks ...[]journal.Entry) ([]byte, uint64) {
	tb.Helper()
	directory := tb.TempDir()
	j, err := journal.Open(directory, journal.Options{Sync: journal.SyncOS, SegmentBytes: 1 << 26})
	if err != nil {
		tb.Fatal(err)
	}
	before := j.Next() - 1
	for _, block := range blocks {
		if _, err := j.Append(block); err != nil {
			tb.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		tb.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(directory, "*.seg"))
	data, err := os.ReadFile(names[0])
	if err != nil {
		tb.Fatal(err)
	}
	return data[segmentHeader:], before
}

func newSplitter(tb testing.TB, p *plan.Plan, ids int) *Splitter {
	tb.Helper()
	s, err := New(p, ids)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// take runs the job from where it stands.
func take(tb testing.TB, s *Splitter, arena *score.Arena, j *Job) {
	tb.Helper()
	j.Forgot = false
	if err := s.Take(arena, j); err != nil {
		tb.Fatal(err)
	}
}

func newIDs(j *Job, kind int) []string {
	text := string(j.IDs[kind*j.IDBytes : kind*j.IDBytes+int(j.IDEnds[kind])])
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

func TestTake_IDsThatComeAgain_KeepTheirNumbersAcrossCalls(t *testing.T) {
	p := plantest.Load(t, "cards")
	data, before := written(t, []journal.Entry{entry(0, "a", "x"), entry(1, "b", ""), entry(2, "a", "\x00\x00")},
		[]journal.Entry{entry(3, "c", "x"), entry(4, "b", "y")})
	s, arena := newSplitter(t, p, 100), newArena(t, p, 3)
	j := newJob(p, arena, data, 0)
	j.Before, j.From = before, before
	take(t, s, arena, j)
	card, device := kindOf(p, "card_id"), kindOf(p, "device_id")
	if j.Rows != 3 || j.State != Full || j.Last != before+3 || j.Entries != 3 {
		t.Fatalf("rows %d, state %d, last %d, entries %d", j.Rows, j.State, j.Last-before, j.Entries)
	}
	if got := newIDs(j, card); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("new ids %q", got)
	}
	if got := newIDs(j, device); !slices.Equal(got, []string{"x"}) {
		t.Fatalf("an absent and an erased device have no number: %q", got)
	}
	if j.Numbers[card*3] != 0 || j.Numbers[card*3+1] != 1 || j.FirstRows[card*3+1] != 1 || j.NumDistinct[card] != 2 {
		t.Fatalf("numbers %v, first rows %v", j.Numbers[card*3:], j.FirstRows[card*3:])
	}
	j.Blocks, j.From = j.Blocks[j.Taken:], j.Last
	take(t, s, arena, j)
	if j.Rows != 2 || j.State != More || j.Last != before+5 || j.Taken != len(j.Blocks) {
		t.Fatalf("rows %d, state %d, last %d, %d of %d bytes", j.Rows, j.State, j.Last-before, j.Taken, len(j.Blocks))
	}
	if got := newIDs(j, card); !slices.Equal(got, []string{"c"}) {
		t.Fatalf("new ids %q", got)
	}
	if got := j.Numbers[card*3 : card*3+2]; !slices.Equal(got, []int64{2, 1}) {
		t.Fatalf("numbers %v, not c and then b", got)
	}
}

func kindOf(p *plan.Plan, field string) int {
	return slices.IndexFunc(p.Kinds, func(k plan.Kind) bool { return k.IDField == field })
}

func TestTake_MoreIDsThanItKeeps_ForgetsThemAll(t *testing.T) {
	p := plantest.Load(t, "cards")
	data, before := written(t, []journal.Entry{entry(0, "a", ""), entry(1, "b", "")}, []journal.Entry{entry(2, "b", "")})
	s, arena := newSplitter(t, p, 1), newArena(t, p, 2)
	j := newJob(p, arena, data, 0)
	j.Before, j.From = before, before
	take(t, s, arena, j)
	if j.Forgot || j.Rows != 2 {
		t.Fatalf("forgot %v, rows %d", j.Forgot, j.Rows)
	}
	j.Blocks, j.From = j.Blocks[j.Taken:], j.Last
	take(t, s, arena, j)
	card := kindOf(p, "card_id")
	if got := newIDs(j, card); !j.Forgot || !slices.Equal(got, []string{"b"}) || j.Numbers[card*2] != 0 {
		t.Fatalf("forgot %v, ids %q, number %d", j.Forgot, got, j.Numbers[card*2])
	}
}

func TestTake_EntriesOutsideTheRange_AreNotTaken(t *testing.T) {
	p := plantest.Load(t, "cards")
	data, before := written(t, []journal.Entry{entry(0, "a", ""), entry(1, "b", ""), entry(2, "c", "")}, []journal.Entry{entry(3, "d", "")})
	s, arena := newSplitter(t, p, 100), newArena(t, p, 8)
	j := newJob(p, arena, data, 0)
	j.Before, j.From, j.To = before, before+1, before+2
	take(t, s, arena, j)
	if j.Rows != 1 || j.State != Beyond || j.Last != before+2 || j.Taken != 0 {
		t.Fatalf("rows %d, state %d, last %d, taken %d", j.Rows, j.State, j.Last-before, j.Taken)
	}
	j.From, j.To = before+3, before+3
	take(t, s, arena, j)
	if j.Rows != 0 || j.State != Beyond || j.Before != before+3 {
		t.Fatalf("rows %d, state %d, before %d", j.Rows, j.State, j.Before-before)
	}
}

func TestTake_EntryThatIsNoTransaction_StandsBetweenRows(t *testing.T) {
	p := plantest.Load(t, "cards")
	label := journal.Entry{Kind: journal.Label, Body: []byte("label")}
	data, before := written(t, []journal.Entry{entry(0, "a", ""), label, entry(1, "b", ""), label, label})
	s, arena := newSplitter(t, p, 100), newArena(t, p, 8)
	j := newJob(p, arena, data, 0)
	j.Before, j.From = before, before
	take(t, s, arena, j)
	if j.NumOthers != 2 || j.Entries != 4 || j.State != Full {
		t.Fatalf("others %d, entries %d, state %d: there was room for 2", j.NumOthers, j.Entries, j.State)
	}
	second := j.Others[OtherWords:]
	if second[0] != 2 || uint64(second[1]) != before+4 || string(data[second[3]:second[3]+second[4]]) != "label" {
		t.Fatalf("other entry %v", second)
	}
}

func TestTake_Record_IsWhatTheColumnHolds(t *testing.T) {
	p := plantest.Load(t, "cards")
	data, before := written(t, []journal.Entry{entry(7, "a", "x"), entry(8, "b", "")})
	s, arena := newSplitter(t, p, 100), newArena(t, p, 8)
	j := newJob(p, arena, data, 4096)
	j.Before, j.From = before, before
	take(t, s, arena, j)
	start := int64(0)
	for row, number := range []int{7, 8} {
		key, record := j.Records[start:j.RecordEnds[2*row]], j.Records[j.RecordEnds[2*row]:j.RecordEnds[2*row+1]]
		stored := decisions.Stored{LSN: before + 1 + uint64(row), Score: 0.5, Outcome: "approve", Model: "m", Scorer: "go"}
		stored.Body = entry(number, []string{"a", "b"}[row], []string{"x", ""}[row]).Body
		if string(key) != fmt.Sprintf("e%d", number) || string(record) != string(stored.Append(nil)) {
			t.Fatalf("row %d: key %q, record\n%x, not\n%x", row, key, record, stored.Append(nil))
		}
		start = j.RecordEnds[2*row+1]
	}
	j.Records, j.Before, j.From = j.Records[:j.RecordEnds[1]+wrapping], before, before
	take(t, s, arena, j)
	if j.Rows != 1 || j.State != Full {
		t.Fatalf("rows %d, state %d with room for one record", j.Rows, j.State)
	}
}

func TestTake_WhatIsNotUnderstood_IsLeft(t *testing.T) {
	p := plantest.Load(t, "cards")
	good, lineFeed, broken, money := entry(0, "a", ""), entry(1, "a\nb", ""), entry(2, "a", ""), entry(3, "a", "")
	broken.Body = broken.Body[:20]
	money.Body = []byte(strings.Replace(string(money.Body), "EUR", "XXX", 1))
	outcome := entry(4, "a", "")
	outcome.Decision = []byte{0x97}
	for name, odd := range map[string]journal.Entry{"line feed": lineFeed, "half a body": broken, "currency": money, "outcome": outcome} {
		data, before := written(t, []journal.Entry{good, odd, good})
		s, arena := newSplitter(t, p, 100), newArena(t, p, 8)
		j := newJob(p, arena, data, 4096)
		j.Before, j.From = before, before
		take(t, s, arena, j)
		if j.State != Left || j.Rows != 1 || j.Last != before+1 {
			t.Errorf("%s: state %d, rows %d, last %d", name, j.State, j.Rows, j.Last-before)
		}
	}
	data, before := written(t, []journal.Entry{good, good})
	data[len(data)-1] ^= 1
	s, arena := newSplitter(t, p, 100), newArena(t, p, 8)
	j := newJob(p, arena, data, 0)
	j.Before, j.From = before, before
	if take(t, s, arena, j); j.State != Left || j.Rows != 0 {
		t.Errorf("a wrong checksum: state %d, rows %d", j.State, j.Rows)
	}
	j.Blocks = data[:len(data)-1]
	if take(t, s, arena, j); j.State != More || j.Rows != 0 {
		t.Errorf("half a block: state %d, rows %d", j.State, j.Rows)
	}
}

func TestTake_TwoAtATime_OneIsRefused(t *testing.T) {
	p := plantest.Load(t, "cards")
	s, arena := newSplitter(t, p, 100), newArena(t, p, 8)
	s.busy.Store(true)
	if err := s.Take(arena, newJob(p, arena, nil, 0)); err != score.ErrBusy {
		t.Fatalf("%v, not %v", err, score.ErrBusy)
	}
	if err := newSplitter(t, plantest.Load(t, "cards"), 1).Take(arena, newJob(p, arena, nil, 0)); err == nil {
		t.Fatal("an arena of another plan was taken")
	}
}

func TestTake_IDsThatAreKnown_AllocateNothing(t *testing.T) {
	p := plantest.Load(t, "cards")
	data, before := written(t, []journal.Entry{entry(0, "a", "x"), entry(1, "b", "y"), entry(2, "a", "x")})
	s, arena := newSplitter(t, p, 100), newArena(t, p, 8)
	j := newJob(p, arena, data, 4096)
	n := testing.AllocsPerRun(100, func() {
		j.Before, j.From, j.Forgot = before, before, false
		_ = s.Take(arena, j)
	})
	if j.Rows != 3 || n > 0 {
		t.Fatalf("%d rows, %v allocations", j.Rows, n)
	}
}

func FuzzTake(f *testing.F) {
	p := plantest.Load(f, "cards")
	data, before := written(f, []journal.Entry{entry(0, "a", "x"), {Kind: journal.Label, Body: []byte("l")}}, []journal.Entry{entry(1, "b", "")})
	f.Add(data, before, before)
	f.Add(data[:len(data)/2], before, before+1)
	s, arena := newSplitter(f, p, 3), newArena(f, p, 4)
	f.Fuzz(func(t *testing.T, blocks []byte, before, from uint64) {
		// With the checksum set right, so that what is behind it is reached.
		blocks = slices.Clone(blocks)
		if front, ok := journal.Front(blocks, before); ok {
			binary.LittleEndian.PutUint32(blocks[4:], journal.Checksum(blocks[8:front.Size()]))
		}
		j := newJob(p, arena, blocks, 512)
		j.Before, j.From = before, from
		take(t, s, arena, j)
		if j.Taken > len(blocks) || j.Rows > arena.Rows || j.Entries < j.Rows {
			t.Fatalf("%d of %d bytes, %d rows, %d entries", j.Taken, len(blocks), j.Rows, j.Entries)
		}
	})
}

func BenchmarkTake(b *testing.B) {
	p := plantest.Load(b, "cards")
	var list []journal.Entry
	for i := range 4096 {
		list = append(list, entry(i, fmt.Sprintf("c%08d", i*7919%20_000), fmt.Sprintf("d%08d", i*7919%20_000)))
	}
	data, before := written(b, list)
	s, arena := newSplitter(b, p, 1<<19), newArena(b, p, len(list))
	j := newJob(p, arena, data, 4<<20)
	j.IDs, j.IDBytes = make([]byte, len(p.Kinds)<<20), 1<<20
	b.ReportAllocs()
	for b.Loop() {
		j.Before, j.From = before, before
		take(b, s, arena, j)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(list)), "ns/event")
}
