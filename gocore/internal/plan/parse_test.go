package plan_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
)

func TestParse_Cards_IsThePlanOfTheSpec(t *testing.T) {
	data := plantest.Bytes(t, "cards")
	p := parsed(t, data)
	sum := sha256.Sum256(data)
	if p.Hash != hex.EncodeToString(sum[:]) {
		t.Errorf("hash %s is not the sha256 of the bytes", p.Hash)
	}
	var names []string
	raw, rings := plan.Columns, 0
	for i := range p.Kinds {
		k := &p.Kinds[i]
		names = append(names, k.Name)
		if k.Number != i || k.RawStart != raw || k.Words()*8 != k.Size {
			t.Errorf("%s: number %d, raw start %d, size %d", k.Name, k.Number, k.RawStart, k.Size)
		}
		raw += k.Observed()
		rings += len(k.Rings)
	}
	if want := []string{"card", "merchant", "device", "ip"}; !slices.Equal(names, want) {
		t.Errorf("kinds %v, want %v", names, want)
	}
	if p.RawWords != raw || p.Rings != rings {
		t.Errorf("%d raw words and %d rings, want %d and %d", p.RawWords, p.Rings, raw, rings)
	}
	if n := len(p.FeatureNames()); n != 40 {
		t.Errorf("%d features, want 40", n)
	}
	if p.Currencies["EUR"] != 1_000_000 {
		t.Errorf("EUR has rate %d, want 1000000", p.Currencies["EUR"])
	}
	if p.LongestMS != 38*86_400_000 {
		t.Errorf("the longest ring spans %d ms, want 38 days", p.LongestMS)
	}
}

func TestParse_WidthsOfTiles_AreSharedByRings(t *testing.T) {
	p := parsed(t, plantest.Bytes(t, "cards"))
	for i := range p.Kinds {
		for j := range p.Kinds[i].Rings {
			ring := &p.Kinds[i].Rings[j]
			if p.Widths[ring.Width] != ring.TileMS {
				t.Errorf("%s.%s: width %d of %v, want %d", p.Kinds[i].Name, ring.Name, ring.Width, p.Widths, ring.TileMS)
			}
		}
	}
	if sorted := slices.Sorted(slices.Values(p.Widths)); len(slices.Compact(sorted)) != len(p.Widths) {
		t.Errorf("widths %v hold one twice", p.Widths)
	}
}

func TestParse_NoRings_DayIsTheLongest(t *testing.T) {
	p := parsed(t, plantest.Bytes(t, "handbook"))
	p.Kinds, p.Features, p.Currencies = nil, p.Features[:1], nil
	p.Kinds = append(p.Kinds, plan.Kind{Name: "card", IDField: "card_id", Size: 64, HeaderWords: 8, StateWord: 8, RawStart: plan.Columns})
	if got := parsed(t, encode(p)).LongestMS; got != 86_400_000 {
		t.Errorf("longest %d ms, want a day", got)
	}
}

