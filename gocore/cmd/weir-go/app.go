package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"weir/gocore/internal/auth"
	"weir/gocore/internal/card"
	"weir/gocore/internal/decide"
	"weir/gocore/internal/decisions"
	"weir/gocore/internal/httpapi"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/l1"
	"weir/gocore/internal/ledger"
	"weir/gocore/internal/ort"
	"weir/gocore/internal/pipeline"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/settings"
	"weir/gocore/internal/tiers/bloom"
	"weir/gocore/internal/writebehind"
)

const (
	httpStopDeadline = 3 * time.Second // for requests under way, such as one whose body never ends
	pinnedBesideMax  = 4_096           // slots of a kind that labels and recovery pin beside the queue; address space until used
	headerDeadline   = 10 * time.Second
	idleDeadline     = 5 * time.Minute
	headerBytesMax   = 16 << 10
)

// app is every stop of a running server, and what closes them, last opened first.
type app struct {
	settings *settings.Settings
	plan     *plan.Plan
	card     *card.Card
	model    *ort.Model
	stores   *stores
	journal  *journal.Journal
	l1       *l1.L1
	behind   *writebehind.WriteBehind
	index    *decisions.Index
	profiles *bloom.Maybe
	events   *bloom.Rotating
	pipeline *pipeline.Pipeline
	feed     *ledger.Feed // nil without a Postgres
	reason   atomic.Value // why it is not ready
	closers  []func()
}

// serve runs the server until ctx ends; then it drains, writes everything and returns.
func serve(ctx context.Context, s *settings.Settings, stdout io.Writer) error {
	a := &app{settings: s}
	a.reason.Store("starting")
	defer a.close()
	listener, err := net.Listen("tcp", net.JoinHostPort(s.Host, fmt.Sprint(s.Port)))
	if err != nil {
		return fmt.Errorf("cannot listen: %w; give another --port or --host", err)
	}
	a.onClose(func() { _ = listener.Close() }) // the server closed it, in most cases
	if err := a.load(); err != nil {
		return err
	}
	directory, err := openDataDir(s.DataDir, s.Spec, a.plan)
	if err != nil {
		return err
	}
	a.onClose(directory.close)
	keys, err := auth.Open(s.DataDir, time.Now)
	if err != nil {
		return err
	}
	if err := a.start(ctx); err != nil {
		if ctx.Err() != nil {
			slog.Info("stopped before it was ready")
			return nil
		}
		return err
	}
	server := a.httpServer(keys)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	a.onClose(func() { stopHTTP(server) })
	a.reason.Store("")
	if _, err := fmt.Fprintf(stdout, "weir ready url=http://%s\n", listener.Addr()); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		slog.Info("stopping")
		a.reason.Store("stopping")
		return nil
	}
}

func (a *app) onClose(closer func()) { a.closers = append(a.closers, closer) }

func (a *app) close() {
	for i := len(a.closers) - 1; i >= 0; i-- {
		a.closers[i]()
	}
}

// load reads plan and model. Paths that were not given stand beside the program.
func (a *app) load() error {
	s := a.settings
	program, err := os.Executable()
	if err != nil {
		return err
	}
	beside := filepath.Dir(program)
	data, err := os.ReadFile(or(s.Plan, filepath.Join(beside, s.Spec+".plan")))
	if err != nil {
		return fmt.Errorf("plan: %w; give --plan", err)
	}
	if a.plan, err = plan.Parse(data); err != nil {
		return err
	}
	if a.card, err = card.Load(or(s.Model, filepath.Join(beside, "..", "..", "models", "artifacts", s.Spec)), a.plan); err != nil {
		return err
	}
	if err := ort.Open(or(s.ONNXRuntime, filepath.Join(beside, "libonnxruntime.so"))); err != nil {
		return fmt.Errorf("%w; give --onnxruntime", err)
	}
	if a.model, err = ort.Load(a.card.ONNX, len(a.plan.Features)); err != nil {
		return err
	}
	a.onClose(a.model.Close)
	return nil
}

func or(given, otherwise string) string {
	if given != "" {
		return given
	}
	return otherwise
}

