// Package plantest holds the packaged specs as compiled plans, for tests. tests/unit/test_go_vectors.py checks that they are
// what the specs give, and writes them anew when it is run as a program.
package plantest

import (
	"embed"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"weir/gocore/internal/plan"
)

//go:embed *.plan
var files embed.FS

// Bytes are the plan of a packaged spec, "cards" or "handbook".
func Bytes(tb testing.TB, name string) []byte {
	tb.Helper()
	data, err := files.ReadFile(name + ".plan")
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// Load is that plan, parsed.
func Load(tb testing.TB, name string) *plan.Plan {
	tb.Helper()
	p, err := plan.Parse(Bytes(tb, name))
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// Seeded draws from the environment's SEED, and tells the one that it used.
func Seeded(tb testing.TB) *rand.Rand {
	tb.Helper()
	seed, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	tb.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
