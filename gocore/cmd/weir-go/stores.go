package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"weir/gocore/internal/journal"
	"weir/gocore/internal/ledger"
	"weir/gocore/internal/pipeline"
	"weir/gocore/internal/settings"
	"weir/gocore/internal/tiers"
	"weir/gocore/internal/tiers/bloom"
	"weir/gocore/internal/tiers/l2"
	"weir/gocore/internal/tiers/postgres"
	"weir/gocore/internal/tiers/redis"
	"weir/gocore/internal/writebehind"
)

const (
	storeName       = "l2-go" // beside the Python service's RocksDB, which has another format
	completeName    = "l2-go.complete"
	putDeadline     = 2 * time.Second
	redisConnection = 8
)

// errJournal is wrapped when the stores and the journal do not fit each other.
var errJournal = errors.New("journal and stores")

// level is a tier as it was met at the start.
type level struct {
	tier                      tiers.Tier
	isComplete, keeps, isHere bool
	position                  uint64
	isKnown                   bool
}

// stores are what lies below L1, in read order, and the decisions.
type stores struct {
	local             *l2.Store
	decisionsPosition uint64
	ledgerPosition    uint64
	levels            []level
	pool              *postgres.Pool
	postgres          *postgres.Tier
	redis             *redis.Tier
}

// openStores opens everything that the settings name. A remote store that does not answer is down, not an error.
func openStores(ctx context.Context, s *settings.Settings) (*stores, error) {
	local, err := l2.Open(filepath.Join(s.DataDir, storeName), l2.Options{
		CacheBytes: s.L2CacheBytes, FlushInterval: time.Duration(s.L2FlushIntervalMS) * time.Millisecond,
	})
	if err != nil {
		return nil, err
	}
	st := &stores{local: local}
	if err := st.openRemote(ctx, s); err != nil {
		return nil, errors.Join(err, st.close())
	}
	if st.decisionsPosition, err = local.Decisions().Position(ctx); err != nil {
		return nil, errors.Join(err, st.close())
	}
	if s.L2 {
		position, err := local.Profiles().Position(ctx)
		if err != nil {
			return nil, errors.Join(err, st.close())
		}
		isComplete, err := st.noteCompleteness(s.DataDir, position)
		if err != nil {
			return nil, errors.Join(err, st.close())
		}
		here := level{tier: local.Profiles(), isComplete: isComplete, keeps: true, isHere: true, position: position, isKnown: true}
		st.levels = append([]level{here}, st.levels...)
	}
	return st, nil
}

func (st *stores) openRemote(ctx context.Context, s *settings.Settings) (err error) {
	if s.RedisURL != "" {
		st.redis, err = redis.New(redis.Options{
			URL: s.RedisURL, Namespace: s.RedisNamespace, ReadDeadline: time.Duration(s.RedisDeadlineMS) * time.Millisecond,
			PutDeadline: putDeadline, Connections: redisConnection,
		})
		if err != nil {
			return err
		}
		st.add(ctx, level{tier: st.redis})
	}
	if s.PostgresURL != "" {
		if st.pool, err = postgres.NewPool(s.PostgresURL, int(s.PostgresPool)); err != nil {
			return err
		}
		st.postgres = postgres.NewTier(st.pool, time.Duration(s.PostgresDeadlineMS)*time.Millisecond, putDeadline)
		st.add(ctx, level{tier: st.postgres, isComplete: true, keeps: true})
		if st.ledgerPosition, err = ledger.New(st.pool).Position(ctx); err != nil {
			slog.Warn("ledger unavailable at start", "problem", err)
		}
	}
	return nil
}

func (st *stores) add(ctx context.Context, l level) {
	position, err := l.tier.Position(ctx)
	if err != nil {
		slog.Warn("tier unavailable at start", "tier", l.tier.Name(), "problem", err)
	}
	l.position, l.isKnown = position, err == nil
	st.levels = append(st.levels, l)
}

// noteCompleteness: the local store is complete if it was begun when no other one knew anything, and has been in use ever since. A
// store that did not answer may hold anything.
func (st *stores) noteCompleteness(directory string, position uint64) (bool, error) {
	path := filepath.Join(directory, completeName)
	noted, err := os.ReadFile(path)
	if err == nil {
		return string(noted) == "1", nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%w: %w", errDataDir, err)
	}
	note := "0"
	if position == 0 && st.highest() == 0 && st.allKnown() {
		note = "1"
	}
	return note == "1", writeWhole(path, []byte(note))
}

