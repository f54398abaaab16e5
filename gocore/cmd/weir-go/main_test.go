package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir/gocore/internal/decisions"
	"weir/gocore/internal/journal"
	"weir/gocore/internal/tx"
)

// asServer makes the test's own binary be the server, so that it can be killed.
const asServer = "WEIR_TEST_AS_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(asServer) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func library(t *testing.T) string {
	t.Helper()
	for _, path := range []string{os.Getenv("WEIR_TEST_ONNXRUNTIME"), "../../build/libonnxruntime.so"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Skip("no libonnxruntime at WEIR_TEST_ONNXRUNTIME nor in gocore/build; run make go")
	return ""
}

// server is weir-go as a child.
type server struct {
	t      *testing.T
	url    string
	child  *exec.Cmd
	stderr *bytes.Buffer
}

func newDirectory(t *testing.T) string {
	t.Helper()
	directory := t.TempDir()
	keys := fmt.Sprintf(`{"version": 1, "keys": [{"name": "n", "role": "ingest", "sha256": "%x", "created": 1}]}`, sha256.Sum256([]byte("k")))
	if err := os.WriteFile(filepath.Join(directory, "keys.json"), []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	return directory
}

func command(t *testing.T, directory string, more ...string) *exec.Cmd {
	t.Helper()
	arguments := append([]string{
		"--data-dir", directory, "--port", "0", "--plan", "../../internal/plan/plantest/cards.plan",
		"--model", "../../../models/artifacts/cards", "--onnxruntime", library(t), "--set", "time.clock=stream",
		"--set", "l1.bytes_max=8_388_608", "--set", "bloom.keys_max=10_000", "--set", "l2.flush_interval_ms=200",
	}, more...)
	child := exec.Command(os.Args[0], arguments...)
	child.Env = append(os.Environ(), asServer+"=1")
	return child
}

func start(t *testing.T, directory string, more ...string) *server {
	t.Helper()
	s := &server{t: t, child: command(t, directory, more...), stderr: &bytes.Buffer{}}
	s.child.Stderr = s.stderr
	stdout, err := s.child.StdoutPipe()
	if err == nil {
		err = s.child.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // nothing to do for one that the test stopped itself
		_ = s.child.Process.Kill()
		_ = s.child.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "weir ready url=http://127.0.0.1:") {
		t.Fatalf("%q, %v: %s", line, err, s.stderr)
	}
	s.url = strings.TrimSpace(strings.TrimPrefix(line, "weir ready url="))
	return s
}

func (s *server) post(path, body string) (int, string) {
	s.t.Helper()
	request, err := http.NewRequest("POST", s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer k")
	reply, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer reply.Body.Close()
	all, err := io.ReadAll(reply.Body)
	if err != nil {
		return 0, err.Error()
	}
	return reply.StatusCode, string(all)
}

func (s *server) stop(signal syscall.Signal) error {
	s.t.Helper()
	if err := s.child.Process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
	return s.child.Wait()
}

func body(n int) string {
	return fmt.Sprintf(`{"event_id":"e%d","ts":%d,"amount":%d,"currency":"EUR","card_id":"c%d","merchant_id":"m%d"}`,
		n, 1_750_000_000_000+1000*n, 100+n, n%7, n%3)
}

type decision struct {
	EventID  string `json:"event_id"`
	Score    float64
	Outcome  string
	LSN      uint64
	Replayed bool
}

func (s *server) score(n int) decision {
	s.t.Helper()
	status, reply := s.post("/v1/score", body(n))
	var d decision
	if err := json.Unmarshal([]byte(reply), &d); status != 200 || err != nil {
		s.t.Fatalf("event %d: %d %s", n, status, reply)
	}
	return d
}

func TestServer_KilledAndStartedAgain_SameDecisionsAndScores(t *testing.T) {
	directory, plain := newDirectory(t), start(t, newDirectory(t))
	before := map[int]decision{}
	var want []float64
	for n := range 80 {
		want = append(want, plain.score(n).Score)
	}
	s := start(t, directory)
	for n := range 60 {
		before[n] = s.score(n)
		if n%20 == 19 {
			_ = s.stop(syscall.SIGKILL)
			s = start(t, directory)
		}
	}
	for n := range 60 {
		again := s.score(n)
		if !again.Replayed || again.LSN != before[n].LSN || again.Score != before[n].Score {
			t.Errorf("event %d: %+v, was %+v", n, again, before[n])
		}
	}
	for n := range 80 {
		if got := s.score(n).Score; got != want[n] {
			t.Errorf("event %d: %v, without a crash %v", n, got, want[n])
		}
	}
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v %s", err, s.stderr)
	}
}

func TestServer_BatchLabelsAndReplay_Answered(t *testing.T) {
	s := start(t, newDirectory(t), "--sync", "group")
	rows := []string{body(0), body(1), body(0), `{"event_id":"x"}`}
	status, reply := s.post("/v1/score/batch?explain=1", "["+strings.Join(rows, ",")+"]")
	var answers []struct {
		decision
		Error *struct{ Status int }
	}
	if err := json.Unmarshal([]byte(reply), &answers); status != 200 || err != nil || len(answers) != 4 {
		t.Fatalf("%d %s", status, reply)
	}
	if !answers[2].Replayed || answers[3].Error == nil || answers[3].Error.Status != 422 || answers[3].EventID != "x" {
		t.Errorf("%s", reply)
	}
	status, reply = s.post("/v1/score/batch", body(2)+"\n"+body(3)+"\n")
	if status != 200 || strings.Count(reply, "\n") != 2 {
		t.Errorf("%d %s", status, reply)
	}
	status, reply = s.post("/v1/labels", `[{"event_id":"e0","label":"fraud","ts":1750000000000}]`)
	if status != 200 || !strings.Contains(reply, `"applied":1`) {
		t.Errorf("%d %s", status, reply)
	}
	if status, reply = s.post("/v1/score", strings.Replace(body(0), "100", "101", 1)); status != 409 {
		t.Errorf("%d %s", status, reply)
	}
}

func TestServer_StoppedUnderLoad_NothingAnsweredIsLost(t *testing.T) {
	directory := newDirectory(t)
	s := start(t, directory)
	var mu sync.Mutex
	answered := map[int]bool{}
	var senders sync.WaitGroup
	for sender := range 4 {
		senders.Go(func() {
			for n := sender; n < 100_000; n += 4 {
				status, _ := s.post("/v1/score", body(n))
				if status != 200 {
					return
				}
				mu.Lock()
				answered[n] = true
				mu.Unlock()
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v %s", err, s.stderr)
	}
	senders.Wait()
	again := start(t, directory)
	if len(answered) == 0 {
		t.Fatal("nothing was answered")
	}
	for n := range answered {
		if !again.score(n).Replayed {
			t.Fatalf("event %d was answered, and is forgotten", n)
		}
	}
}

func TestRun_WhatCannotStart_OneLineAndExitCode(t *testing.T) {
	directory := newDirectory(t)
	s := start(t, directory)
	broken := newDirectory(t)
	if err := os.WriteFile(filepath.Join(broken, "keys.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := newDirectory(t)
	if err := os.WriteFile(filepath.Join(other, "plan.json"), []byte(`{"spec":"x","plan_hash":"00"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		arguments []string
		code      int
		part      string
	}{
		"in use":      {[]string{"--data-dir", directory}, 1, "used by another process"},
		"other plan":  {[]string{"--data-dir", other}, 1, `belongs to spec "x"`},
		"keys":        {[]string{"--data-dir", broken}, 2, "keys.json"},
		"setting":     {[]string{"--set", "server.prt=1"}, 2, "there is no setting server.prt"},
		"flag":        {[]string{"--prt", "1"}, 2, "--help"},
		"argument":    {[]string{"serve"}, 2, `"serve" is not a flag`},
		"port in use": {[]string{"--port", s.url[strings.LastIndexByte(s.url, ':')+1:]}, 1, "give another --port"},
		"no plan":     {[]string{"--plan", "nowhere"}, 1, "give --plan"},
		"no library":  {[]string{"--onnxruntime", "nowhere"}, 1, "give --onnxruntime"},
		"no model":    {[]string{"--model", "nowhere"}, 1, "card.json"},
	} {
		child := command(t, newDirectory(t), c.arguments...)
		var stderr bytes.Buffer
		child.Stderr = &stderr
		err := child.Run()
		last := strings.TrimRight(stderr.String(), "\n")
		last = last[strings.LastIndexByte(last, '\n')+1:]
		if child.ProcessState.ExitCode() != c.code || !strings.HasPrefix(last, "weir-go: ") || !strings.Contains(last, c.part) {
			t.Errorf("%s: %v, %s", name, err, stderr.String())
		}
	}
}

func TestRun_Help_ListsFlagsAndSettings(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"--help"}, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
		t.Fatalf("%d %s", code, stderr.String())
	}
	for _, part := range []string{"--data-dir", "--sync", "queue.batch_max", "?trace=1"} {
		if !strings.Contains(stdout.String(), part) {
			t.Errorf("no %s in\n%s", part, stdout.String())
		}
	}
}

func TestLedgerRow_ErasedIDs_Empty(t *testing.T) {
	e := tx.Transaction{EventID: "e", TS: 1, Currency: "EUR", CardID: "\x00\x00", MerchantID: "\ue000", MCC: -1}
	made := decisions.Stored{Outcome: "approve", Model: "m", Scorer: "go"}
	row, err := ledgerRow(1, &journal.Entry{Kind: journal.TX, Body: e.AppendBody(nil), Decision: made.AppendOutcome(nil)})
	if err != nil || row.CardID != "" || row.MerchantID != "" || row.EventID != "e" {
		t.Errorf("%+v, %v", row, err)
	}
}
