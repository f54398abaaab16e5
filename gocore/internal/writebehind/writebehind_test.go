package writebehind

import (
	"errors"
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"testing"
	"time"

	"weir/gocore/internal/tiers"
)

func TestWrite_TouchedTwice_OnePutWithTheNewestBytes(t *testing.T) {
	m := newMemory("l2")
	r := newRig(t, 10, known(m))
	r.touchAll("a", "b", "a")
	if n, err := r.writeOnce(0); err != nil || n != 2 {
		t.Fatalf("%d profiles (%v)", n, err)
	}
	if m.lsn("card:a") != 3 || m.lsn("card:b") != 2 || m.position != 3 || r.durable.Load() != 3 {
		t.Errorf("a at %d, b at %d, position %d, durable %d", m.lsn("card:a"), m.lsn("card:b"), m.position, r.durable.Load())
	}
	if n, err := r.writeOnce(0); err != nil || n != 0 || m.puts != 1 {
		t.Errorf("nothing changed: %d profiles, %d puts (%v)", n, m.puts, err)
	}
}

func TestWrite_BatchAtLimitAndOnePast_PositionStopsBelowTheRest(t *testing.T) {
	m := newMemory("l2")
	r := newRig(t, 20, known(m))
	for i := range 11 { // BatchMax is 10
		r.touchAll(fmt.Sprint(i))
	}
	if n, err := r.writeOnce(0); err != nil || n != 10 || m.position != 10 {
		t.Errorf("first: %d profiles, position %d (%v)", n, m.position, err)
	}
	if n, err := r.writeOnce(0); err != nil || n != 1 || m.position != 11 {
		t.Errorf("second: %d profiles, position %d (%v)", n, m.position, err)
	}
}

func TestWrite_JournalCannotSync_NothingIsPut(t *testing.T) {
	m := newMemory("l2")
	r := newRig(t, 10, known(m))
	r.touchAll("a")
	r.syncErr = errors.New("disk gone")
	if _, err := r.writeOnce(0); !errors.Is(err, r.syncErr) || m.puts != 0 {
		t.Fatalf("%d puts (%v)", m.puts, err)
	}
	r.syncErr = nil
	if n, err := r.writeOnce(0); err != nil || n != 1 || m.position != 1 {
		t.Errorf("%d profiles, position %d (%v)", n, m.position, err)
	}
}

func TestEvict_Dirty_WaitsUntilALevelHasIt(t *testing.T) {
	m := newMemory("l2")
	r := newRig(t, 1, known(m))
	r.touchAll("a", "b")
	if r.Waiting([]byte("card:a")) == nil || r.Waiting([]byte("card:b")) != nil {
		t.Fatal("a was evicted and has to wait, b is in L1")
	}
	if _, err := r.writeOnce(0); err != nil {
		t.Fatal(err)
	}
	if r.NWaiting() != 0 || m.lsn("card:a") != 1 {
		t.Errorf("%d wait, a at %d", r.NWaiting(), m.lsn("card:a"))
	}
}

func TestEvict_TwiceWhileMarked_BytesStayUntilBothMarksAreWritten(t *testing.T) {
	m := newMemory("l2")
	r := newRig(t, 1, known(m))
	r.touchAll("a", "b", "a", "c")
	for range 3 {
		if _, err := r.writeOnce(0); err != nil {
			t.Fatal(err)
		}
	}
	if m.lsn("card:a") != 3 || m.position != 4 || len(r.levels[0].state) != 0 || len(r.evicted) != 0 {
		t.Errorf("a at %d, position %d, state %v", m.lsn("card:a"), m.position, r.levels[0].state)
	}
}

func TestEvict_Clean_DoesNotWait(t *testing.T) {
	r := newRig(t, 1, known(newMemory("l2")))
	r.touchAll("a")
	if _, err := r.writeOnce(0); err != nil {
		t.Fatal(err)
	}
	r.touchAll("b")
	if r.NWaiting() != 0 {
		t.Errorf("%d wait", r.NWaiting())
	}
}

