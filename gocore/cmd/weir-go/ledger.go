package main

import (
	"time"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/ledger"
	"weir/gocore/internal/tx"
)

// newFeed is the feeder of the ledger, which follows the journal.
func (a *app) newFeed() *ledger.Feed {
	return ledger.NewFeed(ledger.New(a.stores.pool), ledger.Source{
		LastLSN: a.journal.Last, SyncTo: a.journal.SyncTo, Read: a.readForLedger,
	}, time.Duration(a.settings.WriteIntervalMS)*time.Millisecond)
}

// readForLedger visits what each block of the journal holds for the ledger.
func (a *app) readForLedger(from uint64, visit func(ledger.Block) error) error {
	return a.journal.Read(from, func(b *journal.Block) error {
		found := ledger.Block{Last: b.Last()}
		for i := range b.Entries {
			entry := &b.Entries[i]
			switch entry.Kind {
			case journal.TX:
				row, err := ledgerRow(b.First+uint64(i), entry)
				if err != nil {
					return err
				}
				found.Rows = append(found.Rows, row)
			case journal.Label:
				record, err := decisions.DecodeLabel(entry.Body)
				if err != nil {
					return err
				}
				found.Labels = append(found.Labels, ledger.Label{TxLSN: record.TxLSN, IsFraud: record.Label == tx.Fraud})
			}
		}
		return visit(found)
	})
}

func ledgerRow(lsn uint64, entry *journal.Entry) (ledger.Row, error) {
	t, err := tx.DecodeBody(entry.Body)
	if err != nil {
		return ledger.Row{}, err
	}
	d, err := decisions.DecodeOutcome(lsn, entry.Body, entry.Decision)
	if err != nil {
		return ledger.Row{}, err
	}
	return ledger.Row{
		LSN: lsn, EventID: t.EventID, TS: t.TS, CardID: tx.UnlessBlank(t.CardID), MerchantID: tx.UnlessBlank(t.MerchantID),
		Amount: t.Amount, Currency: t.Currency, Score: d.Score, Outcome: d.Outcome, Model: d.Model, Scorer: d.Scorer,
		Reasons: d.Reasons, Tx: entry.Body,
	}, nil
}
