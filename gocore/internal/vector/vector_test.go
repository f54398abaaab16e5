package vector

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
)

// grid calls check with magnitudes from 2^-60 to 2^62 in small steps, and with the numbers beside each power of two.
func grid(check func(x float64)) {
	for e := -60; e <= 62; e++ {
		power := math.Ldexp(1, e)
		for i := range 4096 {
			check(power * (1 + float64(i)/4096))
		}
		check(math.Nextafter(power, 0))
		check(math.Nextafter(power, math.Inf(1)))
	}
}

func TestLog1p_Grid_RelativeErrorBelow2ToMinus36(t *testing.T) {
	worst, at := 0.0, 0.0
	grid(func(x float64) {
		if err := math.Abs(log1pOf(x)/math.Log1p(x) - 1); err > worst {
			worst, at = err, x
		}
	})
	t.Logf("worst relative error 2^%.1f at %v", math.Log2(worst), at)
	if worst >= math.Ldexp(1, -36) {
		t.Errorf("relative error %v at %v, not below 2^-36", worst, at)
	}
}

func TestLog1p_NotPositiveOrInfinite_IsItself(t *testing.T) {
	for _, x := range []float64{0, -1e-300, -0.5, -1, -2, -1e18, math.Inf(1)} {
		if got := log1pOf(x); got != x {
			t.Errorf("log1p(%v) = %v, want %v", x, got, x)
		}
	}
}

func TestLog1p_AsFloat32_WithinAnUlpOfTheLibrarys(t *testing.T) {
	grid(func(x float64) {
		got, want := float32(log1pOf(x)), float32(math.Log1p(x))
		if d := int64(math.Float32bits(got)) - int64(math.Float32bits(want)); d < -1 || d > 1 {
			t.Fatalf("log1p(%v) = %v, want %v", x, got, want)
		}
	})
}

func TestCounts_SmallOnes_AreRoundedLogsAndOthersAreRefused(t *testing.T) {
	b := &Builder{features: make([]plan.Feature, 1), rawWords: 1}
	raw := []int64{0, 1, 2, log1pInts - 2, log1pInts - 1}
	out := make([]float32, len(raw))
	if !b.counts(raw, out) {
		t.Fatal("small integers were refused")
	}
	for i, x := range raw {
		if want := float32(math.Log1p(float64(x))); out[i] != want {
			t.Errorf("%d gives %v, want %v", x, out[i], want)
		}
	}
	for _, x := range []int64{-1, log1pInts, 1 << 62, math.MinInt64} {
		if b.counts([]int64{1, x, 1}, out) {
			t.Errorf("%d was taken for a small integer", x)
		}
	}
}

func TestShortSeries_SmallAngles_RelativeErrorBelow1e10(t *testing.T) {
	for i := 1; i <= 200_000; i++ {
		x := smallAngle * float64(i) / 200_000
		for name, pair := range map[string][2]float64{"sin": {sin(x), math.Sin(x)}, "asin": {asin(x), math.Asin(x)}, "-sin": {sin(-x), math.Sin(-x)}} {
			if err := math.Abs(pair[0]/pair[1] - 1); err >= 1e-10 {
				t.Fatalf("%s(%v) has relative error %v, not below 1e-10", name, x, err)
			}
		}
	}
	for _, x := range []float64{0, math.Nextafter(smallAngle, 1), 0.5, 1, -1} {
		if sin(x) != math.Sin(x) {
			t.Errorf("sin(%v) = %v, want the library's %v", x, sin(x), math.Sin(x))
		}
		if x >= 0 && asin(x) != math.Asin(x) {
			t.Errorf("asin(%v) = %v, want the library's %v", x, asin(x), math.Asin(x))
		}
	}
}

