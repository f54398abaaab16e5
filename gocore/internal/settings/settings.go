// Package settings is every setting of weir-go: name, unit, default and range, as far as it has what the Python service has
// (service/settings.py). A key that does not exist is refused, a value out of range with its limit.
package settings

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// ErrSetting is wrapped when a setting is unknown, of the wrong type or out of range.
var ErrSetting = errors.New("setting")

const (
	mib   = 1 << 20
	dayMS = 86_400_000
)

// Settings are the values; a zero PastMSMax means the longest ring of the spec, a negative threshold the model card's.
type Settings struct {
	Spec, Model, DataDir string
	Plan, ONNXRuntime    string

	Host                              string
	Port                              int64
	BodyBytesMax, BatchBodyBytesMax   int64
	BatchRowsMax, RequestDeadlineMS   int64
	Clock                             string
	FutureMSMax, PastMSMax            int64
	L1BytesMax                        int64
	Bloom                             bool
	BloomKeysMax                      int64
	BloomFPP                          float64
	L2                                bool
	L2CacheBytes, L2FlushIntervalMS   int64
	RedisURL, RedisNamespace          string
	RedisDeadlineMS                   int64
	PostgresURL                       string
	PostgresDeadlineMS, PostgresPool  int64
	Sync                              string
	SyncIntervalMS, SegmentBytes      int64
	KeepHours                         int64
	WriteIntervalMS, WriteBatchMax    int64
	WriteProfilesMax                  int64
	EventsMax, BatchMax               int64
	UnknownOutcome                    string
	UnknownAmountMin                  int64
	ReviewThreshold, DeclineThreshold float64
	IdempotencyHours                  int64
}

// setting is one key: its default, what it may be, and how it is read.
type setting struct {
	key, initial, limits string
	set                  func(s *Settings, text string) error
}

func text(key, initial, limits string, at func(*Settings) *string) setting {
	return setting{key, initial, limits, func(s *Settings, value string) error {
		*at(s) = value
		return nil
	}}
}

// address is a URL of one of these schemes, or nothing.
func address(key string, at func(*Settings) *string, schemes ...string) setting {
	limits := strings.Join(schemes, "://..., ") + "://..., none without"
	return setting{key, "", limits, func(s *Settings, value string) error {
		scheme, _, found := strings.Cut(value, "://")
		if value != "" && (!found || !slices.Contains(schemes, scheme)) {
			return fmt.Errorf("expected one of %s://...", strings.Join(schemes, "://..., "))
		}
		*at(s) = value
		return nil
	}}
}

func oneOf(key, initial string, at func(*Settings) *string, words ...string) setting {
	limits := strings.Join(words, ", ")
	return setting{key, initial, limits, func(s *Settings, value string) error {
		for _, word := range words {
			if word == value {
				*at(s) = value
				return nil
			}
		}
		return fmt.Errorf("expected one of %s", limits)
	}}
}

func integer(key string, initial, low, high int64, at func(*Settings) *int64) setting {
	return setting{key, strconv.FormatInt(initial, 10), fmt.Sprintf("%d to %d", low, high), func(s *Settings, value string) error {
		n, err := strconv.ParseInt(strings.ReplaceAll(value, "_", ""), 10, 64)
		if err != nil {
			return errors.New("expected int")
		}
		if n < low || n > high {
			return fmt.Errorf("expected int from %d to %d", low, high)
		}
		*at(s) = n
		return nil
	}}
}

func fraction(key, initial string, low, high float64, at func(*Settings) *float64) setting {
	return setting{key, initial, fmt.Sprintf("%g to %g", low, high), func(s *Settings, value string) error {
		x, err := strconv.ParseFloat(value, 64)
		if err != nil || math.IsNaN(x) || x < low || x > high {
			return fmt.Errorf("expected a number from %g to %g", low, high)
		}
		*at(s) = x
		return nil
	}}
}