// A refused plan: how `cards` is changed, and what the message has to name. Values that stand at a limit and are fine are in
// TestParse_AtTheLimit_IsTaken.
var refused = []struct {
	name   string
	change func(p *plan.Plan)
	named  string
}{
	{"no kinds", func(p *plan.Plan) { p.Kinds = nil }, "kinds is 0"},
	{"no features", func(p *plan.Plan) { p.Features = nil }, "features is 0"},
	{"kind without a name", func(p *plan.Plan) { p.Kinds[0].Name = "" }, "0 bytes"},
	{"kind with a long name", func(p *plan.Plan) { p.Kinds[0].Name = strings.Repeat("n", 257) }, "257 bytes"},
	{"id field unknown", func(p *plan.Plan) { p.Kinds[0].IDField = "amount" }, `"amount"`},
	{"size zero", func(p *plan.Plan) { p.Kinds[0].Size = 0 }, "size is 0"},
	{"size no whole line", func(p *plan.Plan) { p.Kinds[0].Size += 8 }, "cache lines"},
	{"size too large", func(p *plan.Plan) { p.Kinds[0].Size = 1<<26 + 64 }, "size is 67108928"},
	{"header negative", func(p *plan.Plan) { p.Kinds[0].HeaderWords = -8 }, "header words is -8"},
	{"header no whole line", func(p *plan.Plan) { p.Kinds[0].HeaderWords++ }, "cache lines"},
	{"header past the size", func(p *plan.Plan) { p.Kinds[0].HeaderWords = p.Kinds[0].Words() + 8 }, "header words"},
	{"state word in the fixed ones", func(p *plan.Plan) { p.Kinds[0].StateWord = 7 }, "state word is 7"},
	{"state word past the header", func(p *plan.Plan) { p.Kinds[0].StateWord = p.Kinds[0].HeaderWords + 1 }, "state word"},
	{"raw start moved", func(p *plan.Plan) { p.Kinds[1].RawStart++ }, "raw start"},
	{"raw input unbelievable", func(p *plan.Plan) {
		p.Kinds[0].Size, p.Kinds[0].HeaderWords, p.Kinds[0].Remembered, p.Kinds[0].Blocks, p.Kinds[0].Rings = 1<<20, 1<<16, nil, nil, nil
	}, "raw input has 65543 words"},
	{"remembered ts below", func(p *plan.Plan) { p.Kinds[0].Remembered[0].TSWord = 7 }, "remembered ts word is 7"},
	{"remembered ts in the state", func(p *plan.Plan) { p.Kinds[0].Remembered[0].TSWord = p.Kinds[0].StateWord }, "remembered ts word"},
	{"remembered nothing", func(p *plan.Plan) { p.Kinds[0].Remembered[0].Columns = nil }, "remembered columns is 0"},
	{"remembered past the state word", func(p *plan.Plan) {
		p.Kinds[0].Remembered[0] = plan.Remembered{TSWord: p.Kinds[0].StateWord - 2, Columns: []int{1, 2}}
	}, "remembered columns is 2"},
	{"remembered column unknown", func(p *plan.Plan) { p.Kinds[0].Remembered[0].Columns[0] = plan.Columns }, "column is 11"},
	{"remembered column none", func(p *plan.Plan) { p.Kinds[0].Remembered[0].Columns[0] = -1 }, "column is -1"},
	{"block of frauds", func(p *plan.Plan) { p.Kinds[0].Blocks[0].Code = plan.Frauds }, "block of code 1"},
	{"block code unknown", func(p *plan.Plan) { p.Kinds[0].Blocks[0].Code = 7 }, "block's code is 7"},
	{"block of a column", func(p *plan.Plan) { p.Kinds[0].Blocks[0].Of = plan.MCC }, "of column 3"},
	{"block of distinct of nothing", func(p *plan.Plan) { p.Kinds[0].Blocks[0].Code = plan.Distinct }, "of column -1"},
	{"block before the state", func(p *plan.Plan) { p.Kinds[0].Blocks[0].Start = p.Kinds[0].StateWord - 1 }, "block's start"},
	{"block empty", func(p *plan.Plan) { p.Kinds[0].Blocks[0].Stop = p.Kinds[0].Blocks[0].Start }, "block's stop"},
	{"block past the header", func(p *plan.Plan) { p.Kinds[0].Blocks[0].Stop = p.Kinds[0].HeaderWords + 1 }, "block's stop"},
	{"ring without a name", func(p *plan.Plan) { p.Kinds[0].Rings[0].Name = "" }, "0 bytes"},
	{"tile of no time", func(p *plan.Plan) { p.Kinds[0].Rings[0].TileMS = 0 }, "tile of 0 ms"},
	{"tile of a year and a week", func(p *plan.Plan) { p.Kinds[0].Rings[0].TileMS = 373 * 86_400_000 }, "tile of 32227200000 ms"},
	{"no tiles", func(p *plan.Plan) { p.Kinds[0].Rings[0].Tiles = 0 }, "tiles is 0"},
	{"too many tiles", func(p *plan.Plan) { p.Kinds[0].Rings[0].Tiles = 16_385 }, "tiles is 16385"},
	{"ring of an unknown column", func(p *plan.Plan) { p.Kinds[0].Rings[0].Of = plan.Columns }, "column is 11"},
	{"ring of no fields", func(p *plan.Plan) { p.Kinds[0].Rings[0].Fields, p.Kinds[0].Rings[0].Windows = nil, nil }, "fields is 0"},
	{"field unknown", func(p *plan.Plan) { p.Kinds[0].Rings[0].Fields[0].Code = 7 }, "field's code is 7"},
	{"field twice", func(p *plan.Plan) { p.Kinds[0].Rings[0].Fields[1] = p.Kinds[0].Rings[0].Fields[0] }, "twice"},
	{"field of distinct of nothing", func(p *plan.Plan) {
		p.Kinds[0].Rings[0].Of, p.Kinds[0].Rings[0].Windows = -1, nil
		p.Kinds[0].Rings[0].Fields = []plan.Field{{Code: plan.Distinct, Open: p.Kinds[0].StateWord, Cells: p.Kinds[0].HeaderWords}}
	}, "distinct values of no column"},
	{"open word before the state", func(p *plan.Plan) { p.Kinds[0].Rings[0].Fields[0].Open = p.Kinds[0].StateWord - 1 }, "open word"},
	{"open word past the header", func(p *plan.Plan) { p.Kinds[0].Rings[0].Fields[0].Open = p.Kinds[0].HeaderWords }, "open word"},
	{"cells in the header", func(p *plan.Plan) { p.Kinds[0].Rings[0].Fields[0].Cells = p.Kinds[0].HeaderWords*2 - 1 }, "first cell"},
	{"cells past the end", func(p *plan.Plan) { p.Kinds[0].Rings[0].Fields[0].Cells = p.Kinds[0].Size/4 - 11 }, "first cell"},
	{"window of a field that is not kept", func(p *plan.Plan) { p.Kinds[0].Rings[0].Windows[0].Code = plan.Max }, "does not keep"},
	{"window skip negative", func(p *plan.Plan) { p.Kinds[0].Rings[0].Windows[0].Skip = -1 }, "skip is -1"},
	{"window skip past the ring", func(p *plan.Plan) { p.Kinds[0].Rings[0].Windows[0].Skip = 12 }, "skip is 12"},
	{"window of no tiles", func(p *plan.Plan) { p.Kinds[0].Rings[0].Windows[0].Tiles = 0 }, "tiles is 0"},
	{"window longer than the ring", func(p *plan.Plan) { p.Kinds[0].Rings[0].Windows[0].Tiles = 13 }, "tiles is 13"},
	{"delayed window past the ring", func(p *plan.Plan) {
		p.Kinds[0].Rings[0].Windows[0].Skip, p.Kinds[0].Rings[0].Windows[0].Tiles = 5, 8
	}, "tiles is 8"},
	{"window word before the state", func(p *plan.Plan) { p.Kinds[0].Rings[0].Windows[0].Word = 8 }, "window's word is 8"},
	{"window word past the header", func(p *plan.Plan) { p.Kinds[0].Rings[0].Windows[0].Word = p.Kinds[0].HeaderWords }, "window's word"},
	{"feature without a name", func(p *plan.Plan) { p.Features[0].Name = "" }, "0 bytes"},
	{"op unknown", func(p *plan.Plan) { p.Features[0].Op = 25 }, "op is 25"},
	{"op negative", func(p *plan.Plan) { p.Features[0].Op = -1 }, "op is -1"},
	{"scale no number", func(p *plan.Plan) { p.Features[0].Scale = math.NaN() }, "not finite"},
	{"scale infinite", func(p *plan.Plan) { p.Features[0].Scale = math.Inf(-1) }, "not finite"},
	{"operand too many", func(p *plan.Plan) { p.Features[0].Operands = []int{1, 1} }, "operands is 2"},
	{"operand lacking", func(p *plan.Plan) { p.Features[0].Operands = nil }, "operands is 0"},
	{"operand past the raw input", func(p *plan.Plan) { p.Features[0].Operands[0] = p.RawWords }, "operand is 107"},
	{"operand negative", func(p *plan.Plan) { p.Features[0].Operands[0] = -1 }, "operand is -1"},
	{"currency in small letters", func(p *plan.Plan) { p.Currencies = map[string]int64{"eur": 1} }, `"eur"`},
	{"currency without a rate", func(p *plan.Plan) { p.Currencies["EUR"] = 0 }, "rate 0"},
	{"currency of a mad rate", func(p *plan.Plan) { p.Currencies["EUR"] = 10_000_001 }, "rate 10000001"},
}

