package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"weir/gocore/internal/tiers"
	"weir/gocore/internal/tiers/tierstest"
)

func startOn(t testing.TB, url string) *Tier {
	t.Helper()
	pool, err := NewPool(url, 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	tier := NewTier(pool, time.Second, 5*time.Second)
	if _, err := tier.Position(t.Context()); err != nil {
		t.Fatal(err)
	}
	return tier
}

func TestPostgres_Suite(t *testing.T) {
	tierstest.Run(t, func(t *testing.T) (tiers.Tier, func() error) {
		return startOn(t, tierstest.FreshDatabase(t)), func() error { return nil }
	})
}

func TestOpen_TwoAtOnce_SchemaIsMadeOnce(t *testing.T) {
	url := tierstest.FreshDatabase(t)
	failed := make(chan error, 2)
	for range 2 {
		pool, err := NewPool(url, 2)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		go func() { failed <- pool.Open(t.Context()) }()
	}
	if err := errors.Join(<-failed, <-failed); err != nil {
		t.Error(err)
	}
}

func TestOpen_NewerSchema_ErrNewerSchema(t *testing.T) {
	url := tierstest.FreshDatabase(t)
	first := startOn(t, url)
	err := first.pool.With(t.Context(), time.Second, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "UPDATE weir_schema SET version = $1", len(migrations)+1)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := NewPool(url, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := pool.Open(t.Context()); !errors.Is(err, ErrNewerSchema) || !errors.Is(err, tiers.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}

func TestFill_OtherServer_FailsUntilPositionIsRead(t *testing.T) {
	tier := startOn(t, tierstest.FreshDatabase(t))
	tier.pool.generation.Add(1) // as greet does when a connection meets another server
	if _, err := tier.Fill(t.Context(), [][]byte{[]byte("a")}); !errors.Is(err, ErrOtherServer) {
		t.Errorf("fill: %v", err)
	}
	if err := tier.Put(t.Context(), nil, 1); !errors.Is(err, tiers.ErrUnavailable) {
		t.Errorf("put: %v", err)
	}
	if _, err := tier.Position(t.Context()); err != nil {
		t.Fatal(err)
	}
	tierstest.Marks(t, tier, "a")
}

func TestFill_ConnectionsKilled_WorksAgainAfterPosition(t *testing.T) {
	url := tierstest.FreshDatabase(t)
	tier, killer := startOn(t, url), startOn(t, url)
	err := killer.pool.With(t.Context(), time.Second, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tier.Fill(t.Context(), [][]byte{[]byte("a")}); err != nil && !errors.Is(err, tiers.ErrUnavailable) {
		t.Errorf("fill: %v", err)
	}
	if _, err := tier.Position(t.Context()); err != nil {
		t.Fatal(err)
	}
	tierstest.Marks(t, tier, "a")
}

func TestFill_ServerLocked_ErrUnavailableAtTheDeadline(t *testing.T) {
	url := tierstest.FreshDatabase(t)
	tier, locker := startOn(t, url), startOn(t, url)
	tier.readDeadline = 100 * time.Millisecond
	err := locker.pool.With(t.Context(), 5*time.Second, func(ctx context.Context, conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "LOCK TABLE weir_profiles IN ACCESS EXCLUSIVE MODE"); err != nil {
				return err
			}
			began := time.Now()
			if _, err := tier.Fill(ctx, [][]byte{[]byte("a")}); !errors.Is(err, tiers.ErrUnavailable) {
				t.Errorf("error %v", err)
			}
			if took := time.Since(began); took < 90*time.Millisecond || took > time.Second {
				t.Errorf("the deadline of 100 ms took %v", took)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tier.Position(t.Context()); err != nil {
		t.Fatal(err)
	}
	tierstest.Marks(t, tier, "a")
}

func TestPosition_NobodyListens_ErrUnavailable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	pool, err := NewPool("postgresql://weir@"+address+"/postgres", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := NewTier(pool, time.Second, time.Second).Position(t.Context()); !errors.Is(err, tiers.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}

func TestNewPool_WrongAddress_ErrURL(t *testing.T) {
	if _, err := NewPool("redis://localhost", 1); !errors.Is(err, ErrURL) {
		t.Errorf("error %v", err)
	}
}

func BenchmarkFill(b *testing.B) {
	tier := startOn(b, tierstest.FreshDatabase(b))
	keys := make([][]byte, 64)
	var profiles []tiers.Profile
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "card:%d", i)
		p := tierstest.Made(string(keys[i]), 1, 1)
		p.Bytes = append(p.Bytes, make([]byte, 1408-len(p.Bytes))...)
		profiles = append(profiles, p)
	}
	if err := tier.Put(b.Context(), profiles, 1); err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tier.Fill(b.Context(), keys[:n]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
