package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"weir/gocore/internal/ort"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/score"
)

func put(t *testing.T, h *handles[int], value int) uint64 {
	t.Helper()
	number, err := h.put(&value)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

func TestHandles_PutGetTake_GiveTheValueOnce(t *testing.T) {
	h := handles[int]{what: "thing"}
	first, second := put(t, &h, 1), put(t, &h, 2)
	if first == 0 || second == 0 || first == second {
		t.Fatalf("handles %#x and %#x", first, second)
	}
	for handle, want := range map[uint64]int{first: 1, second: 2} {
		if got, err := h.get(handle); err != nil || *got != want {
			t.Errorf("get(%#x): %v; want %d", handle, err, want)
		}
	}
	if got, err := h.take(first); err != nil || *got != 1 {
		t.Errorf("take: %v", err)
	}
	for name, ask := range map[string]func(uint64) (*int, error){"get": h.get, "take": h.take} {
		if _, err := ask(first); !errors.Is(err, errHandle) || !strings.Contains(err.Error(), fmt.Sprintf("thing %#x", first)) {
			t.Errorf("%s of what is closed: %v; want errHandle that names it", name, err)
		}
	}
	if got, err := h.get(second); err != nil || *got != 2 {
		t.Errorf("the other one: %v", err)
	}
}

func TestHandles_PlaceUsedAgain_OldHandleStaysDead(t *testing.T) {
	h := handles[int]{what: "thing"}
	var dead []uint64
	for i := range 1000 {
		handle := put(t, &h, i)
		for _, old := range dead {
			if old == handle {
				t.Fatalf("handle %#x was given out twice", handle)
			}
		}
		if got, err := h.get(handle); err != nil || *got != i {
			t.Fatal(err)
		}
		if _, err := h.take(handle); err != nil {
			t.Fatal(err)
		}
		dead = append(dead, handle)
	}
	put(t, &h, -1) // takes the one place
	for _, old := range dead {
		if _, err := h.get(old); !errors.Is(err, errHandle) {
			t.Fatalf("%#x: %v; want errHandle", old, err)
		}
	}
	if h.n != 1 {
		t.Errorf("%d places for one value at a time", h.n)
	}
}

func TestHandles_NeverGivenOut_ErrHandle(t *testing.T) {
	h := handles[int]{what: "thing"}
	numbers := []uint64{0, 1, 1 << 32, 1<<32 | 7, pageSlots * pagesMax, 1<<32 | pageSlots*pagesMax, 1<<64 - 1, 1 << 63}
	for range 2 { // without and with a page of places
		for _, number := range numbers {
			if _, err := h.get(number); !errors.Is(err, errHandle) {
				t.Errorf("%#x: %v; want errHandle", number, err)
			}
			if _, err := h.take(number); !errors.Is(err, errHandle) {
				t.Errorf("take %#x: %v; want errHandle", number, err)
			}
		}
		handle := put(t, &h, 1)
		numbers = append(numbers[:0:0], handle+1, handle+1<<32, handle-1<<32, 0)
	}
}

func TestHandles_Full_IsSaidAndAnswersAgainLater(t *testing.T) {
	h := handles[int]{what: "thing"}
	value := 5
	var last uint64
	h.n = pageSlots * (pagesMax - 1) // as if all pages but the last were full
	for range pageSlots {
		var err error
		if last, err = h.put(&value); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.put(&value); !errors.Is(err, errArgument) || !strings.Contains(err.Error(), "1048576 things are open") {
		t.Fatalf("one more: %v; want errArgument that names how many", err)
	}
	if _, err := h.take(last); err != nil {
		t.Fatal(err)
	}
	if again, err := h.put(&value); err != nil || again == last {
		t.Errorf("after one was closed: %#x, %v", again, err)
	}
}

func TestHandles_ManyThreads_NobodyGetsAnothersValue(t *testing.T) {
	h := handles[int]{what: "thing"}
	var threads sync.WaitGroup
	for worker := range 8 {
		threads.Go(func() {
			for i := range 2000 {
				mine := worker<<32 | i
				handle, err := h.put(&mine)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := h.get(handle); err != nil || got != &mine {
					t.Errorf("worker %d: %v", worker, err)
				}
				if got, err := h.take(handle); err != nil || got != &mine {
					t.Errorf("worker %d: take: %v", worker, err)
				}
				if _, err := h.get(handle); err == nil {
					t.Errorf("worker %d: %#x lives on", worker, handle)
				}
			}
		})
	}
	threads.Wait()
	if h.n > 8 {
		t.Errorf("%d places for 8 values at a time", h.n)
	}
}

func TestStatusOf_Errors_HaveTheHeadersNumbers(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("first: %w", fmt.Errorf("second: %w", err)) }
	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"none":            {nil, 0},
		"panic":           {&panicError{"boom"}, 1},
		"panic, wrapped":  {wrap(&panicError{"boom"}), 1},
		"argument":        {errArgument, 2},
		"null":            {wrap(errNull), 2},
		"rows":            {wrap(score.ErrRows), 2},
		"arena":           {score.ErrArena, 2},
		"slab":            {profile.ErrSlab, 2},
		"tensor":          {ort.ErrTensor, 2},
		"unknown":         {errors.New("anything"), 2},
		"plan":            {wrap(plan.ErrPlan), 3},
		"profile":         {wrap(profile.ErrUnknownProfile), 4},
		"model":           {wrap(ort.ErrModel), 5},
		"handle":          {wrap(errHandle), 6},
		"closed model":    {wrap(ort.ErrClosed), 6},
		"busy":            {wrap(score.ErrBusy), 7},
		"runtime":         {wrap(ort.ErrRuntime), 8},
		"no text in it":   {errors.New(""), 2},
		"text of a novel": {errors.New(strings.Repeat("x", 1<<20)), 2},
	} {
		t.Run(name, func(t *testing.T) {
			if got := int(statusOf(c.err)); got != c.want {
				t.Errorf("status %d, want %d", got, c.want)
			}
		})
	}
}

func TestRecovered_Panic_BecomesAnErrorWithItsTrace(t *testing.T) {
	fail := func() (err error) {
		defer recovered(&err)
		panic("asked for")
	}
	err := fail()
	var panicked *panicError
	if !errors.As(err, &panicked) || !strings.Contains(err.Error(), "asked for") || !strings.Contains(err.Error(), "handles_test.go") {
		t.Errorf("%v; want a panicError with the trace", err)
	}
	if int(weir_panic()) != 1 {
		t.Error("weir_panic does not give WEIR_PANIC")
	}
}