func TestEvict_LevelThatDoesNotKeep_WaitsForAll(t *testing.T) {
	cache, m := newMemory("redis"), newMemory("postgres")
	r := newRig(t, 1, Level{Tier: cache, IsKnown: true}, known(m))
	r.touchAll("a")
	if _, err := r.writeOnce(0); err != nil {
		t.Fatal(err)
	}
	r.touchAll("b")
	if r.Waiting([]byte("card:a")) == nil {
		t.Error("only a cache has it")
	}
}

func TestWrite_LevelLacksWhatLeftRAM_ReadsItFromAnother(t *testing.T) {
	first, second := newMemory("l2"), newMemory("redis")
	r := newRig(t, 1, known(first), known(second))
	r.touchAll("a")
	if _, err := r.writeOnce(0); err != nil {
		t.Fatal(err)
	}
	r.touchAll("b")
	if n, err := r.writeOnce(1); err != nil || n != 2 || second.lsn("card:a") != 1 || second.position != 2 {
		t.Errorf("%d profiles, a at %d, position %d (%v)", n, second.lsn("card:a"), second.position, err)
	}
}

func TestWrite_Partial_IsShippedNowhereAndHoldsThePosition(t *testing.T) {
	m := newMemory("l2")
	r := newRig(t, 10, known(m))
	r.touchAll("a", "b")
	r.l1.Peek(0, "a")[2] = 1
	if n, err := r.writeOnce(0); err != nil || n != 1 || m.position != 0 || m.lsn("card:a") != 0 {
		t.Fatalf("%d profiles, position %d (%v)", n, m.position, err)
	}
	if r.Readable(0, []byte("card:a")) || !r.Readable(0, []byte("card:b")) {
		t.Error("a may be asked for, or b may not")
	}
	if err := r.Drain(t.Context()); !errors.Is(err, ErrBehind) {
		t.Errorf("drain: %v", err)
	}
	r.l1.Peek(0, "a")[2] = 0
	if n, err := r.writeOnce(0); err != nil || n != 1 || m.position != 2 || m.lsn("card:a") != 1 {
		t.Errorf("whole: %d profiles, position %d (%v)", n, m.position, err)
	}
}

func TestWrite_LevelFails_EverythingIsStillToBeWritten(t *testing.T) {
	m := newMemory("l2")
	r := newRig(t, 10, known(m))
	r.touchAll("a", "b")
	m.switchOff(true)
	if _, err := r.writeOnce(0); !errors.Is(err, tiers.ErrUnavailable) {
		t.Fatal(err)
	}
	if s := r.Status()[0]; !s.IsDown || s.Dirty != 2 || s.Reason == "" || r.Readable(0, []byte("card:z")) {
		t.Errorf("%+v", s)
	}
	r.touchAll("a", "c")
	m.switchOff(false)
	r.levels[0].probeAt = time.Time{}
	r.probe(t.Context(), r.levels[0])
	if r.Readable(0, []byte("card:a")) || !r.Readable(0, []byte("card:z")) {
		t.Error("it is back, but must not be asked for what it lacks")
	}
	if n, err := r.writeOnce(0); err != nil || n != 3 || m.position != 4 || m.lsn("card:a") != 3 {
		t.Errorf("%d profiles, position %d, a at %d (%v)", n, m.position, m.lsn("card:a"), err)
	}
}

func TestProbe_LevelWentBack_GetsEverythingSinceItsPosition(t *testing.T) {
	first, second := newMemory("l2"), newMemory("redis")
	r := newRig(t, 2, known(first), known(second))
	for _, ids := range [][]string{{"a"}, {"b", "c", "d"}} {
		second.save()
		r.touchAll(ids...)
		for level := range 2 {
			if _, err := r.writeOnce(level); err != nil {
				t.Fatal(err)
			}
		}
	}
	second.goBack()
	r.levels[1].fail("restarted")
	r.levels[1].probeAt = time.Time{}
	r.probe(t.Context(), r.levels[1])
	if r.Readable(1, []byte("card:b")) || !r.Readable(1, []byte("card:a")) {
		t.Error("b changed after its position, a did not")
	}
	if n, err := r.writeOnce(1); err != nil || n != 3 || second.position != 4 || second.lsn("card:b") != 2 {
		t.Errorf("%d profiles, position %d, b at %d (%v)", n, second.position, second.lsn("card:b"), err)
	}
}