func TestParse_WrongValue_ErrPlanNamesIt(t *testing.T) {
	for _, c := range refused {
		t.Run(c.name, func(t *testing.T) {
			p := parsed(t, plantest.Bytes(t, "cards"))
			c.change(p)
			found, err := plan.Parse(encode(p))
			if !errors.Is(err, plan.ErrPlan) || found != nil {
				t.Fatalf("plan %v, error %v; want no plan and ErrPlan", found != nil, err)
			}
			if !strings.Contains(err.Error(), c.named) {
				t.Errorf("%q does not name %q", err, c.named)
			}
		})
	}
}

var refused2 = []struct {
	name   string
	change func(p *plan.Plan)
	named  string
}{
	{"spikes over nothing", func(p *plan.Plan) { p.Kinds[0].Spike.Thousandths = 0 }, "spikes over 0"},
	{"spikes over too much", func(p *plan.Plan) { p.Kinds[0].Spike.Thousandths = 100_001 }, "spikes over 100001"},
	{"spikes of a word before the state", func(p *plan.Plan) { p.Kinds[0].Spike.CountWord = 7 }, "words 7 and"},
	{"spikes of a word past the header", func(p *plan.Plan) { p.Kinds[0].Spike.SumWord = p.Kinds[0].HeaderWords }, "words"},
	{"tiles that never close", func(p *plan.Plan) { p.Kinds[0].Rings[3].Tiles = 2 }, "2 tiles that never close"},
	{"edge code unknown", func(p *plan.Plan) { edgeOf(p).Code = 10 }, "edge's code is 10"},
	{"edge of the sum", func(p *plan.Plan) { edgeOf(p).Field = 2 }, "edge of field 2"},
	{"edge of nothing", func(p *plan.Plan) { edgeOf(p).Field = -1 }, "edge's field is -1"},
	{"edge past the ring", func(p *plan.Plan) { edgeOf(p).Skip = 149 }, "edge's skip is 149"},
	{"edge longer than the ring", func(p *plan.Plan) { edgeOf(p).Tiles = 150 }, "edge's tiles is 150"},
	{"edge word before the state", func(p *plan.Plan) { edgeOf(p).Word = 7 }, "edge's word is 7"},
	{"edge of counts that includes the open tile", func(p *plan.Plan) { edgeOf(p).Field, edgeOf(p).Skip = 0, 0 }, "edge of field 0"},
	{"op unknown", func(p *plan.Plan) { p.Features[0].Op = 25 }, "op is 25"},
	{"field unknown", func(p *plan.Plan) { p.Kinds[0].Rings[0].Fields[0].Code = 8 }, "field's code is 8"},
}

