package tierstest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
)

var databases atomic.Int64

// FreshDatabase is the address of an empty database on the server of WEIR_TEST_POSTGRES_URL, in a form that both services
// understand; it is dropped in the end. It skips the test without that variable.
func FreshDatabase(tb testing.TB) string {
	tb.Helper()
	address := os.Getenv("WEIR_TEST_POSTGRES_URL")
	if address == "" {
		tb.Skip("no Postgres: WEIR_TEST_POSTGRES_URL is not set")
	}
	fresh, err := url.Parse(address)
	if err != nil {
		tb.Fatal(err)
	}
	database := fmt.Sprintf("weir_test_%d_%d", os.Getpid(), databases.Add(1))
	admin := func(statement string) {
		conn, err := pgx.Connect(context.Background(), address)
		if err != nil {
			tb.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(context.Background(), statement); err != nil {
			tb.Fatal(err)
		}
	}
	admin("CREATE DATABASE " + database)
	tb.Cleanup(func() { admin("DROP DATABASE " + database + " WITH (FORCE)") })
	fresh.Path = "/" + database
	return fresh.String()
}
