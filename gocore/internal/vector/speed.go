package vector

import (
	"math"

	"weir/gocore/internal/plan"
)

const (
	earthKm  = 6371.0088       // mean radius (IUGG)
	radians  = math.Pi / 180e6 // per millionth of a degree
	minuteMS = 60_000

	// Angles below it (rad; they are half of the way, so up to 1,270 km) take the first terms of their series: 12 ns less, relative error below 1e-10.
	smallAngle = 0.1
)

// speedKmh is the great-circle speed from the last known place (haversine), time counted as one minute at least; 0 if a
// place lacks. Remembered values are one too large; latitudes are stored shifted by 90 degrees, so the cosine of one is the
// sine of what is stored.
func speedKmh(r []int64, operands []int) float64 {
	lat0, lon0, ts0 := r[operands[0]], r[operands[1]], r[operands[2]]
	lat1, lon1 := r[plan.Lat], r[plan.Lon]
	if lat0 <= 0 || lat1 < 0 || (lat1+1 == lat0 && lon1+1 == lon0) {
		return 0
	}
	up := sin(float64(lat1+1-lat0) * (radians / 2))
	right := sin(float64(lon1+1-lon0) * (radians / 2))
	chord := float64(up * up)
	if right != 0 {
		scale := math.Sin(float64(lat0-1)*radians) * math.Sin(float64(lat1)*radians)
		chord += float64(float64(scale*right) * right)
	}
	km := 2 * earthKm * asin(math.Sqrt(math.Min(chord, 1)))
	hours := float64(max(r[plan.TS]-ts0, minuteMS)) / hourMS
	return km / hours
}

func sin(x float64) float64 {
	if math.Abs(x) > smallAngle {
		return math.Sin(x)
	}
	square := x * x
	return x * (1 - square*(1.0/6-square*(1.0/120-square*(1.0/5040))))
}

func asin(x float64) float64 {
	if x > smallAngle {
		return math.Asin(x)
	}
	square := x * x
	return x * (1 + square*(1.0/6+square*(3.0/40+square*(15.0/336+square*(105.0/3456)))))
}
