// Package redis keeps profiles in Redis or Valkey: one round trip per call, each under its own deadline.
//
// Keys are `{namespace}:p:{entity key}`; beside them one record `{namespace}:position` holds the position and the number
// of puts, both u64 little-endian. The put script compares LSNs, writes profiles and that record in one step, so a store
// that was emptied, restored, or lost its last second in a crash has fewer puts than we saw acknowledged. Fill and Put
// look at the record in the same round trip and fail instead of using such a store; Position accepts what it finds there
// and starts anew. So no stale profile is read after a restart that the client never noticed.
//
// service/tiers/redis.py of the Python service is the same store: same keys, same script.
//
// Cost over a unix socket, profiles of 1,408 bytes: fill 28 µs for one key, 0.39 ms for 64.
package redis

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"weir/gocore/internal/tiers"
)

const (
	name           = "redis"
	sliceKeys      = 256     // keys of one script call: 1 ms of the server, which serves nobody else meanwhile
	sliceBytes     = 1 << 20 // bytes of one script call
	recordBytes    = 16
	connectTimeout = 2 * time.Second // only a ceiling, the deadline of the call is shorter
	wentBackPrefix = "WEIRBACK"
)

// ErrURL is returned by New for an address that is not one of a Redis.
var ErrURL = errors.New("not a redis:// rediss:// or unix:// address")

// ErrWentBack is wrapped, beside tiers.ErrUnavailable, by calls to a store that was emptied, restored or replaced.
var ErrWentBack = errors.New("the store went back; it was emptied, restored or replaced")

// put compares LSNs as two 32-bit halves: numbers in Lua are doubles, and LSNs exceed 2^53. KEYS: record, profiles...;
// ARGV: position, puts that the caller saw, profiles... Byte 17 of a profile in Lua's count is LSNOffset. The text is
// that of service/tiers/redis.py.
var put = redis.NewScript(`
local record = redis.call('GET', KEYS[1])
local pos_lo, pos_hi, puts_lo, puts_hi = 0, 0, 0, 0
if record then pos_lo, pos_hi, puts_lo, puts_hi = struct.unpack('<I4I4I4I4', record) end
local puts = puts_hi * 4294967296 + puts_lo
if puts < tonumber(ARGV[2]) then return redis.error_reply('WEIRBACK ' .. puts) end
for i = 2, #KEYS do
  local value = ARGV[i + 1]
  local old = redis.call('GETRANGE', KEYS[i], 16, 23)
  local newer = #old < 8
  if not newer then
    local old_lo, old_hi = struct.unpack('<I4I4', old)
    local lo, hi = struct.unpack('<I4I4', value, 17)
    newer = hi > old_hi or (hi == old_hi and lo > old_lo)
  end
  if newer then redis.call('SET', KEYS[i], value) end
end
local lo, hi = struct.unpack('<I4I4', ARGV[1])
if hi < pos_hi or (hi == pos_hi and lo < pos_lo) then lo, hi = pos_lo, pos_hi end
puts = puts + 1
redis.call('SET', KEYS[1], struct.pack('<I4I4I4I4', lo, hi, puts % 4294967296, math.floor(puts / 4294967296)))
return puts
`)

// The client would write a line of its own for every failed connection, which its caller reports already.
func init() { redis.SetLogger(silent{}) }

type silent struct{}

// Printf implements the client's logger.
func (silent) Printf(context.Context, string, ...any) {}

// Options are the settings of a tier.
type Options struct {
	URL          string // redis://, rediss:// or unix://
	Namespace    string
	ReadDeadline time.Duration
	PutDeadline  time.Duration
	Connections  int // round trips at a time
}

// Tier is the tier over one server. It connects when first used.
type Tier struct {
	client   *redis.Client
	breaker  *tiers.Breaker
	options  Options
	prefix   string
	record   string
	putsSeen atomic.Uint64 // puts that this store has acknowledged to us
}

// New makes the tier; it does not connect.
func New(options Options) (*Tier, error) {
	settings, err := redis.ParseURL(options.URL)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, ErrURL, err)
	}
	settings.Protocol = 2 // RESP3 would bring push messages and another round trip per connection
	settings.DisableIdentity = true
	settings.MaxRetries = -1 // a retry inside the client would outlive the deadline
	settings.DialerRetries = 1
	settings.DialTimeout = connectTimeout
	settings.PoolSize = options.Connections
	settings.PoolTimeout = options.PutDeadline
	settings.ContextTimeoutEnabled = true
	settings.ReadTimeout, settings.WriteTimeout = -1, -1 // the context's deadline is the only one
	return &Tier{
		client:  redis.NewClient(settings),
		breaker: tiers.NewBreaker(name),
		options: options,
		prefix:  options.Namespace + ":p:",
		record:  options.Namespace + ":position",
	}, nil
}

