package ort

import (
	"errors"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"unsafe"
)

const (
	runtimeVariable = "WEIR_TEST_ONNXRUNTIME" // a libonnxruntime, such as the one that the onnxruntime wheel ships
	artifacts       = "../../../models/artifacts/"
	features        = 40 // of cards
)

// open opens the library, or skips where none is named.
func open(tb testing.TB) {
	tb.Helper()
	library := os.Getenv(runtimeVariable)
	if library == "" {
		tb.Skipf("%s names no libonnxruntime", runtimeVariable)
	}
	if err := Open(library); err != nil {
		tb.Fatal(err)
	}
}

func modelBytes(tb testing.TB, name string) []byte {
	tb.Helper()
	data, err := os.ReadFile(artifacts + name + "/model.onnx")
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func load(tb testing.TB, width int) *Model {
	tb.Helper()
	open(tb)
	model, err := Load(modelBytes(tb, "cards"), width)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(model.Close)
	return model
}

func TestOpen_NoSuchLibrary_ErrRuntimeNamesIt(t *testing.T) {
	err := Open("/no/such/libonnxruntime.so")
	if !errors.Is(err, ErrRuntime) || !strings.Contains(err.Error(), "/no/such/libonnxruntime.so") {
		t.Errorf("%v; want ErrRuntime that names the path", err)
	}
}

func TestOpen_Again_SameIsFineAnotherIsNot(t *testing.T) {
	open(t)
	open(t)
	if err := Open("/another/libonnxruntime.so"); !errors.Is(err, ErrRuntime) || !strings.Contains(err.Error(), "is open already") {
		t.Errorf("%v; want ErrRuntime", err)
	}
	if Version() == "" {
		t.Error("no version")
	}
	if got := os.Getenv(telemetryVariable); got != "1" {
		t.Errorf("%s is %q", telemetryVariable, got)
	}
}

func TestLoad_WrongModel_ErrModelNamesWhy(t *testing.T) {
	open(t)
	good := modelBytes(t, "cards")
	for name, c := range map[string]struct {
		data     []byte
		features int
		named    string
	}{
		"empty":                 {nil, features, "empty"},
		"no protobuf":           {[]byte("this is no model at all"), features, "onnxruntime"},
		"cut off":               {good[:len(good)/2], features, "onnxruntime"},
		"one feature too few":   {good, features - 1, "39 features"},
		"one feature too many":  {good, features + 1, "41 features"},
		"of another spec":       {modelBytes(t, "handbook"), features, "40 features"},
		"unbelievable features": {good, 1 << 20, "1048576 features"},
	} {
		t.Run(name, func(t *testing.T) {
			model, err := Load(c.data, c.features)
			if model != nil || !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), c.named) {
				t.Errorf("%v; want ErrModel that names %q", err, c.named)
			}
		})
	}
}

func TestLoad_ScoringModel_SaysItsWidth(t *testing.T) {
	if got := load(t, features).Features(); got != features {
		t.Errorf("%d features", got)
	}
	if got := load(t, 0).Features(); got != 0 {
		t.Errorf("a model for anything has %d features", got)
	}
}

// buffers are vectors of small numbers and room for their risk.
func buffers(rows int) (vectors, risk []float32) {
	vectors, risk = make([]float32, rows*features), make([]float32, rows)
	for i := range vectors {
		vectors[i] = float32(i%17) / 4
	}
	return vectors, risk
}

// inferred is the risk by the generic call.
func inferred(t *testing.T, model *Model, vectors []float32, rows int) []float32 {
	t.Helper()
	risk := make([]float32, rows)
	in := Tensor{1, []int64{int64(rows), features}, raw(vectors)}
	out := Tensor{1, []int64{int64(rows)}, raw(risk)}
	if err := model.Infer([]Tensor{in}, []Tensor{out}); err != nil {
		t.Fatal(err)
	}
	return risk
}

func TestScore_AnyNumberOfRows_EqualsInfer(t *testing.T) {
	model := load(t, features)
	vectors, risk := buffers(64)
	for _, rows := range []int{1, 2, 7, 64, 1} {
		clear(risk)
		if err := model.Score(vectors, risk, rows); err != nil {
			t.Fatal(err)
		}
		for i, want := range inferred(t, model, vectors[:rows*features], rows) {
			if math.Abs(float64(risk[i]-want)) > 1e-6 || !(risk[i] >= 0 && risk[i] <= 1) {
				t.Errorf("%d rows: row %d is %v, want %v", rows, i, risk[i], want)
			}
		}
		for i := rows; i < len(risk); i++ {
			if risk[i] != 0 {
				t.Errorf("%d rows: row %d was written", rows, i)
			}
		}
	}
	other := make([]float32, 64) // the same vectors for somebody else
	if err := model.Score(vectors, other, 64); err != nil {
		t.Fatal(err)
	}
	for i, want := range inferred(t, model, vectors, 64) {
		if math.Abs(float64(other[i]-want)) > 1e-6 {
			t.Errorf("into another place: row %d is %v, want %v", i, other[i], want)
		}
	}
	vectors[0] += 40 // the same place is read again, not remembered
	if err := model.Score(vectors, risk, 1); err != nil {
		t.Fatal(err)
	}
	if want := inferred(t, model, vectors[:features], 1)[0]; math.Abs(float64(risk[0]-want)) > 1e-6 {
		t.Errorf("after a change: %v, want %v", risk[0], want)
	}
}