func (st *stores) allKnown() bool {
	for _, l := range st.levels {
		if !l.isKnown {
			return false
		}
	}
	return true
}

// highest is the highest LSN that any store knows.
func (st *stores) highest() uint64 {
	highest := max(st.decisionsPosition, st.ledgerPosition)
	for _, l := range st.levels {
		highest = max(highest, l.position)
	}
	return highest
}

// replayPosition: profiles above this LSN have to be built again. It is L2's, or the lowest of the levels where there is no L2.
func (st *stores) replayPosition() uint64 {
	lowest, isAny := ^uint64(0), false
	for _, l := range st.levels {
		if l.isHere {
			return l.position
		}
		if l.isKnown {
			lowest, isAny = min(lowest, l.position), true
		}
	}
	if !isAny {
		return 0
	}
	return lowest
}

// check refuses a journal that ends before a store's position, or begins after it. A new data directory beside an L3 that is in use
// is no loss: its journal has never held anything.
func (st *stores) check(j *journal.Journal) error {
	known := st.highest()
	if j.Last() == 0 {
		known = st.decisionsPosition
		if len(st.levels) > 0 && st.levels[0].isHere {
			known = max(known, st.levels[0].position)
		}
	}
	if known > j.Last() {
		return fmt.Errorf("%w: the journal ends at LSN %d, but a store has everything up to LSN %d: entries from %d on are missing here;"+
			" restore the journal", errJournal, j.Last(), known, j.Last()+1)
	}
	if position := st.replayPosition(); position < j.Trimmed() {
		return fmt.Errorf("%w: the journal begins after LSN %d, but the stores only have everything up to LSN %d: entries from %d on are"+
			" missing", errJournal, j.Trimmed(), position, position+1)
	}
	return nil
}

// forPipeline and forWriteBehind are the levels as these packages take them. A level that lacks more than the replay gives it is
// not known yet: write-behind catches it up first.
func (st *stores) forPipeline() (list []pipeline.Level) {
	for _, l := range st.levels {
		list = append(list, pipeline.Level{Tier: l.tier, Complete: l.isComplete})
	}
	return list
}

func (st *stores) forWriteBehind() (list []writebehind.Level) {
	replayed := st.replayPosition()
	for _, l := range st.levels {
		list = append(list, writebehind.Level{
			Tier: l.tier, Keeps: l.keeps, IsLocal: l.isHere, Position: l.position, IsKnown: l.isKnown && l.position >= replayed,
		})
	}
	return list
}

// reach is the LSN below which the journal cannot tell what changed: it was trimmed there, or another journal held it.
func (st *stores) reach(j *journal.Journal) uint64 {
	for _, l := range st.levels {
		if l.isComplete && l.position > j.Last() {
			return l.position
		}
	}
	return j.Trimmed()
}

// cover lets the filters count once they hold every key below them. A Redis alone cannot be listed.
func (st *stores) cover(ctx context.Context, profiles *bloom.Maybe, events *bloom.Rotating) {
	if events != nil {
		if err := bloom.Cover(ctx, events, st.local.Decisions()); err != nil && ctx.Err() == nil {
			slog.Warn("event filter stays off until the next start", "problem", err)
		}
	}
	if profiles == nil {
		return
	}
	sources := []tiers.Keys{st.local.Profiles()}
	if len(st.levels) == 0 || !st.levels[0].isHere || !st.levels[0].isComplete {
		if st.postgres == nil {
			slog.Info("bloom filter stays off: no complete store can be listed")
			return
		}
		sources = append(sources, st.postgres)
	}
	if err := bloom.Cover(ctx, profiles, sources...); err != nil && ctx.Err() == nil {
		slog.Warn("bloom filter stays off until the next start", "problem", err)
	}
}

func (st *stores) close() error {
	var err error
	if st.redis != nil {
		err = st.redis.Close()
	}
	if st.pool != nil {
		st.pool.Close()
	}
	return errors.Join(err, st.local.Close())
}