func flag(key string, initial bool, at func(*Settings) *bool) setting {
	return setting{key, strconv.FormatBool(initial), "true, false", func(s *Settings, value string) error {
		if value != "true" && value != "false" {
			return errors.New("expected true or false")
		}
		*at(s) = value == "true"
		return nil
	}}
}

var table = []setting{
	text("spec", "cards", "name of the spec, for the data directory and the defaults of plan and model", func(s *Settings) *string { return &s.Spec }),
	text("plan", "", "file of a compiled plan", func(s *Settings) *string { return &s.Plan }),
	text("model", "", "directory of a model card", func(s *Settings) *string { return &s.Model }),
	text("onnxruntime", "", "file of libonnxruntime", func(s *Settings) *string { return &s.ONNXRuntime }),
	text("data_dir", "weir-data", "directory of journal, store and keys", func(s *Settings) *string { return &s.DataDir }),
	text("server.host", "127.0.0.1", "", func(s *Settings) *string { return &s.Host }),
	integer("server.port", 8080, 0, 65535, func(s *Settings) *int64 { return &s.Port }),
	integer("server.body_bytes_max", mib, 1024, 64*mib, func(s *Settings) *int64 { return &s.BodyBytesMax }),
	integer("server.batch_body_bytes_max", 8*mib, 1024, 256*mib, func(s *Settings) *int64 { return &s.BatchBodyBytesMax }),
	integer("server.batch_rows_max", 10_000, 1, 1_000_000, func(s *Settings) *int64 { return &s.BatchRowsMax }),
	integer("server.request_deadline_ms", 5_000, 0, 600_000, func(s *Settings) *int64 { return &s.RequestDeadlineMS }),
	oneOf("time.clock", "wall", func(s *Settings) *string { return &s.Clock }, "wall", "stream"),
	integer("time.future_ms_max", 60_000, 0, 365*dayMS, func(s *Settings) *int64 { return &s.FutureMSMax }),
	integer("time.past_ms_max", 0, 0, 36_500*dayMS, func(s *Settings) *int64 { return &s.PastMSMax }),
	integer("l1.bytes_max", 256*mib, 64*1024, 1<<40, func(s *Settings) *int64 { return &s.L1BytesMax }),
	flag("bloom.enabled", true, func(s *Settings) *bool { return &s.Bloom }),
	integer("bloom.keys_max", 10_000_000, 1_000, 2_000_000_000, func(s *Settings) *int64 { return &s.BloomKeysMax }),
	fraction("bloom.fpp", "0.01", 1e-9, 0.5, func(s *Settings) *float64 { return &s.BloomFPP }),
	flag("l2.enabled", true, func(s *Settings) *bool { return &s.L2 }),
	integer("l2.cache_bytes", 128*mib, mib, 1<<40, func(s *Settings) *int64 { return &s.L2CacheBytes }),
	integer("l2.flush_interval_ms", 5_000, 10, 3_600_000, func(s *Settings) *int64 { return &s.L2FlushIntervalMS }),
	address("redis.url", func(s *Settings) *string { return &s.RedisURL }, "redis", "rediss", "unix"),
	text("redis.namespace", "weir", "prefix of every key", func(s *Settings) *string { return &s.RedisNamespace }),
	integer("redis.deadline_ms", 50, 1, 60_000, func(s *Settings) *int64 { return &s.RedisDeadlineMS }),
	address("postgres.url", func(s *Settings) *string { return &s.PostgresURL }, "postgresql", "postgres"),
	integer("postgres.deadline_ms", 100, 1, 60_000, func(s *Settings) *int64 { return &s.PostgresDeadlineMS }),
	integer("postgres.pool_max", 4, 1, 128, func(s *Settings) *int64 { return &s.PostgresPool }),
	oneOf("journal.sync", "interval", func(s *Settings) *string { return &s.Sync }, "group", "interval", "os"),
	integer("journal.interval_ms", 50, 1, 60_000, func(s *Settings) *int64 { return &s.SyncIntervalMS }),
	integer("journal.segment_bytes", 64*mib, 64*1024, 4<<30, func(s *Settings) *int64 { return &s.SegmentBytes }),
	integer("journal.keep_hours", 48, 0, 87_600, func(s *Settings) *int64 { return &s.KeepHours }),
	integer("write_behind.interval_ms", 200, 1, 60_000, func(s *Settings) *int64 { return &s.WriteIntervalMS }),
	integer("write_behind.batch_max", 500, 1, 100_000, func(s *Settings) *int64 { return &s.WriteBatchMax }),
	integer("write_behind.profiles_max", 200_000, 1, 100_000_000, func(s *Settings) *int64 { return &s.WriteProfilesMax }),
	integer("queue.events_max", 8_192, 1, 10_000_000, func(s *Settings) *int64 { return &s.EventsMax }),
	integer("queue.batch_max", 128, 1, 65_536, func(s *Settings) *int64 { return &s.BatchMax }),
	oneOf("decide.unknown_outcome", "review", func(s *Settings) *string { return &s.UnknownOutcome }, "approve", "review", "decline"),
	integer("decide.unknown_amount_min", 0, 0, 10_000_000_000, func(s *Settings) *int64 { return &s.UnknownAmountMin }),
	fraction("decide.review_threshold", "-1", -1, 1, func(s *Settings) *float64 { return &s.ReviewThreshold }),
	fraction("decide.decline_threshold", "-1", -1, 1, func(s *Settings) *float64 { return &s.DeclineThreshold }),
	integer("idempotency.window_hours", 48, 1, 87_600, func(s *Settings) *int64 { return &s.IdempotencyHours }),
}

