// Package auth says who may call what, from the key file of the Python service: `weir keys add` makes keys for both.
//
// Closed by default: without a file nobody gets in. Only the SHA-256 of a key is stored; one round of it is right, because a
// key holds 256 random bits. The file is looked at five times a second, and at once for a key that is not known. Cost of a
// known key: one map look-up. Keys never appear in logs or errors.
package auth

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"weir/gocore/internal/problem"
)

// Role is what a key may do; each includes the ones before it.
type Role int

// The roles.
const (
	Ingest Role = iota + 1
	Analyst
	Admin
)

const (
	fileName         = "keys.json"
	fileVersion      = 1
	checkInterval    = 200 * time.Millisecond
	cachedHeadersMax = 4096 // spellings of valid headers; bounds memory
)

// ErrKeyFile is wrapped when the key file cannot be read.
var ErrKeyFile = errors.New("key file not usable")

var (
	roles       = map[string]Role{"ingest": Ingest, "analyst": Analyst, "admin": Admin}
	namePattern = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	hexPattern  = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// String is the role as keys, files and the command line spell it.
func (r Role) String() string {
	for word, role := range roles {
		if role == r {
			return word
		}
	}
	return "none"
}

// KeyRing is the keys of one file, watched. Safe for concurrent use.
type KeyRing struct {
	path  string
	now   func() time.Time
	known atomic.Pointer[keys]

	mu      sync.Mutex // one look at the file at a time
	checkAt atomic.Int64
}

// keys is what one version of the file says.
type keys struct {
	stamp   stamp
	grants  map[[sha256.Size]byte]grant
	headers sync.Map // Authorization header -> grant
	cached  atomic.Int64
}

// grant is what a key opens, and until when: ms UTC.
type grant struct {
	role    Role
	expires int64
}

// never is the expiry of a key without one.
const never = math.MaxInt64

// stamp tells versions of the file apart.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

// Open reads the keys in directory; a missing file has none. Errors wrap ErrKeyFile.
func Open(directory string, now func() time.Time) (*KeyRing, error) {
	ring := &KeyRing{path: filepath.Join(directory, fileName), now: now}
	ring.known.Store(&keys{})
	return ring, ring.readIfChanged()
}

// RoleOf is the role of the key in an Authorization header. Errors are problems of kind Unauthorized.
func (r *KeyRing) RoleOf(header string) (Role, error) {
	if header == "" {
		return 0, unauthorized("no API key; send it as Authorization: Bearer <key>")
	}
	now := r.now()
	if now.UnixNano() >= r.checkAt.Load() {
		r.look()
	}
	known := r.known.Load()
	if cached, ok := known.headers.Load(header); ok {
		return cached.(grant).at(now)
	}
	scheme, key, _ := strings.Cut(header, " ")
	key = strings.TrimSpace(key)
	if !strings.EqualFold(scheme, "bearer") || key == "" {
		return 0, unauthorized("the Authorization header must be: Bearer <key>")
	}
	digest := sha256.Sum256([]byte(key))
	found, ok := known.grants[digest]
	if !ok { // it may have been added a moment ago
		r.look()
		known = r.known.Load()
		found, ok = known.grants[digest]
	}
	if !ok {
		return 0, unauthorized("the API key is not known here")
	}
	if known.cached.Add(1) <= cachedHeadersMax {
		known.headers.Store(strings.Clone(header), found)
	}
	return found.at(now)
}

// at is the role, unless the key has expired.
func (g grant) at(now time.Time) (Role, error) {
	if g.expires <= now.UnixMilli() {
		return 0, unauthorized("the API key has expired")
	}
	return g.role, nil
}

// Require is a problem of kind Forbidden unless have includes need.
func Require(have, need Role) error {
	if have < need {
		return problem.New(problem.Forbidden, "Authorization", "this key has the role %s, the call needs %s", have, need)
	}
	return nil
}

func unauthorized(detail string) error {
	return problem.New(problem.Unauthorized, "Authorization", "%s", detail)
}

// look reads the file again if it changed. One that broke while we run keeps the keys that we have, and is logged.
func (r *KeyRing) look() {
	r.checkAt.Store(r.now().Add(checkInterval).UnixNano())
	if err := r.readIfChanged(); err != nil {
		slog.Error("key file not read, keeping the keys known before", "reason", err)
	}
}

func (r *KeyRing) readIfChanged() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var now stamp
	if info, err := os.Stat(r.path); err == nil {
		now = stamp{modified: info.ModTime(), size: info.Size()}
		if system, ok := info.Sys().(*syscall.Stat_t); ok {
			now.inode = system.Ino
		}
	}
	known := r.known.Load()
	if known.grants != nil && now == known.stamp {
		return nil
	}
	found, err := readFile(r.path)
	if err != nil {
		found = known.grants // and the stamp is the new one: complain once
	}
	r.known.Store(&keys{stamp: now, grants: found})
	return err
}

func readFile(path string) (map[[sha256.Size]byte]grant, error) {
	found := map[[sha256.Size]byte]grant{}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.Mode()&0o022 != 0 { // whoever writes here opens every door
		return nil, fmt.Errorf("%w: %s may be written by others; chmod 600 %s", ErrKeyFile, path, path)
	}
	var content struct {
		Version *int `json:"version"`
		Keys    []struct {
			Name    string   `json:"name"`
			Role    string   `json:"role"`
			SHA256  string   `json:"sha256"`
			Created *int64   `json:"created"`
			Expires *int64   `json:"expires"`
			Rate    *float64 `json:"rate"`
		} `json:"keys"`
	}
	decoder := json.NewDecoder(file)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&content); err != nil {
		return nil, fmt.Errorf("%w: %s is damaged: %w", ErrKeyFile, path, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: %s is damaged: something follows the JSON", ErrKeyFile, path)
	}
	if content.Version == nil || *content.Version != fileVersion {
		return nil, fmt.Errorf("%w: %s is not of version %d", ErrKeyFile, path, fileVersion)
	}
	for _, key := range content.Keys {
		role := roles[key.Role]
		if role == 0 || !namePattern.MatchString(key.Name) || !hexPattern.MatchString(key.SHA256) || key.Created == nil {
			return nil, fmt.Errorf("%w: %s is damaged: an entry has no valid name, role, sha256 or time", ErrKeyFile, path)
		}
		if key.Rate != nil && *key.Rate != 0 { // a limit that is not kept must not look as if it were
			return nil, fmt.Errorf("%w: the key %s in %s has a rate, which only the Python service keeps", ErrKeyFile, key.Name, path)
		}
		digest, err := hex.DecodeString(key.SHA256)
		if err != nil {
			return nil, fmt.Errorf("%w: %s is damaged: %w", ErrKeyFile, path, err)
		}
		given := grant{role, never}
		if key.Expires != nil {
			given.expires = *key.Expires
		}
		found[[sha256.Size]byte(digest)] = given
	}
	return found, nil
}
