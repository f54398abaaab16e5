package main

// #include "weir.h"
import "C"

import (
	"encoding/json"
	"fmt"
	"unsafe"

	onnx "github.com/yalue/onnxruntime_go"

	"weir/gocore/internal/advance"
	"weir/gocore/internal/intake"
	"weir/gocore/internal/ort"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/profile"
)

const (
	planBytesMax  = 64 << 20
	modelBytesMax = 2 << 30 // what a protobuf message can hold
	pathBytesMax  = 4096
)

var (
	plans  = handles[loaded]{what: "plan"}
	models = handles[ort.Model]{what: "model"}
)

// loaded is a plan, and what weir_intake needs of it; intakeErr says why a plan cannot take bodies in.
type loaded struct {
	*plan.Plan
	intake    *intake.Intake
	intakeErr error
}

//export weir_open_runtime
func weir_open_runtime(path *C.char) (status C.int32_t) {
	defer recoverTo(&status)
	if path == nil {
		return statusOf(fmt.Errorf("path: %w", errNull))
	}
	return statusOf(ort.Open(C.GoString(path)))
}

//export weir_runtime_version
func weir_runtime_version(buffer *C.char, size C.int64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		if !onnx.IsInitialized() {
			return fmt.Errorf("%w: it is not open yet", ort.ErrRuntime)
		}
		target, err := bytesAt(unsafe.Pointer(buffer), size, "version", 1<<20)
		if err != nil {
			return err
		}
		target[copy(target[:len(target)-1], ort.Version())] = 0
		return nil
	}())
}

//export weir_plan_load
func weir_plan_load(data *C.uint8_t, size C.int64_t, handle *C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		bytes, err := bytesAt(unsafe.Pointer(data), size, "plan", planBytesMax)
		if err != nil {
			return err
		}
		p, err := plan.Parse(bytes)
		if err != nil {
			return err
		}
		in, err := intake.New(p)
		return give(&plans, &loaded{p, in, err}, handle)
	}())
}

// give puts value behind a new handle in the caller's place for it.
func give[T any](h *handles[T], value *T, handle *C.uint64_t) error {
	if handle == nil {
		return fmt.Errorf("%s handle: %w", h.what, errNull)
	}
	number, err := h.put(value)
	if err == nil {
		*handle = C.uint64_t(number)
	}
	return err
}

//export weir_plan_close
func weir_plan_close(handle C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	_, err := plans.take(uint64(handle))
	return statusOf(err)
}

//export weir_model_load
func weir_model_load(data *C.uint8_t, size, features C.int64_t, handle *C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		bytes, err := bytesAt(unsafe.Pointer(data), size, "model", modelBytesMax)
		if err != nil {
			return err
		}
		if features < 0 || features > 1<<20 {
			return fmt.Errorf("%w: a model of %d features", errArgument, int64(features))
		}
		if handle == nil {
			return fmt.Errorf("model handle: %w", errNull)
		}
		if !onnx.IsInitialized() {
			return fmt.Errorf("%w: it is not open yet", ort.ErrRuntime)
		}
		model, err := ort.Load(bytes, int(features))
		if err != nil {
			return err
		}
		return give(&models, model, handle)
	}())
}

//export weir_model_close
func weir_model_close(handle C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	model, err := models.take(uint64(handle))
	if err == nil {
		model.Close()
	}
	return statusOf(err)
}

// description is what weir_model_describe says of one input or output.
type description struct {
	Name        string  `json:"name"`
	ElementType int     `json:"element_type"`
	Shape       []int64 `json:"shape"`
}

func describe(infos []onnx.InputOutputInfo) []description {
	list := make([]description, len(infos))
	for i := range infos {
		list[i] = description{infos[i].Name, int(infos[i].DataType), infos[i].Dimensions}
	}
	return list
}

//export weir_model_describe
func weir_model_describe(handle C.uint64_t, buffer *C.char, size C.int64_t, written *C.int64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		model, err := models.get(uint64(handle))
		if err != nil {
			return err
		}
		text, err := json.Marshal(map[string][]description{"inputs": describe(model.Inputs), "outputs": describe(model.Outputs)})
		if err != nil {
			return err
		}
		if written == nil {
			return fmt.Errorf("written: %w", errNull)
		}
		*written = C.int64_t(len(text))
		target, err := bytesAt(unsafe.Pointer(buffer), size, "description", 1<<30)
		if err != nil {
			return err
		}
		if copy(target, text) < len(text) {
			return fmt.Errorf("%w: the description has %d bytes, the buffer %d", errArgument, len(text), int64(size))
		}
		return nil
	}())
}

//export weir_merge
func weir_merge(handle C.uint64_t, kind C.int64_t, left, right, out *C.uint8_t, size C.int64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		p, err := plans.get(uint64(handle))
		if err != nil {
			return err
		}
		if kind < 0 || int(kind) >= len(p.Kinds) {
			return fmt.Errorf("%w: kind %d, the plan has %d", errArgument, int64(kind), len(p.Kinds))
		}
		k := &p.Kinds[kind]
		var sides [3][]byte
		for i, pointer := range []*C.uint8_t{left, right, out} {
			if sides[i], err = bytesAt(unsafe.Pointer(pointer), size, "profile", int64(k.Size)); err != nil {
				return err
			}
		}
		for _, side := range sides[:2] {
			if err := profile.Check(k, side); err != nil {
				return err
			}
		}
		// The caller's bytes need not stand at multiples of 8, words have to.
		words := make([]int64, 3*k.Words())
		l, r, o := words[:k.Words()], words[k.Words():2*k.Words()], words[2*k.Words():]
		copy(profile.AsBytes(l), sides[0])
		copy(profile.AsBytes(r), sides[1])
		advance.Merge(k, l, r, o)
		copy(sides[2], profile.AsBytes(o))
		return nil
	}())
}
