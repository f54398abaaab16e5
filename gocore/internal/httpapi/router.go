// Package httpapi is the HTTP front: routes, who may call them, reading bodies, and how each failure becomes a problem+json reply.
//
// It has the routes of the Python service that score and label, with the same replies; only the wording of a few refusals differs.
// A handler returns an error and neither logs nor measures: the router does, once. Buffers are pooled, one request's at a time.
package httpapi

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"weir/gocore/internal/auth"
	"weir/gocore/internal/jsontext"
	"weir/gocore/internal/pipeline"
	"weir/gocore/internal/problem"
)

// Front is the stops that handlers call.
type Front struct {
	Pipeline *pipeline.Pipeline
	Keys     *auth.KeyRing
	Metrics  *Metrics
	// Ready is empty when transactions are taken, else it says why not.
	Ready func() string

	BodyBytesMax, BatchBodyBytesMax int64
	BatchRowsMax                    int
	RequestDeadline                 time.Duration // 0: none
}

// handler answers a request in x; an error becomes its problem.
type handler func(x *exchange) error

// route is one method of one path; need is the least role, 0 for open.
type route struct {
	method, path, name string
	need               auth.Role
	handle             handler
	counts             *counts
}

// router finds the route of a request: a map by path, because there are few and none has parameters.
type router struct {
	front *Front
	paths map[string][]route
	other *counts
}

// Handler is the front as a http.Handler.
func Handler(front *Front) http.Handler {
	r := &router{front: front, paths: map[string][]route{}, other: front.Metrics.route("refused")}
	for _, entry := range []route{
		{"POST", "/v1/score", "score", auth.Ingest, front.score, nil},
		{"POST", "/v1/score/batch", "score_batch", auth.Ingest, front.scoreBatch, nil},
		{"POST", "/v1/labels", "labels", auth.Ingest, front.labels, nil},
		{"GET", "/livez", "livez", 0, front.live, nil},
		{"GET", "/readyz", "readyz", 0, front.ready, nil},
		{"GET", "/metrics", "metrics", 0, front.metrics, nil},
	} {
		entry.counts = front.Metrics.route(entry.name)
		r.paths[entry.path] = append(r.paths[entry.path], entry)
	}
	return r
}

// ServeHTTP answers one request.
func (r *router) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	started := time.Now()
	x := newExchange(w, request)
	defer x.release()
	entry, err := r.find(request)
	count := r.other
	if entry != nil {
		count = entry.counts
		err = r.call(entry, x)
	}
	status := http.StatusOK
	if err != nil {
		refused := problem.As(err)
		status = refused.Kind.Status
		r.front.Metrics.refuse(refused.Kind)
		x.problem(refused)
		x.drain()
	}
	x.send(status)
	count.observe(status, time.Since(started))
}

// find is the route, or why there is none.
func (r *router) find(request *http.Request) (*route, error) {
	routes, ok := r.paths[request.URL.Path]
	if !ok {
		return nil, problem.New(problem.NotFound, "", "there is nothing at this path")
	}
	var allowed []string
	for i := range routes {
		method := routes[i].method
		if method == request.Method || method == "GET" && request.Method == "HEAD" {
			return &routes[i], nil
		}
		if allowed = append(allowed, method); method == "GET" {
			allowed = append(allowed, "HEAD")
		}
	}
	slices.Sort(allowed)
	list := strings.Join(allowed, ", ")
	refused := problem.New(problem.MethodNotAllowed, "", "%s is not possible here; %s is", request.Method, list)
	refused.Allow = list
	return nil, refused
}

// call runs the handler for a caller who may. A panic becomes a 500 that names its request id; the log has the frames, not the
// message, which may hold ids or a body.
func (r *router) call(entry *route, x *exchange) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			id := make([]byte, 8)
			_, _ = rand.Read(id) // it never fails
			x.requestID = hex.EncodeToString(id)
			slog.Error("request failed", "request_id", x.requestID, "route", entry.name, "error", fmt.Sprintf("%T", cause), "frames", string(debug.Stack()))
			err = problem.New(problem.Internal, "", "unexpected; the service's log has it under this request_id")
		}
	}()
	if entry.need > 0 {
		role, err := r.front.Keys.RoleOf(x.request.Header.Get("Authorization"))
		if err != nil {
			return err
		}
		if err := auth.Require(role, entry.need); err != nil {
			return err
		}
	}
	err = entry.handle(x)
	if err != nil && problem.As(err).Kind == problem.Internal {
		slog.Error("request failed", "route", entry.name, "problem", err)
	}
	return err
}

func (f *Front) live(x *exchange) error {
	x.reply = append(x.reply, `{"status":"live"}`...)
	return nil
}

func (f *Front) ready(x *exchange) error {
	if reason := f.Ready(); reason != "" {
		return problem.New(problem.NotReady, "", "%s", reason)
	}
	x.reply = append(x.reply, `{"status":"ready"}`...)
	return nil
}

func (f *Front) metrics(x *exchange) error {
	x.contentType = "text/plain; version=0.0.4; charset=utf-8"
	x.reply = f.Metrics.append(x.reply)
	return nil
}

// problem replaces the reply by a problem.
func (x *exchange) problem(refused *problem.Error) {
	x.contentType = problem.ContentType
	x.reply = refused.Append(x.reply[:0])
	if x.requestID != "" {
		x.reply = append(x.reply[:len(x.reply)-1], `,"request_id":`...)
		x.reply = append(jsontext.AppendString(x.reply, x.requestID), '}')
	}
	if name, value := refused.Header(); name != "" {
		x.writer.Header().Set(name, value)
	}
}
