package tierstest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"weir/gocore/internal/ledger"
	"weir/gocore/internal/tiers"
	"weir/gocore/internal/tiers/postgres"
	"weir/gocore/internal/tiers/redis"
	"weir/gocore/internal/tiers/tierstest"
)

const (
	profiles  = 300 // as testdata/other_service.py
	epoch     = 1 << 48
	namespace = "weir-test-python"
)

// TestTiers_PythonService_ReadsOursAndWeReadIts runs the Python service's tiers on the stores that ours have written to.
// WEIR_TEST_PYTHON is an interpreter that can import the service; its directory of work is the checkout.
func TestTiers_PythonService_ReadsOursAndWeReadIts(t *testing.T) {
	python, redisURL := os.Getenv("WEIR_TEST_PYTHON"), os.Getenv("WEIR_TEST_REDIS_URL")
	if python == "" || redisURL == "" {
		t.Skip("WEIR_TEST_PYTHON and WEIR_TEST_REDIS_URL are not both set")
	}
	postgresURL := tierstest.FreshDatabase(t)
	cleanRedis(t, redisURL)
	far, err := redis.New(redis.Options{
		URL: redisURL, Namespace: namespace, ReadDeadline: time.Second, PutDeadline: time.Second, Connections: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	pool, err := postgres.NewPool(postgresURL, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	both := []tiers.Tier{far, postgres.NewTier(pool, time.Second, time.Second)}
	for _, tier := range both {
		putOurs(t, tier)
	}
	appendOurs(t, ledger.New(pool))

	command := exec.Command(python, "internal/tiers/tierstest/testdata/other_service.py", redisURL, namespace, postgresURL)
	command.Dir = "../../.."
	command.Env = append(os.Environ(), "PYTHONPATH=..")
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("the Python side: %v\n%s", err, output)
	}

	for _, tier := range both {
		checkTheirs(t, tier)
	}
	if position, err := ledger.New(pool).Position(t.Context()); err != nil || position != epoch|4 {
		t.Errorf("ledger: position %x (%v)", position, err)
	}
}

func keys() []string {
	names := make([]string, profiles)
	for i := range names {
		names[i] = fmt.Sprintf("card:ü%d", i)
	}
	return names
}

func putOurs(t *testing.T, tier tiers.Tier) {
	t.Helper()
	if _, err := tier.Position(t.Context()); err != nil {
		t.Fatal(err)
	}
	var made []tiers.Profile
	for i, key := range keys() {
		made = append(made, tierstest.Made(key, uint64(epoch|(i+1)), byte(i%100)))
	}
	if err := tier.Put(t.Context(), made, epoch|profiles); err != nil {
		t.Fatal(err)
	}
}

func appendOurs(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	full := ledger.Row{
		LSN: epoch | 1, EventID: "t-1", TS: 1_750_000_000_000, CardID: "c1", MerchantID: "mü", Amount: 1299, Currency: "EUR",
		Score: 0.25, Outcome: "review", Model: "m", Scorer: "go", Reasons: []string{"R1", "R2"}, Tx: []byte{0x81, 0},
	}
	bare := full
	bare.LSN, bare.EventID, bare.Reasons, bare.Tx = epoch|2, "t-2", nil, []byte{}
	labels := []ledger.Label{{TxLSN: epoch | 1, IsFraud: true}}
	if err := l.Append(t.Context(), []ledger.Row{full, bare}, labels, epoch|3); err != nil {
		t.Fatal(err)
	}
}

func checkTheirs(t *testing.T, tier tiers.Tier) {
	t.Helper()
	want := make([]byte, profiles)
	for i := range want {
		want[i] = byte(i % 100)
		if i%2 == 1 {
			want[i] += 100
		}
	}
	if got := tierstest.Marks(t, tier, keys()...); !slices.Equal(got, want) {
		t.Errorf("%s: %v, not %v", tier.Name(), got, want)
	}
	if position, err := tier.Position(t.Context()); err != nil || position != 2*epoch|7 {
		t.Errorf("%s: position %x (%v)", tier.Name(), position, err)
	}
}

func cleanRedis(t *testing.T, address string) {
	t.Helper()
	settings, err := goredis.ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	clean := func() {
		client := goredis.NewClient(settings)
		ctx := context.Background()
		found, err := client.Keys(ctx, namespace+":*").Result()
		if err == nil && len(found) > 0 {
			err = client.Del(ctx, found...).Err()
		}
		if err := errors.Join(err, client.Close()); err != nil {
			t.Error(err)
		}
	}
	clean()
	t.Cleanup(clean)
}
