package httpapi

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"weir/gocore/internal/problem"
)

// bounds of latency histograms, s: from an L1 hit to a deadline, about 2.2 apart, as in the Python service.
var bounds = [...]float64{
	0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5,
}

// statuses that replies have; the last counter is for others.
var statuses = [...]int{200, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 500, 503}

// counts are the numbers of one route.
type counts struct {
	name    string
	status  [len(statuses) + 1]atomic.Int64
	buckets [len(bounds) + 1]atomic.Int64
	nanos   atomic.Int64
}

func (c *counts) observe(status int, took time.Duration) {
	at, _ := slices.BinarySearch(statuses[:], status)
	if at == len(statuses) || statuses[at] != status {
		at = len(statuses)
	}
	c.status[at].Add(1)
	bucket, _ := slices.BinarySearch(bounds[:], took.Seconds())
	c.buckets[bucket].Add(1)
	c.nanos.Add(int64(took))
}

// Metrics is what the server counts, and its Prometheus text.
type Metrics struct {
	routes  []*counts
	mu      sync.Mutex
	refused map[string]int64
	// Gauges are read at each scrape: name, with labels where it has some, to value.
	Gauges func() map[string]float64
	// Counters are too; they only grow.
	Counters func() map[string]int64
}

// NewMetrics makes metrics without a count.
func NewMetrics() *Metrics { return &Metrics{refused: map[string]int64{}} }

func (m *Metrics) route(name string) *counts {
	c := &counts{name: name}
	m.routes = append(m.routes, c)
	return c
}

func (m *Metrics) refuse(kind *problem.Kind) {
	m.mu.Lock()
	m.refused[kind.Code]++
	m.mu.Unlock()
}

// append appends the Prometheus exposition.
func (m *Metrics) append(dst []byte) []byte {
	dst = append(dst, "# TYPE weir_requests_total counter\n"...)
	for _, c := range m.routes {
		for i := range c.status {
			if n := c.status[i].Load(); n > 0 {
				status := "other"
				if i < len(statuses) {
					status = strconv.Itoa(statuses[i])
				}
				dst = fmt.Appendf(dst, "weir_requests_total{route=%q,status=%q} %d\n", c.name, status, n)
			}
		}
	}
	dst = append(dst, "# TYPE weir_request_seconds histogram\n"...)
	for _, c := range m.routes {
		total := int64(0)
		for i := range c.buckets {
			total += c.buckets[i].Load()
			le := "+Inf"
			if i < len(bounds) {
				le = strconv.FormatFloat(bounds[i], 'g', -1, 64)
			}
			dst = fmt.Appendf(dst, "weir_request_seconds_bucket{route=%q,le=%q} %d\n", c.name, le, total)
		}
		dst = fmt.Appendf(dst, "weir_request_seconds_sum{route=%q} %g\n", c.name, time.Duration(c.nanos.Load()).Seconds())
		dst = fmt.Appendf(dst, "weir_request_seconds_count{route=%q} %d\n", c.name, total)
	}
	dst = append(dst, "# TYPE weir_refused_total counter\n"...)
	m.mu.Lock()
	for _, code := range slices.Sorted(maps.Keys(m.refused)) {
		dst = fmt.Appendf(dst, "weir_refused_total{reason=%q} %d\n", code, m.refused[code])
	}
	m.mu.Unlock()
	counters := m.Counters()
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		dst = fmt.Appendf(dst, "weir_%s %d\n", name, counters[name])
	}
	gauges := m.Gauges()
	for _, name := range slices.Sorted(maps.Keys(gauges)) {
		dst = fmt.Appendf(dst, "weir_%s %g\n", name, gauges[name])
	}
	return dst
}
