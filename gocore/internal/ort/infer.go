package ort

import (
	"errors"
	"fmt"
	"reflect"
	"unsafe"

	onnx "github.com/yalue/onnxruntime_go"
)

// Tensor is one input or output of Infer: an ONNX element type (1 float32, 7 int64, ...), a shape, and the elements' bytes,
// little-endian, row by row.
type Tensor struct {
	Type  int32
	Shape []int64
	Data  []byte
}

// DimensionsMax bounds the shape of a tensor that Infer takes or gives.
const DimensionsMax = 8

// ErrTensor is wrapped when a tensor does not fit its type, its shape or the model.
var ErrTensor = errors.New("not a usable tensor")

// elementBytes by ONNX element type; 0 for those that Infer does not take (strings, complex and packed types).
var elementBytes = map[int32]int64{
	onnx.TensorElementDataTypeFloat: 4, onnx.TensorElementDataTypeDouble: 8, onnx.TensorElementDataTypeFloat16: 2,
	onnx.TensorElementDataTypeBFloat16: 2, onnx.TensorElementDataTypeBool: 1,
	onnx.TensorElementDataTypeInt8: 1, onnx.TensorElementDataTypeUint8: 1,
	onnx.TensorElementDataTypeInt16: 2, onnx.TensorElementDataTypeUint16: 2,
	onnx.TensorElementDataTypeInt32: 4, onnx.TensorElementDataTypeUint32: 4,
	onnx.TensorElementDataTypeInt64: 8, onnx.TensorElementDataTypeUint64: 8,
}

// Infer runs any model. inputs and outputs stand in the model's order. The Data of an output with a Shape has exactly the
// bytes of that shape and is filled in place; one whose Shape is nil gets the shape that the run gives, and its Data is
// filled as far as needed and cut to that, or the call fails if it is too small. All errors wrap ErrTensor, ErrModel or ErrClosed.
func (m *Model) Infer(inputs, outputs []Tensor) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.session == nil {
		return ErrClosed
	}
	in, err := wrapAll(inputs, m.Inputs, "input")
	defer func() { err = errors.Join(err, destroy(in)) }()
	if err != nil {
		return err
	}
	out, err := wrapAll(outputs, m.Outputs, "output")
	defer func() { err = errors.Join(err, destroy(out)) }()
	if err != nil {
		return err
	}
	if err := m.session.Run(in, out); err != nil {
		return fmt.Errorf("%w: %w", ErrModel, err)
	}
	for i := range outputs {
		if outputs[i].Shape == nil {
			if err := outputs[i].take(out[i], m.Outputs[i].Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// wrapAll makes an ORT value of each tensor; nil for an output whose shape only the run can tell.
func wrapAll(tensors []Tensor, infos []onnx.InputOutputInfo, side string) ([]onnx.Value, error) {
	if len(tensors) != len(infos) {
		return nil, fmt.Errorf("%w: %d %ss, the model has %d", ErrTensor, len(tensors), side, len(infos))
	}
	values := make([]onnx.Value, len(tensors))
	for i := range tensors {
		if side == "output" && tensors[i].Shape == nil {
			if t := tensors[i].Type; t == onnx.TensorElementDataTypeFloat16 || t == onnx.TensorElementDataTypeBFloat16 {
				return values, fmt.Errorf("%w: output %q of element type %d cannot be of a free shape; give its shape", ErrTensor, infos[i].Name, t)
			}
			continue
		}
		value, err := wrap(&tensors[i], &infos[i], side)
		if err != nil {
			return values, err
		}
		values[i] = value
	}
	return values, nil
}

func destroy(values []onnx.Value) (err error) {
	for _, value := range values {
		// A run that cannot make a tensor of an output leaves a nil pointer of its type there.
		if value != nil && !reflect.ValueOf(value).IsNil() {
			err = errors.Join(err, value.Destroy())
		}
	}
	return err
}

// take copies what a run made into t.
func (t *Tensor) take(value onnx.Value, name string) error {
	data := bytesOf(value)
	if data == nil || int32(value.DataType()) != t.Type {
		return fmt.Errorf("%w: output %q has element type %d, %d was asked for", ErrTensor, name, value.DataType(), t.Type)
	}
	if len(data) > len(t.Data) || len(value.GetShape()) > DimensionsMax {
		return fmt.Errorf("%w: output %q of shape %v needs %d bytes, there is room for %d", ErrTensor, name, value.GetShape(), len(data), len(t.Data))
	}
	t.Shape, t.Data = value.GetShape(), t.Data[:copy(t.Data, data)]
	return nil
}

// bytesOf is the content of a value that onnxruntime_go made, nil for one that Infer does not take.
func bytesOf(value onnx.Value) []byte {
	switch v := value.(type) {
	case *onnx.Tensor[float32]:
		return raw(v.GetData())
	case *onnx.Tensor[float64]:
		return raw(v.GetData())
	case *onnx.Tensor[int8]:
		return raw(v.GetData())
	case *onnx.Tensor[uint8]:
		return raw(v.GetData())
	case *onnx.Tensor[int16]:
		return raw(v.GetData())
	case *onnx.Tensor[uint16]:
		return raw(v.GetData())
	case *onnx.Tensor[int32]:
		return raw(v.GetData())
	case *onnx.Tensor[uint32]:
		return raw(v.GetData())
	case *onnx.Tensor[int64]:
		return raw(v.GetData())
	case *onnx.Tensor[uint64]:
		return raw(v.GetData())
	case *onnx.Tensor[bool]:
		return raw(v.GetData())
	}
	return nil
}

func raw[T any](elements []T) []byte {
	if len(elements) == 0 {
		return []byte{}
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&elements[0])), len(elements)*int(unsafe.Sizeof(elements[0])))
}

// wrap makes an ORT value of the caller's memory.
func wrap(t *Tensor, info *onnx.InputOutputInfo, side string) (onnx.Value, error) {
	where := fmt.Sprintf("%s %q", side, info.Name)
	width := elementBytes[t.Type]
	if width == 0 || int32(info.DataType) != t.Type {
		return nil, fmt.Errorf("%w: %s has element type %d, the model's is %d", ErrTensor, where, t.Type, info.DataType)
	}
	if len(t.Shape) != len(info.Dimensions) {
		return nil, fmt.Errorf("%w: %s has %d dimensions, the model's has %d", ErrTensor, where, len(t.Shape), len(info.Dimensions))
	}
	elements := int64(1)
	for i, n := range t.Shape {
		if n < 1 || n > 1<<31 || elements > 1<<40/n {
			return nil, fmt.Errorf("%w: %s: dimension %d is %d", ErrTensor, where, i, n)
		}
		if want := info.Dimensions[i]; want > 0 && n != want {
			return nil, fmt.Errorf("%w: %s: dimension %d is %d, the model's is %d", ErrTensor, where, i, n, want)
		}
		elements *= n
	}
	if int64(len(t.Data)) != elements*width {
		return nil, fmt.Errorf("%w: %s of shape %v has %d bytes, it needs %d", ErrTensor, where, t.Shape, len(t.Data), elements*width)
	}
	value, err := onnx.NewCustomDataTensor(onnx.NewShape(t.Shape...), t.Data, onnx.TensorElementDataType(t.Type))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrTensor, where, err)
	}
	return value, nil
}
