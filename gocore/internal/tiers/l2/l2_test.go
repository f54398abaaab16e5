package l2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"weir/gocore/internal/profile"
	"weir/gocore/internal/tiers"
	"weir/gocore/internal/tiers/tierstest"
)

var never = Options{CacheBytes: 8 << 20, FlushInterval: time.Hour}

func start(t testing.TB, fs vfs.FS) *Store {
	t.Helper()
	s, err := open("l2", never, fs)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, s *Store, position uint64, profiles ...tiers.Profile) {
	t.Helper()
	if err := s.Profiles().Put(context.Background(), profiles, position); err != nil {
		t.Fatal(err)
	}
}

func fill(t testing.TB, s *Store, keys ...string) [][]byte {
	t.Helper()
	var asked [][]byte
	for _, k := range keys {
		asked = append(asked, []byte(k))
	}
	found, err := s.Profiles().Fill(context.Background(), asked)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func positions(s *Store) (profiles, decisions uint64) {
	profiles, _ = s.Profiles().Position(context.Background())
	decisions, _ = s.Decisions().Position(context.Background())
	return profiles, decisions
}

func TestL2_Suite(t *testing.T) {
	tierstest.Run(t, func(t *testing.T) (tiers.Tier, func() error) {
		s := start(t, vfs.NewMem())
		t.Cleanup(func() { _ = s.Close() })
		return s.Profiles(), s.Flush
	})
}

func TestPosition_BeforeFlush_IsTheOldOne(t *testing.T) {
	s := start(t, vfs.NewMem())
	defer s.Close()
	put(t, s, 7, tierstest.Made("card:a", 7, 1))
	if err := s.Decisions().PutMany([][]byte{[]byte("t-1")}, [][]byte{[]byte("yes")}, 8); err != nil {
		t.Fatal(err)
	}
	if p, d := positions(s); p != 0 || d != 0 {
		t.Errorf("before: %d and %d", p, d)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if p, d := positions(s); p != 7 || d != 8 {
		t.Errorf("after: %d and %d", p, d)
	}
	put(t, s, 6)
	put(t, s, 0)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if p, _ := positions(s); p != 7 {
		t.Errorf("a lower one took it back to %d", p)
	}
}

func TestCrash_AtAnyMoment_PositionHasItsData(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := start(t, fs)
	defer s.Close()
	for lsn := uint64(1); lsn <= 60; lsn++ {
		put(t, s, lsn, tierstest.Made(fmt.Sprintf("card:%d", lsn), lsn, 1), tierstest.Made("card:all", lsn, byte(lsn)))
		if err := s.Decisions().PutMany([][]byte{fmt.Appendf(nil, "t-%d", lsn)}, [][]byte{{byte(lsn)}}, lsn); err != nil {
			t.Fatal(err)
		}
		flushed := lsn - lsn%7
		if lsn == flushed {
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		after := start(t, fs.CrashClone(vfs.CrashCloneCfg{}))
		p, d := positions(after)
		if p != flushed || d != flushed {
			t.Fatalf("LSN %d: positions %d and %d after the crash, flushed %d", lsn, p, d, flushed)
		}
		for have := uint64(1); have <= p; have++ {
			if fill(t, after, fmt.Sprintf("card:%d", have))[0] == nil {
				t.Fatalf("LSN %d: position %d, but card %d is gone", lsn, p, have)
			}
			if v, err := after.Decisions().Get(fmt.Appendf(nil, "t-%d", have)); err != nil || len(v) == 0 {
				t.Fatalf("LSN %d: position %d, but decision %d is gone (%v)", lsn, p, have, err)
			}
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestClose_Unflushed_IsThereAfterwards(t *testing.T) {
	fs := vfs.NewMem()
	s := start(t, fs)
	put(t, s, 3, tierstest.Made("card:a", 3, 9))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = start(t, fs)
	defer s.Close()
	if p, _ := positions(s); p != 3 || fill(t, s, "card:a")[0][127] != 9 {
		t.Errorf("position %d", p)
	}
}

func TestClosed_EveryCall_ErrUnavailable(t *testing.T) {
	s := start(t, vfs.NewMem())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, fillErr := s.Profiles().Fill(t.Context(), [][]byte{[]byte("a")})
	_, getErr := s.Decisions().Get([]byte("a"))
	for i, err := range []error{
		fillErr, getErr, s.Flush(),
		s.Profiles().Put(t.Context(), []tiers.Profile{tierstest.Made("a", 1, 1)}, 1),
		s.Decisions().PutMany([][]byte{{1}}, [][]byte{{1}}, 1),
		s.Profiles().Keys(t.Context(), func([]byte) error { return nil }),
	} {
		if !errors.Is(err, tiers.ErrUnavailable) {
			t.Errorf("call %d: %v", i, err)
		}
	}
}

func TestOpen_Twice_ErrLocked(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, never)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := Open(dir, never); !errors.Is(err, ErrLocked) {
		t.Errorf("error %v", err)
	}
}

func TestKeys_OfBothKinds_DoNotMix(t *testing.T) {
	s := start(t, vfs.NewMem())
	defer s.Close()
	put(t, s, 1, tierstest.Made("card:b", 1, 1), tierstest.Made("card:a", 1, 1))
	if err := s.Decisions().PutMany([][]byte{[]byte("t-1")}, [][]byte{nil}, 1); err != nil {
		t.Fatal(err)
	}
	for want, source := range map[string]tiers.Keys{"card:a card:b ": s.Profiles(), "t-1 ": s.Decisions()} {
		var got bytes.Buffer
		err := source.Keys(t.Context(), func(key []byte) error {
			fmt.Fprintf(&got, "%s ", key)
			return nil
		})
		if err != nil || got.String() != want {
			t.Errorf("%q, not %q (%v)", got.String(), want, err)
		}
	}
	stop := errors.New("enough")
	if err := s.Profiles().Keys(t.Context(), func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
}

func TestFlush_WhilePutting_NothingIsLost(t *testing.T) {
	fs := vfs.NewMem()
	s, err := open("l2", Options{CacheBytes: 8 << 20, FlushInterval: time.Millisecond}, fs)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				lsn := uint64(i + 1)
				own, hot := tierstest.Made(fmt.Sprintf("card:%d-%d", g, i), lsn, 1), tierstest.Made("card:hot", lsn, byte(lsn))
				_ = s.Profiles().Put(context.Background(), []tiers.Profile{own, hot}, 0) // what it lost is seen below
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = start(t, fs)
	defer s.Close()
	if hot := fill(t, s, "card:hot")[0]; profile.LSN(hot) != 200 {
		t.Errorf("card:hot is at LSN %d", profile.LSN(hot))
	}
	for g := range 4 {
		for i := range 200 {
			if fill(t, s, fmt.Sprintf("card:%d-%d", g, i))[0] == nil {
				t.Fatalf("card:%d-%d is gone", g, i)
			}
		}
	}
}
