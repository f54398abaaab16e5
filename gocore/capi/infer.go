package main

// #include "weir.h"
import "C"

import (
	"fmt"
	"unsafe"

	"weir/gocore/internal/ort"
)

const (
	tensorsMax     = 1024
	tensorBytesMax = 16 << 30
)

//export weir_infer
func weir_infer(handle C.uint64_t, inputs *C.weir_tensor, nInputs C.int64_t, outputs *C.weir_tensor, nOutputs C.int64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(func() error {
		model, err := models.get(uint64(handle))
		if err != nil {
			return err
		}
		in, err := tensors(inputs, nInputs, "input")
		if err != nil {
			return err
		}
		out, err := tensors(outputs, nOutputs, "output")
		if err != nil {
			return err
		}
		if err := model.Infer(in, out); err != nil {
			return err
		}
		targets := unsafe.Slice(outputs, len(out))
		for i := range targets {
			if t := &targets[i]; t.n_dimensions < 0 {
				copy(unsafe.Slice((*int64)(unsafe.Pointer(t.shape)), ort.DimensionsMax), out[i].Shape)
				t.n_dimensions, t.size = C.int64_t(len(out[i].Shape)), C.int64_t(len(out[i].Data))
			}
		}
		return nil
	}())
}

// tensors are the caller's, in place.
func tensors(first *C.weir_tensor, n C.int64_t, side string) ([]ort.Tensor, error) {
	if first == nil {
		return nil, fmt.Errorf("%ss: %w", side, errNull)
	}
	if n < 1 || n > tensorsMax {
		return nil, fmt.Errorf("%w: %d %ss, not 1 to %d", errArgument, int64(n), side, tensorsMax)
	}
	list := make([]ort.Tensor, n)
	for i, t := range unsafe.Slice(first, int(n)) {
		what := fmt.Sprintf("%s %d", side, i)
		data, err := bytesAt(t.data, t.size, what, tensorBytesMax)
		if err != nil {
			return nil, err
		}
		if t.n_dimensions < -1 || t.n_dimensions > ort.DimensionsMax || (t.n_dimensions == -1 && side == "input") {
			return nil, fmt.Errorf("%w: %s has %d dimensions, not 0 to %d", errArgument, what, int64(t.n_dimensions), ort.DimensionsMax)
		}
		if t.shape == nil {
			return nil, fmt.Errorf("%s: shape: %w", what, errNull)
		}
		list[i] = ort.Tensor{Type: int32(t.element_type), Data: data}
		if t.n_dimensions >= 0 {
			shape := unsafe.Slice((*int64)(unsafe.Pointer(t.shape)), int(t.n_dimensions))
			list[i].Shape = append([]int64{}, shape...)
		}
	}
	return list, nil
}
