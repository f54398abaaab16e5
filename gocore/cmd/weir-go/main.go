// Command weir-go is the all-Go server of Weir: the scoring and labelling routes of the Python service with the same contract, over
// the same journal, the same tiers and the same model, so that Go and Python are compared with equal work. It has no lists, no
// console, no tracing and no switching of tiers or models while it runs.
//
// An expected failure is one line on stderr, `weir-go: ...`; exit code 2 for wrong usage, 1 otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"weir/gocore/internal/auth"
	"weir/gocore/internal/settings"
)

// shortcuts are flags of their own for settings that nearly everybody gives.
var shortcuts = []struct{ flag, key, help string }{
	{"data-dir", "data_dir", "directory of journal, store and keys (weir-data)"},
	{"host", "server.host", "address to listen on (127.0.0.1)"},
	{"port", "server.port", "port to listen on; 0 takes a free one (8080)"},
	{"spec", "spec", "name of the spec (cards)"},
	{"plan", "plan", "file of the compiled plan (<spec>.plan beside this program)"},
	{"model", "model", "directory of the model card (../../models/artifacts/<spec> from this program)"},
	{"onnxruntime", "onnxruntime", "file of libonnxruntime (libonnxruntime.so beside this program)"},
	{"redis-url", "redis.url", "redis://...; without it there is none"},
	{"postgres-url", "postgres.url", "postgresql://...; without it there is none"},
	{"sync", "journal.sync", "group, interval or os: what a power failure may lose (interval)"},
}

func main() {
	syscall.Umask(0o077) // what it stores is its owner's alone: bodies are people's payments
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program; it returns the exit code.
func run(arguments []string, stdout, stderr io.Writer) int {
	values, err := parse(arguments)
	if errors.Is(err, flag.ErrHelp) {
		usage(stdout)
		return 0
	}
	if err == nil {
		slog.SetDefault(slog.New(slog.NewTextHandler(stderr, nil)))
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		err = serve(ctx, values, stdout)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "weir-go: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	if errors.Is(err, settings.ErrSetting) || errors.Is(err, errUsage) || errors.Is(err, auth.ErrKeyFile) {
		return 2
	}
	return 1
}

var errUsage = errors.New("wrong usage")

// parse reads the command line. Flags win over --set, whatever their order.
func parse(arguments []string) (*settings.Settings, error) {
	flags := flag.NewFlagSet("weir-go", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var assignments, given []string
	flags.Func("set", "", func(assignment string) error {
		assignments = append(assignments, assignment)
		return nil
	})
	for _, s := range shortcuts {
		flags.Func(s.flag, "", func(value string) error {
			given = append(given, s.key+"="+value)
			return nil
		})
	}
	if err := flags.Parse(arguments); errors.Is(err, flag.ErrHelp) {
		return nil, err
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w; weir-go --help", errUsage, err)
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%w: %q is not a flag; weir-go --help", errUsage, flags.Arg(0))
	}
	return settings.Load(append(assignments, given...))
}

func usage(w io.Writer) {
	fmt.Fprint(w, `weir-go scores card transactions for fraud while the payment waits: the all-Go server, with the contract of `+"`weir serve`"+`.

usage: weir-go [--data-dir D] [--port P] ... [--set key=value ...]

`)
	for _, s := range shortcuts {
		fmt.Fprintf(w, "  --%-14s %s\n", s.flag, s.help)
	}
	fmt.Fprintf(w, "  --%-14s any setting below; may be repeated\n\n", "set key=value")
	fmt.Fprint(w, `routes: POST /v1/score, /v1/score/batch (JSON array or NDJSON), /v1/labels; GET /livez, /readyz, /metrics.
?commit=false scores without changing any state, ?explain=1 adds reason codes; ?trace=1 is refused here (422).
Keys: `+"`weir keys add --role ingest --name N --data-dir D`"+` makes one that is accepted at once.
When ready it prints one line, `+"`weir ready url=...`"+`. SIGINT and SIGTERM stop it after it has written everything.

settings, their defaults and limits (those of the Python service of the same name; a threshold of -1 is the model card's):
`)
	fmt.Fprint(w, settings.Describe())
}