// edgeOf is the first edge of the merchants' ring.
func edgeOf(p *plan.Plan) *plan.Window {
	windows := p.Kinds[1].Rings[0].Windows
	return &windows[slices.IndexFunc(windows, func(w plan.Window) bool { return w.IsEdge() })]
}

func TestParse_WrongValueOfVersion2_ErrPlanNamesIt(t *testing.T) {
	for _, c := range refused2 {
		t.Run(c.name, func(t *testing.T) {
			p := parsed(t, plantest.Bytes(t, "handbook40"))
			c.change(p)
			found, err := plan.Parse(encode(p))
			if !errors.Is(err, plan.ErrPlan) || found != nil {
				t.Fatalf("plan %v, error %v; want no plan and ErrPlan", found != nil, err)
			}
			if !strings.Contains(err.Error(), c.named) {
				t.Errorf("%q does not name %q", err, c.named)
			}
		})
	}
}

func TestParse_WrongBytes_ErrPlanNamesThem(t *testing.T) {
	data := plantest.Bytes(t, "cards")
	p := parsed(t, data)
	changed := func(at int, with ...byte) []byte {
		return slices.Replace(slices.Clone(data), at, at+len(with), with...)
	}
	for name, c := range map[string]struct {
		data  []byte
		named string
	}{
		"nothing":             {nil, "magic"},
		"another magic":       {changed(7, '3'), "WEIRPLN3"},
		"version 2's bytes":   {changed(7, '2'), "spikes over"},
		"another column more": {changed(8, 12), "12 event columns"},
		"kinds unbelievable":  {changed(12, 0xFF, 0xFF, 0xFF, 0x7F), "kinds is 2147483647"},
		"kinds negative":      {changed(12, 0xFF, 0xFF, 0xFF, 0xFF), "kinds is -1"},
		"a byte more":         {append(slices.Clone(data), 0), "1 bytes follow"},
		"a byte less":         {data[:len(data)-1], "needs 8 bytes"},
		"log1p neither":       {changed(featureAt(p, data)+4, 2), "log1p is 2"},
		"layout of another":   {changed(24+2+4+2+7+24, ^data[24+2+4+2+7+24]), "layout is"},
		"currency twice":      {append(changed(20, byte(len(p.Currencies)+1)), data[len(data)-11:]...), "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := plan.Parse(c.data)
			if !errors.Is(err, plan.ErrPlan) || !strings.Contains(err.Error(), c.named) {
				t.Errorf("%v; want ErrPlan that names %q", err, c.named)
			}
		})
	}
}

