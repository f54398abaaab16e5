package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"weir/gocore/internal/tiers"
	"weir/gocore/internal/tiers/tierstest"
)

var namespaces atomic.Int64

// start gives a tier in a namespace of its own, on the server of WEIR_TEST_REDIS_URL.
func start(t testing.TB) *Tier {
	t.Helper()
	url := os.Getenv("WEIR_TEST_REDIS_URL")
	if url == "" {
		t.Skip("no Redis: WEIR_TEST_REDIS_URL is not set")
	}
	tier, err := New(Options{
		URL: url, Namespace: fmt.Sprintf("weir-test-%d-%d", os.Getpid(), namespaces.Add(1)),
		ReadDeadline: time.Second, PutDeadline: 2 * time.Second, Connections: 8,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		keys, err := tier.client.Keys(ctx, tier.options.Namespace+":*").Result()
		if err == nil && len(keys) > 0 {
			err = tier.client.Del(ctx, keys...).Err()
		}
		if err := errors.Join(err, tier.Close()); err != nil {
			t.Error(err)
		}
	})
	if _, err := tier.Position(t.Context()); err != nil {
		t.Fatal(err)
	}
	return tier
}

func TestRedis_Suite(t *testing.T) {
	tierstest.Run(t, func(t *testing.T) (tiers.Tier, func() error) {
		return start(t), func() error { return nil }
	})
}

func TestFill_StoreWentBack_FailsUntilPositionIsRead(t *testing.T) {
	tier := start(t)
	p := tierstest.Made("card:a", 3, 1)
	for range 2 {
		if err := tier.Put(t.Context(), []tiers.Profile{p}, 3); err != nil {
			t.Fatal(err)
		}
	}
	if err := tier.client.Del(t.Context(), tier.record).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := tier.Fill(t.Context(), [][]byte{p.Key}); !errors.Is(err, ErrWentBack) || !errors.Is(err, tiers.ErrUnavailable) {
		t.Errorf("fill: %v", err)
	}
	if err := tier.Put(t.Context(), []tiers.Profile{p}, 4); !errors.Is(err, ErrWentBack) {
		t.Errorf("put while the breaker is open: %v", err)
	}
	if position, err := tier.Position(t.Context()); err != nil || position != 0 {
		t.Errorf("position %d (%v)", position, err)
	}
	if got := tierstest.Marks(t, tier, "card:a")[0]; got != 1 {
		t.Errorf("after the position was read: profile %d", got)
	}
}

func TestPut_StoreWentBack_ScriptRefuses(t *testing.T) {
	tier := start(t)
	if err := tier.Put(t.Context(), nil, 1); err != nil {
		t.Fatal(err)
	}
	if err := tier.client.Del(t.Context(), tier.record).Err(); err != nil {
		t.Fatal(err)
	}
	p := tierstest.Made("card:a", 3, 1)
	if err := tier.Put(t.Context(), []tiers.Profile{p}, 4); !errors.Is(err, ErrWentBack) {
		t.Errorf("put: %v", err)
	}
	if n, err := tier.client.Exists(t.Context(), tier.prefix+"card:a").Result(); err != nil || n != 0 {
		t.Errorf("the refused put was stored (%v)", err)
	}
}

func TestPosition_DamagedRecord_ErrUnavailable(t *testing.T) {
	tier := start(t)
	if err := tier.client.Set(t.Context(), tier.record, "short", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := tier.Position(t.Context()); !errors.Is(err, tiers.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}

func TestFill_SilentServer_ErrUnavailableAtTheDeadlineThenAtOnce(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	tier, err := New(Options{
		URL: "redis://" + listener.Addr().String(), Namespace: "w",
		ReadDeadline: 60 * time.Millisecond, PutDeadline: time.Second, Connections: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tier.Close()
	began := time.Now()
	if _, err := tier.Fill(t.Context(), [][]byte{[]byte("a")}); !errors.Is(err, tiers.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(began); took < 50*time.Millisecond || took > 500*time.Millisecond {
		t.Errorf("the deadline of 60 ms took %v", took)
	}
	began = time.Now()
	if err := tier.Put(t.Context(), nil, 1); !errors.Is(err, tiers.ErrUnavailable) {
		t.Errorf("second: %v", err)
	}
	if took := time.Since(began); took > 20*time.Millisecond {
		t.Errorf("the breaker let a call wait %v", took)
	}
}

func TestFill_CallerGivesUp_BreakerStaysClosed(t *testing.T) {
	tier := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tier.Fill(ctx, [][]byte{[]byte("a")}); !errors.Is(err, tiers.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	tierstest.Marks(t, tier, "a")
}

func TestNew_WrongAddress_ErrURL(t *testing.T) {
	for _, url := range []string{"", "postgresql://x", "redis://[", "localhost:6379"} {
		if _, err := New(Options{URL: url}); !errors.Is(err, ErrURL) {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func BenchmarkFill(b *testing.B) {
	tier := start(b)
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
