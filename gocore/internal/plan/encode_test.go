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

// writer writes plan bytes as docs/plan-format.md has them: the inverse of Parse, so that a test can say what is wrong in a
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
	w.WriteString("WEIRPLN1")
	w.i32(plan.Columns, len(p.Kinds), len(p.Features), len(p.Currencies))
	for i := range p.Kinds {
		k := &p.Kinds[i]
		sum := sha256.Sum256(encodeKind(k, 0, 0))
		w.Write(encodeKind(k, k.RawStart, int64(binary.LittleEndian.Uint64(sum[:8])>>1)))
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
		w.i32(ring.Tiles, ring.Of, len(ring.Fields), len(ring.Windows))
		for _, f := range ring.Fields {
			w.i32(f.Code, f.Open, f.Cells)
		}
		for _, v := range ring.Windows {
			w.i32(v.Code, v.Skip, v.Tiles, v.Word)
		}
	}
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
	for _, name := range []string{"cards", "handbook"} {
		data := plantest.Bytes(t, name)
		if !bytes.Equal(encode(parsed(t, data)), data) {
			t.Errorf("%s: a parsed plan does not encode to the bytes it came from", name)
		}
	}
}
