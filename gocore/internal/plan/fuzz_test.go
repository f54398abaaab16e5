package plan_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"regexp"
	"slices"
	"testing"

	"weir/gocore/internal/advance"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/score"
)

const (
	slabBytesMax = 1 << 20 // larger profiles are not tried: they take long and show nothing new
	rows         = 12
)

// FuzzParse: whatever the bytes, Parse refuses them with ErrPlan, or gives a plan that runs without a panic. Nearly every
// change breaks a kind's layout number, so that one is put right before the bytes are tried again.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"cards", "handbook", "handbook40"} {
		f.Add(plantest.Bytes(f, name))
	}
	f.Add([]byte("WEIRPLN1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := plan.Parse(resigned(data))
		if err != nil {
			if p != nil || !errors.Is(err, plan.ErrPlan) {
				t.Fatalf("%v; want ErrPlan and no plan", err)
			}
			return
		}
		run(t, p)
	})
}

var layoutFault = regexp.MustCompile(`layout is ([0-9a-f]{16}), its bytes give ([0-9a-f]{16})`)

// resigned is data with every layout number that Parse finds to be wrong replaced by the right one.
func resigned(data []byte) []byte {
	data = slices.Clone(data)
	for range 8 {
		_, err := plan.Parse(data)
		if err == nil {
			break
		}
		found := layoutFault.FindStringSubmatch(err.Error())
		if found == nil {
			break
		}
		is, want := layoutBytes(found[1]), layoutBytes(found[2])
		at := bytes.Index(data, is)
		if at < 0 {
			break
		}
		copy(data[at:], want)
	}
	return data
}

// layoutBytes is the number as it stands in a plan.
func layoutBytes(text string) []byte {
	b, _ := hex.DecodeString(text) // 16 hex digits by the pattern
	slices.Reverse(b)
	return b
}

// run works with p on every path that touches profiles.
func run(t *testing.T, p *plan.Plan) {
	t.Helper()
	slabs := make([]*profile.Slab, len(p.Kinds))
	total := p.RawWords
	for i := range p.Kinds {
		if total += p.Kinds[i].Size; total > slabBytesMax {
			return
		}
	}
	for i := range p.Kinds {
		slab, err := profile.NewSlab(&p.Kinds[i], 3)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = slab.Close() }()
		slabs[i] = slab
	}
	arena, err := score.New(p, slabs, rows)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = arena.Close() }()
	rng := rand.New(rand.NewPCG(uint64(len(p.Hash)), 1))
	for round := range int64(4) {
		for row := range rows {
			slots := make([]int, len(slabs))
			for k := range slots {
				slots[k] = rng.IntN(3) - 1
			}
			columns := [plan.Columns]int64{plan.TS: rng.Int64N(1 << (round * 20)), plan.Amount: rng.Int64N(1 << 37)}
			for c := plan.Country; c < plan.Columns; c++ {
				columns[c] = rng.Int64N(1<<32) - 1
			}
			arena.Put(row, round*rows+int64(row)+1, slots, &columns)
		}
		for _, flags := range []score.Flags{score.Dry | score.Vectors, score.Advance | score.Vectors} {
			if err := arena.Run(nil, 0, rows, flags); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, slab := range slabs {
		if _, err := arena.Label(i, 0, rng.Int64N(1<<62), 1, 1<<40); err != nil {
			t.Fatal(err)
		}
		advance.Merge(&p.Kinds[i], slab.Words(0), slab.Words(1), slab.Words(2))
	}
}

// TestParse_EveryByteFlipped_RefusedOrRuns: what a single damaged byte leaves is refused or harmless.
func TestParse_EveryByteFlipped_RefusedOrRuns(t *testing.T) {
	for _, name := range []string{"cards", "handbook", "handbook40"} {
		good := plantest.Bytes(t, name)
		for at := range good {
			data := slices.Clone(good)
			data[at] ^= 0xFF
			p, err := plan.Parse(data)
			if err == nil {
				run(t, p)
			} else if !errors.Is(err, plan.ErrPlan) {
				t.Fatalf("%s: byte %d: %v; want ErrPlan", name, at, err)
			}
		}
	}
}

// TestParse_RandomNumbersSigned_RefusedOrRuns puts edge values over the numbers of a plan and signs it again.
func TestParse_RandomNumbersSigned_RefusedOrRuns(t *testing.T) {
	rng := plantest.Seeded(t)
	edges := []int32{-1 << 31, -2, -1, 0, 1, 2, 7, 8, 9, 63, 64, 1 << 12, 1 << 14, 1 << 26, 1<<31 - 1}
	good, taken := plantest.Bytes(t, "cards"), 0
	for range 3000 {
		data := slices.Clone(good)
		for range rng.IntN(3) + 1 {
			at := 8 + rng.IntN(len(data)-12)
			value := edges[rng.IntN(len(edges))]
			if rng.IntN(2) == 0 {
				value = int32(binary.LittleEndian.Uint32(data[at:])) + int32(rng.IntN(9)-4)
			}
			binary.LittleEndian.PutUint32(data[at:], uint32(value))
		}
		if p, err := plan.Parse(resigned(data)); err == nil {
			taken++
			run(t, p)
		} else if !errors.Is(err, plan.ErrPlan) {
			t.Fatalf("%v; want ErrPlan", err)
		}
	}
	t.Logf("%d of 3000 were taken", taken)
	if taken == 0 {
		t.Error("no changed plan was taken: the test tries nothing")
	}
}
