// Package decisions keeps what was decided, by event id: exact, for idempotency and labels. New ones wait in RAM until the local
// store has them; whatever a crash loses of them the journal brings back.
//
// Invariants: a decision is found from the moment it is added; what the store holds is never newer than the journal. Cost of a new
// event: a map look-up and a filter's; a repeated one from before the flush costs a read of the store.
package decisions

import (
	"weir/gocore/internal/msgpack"
	"weir/gocore/internal/tx"
)

// Stored is a decision as it is kept: a MessagePack array of these fields, in this order, as the Python service keeps it. Body is
// the canonical MessagePack of the transaction. Label is "" as long as there is none. Nobody changes one that was added.
type Stored struct {
	LSN                    uint64
	Body                   []byte
	Score                  float64
	Outcome, Model, Scorer string
	Degraded, Reasons      []string
	Label                  string
	LabelLSN               uint64
}

// Transaction is the transaction that was decided.
func (s *Stored) Transaction() (tx.Transaction, error) { return tx.DecodeBody(s.Body) }

// Append appends the record.
func (s *Stored) Append(dst []byte) []byte {
	dst = msgpack.AppendUint(msgpack.AppendArray(dst, 10), s.LSN)
	dst = s.appendOutcome(msgpack.AppendBytes(dst, s.Body))
	if s.Label == "" {
		dst = msgpack.AppendNil(dst)
	} else {
		dst = msgpack.AppendString(dst, s.Label)
	}
	return msgpack.AppendUint(dst, s.LabelLSN)
}

// AppendOutcome appends the decision part of a transaction's journal entry.
func (s *Stored) AppendOutcome(dst []byte) []byte {
	return s.appendOutcome(msgpack.AppendArray(dst, 6))
}

func (s *Stored) appendOutcome(dst []byte) []byte {
	dst = msgpack.AppendFloat(dst, s.Score)
	dst = msgpack.AppendString(dst, s.Outcome)
	dst = msgpack.AppendString(dst, s.Model)
	dst = msgpack.AppendString(dst, s.Scorer)
	dst = msgpack.AppendStrings(dst, s.Degraded)
	return msgpack.AppendStrings(dst, s.Reasons)
}

// OutcomeHead begins the outcomes of this format: an array of 6.
const OutcomeHead = 0x96

// AppendRecord appends what Append does for a decision without a label, of the bytes of its body and its outcome as they stand.
func AppendRecord(dst []byte, lsn uint64, body, outcome []byte) []byte {
	dst = msgpack.AppendUint(msgpack.AppendArray(dst, 10), lsn)
	dst = append(msgpack.AppendBytes(dst, body), outcome[1:]...)
	return msgpack.AppendUint(msgpack.AppendNil(dst), 0)
}

// Decode is the inverse of Append. A record may have more fields than are known: they are only ever added at the end.
func Decode(record []byte) (*Stored, error) {
	r := msgpack.Reader{Data: record}
	n := r.Array()
	s := &Stored{LSN: uint64(r.Int()), Body: r.Bytes()}
	s.readOutcome(&r)
	if n > 8 && !r.Nil() {
		s.Label = r.String()
	}
	if n > 9 {
		s.LabelLSN = uint64(r.Int())
	}
	return s, r.Err()
}

// DecodeOutcome is the inverse of AppendOutcome, for the entry with that LSN and body.
func DecodeOutcome(lsn uint64, body, packed []byte) (*Stored, error) {
	r := msgpack.Reader{Data: packed}
	r.Array()
	s := &Stored{LSN: lsn, Body: body}
	s.readOutcome(&r)
	return s, r.Err()
}

func (s *Stored) readOutcome(r *msgpack.Reader) {
	s.Score = r.Float()
	s.Outcome, s.Model, s.Scorer = r.String(), r.String(), r.String()
	s.Degraded, s.Reasons = r.Strings(), r.Strings()
}

// LabelRecord is a label as it was applied: Delta frauds were added to the profiles of the transaction in Body, whose LSN is TxLSN.
type LabelRecord struct {
	EventID, Label string
	TS             int64
	Delta          int64
	Body           []byte
	TxLSN          uint64
}

// Append appends the body of a label's journal entry.
func (l *LabelRecord) Append(dst []byte) []byte {
	dst = msgpack.AppendString(msgpack.AppendArray(dst, 6), l.EventID)
	dst = msgpack.AppendString(dst, l.Label)
	dst = msgpack.AppendInt(dst, l.TS)
	dst = msgpack.AppendInt(dst, l.Delta)
	dst = msgpack.AppendBytes(dst, l.Body)
	return msgpack.AppendUint(dst, l.TxLSN)
}

// DecodeLabel is the inverse of LabelRecord.Append.
func DecodeLabel(packed []byte) (LabelRecord, error) {
	r := msgpack.Reader{Data: packed}
	r.Array()
	l := LabelRecord{EventID: r.String(), Label: r.String(), TS: r.Int(), Delta: r.Int(), Body: r.Bytes(), TxLSN: uint64(r.Int())}
	return l, r.Err()
}
