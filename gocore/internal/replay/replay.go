// Package replay takes blocks of the journal apart for recovery, a great many at a time: events go as rows into an arena, with the
// number of each entity in the place of its slot, and the records of the decisions are put together from the bytes of body and
// outcome as they stand. A number stands for the same id until everything is forgotten, so whoever asks sees each id once.
//
// It is about speed alone. Whatever it does not understand it leaves: the caller goes on from there with the reference, which is
// the Python service's (service/replay.py), and which says what is wrong. Nothing is allocated but for new ids.
package replay

import (
	"fmt"
	"strings"
	"sync/atomic"
	"unsafe"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/score"
	"weir/gocore/internal/tx"
)

// Why Take ended.
const (
	More   = iota // the bytes end before the next block does
	Full          // no room for the next entry
	Beyond        // the next entry lies above To
	Left          // what follows is not understood here
)

// What an entry of another kind is told with, in words: row, LSN, kind, where its body begins, how long it is.
const (
	OtherWords = 5
	separator  = '\n' // after each id; no id holds one, it is not printable
	wrapping   = 32   // bytes of a record around its body and outcome, at most
	idsMax     = 1 << 28
	tableMin   = 1 << 14
)

// Job is what Take is asked, and the memory for its answer. IDs has IDBytes bytes for the new ids of each kind.
type Job struct {
	Blocks           []byte // from the start of a block on
	Before, From, To uint64 // the LSN before the first block; entries up to From were applied already; none above To is wanted
	Records          []byte // nil: none are wanted
	RecordEnds       []int64
	IDs              []byte
	IDBytes          int
	IDEnds, NumNew   []int64 // per kind: bytes and number of the ids that had no number before
	NumDistinct      []int64 // per kind: how many entities the rows have
	Numbers          []int64 // (kinds, rows of the arena): those entities
	FirstRows        []int64 // the same: the row in which each comes first
	Others           []int64

	Rows, Entries, NumOthers int
	Taken                    int // bytes of whole blocks that are done
	Last                     uint64
	State                    int
	Forgot                   bool // numbers begin anew with this call
}

// Splitter has the numbers of the ids; for one call at a time.
type Splitter struct {
	plan    *plan.Plan
	rates   *tx.Rates
	kinds   []kind
	idsMax  int
	call    uint32
	numbers []int
	event   tx.Transaction // of the entry at hand, views of its bytes
	columns [plan.Columns]int64
	busy    atomic.Bool
}

// kind is a hash table: number + 1 by the hash of the id, which the event's columns hold.
type kind struct {
	idOf   func(*tx.Transaction) string
	column int
	table  []int32
	hashes []uint32 // by number
	ends   []int    // of each id in text
	seen   []uint32 // the call in which it came last
	text   []byte
}

// New makes a Splitter that forgets its numbers once a kind has more than idsMax.
func New(p *plan.Plan, ids int) (*Splitter, error) {
	if ids < 1 || ids > idsMax {
		return nil, fmt.Errorf("%w: %d ids, not 1 to %d", plan.ErrPlan, ids, idsMax)
	}
	s := &Splitter{plan: p, rates: tx.NewRates(p.Currencies), numbers: make([]int, len(p.Kinds)), idsMax: ids}
	for i := range p.Kinds {
		idOf := tx.IDOf(p.Kinds[i].IDField)
		if idOf == nil {
			return nil, fmt.Errorf("%w: kind %s goes by %s, which is no id of a transaction", plan.ErrPlan, p.Kinds[i].Name, p.Kinds[i].IDField)
		}
		column := 0
		for plan.ColumnNames[column] != p.Kinds[i].IDField {
			column++
		}
		s.kinds = append(s.kinds, kind{idOf: idOf, column: column, table: make([]int32, tableMin)})
	}
	return s, nil
}

// Take fills the job's memory and the arena's rows from 0 on, until State says why no further. The caller has claimed the arena,
// whose plan is the Splitter's. ErrBusy, from score, if another call is under way.
func (s *Splitter) Take(arena *score.Arena, j *Job) error {
	if !s.busy.CompareAndSwap(false, true) {
		return score.ErrBusy
	}
	defer s.busy.Store(false)
	if arena.Plan != s.plan {
		return fmt.Errorf("%w: the arena has another plan", score.ErrRows)
	}
	for i := range s.kinds {
		j.Forgot = j.Forgot || len(s.kinds[i].ends) > s.idsMax
		j.IDEnds[i], j.NumNew[i], j.NumDistinct[i] = 0, 0, 0
	}
	if j.Forgot {
		for i := range s.kinds {
			s.kinds[i].forget()
		}
	}
	s.call++
	s.take(arena, j)
	return nil
}

func (k *kind) forget() {
	clear(k.table)
	k.hashes, k.ends, k.seen, k.text = k.hashes[:0], k.ends[:0], k.seen[:0], k.text[:0]
}

func (s *Splitter) take(arena *score.Arena, j *Job) {
	j.Rows, j.Entries, j.NumOthers, j.Taken, j.Last = 0, 0, 0, 0, j.From
	for {
		block, ok := journal.Front(j.Blocks[j.Taken:], j.Before)
		if !ok {
			j.State = More
			return
		}
		if block.Last() > j.From {
			if j.State = s.block(arena, j, &block); j.State != More {
				return
			}
		}
		j.Taken += block.Size()
		j.Before = block.Last()
	}
}

