package httpapi

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weir/gocore/internal/auth"
	"weir/gocore/internal/decisions"
	"weir/gocore/internal/pipeline"
	"weir/gocore/internal/problem"
)

// newFront has no pipeline: for requests that never get there. The key is `k`.
func newFront(t testing.TB) *Front {
	t.Helper()
	directory := t.TempDir()
	keys := fmt.Sprintf(`{"version": 1, "keys": [{"name": "n", "role": "ingest", "sha256": "%x", "created": 1}]}`, sha256.Sum256([]byte("k")))
	if err := os.WriteFile(filepath.Join(directory, "keys.json"), []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	ring, err := auth.Open(directory, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	metrics := NewMetrics()
	metrics.Counters = func() map[string]int64 { return map[string]int64{"tx_replayed_total": 3} }
	metrics.Gauges = func() map[string]float64 { return map[string]float64{"ready": 1} }
	return &Front{
		Keys: ring, Metrics: metrics, Ready: func() string { return "" },
		BodyBytesMax: 100, BatchBodyBytesMax: 200, BatchRowsMax: 3, RequestDeadline: time.Second,
	}
}

// call is one request with the key, and its reply.
func call(t testing.TB, front *Front, method, target, body string, headers ...string) (status int, header http.Header, reply string) {
	t.Helper()
	request := httptest.NewRequest(method, target, strings.NewReader(body))
	request.Header.Set("Authorization", "Bearer k")
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	recorder := httptest.NewRecorder()
	Handler(front).ServeHTTP(recorder, request)
	all, err := io.ReadAll(recorder.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return recorder.Code, recorder.Header(), string(all)
}

func TestHandler_WhatNeverReachesThePipeline_StatusAndField(t *testing.T) {
	front := newFront(t)
	for _, c := range []struct {
		method, target, body string
		headers              []string
		status               int
		part                 string
	}{
		{"GET", "/nothing", "", nil, 404, "there is nothing at this path"},
		{"POST", "/v1/score/", "", nil, 404, "not-found"},
		{"GET", "/v1/score", "", nil, 405, "GET is not possible here; POST is"},
		{"POST", "/livez", "", nil, 405, "POST is not possible here; GET, HEAD is"},
		{"POST", "/v1/score", "{}", []string{"Authorization", ""}, 401, "no API key"},
		{"POST", "/v1/score", "{}", []string{"Authorization", "Bearer x"}, 401, "not known here"},
		{"POST", "/v1/score", strings.Repeat("x", 100), nil, 400, `"field":"body"`},
		{"POST", "/v1/score", strings.Repeat("x", 101), nil, 413, "the body has 101 bytes or more, at most 100"},
		{"POST", "/v1/score", "", nil, 400, "the body is empty"},
		{"POST", "/v1/score", "{}", []string{"Content-Encoding", "br"}, 415, `"field":"Content-Encoding"`},
		{"POST", "/v1/score", "{}", []string{"Content-Encoding", "gzip"}, 400, "Content-Encoding and length"},
		{"POST", "/v1/score?comit=false", "{}", nil, 422, `"field":"?comit"`},
		{"POST", "/v1/score?commit=2", "{}", nil, 422, "commit is '2': expected true, false, 1 or 0"},
		{"POST", "/v1/score?commit=1&commit=1", "{}", nil, 422, "more than once"},
		{"POST", "/v1/score?trace=1", "{}", nil, 422, `"field":"?trace"`},
		{"POST", "/v1/score?trace=0", "{}", nil, 422, "event_id is missing"},
		{"POST", "/v1/score/batch", "[1,2", nil, 400, "truncated"},
		{"POST", "/v1/score/batch", "[1,2,3,4]", nil, 413, "4 transactions in one batch, at most 3"},
		{"POST", "/v1/score/batch", "{}\n{}\n{}\n{}", nil, 413, "4 transactions"},
		{"POST", "/v1/score/batch", "[]", []string{"Content-Type", "text/csv"}, 415, "text/csv is not read here"},
		{"POST", "/v1/labels", "{}", nil, 400, "expected array, got object"},
		{"POST", "/v1/labels?x=1", "[]", nil, 422, `"field":"?x"`},
	} {
		status, header, reply := call(t, front, c.method, c.target, c.body, c.headers...)
		if status != c.status || !strings.Contains(reply, c.part) || header.Get("Content-Type") != problem.ContentType {
			t.Errorf("%s %s %q: %d %s", c.method, c.target, c.body, status, reply)
		}
		if allow := header.Get("Allow"); (allow != "") != (status == 405) {
			t.Errorf("%s %s: Allow %q", c.method, c.target, allow)
		}
	}
}

func TestHandler_EmptyBatch_EmptyReply(t *testing.T) {
	status, header, reply := call(t, newFront(t), "POST", "/v1/score/batch", "[]")
	if status != 200 || reply != "[]" || header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %s", status, reply)
	}
	status, header, reply = call(t, newFront(t), "POST", "/v1/score/batch", "\n", "Content-Type", ndjson)
	if status != 200 || reply != "" || header.Get("Content-Type") != ndjson {
		t.Errorf("%d %s", status, reply)
	}
}

func TestHandler_Health_OpenAndHeadHasNoBody(t *testing.T) {
	front := newFront(t)
	for _, target := range []string{"/livez", "/readyz"} {
		if status, _, reply := call(t, front, "GET", target, "", "Authorization", ""); status != 200 || !strings.Contains(reply, "status") {
			t.Errorf("%s: %d %s", target, status, reply)
		}
	}
	if status, header, reply := call(t, front, "HEAD", "/livez", ""); status != 200 || reply != "" || header.Get("Content-Length") != "17" {
		t.Errorf("%d %v %q", status, header, reply)
	}
	front.Ready = func() string { return "recovering" }
	if status, header, reply := call(t, front, "GET", "/readyz", ""); status != 503 || !strings.Contains(reply, "recovering") || header.Get("Retry-After") != "1" {
		t.Errorf("%d %s", status, reply)
	}
}

func TestHandler_Metrics_CountsRoutesAndRefusals(t *testing.T) {
	front := newFront(t)
	handler := Handler(front)
	for range 2 {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/nothing", nil))
	}
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	for _, line := range []string{
		`weir_requests_total{route="refused",status="404"} 2`, `weir_refused_total{reason="not-found"} 2`, "weir_tx_replayed_total 3", "weir_ready 1",
		`weir_request_seconds_count{route="refused"} 2`,
	} {
		if !strings.Contains(recorder.Body.String(), line+"\n") {
			t.Errorf("no line %s in\n%s", line, recorder.Body)
		}
	}
}

func TestHandler_Panic_ProblemWithRequestIDAndNotItsText(t *testing.T) {
	front := newFront(t)
	front.Ready = func() string { panic("secret") }
	status, _, reply := call(t, front, "GET", "/readyz", "")
	if status != 500 || !strings.Contains(reply, `"request_id":"`) || strings.Contains(reply, "secret") {
		t.Errorf("%d %s", status, reply)
	}
}

func TestRead_Gzip_LimitIsOnWhatComesOut(t *testing.T) {
	for size, want := range map[int]int{100: 400, 101: 413} {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, _ = w.Write(bytes.Repeat([]byte("x"), size)) // to memory
		_ = w.Close()
		if status, _, reply := call(t, newFront(t), "POST", "/v1/score", packed.String(), "Content-Encoding", "gzip"); status != want {
			t.Errorf("%d bytes: %d %s", size, status, reply)
		}
	}
}

func TestAppendDecision_ExplainOrNot_FieldsInOrder(t *testing.T) {
	for _, outcome := range []string{"approve", "review", "decline"} {
		a := pipeline.Answer{Replayed: true, Decision: &decisions.Stored{
			LSN: 5, Score: 0.5, Outcome: outcome, Model: "m@1", Scorer: "go", Degraded: []string{"redis"}, Reasons: []string{"L3_UNKNOWN"},
		}}
		want := `{"event_id":"a\"","score":0.5,"outcome":"` + outcome + `","model":"m@1","scorer":"go","lsn":5,"replayed":true,"degraded":["redis"]`
		explained := want + `,"reasons":["L3_UNKNOWN"]}`
		if got := string(appendDecision(nil, `a"`, &a, true)); got != explained {
			t.Error(got)
		}
		if outcome == "approve" {
			explained = want + "}"
		}
		if got := string(appendDecision(nil, `a"`, &a, false)); got != explained {
			t.Error(got)
		}
	}
}

func TestAppendRefusal_RowWithAnID_NamesIt(t *testing.T) {
	front := newFront(t)
	for row, want := range map[string]bool{`{"event_id":"a"}`: true, `{"event_id":5}`: false, `{`: false, `[1]`: false, `{"event_id":"` + strings.Repeat("x", 129) + `"}`: false} {
		got := string(front.appendRefusal(nil, []byte(row), problem.New(problem.InvalidEvent, "ts", "ts is missing")))
		if strings.Contains(got, `,"event_id":"a"}`) != want || !strings.HasPrefix(got, `{"error":{"type":"urn:weir:problem:invalid-event"`) {
			t.Errorf("%s: %s", row, got)
		}
	}
}

func TestHandler_RefusedWithALargeBody_CallerStillSendingGetsTheReply(t *testing.T) {
	server := httptest.NewServer(Handler(newFront(t)))
	defer server.Close()
	for key, want := range map[string]int{"Bearer k": 413, "": 401} {
		request, err := http.NewRequest("POST", server.URL+"/v1/score", strings.NewReader(strings.Repeat(" ", 4<<20)))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", key)
		connection, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := request.Write(connection); err != nil { // all of it, before it reads
			t.Fatal(err)
		}
		reply, err := http.ReadResponse(bufio.NewReader(connection), request)
		if err != nil || reply.StatusCode != want {
			t.Fatalf("%q: %v, %v", key, reply, err)
		}
		_ = connection.Close()
	}
}
