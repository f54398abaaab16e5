package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"weir/gocore/internal/plan"
)

// errDataDir is wrapped when the data directory cannot be used.
var errDataDir = errors.New("data directory")

// dataDir holds the lock of a data directory: one process at a time, one plan for life. The Python service takes the same lock.
type dataDir struct {
	path string
	lock *os.File
}

// planRecord is which plan the profiles of a data directory belong to.
type planRecord struct {
	Spec     string `json:"spec"`
	PlanHash string `json:"plan_hash"`
}

func openDataDir(path, spec string, p *plan.Plan) (*dataDir, error) {
	err := os.MkdirAll(path, 0o755)
	var lock *os.File
	if err == nil {
		lock, err = os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("%w %s cannot be used: %w", errDataDir, path, err)
	}
	d := &dataDir{path, lock}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.close()
		return nil, fmt.Errorf("%w %s is used by another process; stop it or give --data-dir", errDataDir, path)
	}
	if err := d.checkPlan(spec, p); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *dataDir) close() { _ = d.lock.Close() }

// checkPlan refuses a directory of another plan before anything reads it: profiles are laid out by their plan.
func (d *dataDir) checkPlan(spec string, p *plan.Plan) error {
	path := filepath.Join(d.path, "plan.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		record, err := json.Marshal(planRecord{spec, p.Hash})
		if err != nil {
			return err
		}
		return writeWhole(path, record)
	}
	var known planRecord
	if err == nil {
		err = json.Unmarshal(data, &known)
	}
	if err != nil {
		return fmt.Errorf("%w: %s is not readable: %w", errDataDir, path, err)
	}
	if known.PlanHash != p.Hash {
		return fmt.Errorf("%w %s belongs to spec %q (plan %.12s), this is %q (plan %.12s); give another --data-dir, or that spec",
			errDataDir, d.path, known.Spec, known.PlanHash, spec, p.Hash)
	}
	return nil
}

// writeWhole writes a file by a rename: a crash must not leave half of it, which would refuse the next start.
func writeWhole(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return fmt.Errorf("%w: %w", errDataDir, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("%w: %w", errDataDir, err)
	}
	return nil
}