// block takes the entries of one block; More if it took them all.
func (s *Splitter) block(arena *score.Arena, j *Job, block *journal.FrontBlock) int {
	if block.First > j.To {
		return Beyond
	}
	rest, ok := block.Body()
	if !ok {
		return Left
	}
	var entry journal.Entry
	at := j.Taken + block.Size() - len(rest)
	for i := range uint64(block.Entries) {
		start := len(rest)
		if entry, rest, ok = journal.Next(rest); !ok {
			return Left
		}
		lsn := block.First + i
		if lsn <= j.From {
			at += start - len(rest)
			continue
		}
		if lsn > j.To {
			return Beyond
		}
		state := More
		if entry.Kind == journal.TX {
			state = s.transaction(arena, j, int64(lsn), &entry)
		} else {
			state = other(j, lsn, &entry, at+start-len(rest)-len(entry.Body)-len(entry.Decision))
		}
		if state != More {
			return state
		}
		at += start - len(rest)
		j.Entries++
		j.Last = lsn
	}
	if len(rest) > 0 {
		return Left
	}
	return More
}

// transaction takes one event; Full if there is no room for all of it, and then nothing of it was taken.
func (s *Splitter) transaction(arena *score.Arena, j *Job, lsn int64, entry *journal.Entry) int {
	if j.Rows == arena.Rows {
		return Full
	}
	t := &s.event
	var err error
	if *t, err = tx.ViewBody(entry.Body); err != nil || (t.Country != "" && len(t.Country) != 2) || s.rates.Columns(t, &s.columns) != nil {
		return Left
	}
	for i := range s.kinds {
		id := s.kinds[i].idOf(t)
		if strings.IndexByte(id, separator) >= 0 {
			return Left
		}
		if int(j.IDEnds[i])+len(id)+1 > j.IDBytes {
			return Full
		}
	}
	if j.Records != nil {
		if state := record(j, lsn, t.EventID, entry); state != More {
			return state
		}
	}
	for i := range s.kinds {
		s.numbers[i] = s.number(arena, j, i, s.kinds[i].idOf(t))
	}
	arena.Put(j.Rows, lsn, s.numbers, &s.columns)
	j.Rows++
	return More
}

// record puts the record of a decision behind its key: the array of LSN, body and outcome, and that there is no label.
func record(j *Job, lsn int64, eventID string, entry *journal.Entry) int {
	if len(entry.Decision) == 0 || entry.Decision[0] != decisions.OutcomeHead {
		return Left
	}
	start := 0
	if j.Rows > 0 {
		start = int(j.RecordEnds[2*j.Rows-1])
	}
	if start+len(eventID)+len(entry.Body)+len(entry.Decision)+wrapping > len(j.Records) {
		return Full
	}
	b := append(j.Records[:start], eventID...)
	j.RecordEnds[2*j.Rows] = int64(len(b))
	b = decisions.AppendRecord(b, uint64(lsn), entry.Body, entry.Decision)
	j.RecordEnds[2*j.Rows+1] = int64(len(b))
	return More
}

// number is that of an id among those of its kind, -1 for one that is absent or was erased. It notes the first row of each.
func (s *Splitter) number(arena *score.Arena, j *Job, i int, id string) int {
	if id == "" || tx.IsBlank(id) {
		return -1
	}
	k := &s.kinds[i]
	n, isNew := k.find(uint32(s.columns[k.column]), id)
	if isNew {
		at := i*j.IDBytes + int(j.IDEnds[i])
		copy(j.IDs[at:], id)
		j.IDs[at+len(id)] = separator
		j.IDEnds[i] += int64(len(id) + 1)
		j.NumNew[i]++
	}
	if k.seen[n] != s.call {
		k.seen[n] = s.call
		at := i*arena.Rows + int(j.NumDistinct[i])
		j.Numbers[at], j.FirstRows[at] = int64(n), int64(j.Rows)
		j.NumDistinct[i]++
	}
	return n
}

// find is the number of an id, a new one if it had none.
func (k *kind) find(hash uint32, id string) (n int, isNew bool) {
	mask := uint32(len(k.table) - 1)
	place := hash & mask
	for ; k.table[place] != 0; place = (place + 1) & mask {
		n := int(k.table[place] - 1)
		if k.hashes[n] == hash && k.id(n) == id {
			return n, false
		}
	}
	n = len(k.ends)
	k.table[place] = int32(n + 1)
	k.text = append(k.text, id...)
	k.hashes, k.ends, k.seen = append(k.hashes, hash), append(k.ends, len(k.text)), append(k.seen, 0)
	if 2*len(k.ends) > len(k.table) {
		k.grow()
	}
	return n, true
}

// id is a view: valid until the next id is added.
func (k *kind) id(n int) string {
	start := 0
	if n > 0 {
		start = k.ends[n-1]
	}
	text := k.text[start:k.ends[n]]
	return unsafe.String(unsafe.SliceData(text), len(text))
}

func (k *kind) grow() {
	k.table = make([]int32, 2*len(k.table))
	mask := uint32(len(k.table) - 1)
	for n, hash := range k.hashes {
		place := hash & mask
		for k.table[place] != 0 {
			place = (place + 1) & mask
		}
		k.table[place] = int32(n + 1)
	}
}

// other notes an entry that is no transaction, to be applied before the row that follows.
func other(j *Job, lsn uint64, entry *journal.Entry, at int) int {
	words := j.Others[OtherWords*j.NumOthers:]
	if len(words) < OtherWords {
		return Full
	}
	copy(words, []int64{int64(j.Rows), int64(lsn), int64(entry.Kind), int64(at), int64(len(entry.Body))})
	j.NumOthers++
	return More
}