// Name implements tiers.Tier.
func (t *Tier) Name() string { return name }

// Fill implements tiers.Tier: one MGET, which reads the record along.
func (t *Tier) Fill(ctx context.Context, keys [][]byte) ([][]byte, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	if err := t.breaker.Check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, t.options.ReadDeadline)
	defer cancel()
	names := make([]string, 1, 1+len(keys))
	names[0] = t.record
	for _, key := range keys {
		names = append(names, t.prefix+string(key))
	}
	putsSeen := t.putsSeen.Load()
	values, err := t.client.MGet(ctx, names...).Result()
	if err != nil {
		return nil, t.breaker.Trip(ctx, err)
	}
	_, puts, err := parseRecord(values[0])
	if err == nil && puts < putsSeen {
		err = wentBack(puts, putsSeen)
	}
	if err != nil {
		return nil, t.breaker.Trip(ctx, err)
	}
	found := make([][]byte, len(keys))
	for i, value := range values[1:] {
		if text, ok := value.(string); ok {
			found[i] = []byte(text)
		}
	}
	return found, nil
}

// Put implements tiers.Tier: one script call per sliceKeys profiles, the position with the last one.
func (t *Tier) Put(ctx context.Context, profiles []tiers.Profile, position uint64) error {
	if err := t.breaker.Check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, t.options.PutDeadline)
	defer cancel()
	parts := tiers.Slices(profiles, sliceKeys, sliceBytes)
	for i, part := range parts {
		keys := make([]string, 1, 1+len(part))
		args := make([]any, 2, 2+len(part))
		putsSeen := t.putsSeen.Load()
		keys[0], args[0], args[1] = t.record, tiers.PackLSN(0), strconv.FormatUint(putsSeen, 10)
		if i == len(parts)-1 {
			args[0] = tiers.PackLSN(position)
		}
		for _, p := range part {
			keys = append(keys, t.prefix+string(p.Key))
			args = append(args, p.Bytes)
		}
		puts, err := put.Run(ctx, t.client, keys, args...).Uint64()
		if err != nil {
			return t.breaker.Trip(ctx, asWentBack(err, putsSeen))
		}
		raise(&t.putsSeen, puts)
	}
	return nil
}

// Position implements tiers.Tier. It accepts the store as it is now: what it had acknowledged before is no longer
// expected of it.
func (t *Tier) Position(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, t.options.ReadDeadline)
	defer cancel()
	text, err := t.client.Get(ctx, t.record).Result()
	var value any = text
	if errors.Is(err, redis.Nil) {
		value, err = nil, nil
	}
	if err != nil {
		return 0, t.breaker.Trip(ctx, err)
	}
	position, puts, err := parseRecord(value)
	if err != nil {
		return 0, t.breaker.Trip(ctx, err)
	}
	t.putsSeen.Store(puts)
	t.breaker.Reset()
	return position, nil
}

// Close closes all connections.
func (t *Tier) Close() error { return t.client.Close() }

// parseRecord reads an MGET's or GET's answer for the record, nil in an empty store.
func parseRecord(value any) (position, puts uint64, err error) {
	text, ok := value.(string)
	if !ok {
		return 0, 0, nil
	}
	if len(text) != recordBytes {
		return 0, 0, fmt.Errorf("its position has %d bytes, not %d", len(text), recordBytes)
	}
	b := []byte(text)
	return binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), nil
}

// asWentBack turns the script's refusal into ErrWentBack.
func asWentBack(err error, putsSeen uint64) error {
	rest, ok := strings.CutPrefix(err.Error(), wentBackPrefix+" ")
	if !ok {
		return err
	}
	puts, parseErr := strconv.ParseFloat(rest, 64)
	if parseErr != nil {
		return err
	}
	return wentBack(uint64(puts), putsSeen)
}

func wentBack(puts, putsSeen uint64) error {
	return fmt.Errorf("put %d, %d were acknowledged: %w", puts, putsSeen, ErrWentBack)
}

func raise(to *atomic.Uint64, value uint64) {
	for old := to.Load(); value > old && !to.CompareAndSwap(old, value); old = to.Load() {
	}
}
