// Package copyrows makes the rows of the ledger of whole blocks of the journal, as COPY weir_ledger FROM STDIN (FORMAT binary) takes
// them: of each transaction the columns of LedgerRow (service/ledger.py) in their order, all but the label.
//
// It is about speed alone: what is made here, service/ledger_feed.py makes too, and Postgres ends up with the same rows. A block that
// holds anything else than transactions, or what is not understood here, is left to it. Nothing is allocated. Cost: 0.4 µs a row.
package copyrows

import (
	"encoding/binary"
	"math"
	"strings"
	"unicode/utf8"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/msgpack"
	"weir/gocore/internal/tx"
)

// Why Take ended.
const (
	More   = iota // the bytes end before the next block does, or it is none
	Full          // no room for the next block
	Beyond        // the next block ends above To
	Left          // the next block is for somebody else
)

const (
	columns   = 13
	textOID   = 25
	rowBytes  = 2 + 4*columns + 4*8 + 20 // of a row around its texts and its body: lengths, four numbers, the head of an array
	floatHead = 0xcb                     // of a score
)

// Job is what Take is asked, and the memory for its answer.
type Job struct {
	Blocks           []byte // from the start of a block on
	Before, From, To uint64 // the LSN before the first block; rows up to From are there already; no block that ends above To is wanted
	RowsMax          int    // where there are rows, no block is taken that would make them more
	Out              []byte

	Rows   int
	OutEnd int // bytes of Out that are rows
	Taken  int // bytes of Blocks that are whole blocks which are done; Before is the LSN of the last of them
	State  int
}

// Take writes rows until State says why no further.
func Take(j *Job) {
	j.Rows, j.OutEnd, j.Taken = 0, 0, 0
	for {
		block, ok := journal.Front(j.Blocks[j.Taken:], j.Before)
		if !ok {
			j.State = More
			return
		}
		last := block.Last()
		if last > j.From {
			if j.State = take(j, &block, last); j.State != More {
				return
			}
		}
		j.Taken += block.Size()
		j.Before = last
	}
}

// take writes the rows of one block; More if it wrote them all, else there are none of it.
func take(j *Job, block *journal.FrontBlock, last uint64) int {
	switch {
	case last > math.MaxInt64:
		return Left
	case last > j.To:
		return Beyond
	case j.Rows > 0 && j.Rows+int(block.Entries) > j.RowsMax:
		return Full
	}
	rest, ok := block.Body()
	if !ok {
		return Left
	}
	var entry journal.Entry
	rows, end := j.Rows, j.OutEnd
	for lsn := block.First; lsn <= last; lsn++ {
		if entry, rest, ok = journal.Next(rest); !ok || entry.Kind != journal.TX {
			return Left
		}
		if lsn <= j.From {
			continue
		}
		if end+rowBytes+2*len(entry.Body)+4*len(entry.Decision) > len(j.Out) {
			return Full
		}
		written, ok := row(j.Out[:end], int64(lsn), &entry)
		if !ok {
			return Left
		}
		rows, end = rows+1, len(written)
	}
	if len(rest) > 0 {
		return Left
	}
	j.Rows, j.OutEnd = rows, end
	return More
}

// row appends a row, for which there is room.
func row(b []byte, lsn int64, entry *journal.Entry) ([]byte, bool) {
	var t tx.Transaction
	if !tx.ViewStored(entry.Body, &t) || len(entry.Decision) == 0 || entry.Decision[0] != decisions.OutcomeHead {
		return b, false
	}
	made := msgpack.Reader{Data: entry.Decision, Views: true}
	made.Array()
	if len(made.Data) == 0 || made.Data[0] != floatHead {
		return b, false
	}
	score := made.Float()
	outcome, model, scorer := made.String(), made.String(), made.String()
	card, merchant := tx.UnlessBlank(t.CardID), tx.UnlessBlank(t.MerchantID)
	if !isText(t.EventID) || !isText(card) || !isText(merchant) || !isText(t.Currency) || !isText(outcome) || !isText(model) ||
		!isText(scorer) {
		return b, false
	}
	b = binary.BigEndian.AppendUint16(b, columns)
	b = appendNumber(b, uint64(lsn))
	b = appendText(b, t.EventID)
	b = appendNumber(b, uint64(t.TS))
	b = appendText(appendText(b, card), merchant)
	b = appendNumber(b, uint64(t.Amount))
	b = appendText(b, t.Currency)
	b = appendNumber(b, math.Float64bits(score))
	b = appendText(appendText(appendText(b, outcome), model), scorer)
	b, ok := reasons(b, &made)
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(entry.Body))), entry.Body...)
	return b, ok
}

// reasons appends what follows the scorer in an outcome, of which the ledger keeps the second list alone: text[] in one dimension,
// or in none if it is empty. There is nothing more in an outcome.
func reasons(b []byte, made *msgpack.Reader) ([]byte, bool) {
	for n := made.Array(); n > 0; n-- { // degraded
		if !utf8.ValidString(made.String()) {
			return b, false
		}
	}
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // its length, as soon as it is known; the number of dimensions
	b = binary.BigEndian.AppendUint64(b, textOID)
	if n := made.Array(); n > 0 {
		b[start+7] = 1
		b = binary.BigEndian.AppendUint32(b, uint32(n))
		b = binary.BigEndian.AppendUint32(b, 1) // the number of the first
		for ; n > 0; n-- {
			text := made.String()
			if !isText(text) {
				return b, false
			}
			b = appendText(b, text)
		}
	}
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b, made.End() == nil
}

func appendNumber(b []byte, bits uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0, 0, 0, 8), bits)
}

func appendText(b []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(text))), text...)
}

// isText reports whether Postgres takes it as text. A zero byte it never takes; an id cannot hold one, it would not be printable.
func isText(text string) bool {
	return strings.IndexByte(text, 0) < 0 && utf8.ValidString(text)
}
