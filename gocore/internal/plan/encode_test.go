package plan_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
)

// writer writes plan bytes as docs/reference/plan-format.md has them: the inverse of Parse, so that a test can say what is wrong in a
// plan by changing a Plan.
type writer struct{ bytes.Buffer }

func (w *writer) i32(numbers ...int) {
	for _, n := range numbers {
		_ = binary.Write(w, binary.LittleEndian, int32(n))
	}
}

func (w *writer) i64(n int64) { _ = binary.Write(w, binary.LittleEndian, n) }

func (w *writer) text(s string) {
	_ = binary.Write(w, binary.LittleEndian, uint16(len(s)))
	w.WriteString(s)
}

// encode gives the bytes of p, with layouts that fit. It takes what is wrong in p as it is.
func encode(p *plan.Plan) []byte {
	w := &writer{}
	second := slices.ContainsFunc(p.Features, func(f plan.Feature) bool { return f.Op > plan.OpPresent })
	for i := range p.Kinds {
		second = second || isExtended(&p.Kinds[i])
	}
	magic := "WEIRPLN1"
	if second {
		magic = "WEIRPLN2"
	}
	w.WriteString(magic)
	w.i32(plan.Columns, len(p.Kinds), len(p.Features), len(p.Currencies))
	for i := range p.Kinds {
		k := &p.Kinds[i]
		own := encodeKind(k, 0, 0)
		if isExtended(k) {
			own = append(own, encodeExtension(k)...)
		}
		sum := sha256.Sum256(own)
		w.Write(encodeKind(k, k.RawStart, int64(binary.LittleEndian.Uint64(sum[:8])>>1)))
		if second {
			w.Write(encodeExtension(k))
		}
	}
	for i := range p.Features {
		f := &p.Features[i]
		w.text(f.Name)
		w.i32(int(f.Op), truth(f.Log1p))
		_ = binary.Write(w, binary.LittleEndian, f.Scale)
		w.i32(len(f.Operands))
		w.i32(f.Operands...)
	}
	for _, code := range slices.Sorted(maps.Keys(p.Currencies)) {
		w.WriteString(code)
		w.i64(p.Currencies[code])
	}
	return w.Bytes()
}

func encodeKind(k *plan.Kind, rawStart int, layout int64) []byte {
	w := &writer{}
	w.text(k.Name)
	w.text(k.IDField)
	w.i32(k.Size, k.HeaderWords, k.StateWord, rawStart, len(k.Remembered), len(k.Blocks))
	w.i64(layout)
	w.i32(len(k.Rings))
	for _, m := range k.Remembered {
		w.i32(m.TSWord, len(m.Columns))
		w.i32(m.Columns...)
	}
	for _, b := range k.Blocks {
		w.i32(b.Code, b.Of, b.Start, b.Stop)
	}
	for i := range k.Rings {
		ring := &k.Rings[i]
		w.text(ring.Name)
		w.i64(ring.TileMS)
		values := slices.DeleteFunc(slices.Clone(ring.Windows), func(v plan.Window) bool { return v.IsEdge() })
		w.i32(ring.Tiles, ring.Of, len(ring.Fields), len(values))
		for _, f := range ring.Fields {
			w.i32(f.Code, f.Open, f.Cells)
		}
		for _, v := range values {
			w.i32(v.Code, v.Skip, v.Tiles, v.Word)
		}
	}
	return w.Bytes()
}

// isExtended is true for a kind that version 1 cannot say.
func isExtended(k *plan.Kind) bool {
	return k.Spike != (plan.Spike{}) || slices.ContainsFunc(k.Rings, func(r plan.Ring) bool {
		return r.TileMS == plan.EverMS || slices.ContainsFunc(r.Windows, func(v plan.Window) bool { return v.IsEdge() })
	})
}

func encodeExtension(k *plan.Kind) []byte {
	w, edges, n := &writer{}, &writer{}, 0
	for i := range k.Rings {
		ring := &k.Rings[i]
		for _, v := range ring.Windows {
			if v.IsEdge() {
				field := v.Field // of a damaged plan it may be none
				if field >= 0 && field < len(ring.Fields) {
					field = ring.Fields[field].Code
				}
				edges.i32(i, v.Code, field, v.Skip, v.Tiles, v.Word)
				n++
			}
		}
	}
	w.i64(k.Spike.Thousandths)
	w.i32(k.Spike.CountWord, k.Spike.SumWord, n)
	w.Write(edges.Bytes())
	return w.Bytes()
}

func truth(is bool) int {
	if is {
		return 1
	}
	return 0
}

func parsed(tb testing.TB, data []byte) *plan.Plan {
	tb.Helper()
	p, err := plan.Parse(data)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestParse_PackagedPlans_EncodeToTheSameBytes(t *testing.T) {
	for _, name := range []string{"cards", "handbook", "handbook40"} {
		data := plantest.Bytes(t, name)
		if !bytes.Equal(encode(parsed(t, data)), data) {
			t.Errorf("%s: a parsed plan does not encode to the bytes it came from", name)
		}
	}
}
