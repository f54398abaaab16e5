package score

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"weir/gocore/internal/ort"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
)

const (
	testRows = 8
	testSlot = 4
)

// ready is an arena of `cards` whose rows can be scored.
func ready(tb testing.TB) *Arena {
	tb.Helper()
	s := newStream(tb, plantest.Load(tb, "cards"), testSlot, testRows, 1000)
	s.fill(testRows)
	return s.arena
}

// state is everything that a refused call must not change.
func state(a *Arena) (words []int64, floats []float32) {
	for _, slab := range a.Slabs {
		for slot := range slab.Capacity {
			words = append(words, slab.Words(slot)...)
		}
		words = append(words, slab.LateDropped...)
	}
	return words, slices.Concat(a.Vectors, a.Risk)
}

func TestRun_WrongArguments_ErrRowsAndNothingChanged(t *testing.T) {
	for name, c := range map[string]struct {
		first, n int
		flags    Flags
		named    string
	}{
		"no rows":             {0, 0, Advance, "of an arena of 8"},
		"fewer than none":     {0, -1, Advance, "of an arena of 8"},
		"begin before":        {-1, 1, Advance, "1 rows from row -1"},
		"one too many":        {0, 9, Advance, "9 rows from row 0"},
		"begin past the end":  {8, 1, Advance, "1 rows from row 8"},
		"the end overflows":   {1, 1<<63 - 1, Advance, "of an arena of 8"},
		"the begin overflows": {1<<63 - 1, 8, Advance, "of an arena of 8"},
		"no flags":            {0, 1, 0, "flags 0x0"},
		"neither":             {0, 1, Vectors, "flags 0x4"},
		"both":                {0, 1, Advance | Dry, "flags 0x3"},
		"unknown":             {0, 1, Advance | 1<<5, "flags 0x21"},
		"unknown, high":       {0, 1, Dry | 1<<31, "flags 0x80000002"},
		"no model":            {0, 1, Advance | Risk, "no model"},
	} {
		t.Run(name, func(t *testing.T) {
			refusesRun(t, ready(t), nil, c.first, c.n, c.flags, c.named)
		})
	}
}

func refusesRun(t *testing.T, a *Arena, model *ort.Model, first, n int, flags Flags, named string) {
	t.Helper()
	words, floats := state(a)
	err := a.Run(model, first, n, flags)
	if !errors.Is(err, ErrRows) || !strings.Contains(err.Error(), named) {
		t.Errorf("%v; want ErrRows that names %q", err, named)
	}
	if after, outs := state(a); !slices.Equal(words, after) || !slices.Equal(floats, outs) {
		t.Error("a refused call changed something")
	}
	if a.busy.Load() {
		t.Error("a refused call left the arena in use")
	}
}

func TestRun_WrongRow_ErrRowsAndNothingChanged(t *testing.T) {
	const last = testRows - 1
	for name, c := range map[string]struct {
		spoil func(a *Arena)
		named string
	}{
		"slot below absent":     {func(a *Arena) { a.rows.Slots[last*a.rows.SlotStride] = -2 }, "row 7: slot -2 of kind card"},
		"slot at the capacity":  {func(a *Arena) { a.rows.Slots[last*a.rows.SlotStride+3] = testSlot }, "row 7: slot 4 of kind ip, whose slab has 4"},
		"slot beyond 32 bits":   {func(a *Arena) { a.rows.Slots[last*a.rows.SlotStride] = 1 << 32 }, "slot 4294967296"},
		"slot the smallest":     {func(a *Arena) { a.rows.Slots[last*a.rows.SlotStride] = -1 << 63 }, "slot -9223372036854775808"},
		"ts negative":           {func(a *Arena) { a.rows.Columns[last*a.rows.ColumnStride] = -1 }, "row 7: ts -1"},
		"ts beyond":             {func(a *Arena) { a.rows.Columns[last*a.rows.ColumnStride] = 1<<62 + 1 }, "ts 4611686018427387905"},
		"amount negative":       {func(a *Arena) { a.rows.Columns[last*a.rows.ColumnStride+1] = -1 }, "row 7: amount -1"},
		"amount beyond":         {func(a *Arena) { a.rows.Columns[last*a.rows.ColumnStride+1] = 1 << 37 }, "amount 137438953472"},
		"lsn zero":              {func(a *Arena) { a.rows.LSNs[last*a.rows.LSNStride] = 0 }, "row 7: lsn 0"},
		"lsn negative":          {func(a *Arena) { a.rows.LSNs[last*a.rows.LSNStride] = -5 }, "row 7: lsn -5"},
		"the first row as well": {func(a *Arena) { a.rows.LSNs[0] = 0 }, "row 0: lsn 0"},
	} {
		t.Run(name, func(t *testing.T) {
			a := ready(t)
			c.spoil(a)
			refusesRun(t, a, nil, 0, testRows, Advance|Vectors, c.named)
		})
	}
}

