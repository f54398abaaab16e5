package vector

import "math"

// Natural logarithm by table and polynomial: y = 2^e * m, m in [1, 2); with c the midpoint of the 1/128th that m lies in,
// ln y = e ln 2 + ln c + ln(m / c), and m / c - 1 is below 2^-8, so four terms of the series leave an error of 2^-42.
// A float64 logarithm of package math costs 12 ns, this 3; a vector of `cards` takes a dozen (go test -bench Log ./internal/vector).
const (
	logBits  = 7
	logTable = 1 << logBits
)

var (
	// parts are, for each 1/128th, ln c less the bias of a float's exponent, and 1 / c.
	parts      [logTable]struct{ log, inverse float64 }
	log1pOfInt [log1pInts]float32
)

// log1pInts: counts are mostly below it; 16 KiB, of which a stream touches the first lines.
const log1pInts = 4096

func init() {
	for i := range logTable {
		c := 1 + (float64(i)+0.5)/logTable
		parts[i].log, parts[i].inverse = math.Log(c)-1023*math.Ln2, 1/c
	}
	for i := range log1pInts {
		log1pOfInt[i] = float32(math.Log1p(float64(i)))
	}
}

// log1pAll takes log(1 + x) of every x that is not negative; the others stay. Its relative error is below 2^-36, where a
// float32 has 2^-24. The logarithm stands in the loop (inlined), so that those of several rows are on their way at once.
func log1pAll(column []float64) {
	for i, x := range column {
		if x >= 1.0/16 && x <= math.MaxFloat64 {
			column[i] = logarithm(1 + x)
		} else {
			column[i] = log1pRare(x)
		}
	}
}

// log1pRare is for x below 1/16, where 1 + x would drop digits of x that the result still needs, and for the infinite.
func log1pRare(x float64) float64 {
	if x <= 0 {
		return x
	}
	return math.Log1p(x)
}

// logarithm is ln y for normal, finite y >= 1.
func logarithm(y float64) float64 {
	bits := math.Float64bits(y)
	part := &parts[bits>>(52-logBits)&(logTable-1)]
	z := math.Float64frombits(bits&(1<<52-1)|1023<<52)*part.inverse - 1
	return float64(bits>>52)*math.Ln2 + part.log + z*(1-z*(0.5-z*(1.0/3-z*0.25)))
}
