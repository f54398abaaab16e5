// Package intake turns the bodies of a chunk of transactions into columns: the event columns, the canonical bodies that the journal
// holds, and the ids. It is about speed alone: what is invalid, odd or without room it leaves, and the caller asks the reference,
// which is the Python service's decoder and has the words for what is wrong. What it takes, the reference takes with the same result.
//
// An Intake never changes and serves any number of calls at a time. Nothing is allocated for a row but for escapes in its texts and
// for what is left. Cost of a row of 13 fields: 0.6 µs from JSON, 0.4 from MessagePack (BenchmarkTake).
package intake

import (
	"fmt"

	"weir/gocore/internal/index"
	"weir/gocore/internal/maybe"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/tx"
)

// Status of a row.
const (
	Taken = iota
	Left
)

const (
	separator = '\n' // after each id; no id holds one, it is not printable
	findRows  = 128
)

// Job is the bodies of len(Ends) rows and the memory for what becomes of them; Status, Columns (rows, plan.Columns) and BodyEnds have
// room for as many. IDs holds Lists lists of IDBytes bytes,
// of which each row has one at least.
type Job struct {
	Text     []byte
	Ends     []int64 // of each body in Text; they never fall and stay inside
	Packed   bool    // MessagePack, else JSON
	Status   []uint8
	Columns  []int64
	Bodies   []byte
	BodyEnds []int64
	IDs      []byte
	IDBytes  int
	IDEnds   []int64
	NumLeft  int
	Indexes  []*index.Index // of the kinds; without any, no slots are wanted
	Slots    []int64        // (rows, kinds)
	Missing  int
	Filters  []*maybe.Filter // of event ids; without any, no suspects are wanted
	Suspects []uint8

	NumSuspects int
}

// Intake knows which ids and rates a plan wants.
type Intake struct {
	rates  *tx.Rates
	fields []tx.IDField // of the lists of ids: the event's own, then that of each kind
}

// New is for one plan. Errors wrap plan.ErrPlan.
func New(p *plan.Plan) (*Intake, error) {
	in := &Intake{tx.NewRates(p.Currencies), []tx.IDField{tx.EventID}}
	for i := range p.Kinds {
		field, ok := tx.FieldOf(p.Kinds[i].IDField)
		if !ok {
			return nil, fmt.Errorf("%w: kind %s goes by %s, which is no id of a transaction", plan.ErrPlan, p.Kinds[i].Name, p.Kinds[i].IDField)
		}
		in.fields = append(in.fields, field)
	}
	return in, nil
}

// Lists is how many lists of ids there are.
func (in *Intake) Lists() int { return len(in.fields) }

// Take fills the job's memory.
func (in *Intake) Take(j *Job) {
	in.Decode(j)
	in.LookUp(j)
}

// Decode is the first half of Take: rows become columns, canonical bodies and ids.
func (in *Intake) Decode(j *Job) {
	var t tx.Transaction
	clear(j.IDEnds)
	j.NumLeft = 0
	start, bodyEnd := int64(0), int64(0)
	for row, end := range j.Ends {
		text := j.Text[start:end:end]
		start = end
		j.Status[row] = Taken
		if !in.row(j, row, text, &t, &bodyEnd) {
			in.leave(j, row)
		}
		j.BodyEnds[row] = bodyEnd
	}
}

// LookUp is the second half: where the entities are, and which events may be known.
func (in *Intake) LookUp(j *Job) {
	in.find(j)
	if len(j.Filters) > 0 {
		if err := maybe.Take(j.Filters, j.IDs[:j.IDEnds[0]], j.Suspects); err != nil {
			panic(err) // each row has its line feed
		}
		j.NumSuspects = 0
		for _, found := range j.Suspects {
			j.NumSuspects += int(found)
		}
	}
}

// find looks all ids up, kind after kind: the look-ups of a list do not wait for each other.
func (in *Intake) find(j *Job) {
	j.Missing = 0
	var found [findRows]int64
	for kind, x := range j.Indexes {
		list := j.IDs[(kind+1)*j.IDBytes:][:j.IDEnds[kind+1]]
		for row := 0; row < len(j.Ends); row += findRows {
			part := found[:min(findRows, len(j.Ends)-row)]
			rest, missing, err := x.FindMany(list, part)
			if err != nil {
				panic(err) // each row has its line feed
			}
			list = rest
			j.Missing += missing
			for i, slot := range part {
				j.Slots[(row+i)*len(j.Indexes)+kind] = slot
			}
		}
	}
}

// row takes one body; false if it has to be left, and then no id of it was written.
func (in *Intake) row(j *Job, row int, text []byte, t *tx.Transaction, bodyEnd *int64) bool {
	if j.Packed {
		if !tx.ViewMessagePack(text, t) {
			return false
		}
	} else if !tx.ViewJSON(text, t) {
		return false
	}
	rest := len(j.Ends) - row // line feeds: the rows that follow have room for theirs whatever becomes of them
	for list, field := range in.fields {
		if int(j.IDEnds[list])+len(t.ID(field))+rest > j.IDBytes {
			return false
		}
	}
	if !in.rates.TryColumns(t, (*[plan.Columns]int64)(j.Columns[row*plan.Columns:])) {
		return false
	}
	room := j.Bodies[*bodyEnd:len(j.Bodies):len(j.Bodies)] // where that is too little, append goes elsewhere
	body := t.AppendBody(room[:0])
	if len(body) > len(room) {
		return false
	}
	*bodyEnd += int64(len(body))
	for list, field := range in.fields {
		in.put(j, list, t.ID(field))
	}
	return true
}

// leave is what stands in the place of a row that was not taken.
func (in *Intake) leave(j *Job, row int) {
	j.Status[row] = Left
	j.NumLeft++
	clear(j.Columns[row*plan.Columns : (row+1)*plan.Columns])
	for list := range in.fields {
		in.put(j, list, "")
	}
}

func (in *Intake) put(j *Job, list int, id string) {
	at := list*j.IDBytes + int(j.IDEnds[list])
	copy(j.IDs[at:], id)
	j.IDs[at+len(id)] = separator
	j.IDEnds[list] += int64(len(id) + 1)
}
