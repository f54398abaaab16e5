// Package vector builds feature vectors: from raw integers (columns and observations) to float32.
//
// All arithmetic is float64 on exact integers, without fused multiply-add, then one rounding to float32, so that engines
// agree exactly; only where log, sqrt or trigonometry is involved may they differ by 2 float32 ulp. The formulas are those
// of docs/reference/plan-format.md. Rows are built a few at a time, feature by feature: the operator is chosen once per feature, and
// the raw rows stay in the nearest cache.
package vector

import (
	"math"
	"math/bits"

	"weir/gocore/internal/plan"
)

const (
	chunkRows = 32 // rows built together: with `cards` their raw input is 27 KiB

	hourMS, dayMS  = 3_600_000, 86_400_000
	nightLastHour  = 6 // 00:00:00 to 06:59:59, as the Fraud Detection Handbook has it
	epochWeekday   = 3 // 1970-01-01 was a Thursday; Monday is 0
	bitmapBits     = 64
	squaresPerHigh = 4294967296.0
)

// distinctByBits is linear counting, n = -m ln(z/m) (Whang et al. 1990), by bits set; a full bitmap counts as if half a
// bit were free.
var distinctByBits [bitmapBits + 1]float64

func init() {
	for set := range distinctByBits {
		distinctByBits[set] = -bitmapBits * math.Log(math.Max(float64(bitmapBits-set), 0.5)/bitmapBits)
	}
}

// Builder builds the vectors of one plan. It keeps no state between calls and may be shared.
type Builder struct {
	features []plan.Feature
	// tables: for a feature whose value follows from a number of bits, the finished float32 by that number; else nil.
	tables   []*[bitmapBits + 1]float32
	rawWords int
}

// NewBuilder makes the builder of p.
func NewBuilder(p *plan.Plan) *Builder {
	b := &Builder{p.Features, make([]*[bitmapBits + 1]float32, len(p.Features)), p.RawWords}
	for i := range p.Features {
		if f := &p.Features[i]; f.Op == plan.OpDistinct {
			b.tables[i] = new([bitmapBits + 1]float32)
			for set, estimate := range distinctByBits {
				value := []float64{estimate}
				finish(f, value)
				b.tables[i][set] = float32(value[0])
			}
		}
	}
	return b
}

// Build fills out, (rows, features) in the order of the spec, from raw, (rows, RawWords). It allocates nothing.
func (b *Builder) Build(raw []int64, out []float32) {
	rows, width := len(raw)/b.rawWords, len(b.features)
	out = out[:rows*width]
	var column [chunkRows]float64
	for start := 0; start < rows; start += chunkRows {
		n := min(chunkRows, rows-start)
		chunk := raw[start*b.rawWords : (start+n)*b.rawWords]
		for i := range b.features {
			f, target := &b.features[i], out[start*width+i:(start+n-1)*width+i+1]
			switch {
			case b.tables[i] != nil:
				b.look(b.tables[i], chunk[f.Operands[0]:], target)
			case f.Log1p && f.Scale == 1 && isCount(f.Op) && b.counts(chunk[f.Operands[0]:], target):
			default:
				b.values(f, chunk, column[:n])
				finish(f, column[:n])
				for row, to := 0, 0; row < n; row, to = row+1, to+width {
					target[to] = float32(column[row])
				}
			}
		}
	}
}

// finish scales operators' values, and takes their logarithms if the feature wants it.
func finish(f *plan.Feature, column []float64) {
	if f.Scale != 1 {
		for i := range column {
			column[i] *= f.Scale
		}
	}
	if f.Log1p {
		log1pAll(column)
	}
}

// look fills every width-th place of target from a table by the bits set in every rawWords-th word of raw.
func (b *Builder) look(table *[bitmapBits + 1]float32, raw []int64, target []float32) {
	for at, to := 0, 0; to < len(target); at, to = at+b.rawWords, to+len(b.features) {
		target[to] = table[bits.OnesCount64(uint64(raw[at]))]
	}
}

// isCount is true for operators that give a small integer, nearly always.
func isCount(op plan.Op) bool {
	return op == plan.OpCount || op == plan.OpValue || op == plan.OpPresent
}

// counts fills target with log(1 + x) of small integers, by table; false if one of them is not small.
func (b *Builder) counts(raw []int64, target []float32) bool {
	for at, to := 0, 0; to < len(target); at, to = at+b.rawWords, to+len(b.features) {
		if uint64(raw[at]) >= log1pInts {
			return false
		}
		target[to] = log1pOfInt[raw[at]]
	}
	return true
}

