package score

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/profile"
)

// stream fills an arena with events of entities drawn uniformly, perKind of each kind; LSNs go on from lsn.
type stream struct {
	arena   *Arena
	perKind int
	rng     *rand.Rand
	ts, lsn int64
	gapMS   int64
}

func newStream(tb testing.TB, p *plan.Plan, perKind, rows int, gapMS int64) *stream {
	tb.Helper()
	slabs := make([]*profile.Slab, len(p.Kinds))
	for i := range slabs {
		slab, err := profile.NewSlab(&p.Kinds[i], perKind)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = slab.Close() })
		slabs[i] = slab
	}
	arena, err := New(p, slabs, rows)
	if err != nil {
		tb.Fatal(err)
	}
	return &stream{arena, perKind, rand.New(rand.NewPCG(7, 7)), 1_750_000_000_000, 1 << 48, gapMS}
}

func (s *stream) fill(n int) {
	slots := make([]int, len(s.arena.Slabs))
	for row := range n {
		for k := range slots {
			slots[k] = s.rng.IntN(s.perKind)
		}
		s.lsn++
		s.ts += s.gapMS
		s.arena.Put(row, s.lsn, slots, &[plan.Columns]int64{
			plan.TS: s.ts, plan.Amount: s.rng.Int64N(100_000), plan.Country: int64(s.rng.IntN(3)), plan.MCC: 5411,
			plan.CardID: int64(slots[0]), plan.MerchantID: int64(s.rng.IntN(1000)), plan.DeviceID: 77, plan.IP: 99,
			plan.Lat: 140_000_000 + s.rng.Int64N(1000), plan.Lon: 190_000_000,
		})
	}
}

func BenchmarkRun(b *testing.B) {
	p := plantest.Load(b, "cards")
	for _, perKind := range []int{2_500, 10_000, 250_000} {
		for _, rows := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("entities=%d/rows=%d", perKind*4, rows), func(b *testing.B) {
				s := newStream(b, p, perKind, 64*256, 0)
				for range 4*perKind/256 + 1 { // every profile is begun, pages are there
					s.fill(256)
					if err := s.arena.Run(nil, 0, 256, Advance); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer() // it stops the world: once for many batches, or their caches are cold
					s.ts += 10
					s.fill(s.arena.Rows)
					b.StartTimer()
					for first := 0; first < s.arena.Rows; first += rows {
						if err := s.arena.Run(nil, first, rows, Advance|Vectors); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*s.arena.Rows), "ns/tx")
			})
		}
	}
}