// speedOf is the speed between two places in degrees, from whole raw numbers.
func speedOf(lat0, lon0, lat1, lon1 float64, ms int64) float64 {
	r := make([]int64, plan.Columns+3)
	r[plan.TS], r[plan.Lat], r[plan.Lon] = 1_000_000_000+ms, int64(math.Round((lat1+90)*1e6)), int64(math.Round((lon1+180)*1e6))
	r[plan.Columns], r[plan.Columns+1] = int64(math.Round((lat0+90)*1e6))+1, int64(math.Round((lon0+180)*1e6))+1
	r[plan.Columns+2] = 1_000_000_000
	return speedKmh(r, []int{plan.Columns, plan.Columns + 1, plan.Columns + 2})
}

// reference is the same with the library's functions on degrees.
func reference(lat0, lon0, lat1, lon1 float64, ms int64) float64 {
	radian := math.Pi / 180
	up, right := math.Sin((lat1-lat0)*radian/2), math.Sin((lon1-lon0)*radian/2)
	chord := up*up + math.Cos(lat0*radian)*math.Cos(lat1*radian)*right*right
	return 2 * earthKm * math.Asin(math.Sqrt(math.Min(chord, 1))) / (float64(max(ms, minuteMS)) / hourMS)
}

func TestSpeedKmh_ShortAndLongWays_AgreeWithTheLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range 100_000 {
		lat0, lon0 := float64(rng.IntN(180_000_001))/1e6-90, float64(rng.IntN(360_000_001))/1e6-180
		reach := math.Pow(10, float64(i%9-6)) // a millionth of a degree to 100 degrees
		lat1 := math.Max(-90, math.Min(90, math.Round((lat0+reach*(rng.Float64()*2-1))*1e6)/1e6))
		lon1 := math.Max(-180, math.Min(180, math.Round((lon0+reach*(rng.Float64()*2-1))*1e6)/1e6))
		got, want := speedOf(lat0, lon0, lat1, lon1, 90_000), reference(lat0, lon0, lat1, lon1, 90_000)
		// The reference takes differences of rounded degrees: worth 2e-14 of 360 degrees, which is much of a short way.
		if math.Abs(got-want) > 1e-7*want+1e-6 {
			t.Fatalf("from %v,%v to %v,%v: %v km/h, want %v", lat0, lon0, lat1, lon1, got, want)
		}
	}
}

func TestSpeedKmh_KnownPlaces_GiveKnownSpeeds(t *testing.T) {
	half := math.Pi * earthKm
	for name, c := range map[string]struct {
		got, want, slack float64
	}{
		"Berlin to Paris in an hour":      {speedOf(52.52, 13.405, 48.8566, 2.3522, hourMS), 877.46, 0.01},
		"pole to pole in an hour":         {speedOf(90, 0, -90, 0, hourMS), half, 1e-6},
		"half around the equator":         {speedOf(0, -90, 0, 90, hourMS), half, 1e-3},
		"over the date line":              {speedOf(0, 179.5, 0, -179.5, hourMS), half / 180, 1e-6},
		"the same place":                  {speedOf(52.5, 13.4, 52.5, 13.4, hourMS), 0, 0},
		"no time counts as a minute":      {speedOf(0, 0, 0, 1, 0), half / 180 * 60, 1e-6},
		"a late event counts as a minute": {speedOf(0, 0, 0, 1, -hourMS), half / 180 * 60, 1e-6},
		"around a pole":                   {speedOf(90, 0, 90, 180, hourMS), 0, 1e-6},
	} {
		if math.Abs(c.got-c.want) > c.slack {
			t.Errorf("%s: %v km/h, want %v", name, c.got, c.want)
		}
	}
}

func TestSpeedKmh_PlaceLacking_IsZero(t *testing.T) {
	r := make([]int64, plan.Columns+3)
	r[plan.TS] = 5
	operands := []int{plan.Columns, plan.Columns + 1, plan.Columns + 2}
	r[plan.Lat], r[plan.Lon], r[plan.Columns] = -1, -1, 90_000_001
	if got := speedKmh(r, operands); got != 0 {
		t.Errorf("no place now: %v", got)
	}
	r[plan.Lat], r[plan.Lon], r[plan.Columns] = 90_000_000, 180_000_000, 0
	if got := speedKmh(r, operands); got != 0 {
		t.Errorf("no place before: %v", got)
	}
}

