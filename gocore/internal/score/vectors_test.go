package score

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"testing"

	"weir/gocore/internal/ort"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
)

const (
	runtimeVariable = "WEIR_TEST_ONNXRUNTIME" // a libonnxruntime, such as the one that the onnxruntime wheel ships
	ulpsMax         = 2                       // of float32, where a logarithm or trigonometry is involved
	scoreSlack      = 1e-6
)

// vectors is a file that tests/unit/test_go_vectors.py wrote from the numpy engine.
type vectors struct {
	Plan     string `json:"plan"`
	PlanHash string `json:"plan_hash"`
	Capacity int    `json:"capacity"`
	Steps    []struct {
		Rows     [][]int64   `json:"rows"`
		Features [][]float32 `json:"features"`
		Scores   []float32   `json:"scores"`
		Label    []int64     `json:"label"` // kind, slot, ts, delta, lsn
		Changed  bool        `json:"changed"`
	} `json:"steps"`
	Profiles    [][]string `json:"profiles"`
	LateDropped [][]int64  `json:"late_dropped"`
}

func loadVectors(t *testing.T, name string) *vectors {
	t.Helper()
	data, err := os.ReadFile("testdata/vectors-" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	v := &vectors{}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// scoringModel is the packaged model of the plan; skips where there is no libonnxruntime.
func scoringModel(tb testing.TB, p *plan.Plan, name string) *ort.Model {
	tb.Helper()
	library := os.Getenv(runtimeVariable)
	if library == "" {
		tb.Skipf("%s names no libonnxruntime", runtimeVariable)
	}
	if err := ort.Open(library); err != nil {
		tb.Fatal(err)
	}
	data, err := os.ReadFile("../../../models/artifacts/" + name + "/model.onnx")
	if err != nil {
		tb.Fatal(err)
	}
	model, err := ort.Load(data, len(p.Features))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(model.Close)
	return model
}

// newArena makes slabs of capacity profiles each and an arena over them.
func newArena(tb testing.TB, p *plan.Plan, capacity, rows int) *Arena {
	tb.Helper()
	return newStream(tb, p, capacity, rows, 0).arena
}

// feed runs the steps, in calls of at most rows rows, and hands every row's place in the arena to check.
func (v *vectors) feed(t *testing.T, arena *Arena, model *ort.Model, rows int, flags Flags, check func(step, row, at int)) {
	t.Helper()
	kinds := len(arena.Slabs)
	for number, step := range v.Steps {
		if step.Label != nil {
			l := step.Label
			changed, err := arena.Label(int(l[0]), int(l[1]), l[2], l[3], l[4])
			if err != nil || changed != step.Changed {
				t.Fatalf("step %d: label: changed %v, %v; want %v", number, changed, err, step.Changed)
			}
		}
		for start := 0; start < len(step.Rows); start += rows {
			n := min(rows, len(step.Rows)-start)
			for at, row := range step.Rows[start : start+n] {
				slots := make([]int, kinds)
				for k := range slots {
					slots[k] = int(row[1+k])
				}
				arena.Put(at, row[0], slots, (*[plan.Columns]int64)(row[1+kinds:]))
			}
			if err := arena.Run(model, 0, n, flags); err != nil {
				t.Fatalf("step %d: %v", number, err)
			}
			for at := range n {
				check(number, start+at, at)
			}
		}
	}
}

func TestRun_SharedVectors_EqualNumpys(t *testing.T) {
	for _, name := range []string{"cards", "handbook", "handbook40"} {
		for _, rows := range []int{1, 13, 64} {
			t.Run(fmt.Sprintf("%s/rows=%d", name, rows), func(t *testing.T) {
				p, v := plantest.Load(t, name), loadVectors(t, name)
				if p.Hash != v.PlanHash {
					t.Fatalf("the vectors are of plan %s, not %s: python tests/unit/test_go_vectors.py writes them anew", v.PlanHash, p.Hash)
				}
				arena := newArena(t, p, v.Capacity, rows)
				width := len(p.Features)
				v.feed(t, arena, nil, rows, Advance|Vectors, func(step, row, at int) {
					got := arena.Vectors[at*width : (at+1)*width]
					for i, want := range v.Steps[step].Features[row] {
						if d := ulpsApart(got[i], want); d > allowed(&p.Features[i]) {
							t.Fatalf("step %d, row %d: %s is %v, want %v: %d ulp", step, row, p.Features[i].Name, got[i], want, d)
						}
					}
				})
				checkProfiles(t, v, arena)
			})
		}
	}
}

func checkProfiles(t *testing.T, v *vectors, arena *Arena) {
	t.Helper()
	for k, slab := range arena.Slabs {
		for slot, want := range v.Profiles[k] {
			bytesWanted, err := base64.StdEncoding.DecodeString(want)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(slab.Bytes(slot), bytesWanted) {
				t.Errorf("%s %d differs from numpy's profile", slab.Kind.Name, slot)
			}
			if !profile.IsEmpty(bytesWanted) && profile.Check(slab.Kind, slab.Bytes(slot)) != nil {
				t.Errorf("%s %d is no profile", slab.Kind.Name, slot)
			}
		}
		if !slices.Equal(slab.LateDropped, v.LateDropped[k]) {
			t.Errorf("%s: late events %v, want %v", slab.Kind.Name, slab.LateDropped, v.LateDropped[k])
		}
	}
}

// allowed is how many float32 values may lie between two engines' values of f.
func allowed(f *plan.Feature) int64 {
	switch f.Op {
	case plan.OpStd, plan.OpZscore, plan.OpDistinct, plan.OpSpeedKmh:
		return ulpsMax
	}
	if f.Log1p {
		return ulpsMax
	}
	return 0
}

func ulpsApart(a, b float32) int64 {
	d := place(a) - place(b)
	return max(d, -d)
}

// place numbers the float32 values in their order, 0 and -0 alike.
func place(x float32) int64 {
	if b := int64(math.Float32bits(x)); b < 1<<31 {
		return b
	}
	return -int64(math.Float32bits(x) &^ (1 << 31))
}

func TestRun_SharedVectors_ScoresEqualNumpys(t *testing.T) {
	for _, name := range []string{"cards", "handbook", "handbook40"} {
		t.Run(name, func(t *testing.T) {
			p, v := plantest.Load(t, name), loadVectors(t, name)
			model := scoringModel(t, p, name)
			arena := newArena(t, p, v.Capacity, 64)
			v.feed(t, arena, model, 64, Advance|Risk, func(step, row, at int) {
				want := v.Steps[step].Scores[row]
				if d := math.Abs(float64(arena.Risk[at]) - float64(want)); !(d <= scoreSlack) {
					t.Fatalf("step %d, row %d: risk %v, want %v", step, row, arena.Risk[at], want)
				}
			})
		})
	}
}

func TestUlpsApart_Values_AreCounted(t *testing.T) {
	next := math.Nextafter32
	for _, c := range []struct {
		a, b float32
		want int64
	}{
		{0, float32(math.Copysign(0, -1)), 0}, {1, 1, 0}, {1, next(1, 2), 1}, {1, next(1, 0), 1},
		{next(0, 1), next(0, -1), 2}, {-1, next(-1, -2), 1},
	} {
		if got := ulpsApart(c.a, c.b); got != c.want {
			t.Errorf("%v and %v are %d apart, want %d", c.a, c.b, got, c.want)
		}
	}
}
