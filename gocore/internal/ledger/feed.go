package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"weir/gocore/internal/tiers"
)

const (
	rowsMax = 2_000       // entries in one transaction
	retry   = time.Second // after a failure
)

// ErrLaterJournal says that the ledger has entries beyond this journal; a start with it reachable begins above them.
var ErrLaterJournal = errors.New("the ledger belongs to a later journal; restart the service to begin above it")

// Block is what one block of the journal holds for the ledger.
type Block struct {
	Rows   []Row
	Labels []Label
	Last   uint64 // the block's last LSN
}

// Source is the journal as the feeder sees it.
type Source struct {
	// LastLSN is that of the newest entry; SyncTo returns once everything up to lsn is durable.
	LastLSN func() uint64
	SyncTo  func(lsn uint64) error
	// Read calls visit with every block that has an entry from LSN from on, in order, and ends at the first error.
	Read func(from uint64, visit func(Block) error) error
}

// Feed follows the journal in one goroutine. Only durable entries are shipped.
type Feed struct {
	ledger   *Ledger
	source   Source
	interval time.Duration
	position atomic.Uint64
	isDown   atomic.Bool
	isMet    bool // its position was read and fits this journal
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// NewFeed makes it; Start begins to follow.
func NewFeed(ledger *Ledger, source Source, interval time.Duration) *Feed {
	return &Feed{ledger: ledger, source: source, interval: interval, stop: func() {}}
}

// Start begins to follow the journal.
func (f *Feed) Start() {
	ctx, stop := context.WithCancel(context.Background())
	f.stop = stop
	f.running.Go(func() { f.run(ctx) })
}

// Drain stops following and ships what is left, as far as ctx allows. What an error leaves behind is in the journal.
func (f *Feed) Drain(ctx context.Context) error {
	f.stop()
	f.running.Wait()
	return f.ship(ctx)
}

// Position is what the ledger has, as far as it was met.
func (f *Feed) Position() uint64 { return f.position.Load() }

func (f *Feed) run(ctx context.Context) {
	for {
		pause := f.interval
		if err := f.ship(ctx); err != nil && ctx.Err() == nil {
			if !f.isDown.Swap(true) {
				slog.Warn("ledger unavailable", "problem", err)
			}
			pause = retry
		} else if err == nil && f.isDown.Swap(false) {
			slog.Info("ledger is back", "position", f.Position())
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// ship appends everything that the journal holds now.
func (f *Feed) ship(ctx context.Context) error {
	if err := f.meet(ctx); err != nil {
		return err
	}
	last := f.source.LastLSN()
	if last <= f.Position() {
		return nil
	}
	if err := f.source.SyncTo(last); err != nil {
		return err
	}
	var rows []Row
	var labels []Label
	var upTo uint64
	flush := func() error {
		if err := f.ledger.Append(ctx, rows, labels, upTo); err != nil {
			f.isMet = false
			return err
		}
		f.position.Store(upTo)
		rows, labels = rows[:0], labels[:0]
		return nil
	}
	err := f.source.Read(f.Position()+1, func(b Block) error {
		if b.Last > last { // not durable yet
			return errEnough
		}
		rows, labels, upTo = append(rows, b.Rows...), append(labels, b.Labels...), b.Last
		if len(rows)+len(labels) >= rowsMax {
			return flush()
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if upTo > f.Position() {
		return flush()
	}
	return nil
}

var errEnough = errors.New("enough")

// meet takes over the ledger's own position, after a start and after a failure.
func (f *Feed) meet(ctx context.Context) error {
	if f.isMet {
		return nil
	}
	position, err := f.ledger.Position(ctx)
	if err != nil {
		return err
	}
	if last := f.source.LastLSN(); position > last {
		return tiers.Unavailable(consumer, fmt.Errorf("it is at LSN %d, the journal ends at %d: %w", position, last, ErrLaterJournal))
	}
	f.position.Store(position)
	f.isMet = true
	return nil
}