func TestRun_AtTheLimits_IsDone(t *testing.T) {
	a := ready(t)
	absent := slices.Repeat([]int{-1}, len(a.Slabs))
	a.Put(0, 1<<63-1, absent, &[plan.Columns]int64{})
	a.Put(1, 1, []int{0, testSlot - 1, -1, 0}, &[plan.Columns]int64{plan.TS: 1 << 62, plan.Amount: amountMax})
	if err := a.Run(nil, 0, 2, Advance|Vectors); err != nil {
		t.Fatal(err)
	}
	if err := a.Run(nil, testRows-1, 1, Advance); err != nil {
		t.Error(err)
	}
}

func TestRun_Range_LeavesOtherRowsAlone(t *testing.T) {
	a := ready(t)
	for i := range a.Vectors {
		a.Vectors[i] = -7
	}
	if err := a.Run(nil, 2, 3, Advance|Vectors); err != nil {
		t.Fatal(err)
	}
	width := len(a.Plan.Features)
	for row := range testRows {
		touched := slices.ContainsFunc(a.Vectors[row*width:(row+1)*width], func(x float32) bool { return x != -7 })
		if touched != (row >= 2 && row < 5) {
			t.Errorf("row %d: touched %v", row, touched)
		}
	}
}

func TestRun_Dry_ChangesNothingAndSeesWhatAdvanceSees(t *testing.T) {
	s := newStream(t, plantest.Load(t, "cards"), 3, 40, 50_000_000)
	width := len(s.arena.Plan.Features)
	for range 40 {
		s.fill(40)
		for row := range 5 { // from nearly too late to much too late
			s.arena.columns(row)[plan.TS] -= int64(row) * 15 * 86_400_000
		}
		before, _ := state(s.arena)
		if err := s.arena.Run(nil, 0, 40, Dry|Vectors); err != nil {
			t.Fatal(err)
		}
		if after, _ := state(s.arena); !slices.Equal(before, after) {
			t.Fatal("a dry run changed a profile or a counter")
		}
		dry := slices.Clone(s.arena.Vectors[:width]) // only the first row sees what it would see in an advance
		if err := s.arena.Run(nil, 0, 40, Advance|Vectors); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(dry, s.arena.Vectors[:width]) {
			t.Fatal("the dry run's vector is not that of the advance")
		}
	}
}

func TestRun_SameBatchAgain_ChangesNothing(t *testing.T) {
	a := ready(t)
	if err := a.Run(nil, 0, testRows, Advance); err != nil {
		t.Fatal(err)
	}
	before, _ := state(a)
	if err := a.Run(nil, 0, testRows, Advance|Vectors); err != nil {
		t.Fatal(err)
	}
	if after, _ := state(a); !slices.Equal(before, after) {
		t.Error("LSNs that the profiles have changed them")
	}
}

func TestRun_ArenaInUse_ErrBusyAndNothingChanged(t *testing.T) {
	a := ready(t)
	a.busy.Store(true)
	words, _ := state(a)
	if err := a.Run(nil, 0, 1, Advance); !errors.Is(err, ErrBusy) {
		t.Errorf("run: %v; want ErrBusy", err)
	}
	if _, err := a.Label(0, 0, 5, 1, 5); !errors.Is(err, ErrBusy) {
		t.Errorf("label: %v; want ErrBusy", err)
	}
	if after, _ := state(a); !slices.Equal(words, after) || !a.busy.Load() {
		t.Error("a call on an arena in use changed something")
	}
	a.busy.Store(false)
	if err := a.Run(nil, 0, 1, Advance); err != nil {
		t.Error(err)
	}
}

func TestRun_ManyCallersOfOneArena_EachRunsAloneOrIsRefused(t *testing.T) {
	a := ready(t)
	var callers sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for range 8 {
		callers.Go(func() {
			for range 200 {
				err := a.Run(nil, 0, testRows, Advance|Vectors)
				if err != nil && !errors.Is(err, ErrBusy) {
					t.Error(err)
				}
				if err == nil {
					mu.Lock()
					done++
					mu.Unlock()
				}
			}
		})
	}
	callers.Wait()
	if done == 0 {
		t.Error("nobody got through")
	}
}

func TestLabel_WrongArguments_ErrRowsAndNothingChanged(t *testing.T) {
	for name, c := range map[string]struct {
		kind, slot     int
		ts, delta, lsn int64
		named          string
	}{
		"kind below":     {-1, 0, 5, 1, 5, "kind -1, the plan has 4"},
		"kind beyond":    {4, 0, 5, 1, 5, "kind 4, the plan has 4"},
		"slot below":     {0, -1, 5, 1, 5, "slot -1 of kind card, whose slab has 4"},
		"slot beyond":    {3, testSlot, 5, 1, 5, "slot 4 of kind ip, whose slab has 4"},
		"ts negative":    {0, 0, -1, 1, 5, "ts -1"},
		"ts beyond":      {0, 0, 1<<62 + 1, 1, 5, "ts 4611686018427387905"},
		"delta of none":  {0, 0, 5, 0, 5, "not 0"},
		"delta of two":   {0, 0, 5, 2, 5, "not 2"},
		"lsn of nothing": {0, 0, 5, 1, 0, "lsn 0"},
	} {
		t.Run(name, func(t *testing.T) {
			a := ready(t)
			if err := a.Run(nil, 0, testRows, Advance); err != nil {
				t.Fatal(err)
			}
			words, _ := state(a)
			changed, err := a.Label(c.kind, c.slot, c.ts, c.delta, c.lsn)
			if changed || !errors.Is(err, ErrRows) || !strings.Contains(err.Error(), c.named) {
				t.Errorf("changed %v, %v; want ErrRows that names %q", changed, err, c.named)
			}
			if after, _ := state(a); !slices.Equal(words, after) {
				t.Error("a refused label changed something")
			}
		})
	}
}

