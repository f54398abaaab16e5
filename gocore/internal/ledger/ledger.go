// Package ledger is the long-term table of decisions in Postgres, one row per journaled transaction, and its feeder.
//
// Rows, labels and the consumer position `ledger` move in one transaction under the row lock of the position, so an
// append that is repeated, or that overlaps one which succeeded unnoticed, adds nothing twice. service/ledger.py of the
// Python service fills the same table the same way. It never holds up scoring: what it has not written is in the journal.
//
// Cost over a unix socket, 2 cores: 12 µs per row in transactions of 2,000, by COPY.
package ledger

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"weir/gocore/internal/tiers/postgres"
)

const (
	consumer       = "ledger" // its row in weir_positions
	appendDeadline = 10 * time.Second
	readDeadline   = 2 * time.Second

	lockSQL     = "SELECT lsn FROM weir_positions WHERE consumer = $1 FOR UPDATE"
	positionSQL = "SELECT lsn FROM weir_positions WHERE consumer = $1"
	advanceSQL  = "UPDATE weir_positions SET lsn = $2 WHERE consumer = $1"
	labelSQL    = `
    UPDATE weir_ledger AS l SET label = n.label FROM unnest($1::bigint[], $2::smallint[]) AS n (lsn, label)
    WHERE l.lsn = n.lsn
`
)

// columns of weir_ledger in the order of Row; label is set by labels only.
var columns = []string{
	"lsn", "event_id", "ts", "card_id", "merchant_id", "amount", "currency", "score", "outcome", "model", "scorer",
	"reasons", "tx",
}

// Row is one decided transaction.
type Row struct {
	LSN        uint64
	EventID    string
	TS         int64 // ms UTC
	CardID     string
	MerchantID string
	Amount     int64 // minor units of Currency
	Currency   string
	Score      float64
	Outcome    string
	Model      string
	Scorer     string
	Reasons    []string
	Tx         []byte // the accepted body
}

// Label says of the transaction with that LSN whether it was fraud.
type Label struct {
	TxLSN   uint64
	IsFraud bool
}

// Ledger appends to weir_ledger through a pool that it does not own.
type Ledger struct{ pool *postgres.Pool }

// New makes it; it does not connect.
func New(pool *postgres.Pool) *Ledger { return &Ledger{pool} }

// Append adds the rows above the stored position, sets labels, the last one of a transaction counts, and moves to
// position; or nothing of it. rows are every transaction between the stored position and position, in order of LSN. A
// repeated call does nothing. Errors wrap tiers.ErrUnavailable; then the call may be repeated.
func (l *Ledger) Append(ctx context.Context, rows []Row, labels []Label, position uint64) error {
	return l.pool.With(ctx, appendDeadline, func(ctx context.Context, conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			var stored int64
			if err := tx.QueryRow(ctx, lockSQL, consumer).Scan(&stored); err != nil {
				return err
			}
			if int64(position) <= stored {
				return nil
			}
			for len(rows) > 0 && rows[0].LSN <= uint64(stored) {
				rows = rows[1:]
			}
			source := pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) { return rows[i].values(), nil })
			if _, err := tx.CopyFrom(ctx, pgx.Identifier{"weir_ledger"}, columns, source); err != nil {
				return err
			}
			if err := setLabels(ctx, tx, labels); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, advanceSQL, consumer, int64(position))
			return err
		})
	})
}

// Position is the stored one: every transaction up to this LSN is in the ledger; 0 if it is empty. It connects if needed.
func (l *Ledger) Position(ctx context.Context) (uint64, error) {
	if err := l.pool.Open(ctx); err != nil {
		return 0, err
	}
	var position int64
	err := l.pool.With(ctx, readDeadline, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, positionSQL, consumer).Scan(&position)
	})
	return uint64(position), err
}

func setLabels(ctx context.Context, tx pgx.Tx, labels []Label) error {
	if len(labels) == 0 {
		return nil
	}
	last := make(map[uint64]int16, len(labels)) // an UPDATE from two rows for one would take either
	for _, label := range labels {
		last[label.TxLSN] = 0
		if label.IsFraud {
			last[label.TxLSN] = 1
		}
	}
	lsns, values := make([]int64, 0, len(last)), make([]int16, 0, len(last))
	for lsn, value := range last {
		lsns, values = append(lsns, int64(lsn)), append(values, value)
	}
	_, err := tx.Exec(ctx, labelSQL, lsns, values)
	return err
}

func (r *Row) values() []any {
	reasons := r.Reasons
	if reasons == nil {
		reasons = []string{}
	}
	return []any{
		int64(r.LSN), r.EventID, r.TS, r.CardID, r.MerchantID, r.Amount, r.Currency, r.Score, r.Outcome, r.Model, r.Scorer,
		reasons, r.Tx,
	}
}