// featureAt is where the op of the first feature stands.
func featureAt(p *plan.Plan, data []byte) int {
	return strings.Index(string(data), p.Features[0].Name) + len(p.Features[0].Name)
}

func TestParse_AtTheLimit_IsTaken(t *testing.T) {
	for name, change := range map[string]func(p *plan.Plan){
		"name of 256 bytes":       func(p *plan.Plan) { p.Kinds[0].Name = strings.Repeat("n", 256) },
		"tile of a leap year":     func(p *plan.Plan) { p.Kinds[0].Rings[0].TileMS = 366 * 86_400_000 },
		"tile of a millisecond":   func(p *plan.Plan) { p.Kinds[0].Rings[0].TileMS = 1 },
		"window of all tiles":     func(p *plan.Plan) { p.Kinds[0].Rings[0].Windows[0].Tiles = 12 },
		"window of the last tile": func(p *plan.Plan) { p.Kinds[0].Rings[0].Windows[0] = plan.Window{Skip: 11, Tiles: 1, Word: 20} },
		"last raw word":           func(p *plan.Plan) { p.Features[0].Operands[0] = p.RawWords - 1 },
		"last cell":               func(p *plan.Plan) { p.Kinds[0].Rings[0].Fields[0].Cells = p.Kinds[0].Size/4 - 12 },
		"no currencies":           func(p *plan.Plan) { p.Currencies = nil },
		"rate of ten":             func(p *plan.Plan) { p.Currencies["EUR"] = 10_000_000 },
		"scale of nothing":        func(p *plan.Plan) { p.Features[0].Scale = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			p := parsed(t, plantest.Bytes(t, "cards"))
			change(p)
			if _, err := plan.Parse(encode(p)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestParse_EveryTruncation_ErrPlan(t *testing.T) {
	for _, name := range []string{"cards", "handbook"} {
		data := plantest.Bytes(t, name)
		for n := range data {
			if _, err := plan.Parse(data[:n]); !errors.Is(err, plan.ErrPlan) {
				t.Fatalf("%s: the first %d bytes: %v; want ErrPlan", name, n, err)
			}
		}
	}
}