func TestBind_MemoryThatIsTooSmall_ErrArena(t *testing.T) {
	p := plantest.Load(t, "cards")
	a := newArena(t, p, testSlot, testRows)
	other := plantest.Load(t, "cards")
	word, width := make([]int64, testRows*16), testRows*len(p.Features)
	good := Rows{word, word, word, 16, 16, 16}
	floats, risk := make([]float32, width), make([]float32, testRows)
	for name, c := range map[string]struct {
		slabs         []*profile.Slab
		rows          int
		layout        Rows
		vectors, risk []float32
		named         string
	}{
		"no rows":               {a.Slabs, 0, good, floats, risk, "0 rows"},
		"too many rows":         {a.Slabs, RowsMax + 1, good, floats, risk, "1048577 rows"},
		"a slab lacks":          {a.Slabs[:3], testRows, good, floats, risk, "3 slabs, the plan has 4"},
		"slabs in wrong order":  {[]*profile.Slab{a.Slabs[1], a.Slabs[0], a.Slabs[2], a.Slabs[3]}, testRows, good, floats, risk, "slab 0"},
		"vectors too short":     {a.Slabs, testRows, good, floats[:width-1], risk, "319 floats for vectors"},
		"risk too short":        {a.Slabs, testRows, good, floats, risk[:testRows-1], "7 for risk"},
		"lsns without a stride": {a.Slabs, testRows, Rows{word, word, word, 0, 16, 16}, floats, risk, "lsns: a stride of 0"},
		"slots overlap":         {a.Slabs, testRows, Rows{word, word, word, 1, 3, 16}, floats, risk, "slots: a stride of 3"},
		"columns overlap":       {a.Slabs, testRows, Rows{word, word, word, 1, 4, 10}, floats, risk, "columns: a stride of 10"},
		"stride unbelievable":   {a.Slabs, testRows, Rows{word, word, word, 1 << 17, 4, 11}, floats, risk, "lsns: a stride of 131072"},
		"columns too short":     {a.Slabs, testRows, Rows{word, word, word[:7*16+10], 1, 4, 16}, floats, risk, "columns: 122 words"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Bind(p, c.slabs, c.rows, c.layout, c.vectors, c.risk)
			if !errors.Is(err, ErrArena) || !strings.Contains(err.Error(), c.named) {
				t.Errorf("%v; want ErrArena that names %q", err, c.named)
			}
		})
	}
	if _, err := Bind(p, a.Slabs, testRows, good, floats, risk); err != nil {
		t.Error(err)
	}
	if _, err := Bind(other, a.Slabs, testRows, good, floats, risk); !errors.Is(err, ErrArena) {
		t.Errorf("slabs of another plan: %v; want ErrArena", err)
	}
	for _, n := range []int{-1, 0, RowsMax + 1} {
		if _, err := New(p, a.Slabs, n); !errors.Is(err, ErrArena) {
			t.Errorf("%d rows: %v; want ErrArena", n, err)
		}
	}
}

func TestRun_Batch_AllocatesNothing(t *testing.T) {
	const rows, runs = 64, 100
	for _, flags := range []Flags{Advance | Vectors, Dry | Vectors} {
		s := newStream(t, plantest.Load(t, "cards"), 50, rows*(runs+1), 5_000_000) // rings move in most rows
		s.fill(s.arena.Rows)
		first := 0
		allocs := testing.AllocsPerRun(runs, func() { // runs once more than it is told, to warm up
			if err := s.arena.Run(nil, first, rows, flags); err != nil {
				t.Fatal(err)
			}
			first += rows
		})
		if allocs != 0 {
			t.Errorf("flags %#x: %v allocations per batch, want none", flags, allocs)
		}
	}
}

func TestRun_BatchWithRisk_AllocatesNothing(t *testing.T) {
	p := plantest.Load(t, "cards")
	model := scoringModel(t, p, "cards")
	s := newStream(t, p, 50, 64, 1000)
	s.fill(64)
	for _, rows := range []int{1, 64} {
		allocs := testing.AllocsPerRun(100, func() {
			if err := s.arena.Run(model, 0, rows, Advance|Risk); err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%d rows: %v allocations per batch, want none", rows, allocs)
		}
	}
}

func TestRun_ModelOfAnotherWidth_ErrRowsAndNothingChanged(t *testing.T) {
	model := scoringModel(t, plantest.Load(t, "handbook"), "handbook")
	refusesRun(t, ready(t), model, 0, testRows, Advance|Risk, "takes 15 features, the plan gives 40")
}
