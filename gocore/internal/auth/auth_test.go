package auth

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weir/gocore/internal/problem"
)

func entry(name, role, key string) string {
	return fmt.Sprintf(`{"name": %q, "role": %q, "sha256": "%x", "created": 1750000000000}`, name, role, sha256.Sum256([]byte(key)))
}

func write(t *testing.T, directory, version string, entries ...string) {
	t.Helper()
	path := filepath.Join(directory, fileName)
	content := fmt.Sprintf(`{"version": %s, "keys": [%s]}`, version, strings.Join(entries, ","))
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestRoleOf_Headers_RoleOrUnauthorized(t *testing.T) {
	directory := t.TempDir()
	write(t, directory, "1", entry("a", "ingest", "k1"), entry("b", "admin", "k2"))
	ring, err := Open(directory, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]Role{
		"Bearer k1": Ingest, "bearer  k2 ": Admin, "": 0, "Bearer": 0, "Bearer ": 0, "Basic k1": 0, "Bearer k3": 0, "k1": 0,
	} {
		for range 2 { // the second time from the cache
			role, err := ring.RoleOf(header)
			if role != want || (want == 0) != errors.Is(err, problem.Unauthorized) {
				t.Errorf("%q: %v, %v", header, role, err)
			}
			if err != nil && strings.Contains(err.Error(), "k3") {
				t.Error("the error names the key")
			}
		}
	}
}

func TestRoleOf_KeyExpires_RefusedFromThenOn(t *testing.T) {
	directory := t.TempDir()
	now := time.UnixMilli(1_750_000_000_000)
	good := strings.Replace(entry("a", "analyst", "k1"), "}", `, "expires": 1750000001000}`, 1)
	write(t, directory, "1", good)
	ring, err := Open(directory, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from the cache
		if role, err := ring.RoleOf("Bearer k1"); role != Analyst || err != nil {
			t.Fatal(role, err)
		}
	}
	now = now.Add(time.Second)
	if _, err := ring.RoleOf("Bearer k1"); !errors.Is(err, problem.Unauthorized) || !strings.Contains(err.Error(), "expired") {
		t.Fatal(err)
	}
}

func TestRoleOf_KeyAddedAndTakenAway_SeenAtOnceAndWithinTheInterval(t *testing.T) {
	directory := t.TempDir()
	now := time.Now()
	ring, err := Open(directory, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.RoleOf("Bearer k1"); err == nil {
		t.Fatal("without a file nobody gets in")
	}
	write(t, directory, "1", entry("a", "analyst", "k1"))
	if role, err := ring.RoleOf("Bearer k1"); role != Analyst {
		t.Fatal(err)
	}
	write(t, directory, "1")
	now = now.Add(checkInterval)
	if _, err := ring.RoleOf("Bearer k1"); err == nil {
		t.Fatal("a key that was taken away still opens")
	}
}

func TestRoleOf_FileBreaksWhileRunning_KeepsTheKeys(t *testing.T) {
	directory := t.TempDir()
	write(t, directory, "1", entry("a", "ingest", "k1"))
	now := time.Now()
	ring, err := Open(directory, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	write(t, directory, "2")
	now = now.Add(time.Second)
	if role, err := ring.RoleOf("Bearer k1"); role != Ingest {
		t.Fatal(err)
	}
}

func TestOpen_BrokenFile_ErrKeyFile(t *testing.T) {
	for name, entries := range map[string][]string{
		"role":    {entry("a", "boss", "k")},
		"name":    {entry("a b", "ingest", "k")},
		"unknown": {`{"nme": "a"}`},
		"no JSON": {"x"},
	} {
		directory := t.TempDir()
		write(t, directory, "1", entries...)
		if _, err := Open(directory, time.Now); !errors.Is(err, ErrKeyFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpen_FileThatOthersMayWrite_Refused(t *testing.T) {
	directory := t.TempDir()
	write(t, directory, "1", entry("a", "ingest", "k1"))
	if err := os.Chmod(filepath.Join(directory, fileName), 0o620); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(directory, time.Now); !errors.Is(err, ErrKeyFile) || !strings.Contains(err.Error(), "chmod 600") {
		t.Error(err)
	}
}

func TestOpen_KeyWithARate_RefusedByName(t *testing.T) {
	directory := t.TempDir()
	write(t, directory, "1", strings.Replace(entry("a", "ingest", "k1"), "}", `,"rate":0}`, 1))
	if _, err := Open(directory, time.Now); err != nil {
		t.Error("a key without a limit: ", err)
	}
	write(t, directory, "1", strings.Replace(entry("limited", "ingest", "k1"), "}", `,"rate":5}`, 1))
	if _, err := Open(directory, time.Now); !errors.Is(err, ErrKeyFile) || !strings.Contains(err.Error(), "limited") {
		t.Error(err)
	}
}

func TestRequire_LowerRole_Forbidden(t *testing.T) {
	if err := Require(Admin, Ingest); err != nil {
		t.Error(err)
	}
	if err := Require(Ingest, Analyst); !errors.Is(err, problem.Forbidden) || !strings.Contains(err.Error(), "ingest") {
		t.Error(err)
	}
}