func TestBuild_Operators_AreTheFormulas(t *testing.T) {
	const at = plan.Columns // where the operands below begin
	row := make([]int64, at+4)
	row[plan.TS] = 2*dayMS + 6*hourMS + 59*60_000 // Saturday 1970-01-03, 06:59
	row[plan.Amount], row[plan.MCC] = 700, 5411
	for name, c := range map[string]struct {
		op       plan.Op
		operands []int
		raw      []int64
		want     float64
	}{
		"value":               {plan.OpValue, []int{plan.Amount}, nil, 700},
		"hour":                {plan.OpHour, nil, nil, 6},
		"weekday":             {plan.OpWeekday, nil, nil, 5},
		"night":               {plan.OpNight, nil, nil, 1},
		"weekend":             {plan.OpWeekend, nil, nil, 1},
		"count":               {plan.OpCount, []int{at}, []int64{3}, 3},
		"mean":                {plan.OpMean, []int{at, at + 1}, []int64{4, 10}, 2.5},
		"mean of none":        {plan.OpMean, []int{at, at + 1}, []int64{0, 10}, 0},
		"std":                 {plan.OpStd, []int{at, at + 1, at + 2, at + 3}, []int64{2, 4, 0, 10}, 1},
		"std, high word":      {plan.OpStd, []int{at, at + 1, at + 2, at + 3}, []int64{1, 65536, 1, 0}, 0},
		"std of rounding":     {plan.OpStd, []int{at, at + 1, at + 2, at + 3}, []int64{1, 10, 0, 99}, 0},
		"ratio":               {plan.OpRatio, []int{at, at + 1}, []int64{2, 700}, 2},
		"ratio to nothing":    {plan.OpRatio, []int{at, at + 1}, []int64{2, 0}, 0},
		"zscore":              {plan.OpZscore, []int{at, at + 1, at + 2, at + 3}, []int64{2, 4, 0, 10}, 698},
		"zscore, no spread":   {plan.OpZscore, []int{at, at + 1, at + 2, at + 3}, []int64{2, 4, 0, 8}, 0},
		"distinct":            {plan.OpDistinct, []int{at}, []int64{0b1011}, -64 * math.Log(61.0/64)},
		"distinct, full":      {plan.OpDistinct, []int{at}, []int64{-1}, -64 * math.Log(0.5/64)},
		"since last":          {plan.OpSinceLast, []int{at, at + 1, at + 2}, []int64{1, 0, row[plan.TS] - 1500}, 1.5},
		"since none":          {plan.OpSinceLast, []int{at, at + 1, at + 2}, []int64{1, 0, -1}, -1},
		"since the epoch":     {plan.OpSinceLast, []int{at, at + 1, at + 2}, []int64{1, 0, 0}, float64(row[plan.TS]) / 1000},
		"since a later one":   {plan.OpSinceLast, []int{at, at + 1, at + 2}, []int64{1, 0, row[plan.TS] + 1}, 0},
		"since, absent":       {plan.OpSinceLast, []int{at, at + 1, at + 2}, []int64{0, 0, 0}, 0},
		"age":                 {plan.OpAge, []int{at, at + 1, at + 2}, []int64{1, row[plan.TS] - 2500, 0}, 2.5},
		"age, absent":         {plan.OpAge, []int{at, at + 1, at + 2}, []int64{0, 0, 0}, 0},
		"changed":             {plan.OpChanged, []int{plan.MCC, at}, []int64{5411}, 1},
		"not changed":         {plan.OpChanged, []int{plan.MCC, at}, []int64{5412}, 0},
		"changed from none":   {plan.OpChanged, []int{plan.MCC, at}, []int64{0}, 0},
		"changed to none":     {plan.OpChanged, []int{at + 1, at}, []int64{5412, -1}, 0},
		"fraud rate":          {plan.OpFraudRate, []int{at, at + 1}, []int64{8, 2}, 0.25},
		"fraud rate, no data": {plan.OpFraudRate, []int{at, at + 1}, []int64{0, 0}, 0},
		"present":             {plan.OpPresent, []int{at, at + 1, at + 2}, []int64{1, 5, 5}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			for _, scaled := range []plan.Feature{{Scale: 1}, {Scale: 0.01}, {Scale: -2}, {Scale: 1, Log1p: true}, {Scale: 3, Log1p: true}} {
				scaled.Op, scaled.Operands = c.op, c.operands
				raw := append(row[:at:at], make([]int64, 4)...)
				copy(raw[at:], c.raw)
				want := c.want * scaled.Scale
				if scaled.Log1p && want >= 0 {
					want = math.Log1p(want)
				}
				out := make([]float32, 1)
				NewBuilder(&plan.Plan{Features: []plan.Feature{scaled}, RawWords: len(raw)}).Build(raw, out)
				exact := !scaled.Log1p && c.op != plan.OpDistinct
				if d := math.Abs(float64(out[0] - float32(want))); (exact && d != 0) || d > 2e-7*math.Abs(want) {
					t.Errorf("scale %v, log1p %v: %v, want %v", scaled.Scale, scaled.Log1p, out[0], want)
				}
			}
		})
	}
}

