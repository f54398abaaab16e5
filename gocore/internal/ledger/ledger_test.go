package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"weir/gocore/internal/tiers"
	"weir/gocore/internal/tiers/postgres"
	"weir/gocore/internal/tiers/tierstest"
)

// freshPool is a pool over an empty database.
func freshPool(t testing.TB) *postgres.Pool {
	t.Helper()
	pool, err := postgres.NewPool(tierstest.FreshDatabase(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func freshLedger(t testing.TB) *Ledger {
	t.Helper()
	l := New(freshPool(t))
	if position, err := l.Position(t.Context()); err != nil || position != 0 {
		t.Fatalf("position %d (%v)", position, err)
	}
	return l
}

func row(lsn uint64) Row {
	return Row{
		LSN: lsn, EventID: fmt.Sprintf("t-%d", lsn), TS: 1_750_000_000_000, CardID: "c1", MerchantID: "mü", Amount: 1299,
		Currency: "EUR", Score: 0.25, Outcome: "approve", Model: "m", Scorer: "go", Reasons: []string{"R1"}, Tx: []byte{0x81, 0},
	}
}

// stored gives "lsn:label" of each row in order.
func stored(t testing.TB, l *Ledger) (found []string) {
	t.Helper()
	err := l.pool.With(t.Context(), time.Second, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, "SELECT lsn || ':' || coalesce(label::text, '') FROM weir_ledger ORDER BY lsn")
		if err != nil {
			return err
		}
		found, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAppend_RepeatedAndOverlapping_NothingTwice(t *testing.T) {
	l := freshLedger(t)
	for _, c := range []struct {
		rows     []Row
		position uint64
	}{
		{[]Row{row(1), row(2)}, 2},
		{[]Row{row(1), row(2)}, 2},
		{[]Row{row(1), row(2), row(3)}, 3},
		{nil, 5},
		{[]Row{row(4)}, 4}, // below the position: as if it had been there before
		{[]Row{row(1<<48 | 1)}, 1<<48 | 1},
	} {
		if err := l.Append(t.Context(), c.rows, nil, c.position); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := stored(t, l), []string{"1:", "2:", "3:", fmt.Sprint(uint64(1<<48|1), ":")}; !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
	if position, err := l.Position(t.Context()); err != nil || position != 1<<48|1 {
		t.Errorf("position %d (%v)", position, err)
	}
}

func TestAppend_Labels_LastOneCounts(t *testing.T) {
	l := freshLedger(t)
	labels := []Label{{1, true}, {2, true}, {2, false}, {99, true}}
	if err := l.Append(t.Context(), []Row{row(1), row(2), row(3)}, labels, 7); err != nil {
		t.Fatal(err)
	}
	if got, want := stored(t, l), []string{"1:1", "2:0", "3:"}; !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
}

func TestAppend_BadRow_NothingOfItIsThere(t *testing.T) {
	l := freshLedger(t)
	bad := row(2)
	bad.CardID = "nul\x00"
	if err := l.Append(t.Context(), []Row{row(1), bad}, nil, 2); !errors.Is(err, tiers.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	if position, err := l.Position(t.Context()); err != nil || position != 0 || len(stored(t, l)) != 0 {
		t.Errorf("position %d, rows %v (%v)", position, stored(t, l), err)
	}
}

// journal is a source of n entries, one per block, the third of every three a label for the first.
type journal struct {
	n      atomic.Uint64
	synced atomic.Uint64
}

func (j *journal) source() Source {
	return Source{
		LastLSN: j.n.Load,
		SyncTo: func(lsn uint64) error {
			j.synced.Store(max(lsn, j.synced.Load()))
			return nil
		},
		Read: func(from uint64, visit func(Block) error) error {
			for lsn := from; lsn <= j.n.Load(); lsn++ {
				b := Block{Last: lsn}
				if lsn%3 == 0 {
					b.Labels = []Label{{TxLSN: lsn - 2, IsFraud: true}}
				} else {
					b.Rows = []Row{row(lsn)}
				}
				if err := visit(b); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func TestFeed_JournalGrows_RowsFollow(t *testing.T) {
	l, j := freshLedger(t), &journal{}
	j.n.Store(rowsMax + 5)
	f := NewFeed(l, j.source(), time.Millisecond)
	f.Start()
	for deadline := time.Now().Add(10 * time.Second); f.Position() < j.n.Load() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	j.n.Add(7)
	if err := f.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := int(j.n.Load())
	if got := stored(t, l); len(got) != n-n/3 || f.Position() != uint64(n) || got[0] != "1:1" || f.isDown.Load() {
		t.Errorf("%d rows of %d entries, position %d, first %s", len(got), n, f.Position(), got[0])
	}
	if j.synced.Load() != uint64(n) {
		t.Errorf("shipped %d, durable %d", n, j.synced.Load())
	}
}

func TestFeed_LedgerOfALaterJournal_ErrLaterJournal(t *testing.T) {
	l, j := freshLedger(t), &journal{}
	if err := l.Append(t.Context(), nil, nil, 9); err != nil {
		t.Fatal(err)
	}
	j.n.Store(8)
	if err := NewFeed(l, j.source(), time.Millisecond).Drain(t.Context()); !errors.Is(err, ErrLaterJournal) {
		t.Errorf("error %v", err)
	}
	if got := stored(t, l); len(got) != 0 {
		t.Errorf("rows %v", got)
	}
}

func BenchmarkAppend_2000Rows(b *testing.B) {
	l := freshLedger(b)
	rows := make([]Row, rowsMax)
	lsn := uint64(0)
	for b.Loop() {
		for i := range rows {
			lsn++
			rows[i] = row(lsn)
		}
		if err := l.Append(b.Context(), rows, nil, lsn); err != nil {
			b.Fatal(err)
		}
	}
}
