package postgres

import (
	"context"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"weir/gocore/internal/tiers"
)

const (
	consumer      = "postgres" // the tier's row in weir_positions
	sliceKeys     = 256        // keys of one statement
	sliceBytes    = 1 << 19    // bytes of one statement
	chunkKeys     = 2_000      // keys of one page of Keys
	chunkDeadline = 10 * time.Second
)

const (
	fillSQL = "SELECT key, profile FROM weir_profiles WHERE key = ANY($1::bytea[])"
	putSQL  = `
    WITH newer AS (
        INSERT INTO weir_profiles AS p (key, lsn, profile)
        SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[])
        ON CONFLICT (key) DO UPDATE SET lsn = EXCLUDED.lsn, profile = EXCLUDED.profile WHERE p.lsn < EXCLUDED.lsn
    )
    UPDATE weir_positions SET lsn = $4 WHERE consumer = $5 AND lsn < $4
`
	positionSQL = "SELECT lsn FROM weir_positions WHERE consumer = $1"
	keysSQL     = "SELECT key FROM weir_profiles WHERE key > $1 ORDER BY key LIMIT $2"
)

// Tier is the tier of profiles over a Pool, which it does not own.
type Tier struct {
	pool         *Pool
	breaker      *tiers.Breaker
	readDeadline time.Duration
	putDeadline  time.Duration
	generation   atomic.Uint64 // of the server whose position was read
}

// NewTier makes the tier; it does not connect.
func NewTier(pool *Pool, readDeadline, putDeadline time.Duration) *Tier {
	return &Tier{pool: pool, breaker: tiers.NewBreaker(name), readDeadline: readDeadline, putDeadline: putDeadline}
}

// Name implements tiers.Tier.
func (t *Tier) Name() string { return name }

// Fill implements tiers.Tier: one `= ANY`.
func (t *Tier) Fill(ctx context.Context, keys [][]byte) ([][]byte, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	places := make(map[string][]int, len(keys))
	for i, key := range keys {
		places[string(key)] = append(places[string(key)], i)
	}
	found := make([][]byte, len(keys))
	err := t.call(ctx, t.readDeadline, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, fillSQL, keys)
		if err != nil {
			return err
		}
		var key, profile []byte
		_, err = pgx.ForEachRow(rows, []any{&key, &profile}, func() error {
			for _, i := range places[string(key)] {
				found[i] = profile
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// Put implements tiers.Tier: one statement per sliceKeys profiles, the position with the last one.
func (t *Tier) Put(ctx context.Context, profiles []tiers.Profile, position uint64) error {
	// In key order, so that two puts at once lock rows in the same order and cannot deadlock.
	sorted := slices.Clone(profiles)
	slices.SortFunc(sorted, func(a, b tiers.Profile) int { return slices.Compare(a.Key, b.Key) })
	parts := tiers.Slices(sorted, sliceKeys, sliceBytes)
	return t.call(ctx, t.putDeadline, func(ctx context.Context, conn *pgx.Conn) error {
		for i, part := range parts {
			keys, values, lsns := make([][]byte, len(part)), make([][]byte, len(part)), make([]int64, len(part))
			for j, p := range part {
				keys[j], values[j], lsns[j] = p.Key, p.Bytes, bigint(p.LSN())
			}
			moved := int64(0)
			if i == len(parts)-1 {
				moved = bigint(position)
			}
			if _, err := conn.Exec(ctx, putSQL, keys, lsns, values, moved, consumer); err != nil {
				return err
			}
		}
		return nil
	})
}

// Position implements tiers.Tier. It connects if nobody did yet, and accepts the server that is met now.
func (t *Tier) Position(ctx context.Context) (uint64, error) {
	if err := t.pool.Open(ctx); err != nil {
		return 0, t.breaker.Trip(ctx, err)
	}
	var position int64
	err := t.pool.With(ctx, t.readDeadline, func(ctx context.Context, conn *pgx.Conn) error {
		t.generation.Store(t.pool.Generation())
		return conn.QueryRow(ctx, positionSQL, consumer).Scan(&position)
	})
	if err != nil {
		return 0, t.breaker.Trip(ctx, err)
	}
	t.breaker.Reset()
	return uint64(position), nil
}

// Keys implements tiers.Keys: all keys in order, in pages that each have their own deadline; no long transaction, hence
// not one snapshot.
func (t *Tier) Keys(ctx context.Context, visit func(key []byte) error) error {
	last := []byte{}
	for {
		var page [][]byte
		err := t.pool.With(ctx, chunkDeadline, func(ctx context.Context, conn *pgx.Conn) error {
			rows, err := conn.Query(ctx, keysSQL, last, chunkKeys)
			if err != nil {
				return err
			}
			page, err = pgx.CollectRows(rows, pgx.RowTo[[]byte])
			return err
		})
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		for _, key := range page {
			if err := visit(key); err != nil {
				return err
			}
		}
		last = page[len(page)-1]
	}
}

// call runs one operation on a server whose position was read, through the breaker.
func (t *Tier) call(ctx context.Context, deadline time.Duration, do func(ctx context.Context, conn *pgx.Conn) error) error {
	if err := t.breaker.Check(); err != nil {
		return err
	}
	err := t.pool.With(ctx, deadline, func(ctx context.Context, conn *pgx.Conn) error {
		if t.generation.Load() != t.pool.Generation() {
			return ErrOtherServer
		}
		return do(ctx, conn)
	})
	if err != nil {
		return t.breaker.Trip(ctx, err)
	}
	return nil
}

// bigint is lsn as Postgres has it; epochs end at 32767, so that every LSN fits.
func bigint(lsn uint64) int64 { return int64(min(lsn, math.MaxInt64)) }