func TestProbe_LevelOfALaterJournal_StaysDown(t *testing.T) {
	m := newMemory("redis")
	m.position = 9
	r := newRig(t, 2, Level{Tier: m, Keeps: true})
	r.touchAll("a")
	r.probe(t.Context(), r.levels[0])
	if r.Readable(0, []byte("card:a")) || !r.Status()[0].IsDown {
		t.Error("it is used although it knows LSN 9 and the journal ends at 1")
	}
}

func TestDrain_MoreThanABatch_EverythingArrives(t *testing.T) {
	m, n := newMemory("l2"), newMemory("redis")
	r := newRig(t, 4, known(m), known(n))
	for i := range 55 {
		r.touchAll(fmt.Sprint(i))
	}
	r.Start()
	if err := r.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*memory{m, n} {
		if m.position != 55 || len(m.profiles) != 55 {
			t.Errorf("%s: position %d, %d profiles", m.name, m.position, len(m.profiles))
		}
	}
	if r.NWaiting() != 0 {
		t.Errorf("%d wait", r.NWaiting())
	}
}

// TestRandom_FailuresAndEvictions_NothingIsLostOrStale lets cards be touched while levels fail, come back and lose data.
// place() checks at every step that each profile is found, and in its newest state.
func TestRandom_FailuresAndEvictions_NothingIsLostOrStale(t *testing.T) {
	seed := time.Now().UnixNano()
	if text := os.Getenv("SEED"); text != "" {
		seed, _ = strconv.ParseInt(text, 10, 64)
	}
	t.Logf("SEED=%d", seed)
	random := rand.New(rand.NewSource(seed))
	local, cache, far := newMemory("l2"), newMemory("redis"), newMemory("postgres")
	r := newRig(t, 8, Level{Tier: local, Keeps: true, IsLocal: true, IsKnown: true}, Level{Tier: cache, IsKnown: true}, known(far))
	r.pause = time.Millisecond
	r.Start()
	for step := range 4_000 {
		r.touchAll(fmt.Sprint(random.Intn(60)))
		switch remote := []*memory{cache, far}[random.Intn(2)]; random.Intn(60) {
		case 0:
			remote.switchOff(true)
		case 1, 2:
			remote.switchOff(false)
		case 3:
			remote.goBack()
		case 4:
			remote.save()
		case 5, 6, 7:
			time.Sleep(time.Millisecond)
		}
		if step%10 == 0 {
			r.checkPositions(local, cache, far)
		}
	}
	cache.switchOff(false)
	far.switchOff(false)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		// Not only up: a write that was refused a moment ago may be about to say that its level is down.
		if s, last := r.Status(), r.last.Load(); !s[1].IsDown && !s[2].IsDown && s[1].Position == last && s[2].Position == last {
			break
		}
	}
	if err := r.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.checkPositions(local, cache, far)
	for _, m := range []*memory{local, cache, far} {
		if m.position != r.last.Load() {
			t.Errorf("%s is at %d of %d", m.name, m.position, r.last.Load())
		}
	}
	if r.NWaiting() != 0 {
		t.Errorf("%d profiles still wait", r.NWaiting())
	}
}

func BenchmarkMark_AlreadyMarked(b *testing.B) {
	r := newRig(b, 10, known(newMemory("l2")))
	slot := r.l1.Claim(0, "a")
	b.ReportAllocs()
	for b.Loop() {
		r.Mark(0, slot, "a", 1)
	}
}