// Load is the defaults, changed by assignments "key=value"; later ones win. Errors wrap ErrSetting.
func Load(assignments []string) (*Settings, error) {
	s := &Settings{}
	for _, entry := range table {
		if err := entry.set(s, entry.initial); err != nil {
			return nil, fmt.Errorf("%w %s: default %s: %w", ErrSetting, entry.key, entry.initial, err)
		}
	}
	for _, assignment := range assignments {
		key, value, found := strings.Cut(assignment, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !found {
			return nil, fmt.Errorf("%w: --set %s: write it as key=value", ErrSetting, assignment)
		}
		entry := find(key)
		if entry == nil {
			return nil, fmt.Errorf("%w: there is no setting %s%s", ErrSetting, key, hint(key))
		}
		if err := entry.set(s, value); err != nil {
			return nil, fmt.Errorf("%w: %s is %q: %w", ErrSetting, key, value, err)
		}
	}
	if s.BatchMax > s.EventsMax {
		return nil, fmt.Errorf("%w: queue.batch_max is %d: expected at most queue.events_max, %d", ErrSetting, s.BatchMax, s.EventsMax)
	}
	if s.ReviewThreshold >= 0 && s.DeclineThreshold >= 0 && s.ReviewThreshold > s.DeclineThreshold {
		return nil, fmt.Errorf("%w: decide.review_threshold is %g: expected at most decide.decline_threshold, %g", ErrSetting, s.ReviewThreshold, s.DeclineThreshold)
	}
	return s, nil
}

// Describe is a line per setting for --help: key, default, limits.
func Describe() string {
	var b strings.Builder
	for _, entry := range table {
		fmt.Fprintf(&b, "  %-30s %-14s %s\n", entry.key, entry.initial, entry.limits)
	}
	return b.String()
}

func find(key string) *setting {
	for i := range table {
		if table[i].key == key {
			return &table[i]
		}
	}
	return nil
}

// hint names a setting whose last word is that of key: the table was forgotten, or is another one.
func hint(key string) string {
	leaf := key[strings.LastIndexByte(key, '.')+1:]
	for _, entry := range table {
		if entry.key[strings.LastIndexByte(entry.key, '.')+1:] == leaf {
			return "; did you mean " + entry.key + "?"
		}
	}
	return "; weir-go --help lists them"
}