func TestScore_MoreBindingsThanAreKept_StillRight(t *testing.T) {
	model := load(t, features)
	const places = bindingsMax + 10
	vectors, risk := buffers(places)
	for row := range places {
		if err := model.Score(vectors[row*features:], risk[row:], 1); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(model.bindings); n > bindingsMax {
		t.Errorf("%d bindings are kept, at most %d may be", n, bindingsMax)
	}
	for i, want := range inferred(t, model, vectors, places) {
		if math.Abs(float64(risk[i]-want)) > 1e-6 {
			t.Fatalf("row %d is %v, want %v", i, risk[i], want)
		}
	}
}

func TestClose_Model_CallsGetErrClosed(t *testing.T) {
	model := load(t, features)
	vectors, risk := buffers(2)
	if err := model.Score(vectors, risk, 2); err != nil {
		t.Fatal(err)
	}
	model.Close()
	model.Close()
	if err := model.Score(vectors, risk, 2); !errors.Is(err, ErrClosed) {
		t.Errorf("score: %v; want ErrClosed", err)
	}
	if err := model.Infer(nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("infer: %v; want ErrClosed", err)
	}
}

func TestScore_WhileClosed_EachCallIsWholeOrRefused(t *testing.T) {
	model := load(t, features)
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			vectors, risk := buffers(8)
			for range 200 {
				if err := model.Score(vectors, risk, 8); err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	model.Close()
	callers.Wait()
}

func TestInfer_WrongTensors_ErrTensorNamesThem(t *testing.T) {
	model := load(t, 0)
	vectors, risk := buffers(2)
	in := func(elementType int32, bytes []byte, shape ...int64) []Tensor {
		return []Tensor{{elementType, shape, bytes}}
	}
	out := []Tensor{{1, []int64{2}, raw(risk)}}
	good := in(1, raw(vectors), 2, features)
	for name, c := range map[string]struct {
		inputs, outputs []Tensor
		named           string
	}{
		"no inputs":              {nil, out, "0 inputs, the model has 1"},
		"an input too many":      {append(good, good...), out, "2 inputs, the model has 1"},
		"no outputs":             {good, nil, "0 outputs, the model has 1"},
		"doubles":                {in(11, raw(make([]float64, 2*features)), 2, features), out, "element type 11, the model's is 1"},
		"strings":                {in(8, raw(vectors), 2, features), out, "element type 8"},
		"a type of its own":      {in(-1, raw(vectors), 2, features), out, "element type -1"},
		"too few dimensions":     {in(1, raw(vectors), 2*features), out, "1 dimensions, the model's has 2"},
		"too many dimensions":    {in(1, raw(vectors), 1, 2, features), out, "3 dimensions, the model's has 2"},
		"width":                  {in(1, raw(vectors), 2, features-1), out, "dimension 1 is 39, the model's is 40"},
		"no rows":                {in(1, raw(vectors), 0, features), out, "dimension 0 is 0"},
		"rows negative":          {in(1, raw(vectors), -2, features), out, "dimension 0 is -2"},
		"rows unthinkable":       {in(1, raw(vectors), 1<<62, features), out, "dimension 0 is 4611686018427387904"},
		"a byte less":            {in(1, raw(vectors)[1:], 2, features), out, "319 bytes, it needs 320"},
		"a row more than memory": {in(1, raw(vectors), 3, features), out, "320 bytes, it needs 480"},
		"output too small":       {good, []Tensor{{1, []int64{2}, raw(risk)[:4]}}, "4 bytes, it needs 8"},
		"output too small, free": {good, []Tensor{{1, nil, raw(risk)[:4]}}, "needs 8 bytes, there is room for 4"},
		"output of another type": {good, []Tensor{{7, nil, raw(risk)}}, "element type 1, 7 was asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			err := model.Infer(c.inputs, c.outputs)
			if !errors.Is(err, ErrTensor) || !strings.Contains(err.Error(), c.named) {
				t.Errorf("%v; want ErrTensor that names %q", err, c.named)
			}
		})
	}
}

func TestInfer_OutputOfFreeShape_IsFilledAndCut(t *testing.T) {
	model := load(t, 0)
	vectors, risk := buffers(3)
	want := inferred(t, model, vectors, 3)
	room := make([]byte, 100)
	out := []Tensor{{1, nil, room}}
	if err := model.Infer([]Tensor{{1, []int64{3, features}, raw(vectors)}}, out); err != nil {
		t.Fatal(err)
	}
	if len(out[0].Shape) != 1 || out[0].Shape[0] != 3 || len(out[0].Data) != 12 {
		t.Fatalf("shape %v, %d bytes", out[0].Shape, len(out[0].Data))
	}
	copy(raw(risk), out[0].Data)
	for i := range want {
		if risk[i] != want[i] {
			t.Errorf("row %d is %v, want %v", i, risk[i], want[i])
		}
	}
	if unsafe.SliceData(out[0].Data) != unsafe.SliceData(room) {
		t.Error("the output does not lie in the caller's memory")
	}
}