// values fills column with what the feature's operator gives for each row of raw. The loops stand inside the cases: one
// choice and one call for all rows.
func (b *Builder) values(f *plan.Feature, raw []int64, column []float64) {
	o, w := f.Operands, b.rawWords
	switch f.Op {
	case plan.OpValue, plan.OpCount, plan.OpSum, plan.OpMax, plan.OpPresent, plan.OpFrauds, plan.OpSpikes:
		for i := range column {
			column[i] = float64(raw[i*w+o[0]])
		}
	case plan.OpHour, plan.OpWeekday, plan.OpNight, plan.OpWeekend:
		var value float64
		var start int64 // of the hour of the row before, in which this one nearly always lies too
		for i := range column {
			ts := raw[i*w+plan.TS]
			if since := ts - start; since < 0 || since >= hourMS || i == 0 {
				value, start = ofClock(f.Op, ts), ts-ts%hourMS
			}
			column[i] = value
		}
	case plan.OpMean, plan.OpFraudRate, plan.OpSpikeShare:
		for i := range column {
			column[i] = mean(raw[i*w:], o)
		}
	case plan.OpRatio:
		for i := range column {
			column[i] = divide(float64(raw[i*w+plan.Amount]), mean(raw[i*w:], o))
		}
	case plan.OpStd:
		for i := range column {
			column[i] = std(raw[i*w:], o, mean(raw[i*w:], o))
		}
	case plan.OpZscore:
		for i := range column {
			m := mean(raw[i*w:], o)
			column[i] = divide(float64(raw[i*w+plan.Amount])-m, std(raw[i*w:], o, m))
		}
	case plan.OpSinceLast:
		for i := range column {
			column[i] = sinceLast(raw[i*w:], o)
		}
	case plan.OpAge:
		for i := range column {
			column[i] = float64(raw[i*w+plan.TS]-raw[i*w+o[1]]) / 1000 * float64(raw[i*w+o[0]])
		}
	case plan.OpChanged:
		for i := range column {
			now, before := raw[i*w+o[0]], raw[i*w+o[1]]
			column[i] = truth(now >= 0 && before > 0 && now != before-1)
		}
	case plan.OpSpeedKmh:
		for i := range column {
			column[i] = speedKmh(raw[i*w:(i+1)*w], o)
		}
	case plan.OpSinceFirstFraud, plan.OpSinceLastFraud:
		for i := range column {
			column[i] = sinceTile(raw[i*w+plan.TS], raw[i*w+o[0]])
		}
	case plan.OpLastKnown:
		for i := range column {
			events, frauds := raw[i*w+o[0]], raw[i*w+o[1]]
			column[i] = truth(events > 0 && events == frauds)
		}
	default:
		panic("an operator that Parse does not know")
	}
}

// ofClock is hour, weekday, night or weekend of ts, in UTC.
func ofClock(op plan.Op, ts int64) float64 {
	hour, weekday := ts%dayMS/hourMS, (ts/dayMS+epochWeekday)%7
	switch op {
	case plan.OpHour:
		return float64(hour)
	case plan.OpWeekday:
		return float64(weekday)
	case plan.OpNight:
		return truth(hour <= nightLastHour)
	}
	return truth(weekday >= 5)
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// divide is top / bottom, and 0 where bottom is 0.
func divide(top, bottom float64) float64 {
	if bottom == 0 {
		return 0
	}
	return top / bottom
}

func mean(r []int64, operands []int) float64 {
	return divide(float64(r[operands[1]]), float64(r[operands[0]]))
}

// std is the population's standard deviation, sqrt(E[x²] - E[x]²). Conversions keep products from being fused.
func std(r []int64, operands []int, mean float64) float64 {
	squares := float64(float64(r[operands[2]])*squaresPerHigh) + float64(r[operands[3]])
	return math.Sqrt(math.Max(divide(squares, float64(r[operands[0]]))-float64(mean*mean), 0))
}

// sinceTile is seconds since the start of a tile that is given as 1 + its ms, -1 for none.
func sinceTile(ts, start int64) float64 {
	if start <= 0 {
		return -1
	}
	return float64(ts-(start-1)) / 1000
}

// sinceLast is seconds since the entity's last event: 0 for a late one, -1 for the first.
func sinceLast(r []int64, operands []int) float64 {
	since, previous := -1.0, r[operands[2]]
	if previous >= 0 {
		since = float64(max(r[plan.TS]-previous, 0)) / 1000
	}
	return since * float64(r[operands[0]])
}