// start opens the stores and the journal, recovers, and begins what runs in the background.
func (a *app) start(ctx context.Context) (err error) {
	s := a.settings
	if a.stores, err = openStores(ctx, s); err != nil {
		return err
	}
	a.onClose(func() { complain("stores could not be closed", a.stores.close()) })
	a.journal, err = journal.Open(filepath.Join(s.DataDir, "journal"), journal.Options{
		Sync: s.Sync, Interval: time.Duration(s.SyncIntervalMS) * time.Millisecond, SegmentBytes: s.SegmentBytes,
		EpochFloor: a.stores.highest() >> journal.EpochShift,
	})
	if err != nil {
		return err
	}
	a.onClose(func() { complain("the journal could not be closed", a.journal.Close()) })
	if a.journal.CutReason != "" {
		slog.Warn("journal was cut", "bytes", a.journal.CutBytes, "reason", a.journal.CutReason)
	}
	if err := a.stores.check(a.journal); err != nil {
		return err
	}
	if err := a.build(); err != nil {
		return err
	}
	a.reason.Store("recovering")
	if _, err := a.pipeline.Recover(ctx, a.stores.replayPosition(), a.stores.decisionsPosition); err != nil {
		return err
	}
	a.startBackground()
	return nil
}

// build makes every stop, given what it needs.
func (a *app) build() (err error) {
	s := a.settings
	a.l1, err = l1.New(a.plan, s.L1BytesMax, int(s.EventsMax)+pinnedBesideMax, func(kind int, id string, slot int) {
		a.behind.OnEvict(kind, id, slot)
	})
	if err != nil {
		return err
	}
	reach := a.stores.reach(a.journal)
	a.behind = writebehind.New(writebehind.Config{
		Plan: a.plan, L1: a.l1, Levels: a.stores.forWriteBehind(), Interval: time.Duration(s.WriteIntervalMS) * time.Millisecond,
		BatchMax: int(s.WriteBatchMax), ProfilesMax: int(s.WriteProfilesMax), OnLoop: func(call func()) { a.pipeline.Do(call) },
		LastLSN: a.journal.Last, SyncTo: a.journal.SyncTo,
		Changed: func(ctx context.Context, after uint64, mark func(key []byte, lsn uint64)) error {
			return a.pipeline.Changed(ctx, after, max(reach, a.journal.Trimmed()), mark)
		},
	})
	var profiles pipeline.Filter
	var events decisions.Filter
	if s.Bloom {
		a.profiles = bloom.NewMaybe(int(s.BloomKeysMax), s.BloomFPP)
		a.events = bloom.NewRotating(s.IdempotencyHours*time.Hour.Milliseconds(), int(s.BloomKeysMax), s.BloomFPP, wallMS)
		profiles, events = a.profiles, a.events
	}
	a.index = decisions.New(a.stores.local.Decisions(), events)
	past := s.PastMSMax
	if past == 0 {
		past = a.plan.LongestMS
	}
	a.pipeline, err = pipeline.New(pipeline.Options{
		Plan: a.plan, L1: a.l1, Levels: a.stores.forPipeline(), Filter: profiles, WriteBehind: a.behind,
		Model: a.model, ModelName: a.card.Model, Policy: a.policy(), Decisions: a.index, Journal: a.journal,
		Clock:     &pipeline.Clock{Stream: s.Clock == "stream", FutureMSMax: s.FutureMSMax, PastMSMax: past, WallMS: wallMS},
		EventsMax: int(s.EventsMax), BatchMax: int(s.BatchMax),
	})
	return err
}

func (a *app) policy() decide.Policy {
	s := a.settings
	p := decide.Policy{Review: a.card.Review, Decline: a.card.Decline, UnknownOutcome: s.UnknownOutcome, UnknownAmountMin: s.UnknownAmountMin}
	if s.ReviewThreshold >= 0 {
		p.Review = s.ReviewThreshold
	}
	if s.DeclineThreshold >= 0 {
		p.Decline = s.DeclineThreshold
	}
	return p
}

func (a *app) httpServer(keys *auth.KeyRing) *http.Server {
	s := a.settings
	front := &httpapi.Front{
		Pipeline: a.pipeline, Keys: keys, Metrics: a.metrics(), Ready: func() string { return a.reason.Load().(string) },
		BodyBytesMax: s.BodyBytesMax, BatchBodyBytesMax: s.BatchBodyBytesMax, BatchRowsMax: int(s.BatchRowsMax),
		RequestDeadline: time.Duration(s.RequestDeadlineMS) * time.Millisecond,
	}
	return &http.Server{
		Handler: httpapi.Handler(front), ReadHeaderTimeout: headerDeadline, IdleTimeout: idleDeadline,
		ReadTimeout: front.RequestDeadline, MaxHeaderBytes: headerBytesMax,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug), // it quotes requests
	}
}

func stopHTTP(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), httpStopDeadline)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		complain("connections were cut", errors.Join(err, server.Close()))
	}
}

func complain(what string, err error) {
	if err != nil {
		slog.Error(what, "problem", err)
	}
}

func wallMS() int64 { return time.Now().UnixMilli() }