// rawRows are n rows of random raw input of p, of the sizes that it may hold.
func rawRows(rng *rand.Rand, p *plan.Plan, n int) []int64 {
	raw := make([]int64, n*p.RawWords)
	for i := range raw {
		raw[i] = rng.Int64N(1<<(rng.IntN(40)+1)) - 1
	}
	return raw
}

func TestBuild_ManyRows_EqualOneAtATime(t *testing.T) {
	for _, name := range []string{"cards", "handbook", "handbook40"} {
		p := plantest.Load(t, name)
		b, width := NewBuilder(p), len(p.Features)
		for _, n := range []int{1, chunkRows - 1, chunkRows, chunkRows + 1, 3*chunkRows + 5} {
			raw := rawRows(rand.New(rand.NewPCG(1, uint64(n))), p, n)
			many, one := make([]float32, n*width+1), make([]float32, width)
			many[n*width] = -7
			b.Build(raw, many)
			for row := range n {
				b.Build(raw[row*p.RawWords:(row+1)*p.RawWords], one)
				for i := range one {
					if math.Float32bits(one[i]) != math.Float32bits(many[row*width+i]) {
						t.Fatalf("%s: row %d of %d: %s is %v, alone %v", name, row, n, p.Features[i].Name, many[row*width+i], one[i])
					}
				}
			}
			if many[n*width] != -7 {
				t.Fatalf("%s: %d rows wrote past their end", name, n)
			}
		}
	}
}

func TestBuild_Rows_AllocatesNothing(t *testing.T) {
	p := plantest.Load(t, "cards")
	b := NewBuilder(p)
	raw, out := rawRows(rand.New(rand.NewPCG(2, 2)), p, 40), make([]float32, 40*len(p.Features))
	if allocs := testing.AllocsPerRun(50, func() { b.Build(raw, out) }); allocs != 0 {
		t.Errorf("%v allocations per call, want none", allocs)
	}
}

func TestNewBuilder_DistinctTables_AreLinearCounting(t *testing.T) {
	for set := range bitmapBits + 1 {
		want := -64 * math.Log(math.Max(float64(64-set), 0.5)/64)
		if distinctByBits[set] != want || bits.OnesCount64(1<<set-1) != set {
			t.Errorf("%d bits: %v, want %v", set, distinctByBits[set], want)
		}
	}
}

func BenchmarkLog(b *testing.B) {
	column, given := make([]float64, chunkRows), make([]float64, chunkRows)
	for i := range given {
		given[i] = float64(i*4321%65536) * 0.5
	}
	for name, logs := range map[string]func(){
		"table": func() { log1pAll(column) },
		"library": func() {
			for i := range column {
				column[i] = math.Log1p(column[i])
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				copy(column, given)
				logs()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*chunkRows), "ns/value")
		})
	}
}

// log1pOf is log1pAll of one value.
func log1pOf(x float64) float64 {
	column := []float64{x}
	log1pAll(column)
	return column[0]
}
