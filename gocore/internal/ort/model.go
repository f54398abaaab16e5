package ort

import (
	"errors"
	"fmt"
	"sync"

	onnx "github.com/yalue/onnxruntime_go"
)

// Names of the scoring model's input, float32 (rows, features), and output, float32 (rows,) in [0, 1]: models/card.py.
const (
	InputName  = "features"
	OutputName = "risk"
)

// bindingsMax bounds the bindings that a model keeps: about 2 KiB each. A service uses one per number of rows in a batch.
const bindingsMax = 4096

// Model is one loaded model. Many may be alive; a new version is a new Model. Safe for concurrent use.
type Model struct {
	Inputs, Outputs []onnx.InputOutputInfo

	mu       sync.Mutex
	session  *onnx.DynamicAdvancedSession // nil once closed
	features int
	bindings map[place]*binding
}

// place is what a binding is bound to: addresses stay bound to what lies there, so one that is used again is still right.
type place struct {
	vectors, risk *float32
	rows          int
}

type binding struct {
	io              *onnx.IoBinding
	input, output   *onnx.Tensor[float32]
	vectors, result []float32
}

// Load reads a model. With features > 0 it has to be a scoring model of that width, which is proved by one run on zeros;
// with 0 any model does, for Infer. All errors wrap ErrModel.
func Load(model []byte, features int) (*Model, error) {
	if len(model) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrModel)
	}
	inputs, outputs, err := onnx.GetInputOutputInfoWithONNXData(model)
	if err != nil {
		return nil, fmt.Errorf("%w: onnxruntime %s: %w", ErrModel, Version(), err)
	}
	options, err := sessionOptions()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModel, err)
	}
	session, err := onnx.NewDynamicAdvancedSessionWithONNXData(model, names(inputs), names(outputs), options)
	if err = errors.Join(err, options.Destroy()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModel, err)
	}
	m := &Model{Inputs: inputs, Outputs: outputs, session: session, features: features, bindings: map[place]*binding{}}
	if features > 0 {
		if err := m.check(); err != nil {
			m.Close()
			return nil, err
		}
	}
	return m, nil
}

func names(infos []onnx.InputOutputInfo) []string {
	list := make([]string, len(infos))
	for i := range infos {
		list[i] = infos[i].Name
	}
	return list
}

// check runs the model once on zeros: names, width, type and range, and the first call's cost before the first request.
func (m *Model) check() error {
	const rows = 2
	if err := m.scores(); err != nil {
		return err
	}
	vectors, risk := make([]float32, rows*m.features), make([]float32, rows)
	for i := range risk {
		risk[i] = -1
	}
	b, err := m.bind(vectors, risk, rows)
	if err != nil {
		return fmt.Errorf("%w: it does not take %d features: %w", ErrModel, m.features, err)
	}
	defer b.close()
	if err := m.session.RunWithBinding(b.io); err != nil {
		return fmt.Errorf("%w: it does not take %d features: %w", ErrModel, m.features, err)
	}
	for _, score := range risk {
		if !(score >= 0 && score <= 1) {
			return fmt.Errorf("%w: output %q is %v on zeros, not within [0, 1]", ErrModel, OutputName, score)
		}
	}
	return nil
}

// scores reports whether the model has the input and output of a scoring model.
func (m *Model) scores() error {
	if len(m.Inputs) != 1 || m.Inputs[0].Name != InputName || m.Inputs[0].DataType != onnx.TensorElementDataTypeFloat {
		return fmt.Errorf("%w: it needs one input, float32 %q (rows, features)", ErrModel, InputName)
	}
	for _, output := range m.Outputs {
		if output.Name == OutputName && output.DataType == onnx.TensorElementDataTypeFloat && len(output.Dimensions) == 1 {
			return nil
		}
	}
	return fmt.Errorf("%w: it needs an output, float32 %q (rows,)", ErrModel, OutputName)
}

// Features is the width of the vectors that the model scores; 0 if it is not a scoring model.
func (m *Model) Features() int { return m.features }

// Score fills risk[:rows] from vectors[:rows*features]. Both are memory that no garbage collector moves or frees: they stay
// bound to the model. It allocates nothing once it has seen the place and the number of rows.
func (m *Model) Score(vectors, risk []float32, rows int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.session == nil {
		return ErrClosed
	}
	key := place{&vectors[0], &risk[0], rows}
	b := m.bindings[key]
	if b == nil {
		var err error
		if b, err = m.bind(vectors, risk, rows); err != nil {
			return fmt.Errorf("%w: binding %d rows: %w", ErrModel, rows, err)
		}
		if len(m.bindings) == bindingsMax {
			m.forget()
		}
		m.bindings[key] = b
	}
	if err := m.session.RunWithBinding(b.io); err != nil {
		return fmt.Errorf("%w: %w", ErrModel, err)
	}
	return nil
}

func (m *Model) bind(vectors, risk []float32, rows int) (b *binding, err error) {
	b = &binding{vectors: vectors[:rows*m.features], result: risk[:rows]}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.input, err = onnx.NewTensor(onnx.NewShape(int64(rows), int64(m.features)), b.vectors); err != nil {
		return nil, err
	}
	if b.output, err = onnx.NewTensor(onnx.NewShape(int64(rows)), b.result); err != nil {
		return nil, err
	}
	if b.io, err = m.session.CreateIoBinding(); err != nil {
		return nil, err
	}
	return b, errors.Join(b.io.BindInput(InputName, b.input), b.io.BindOutput(OutputName, b.output))
}

func (b *binding) close() {
	if b.io != nil {
		_ = b.io.Destroy() // none of the three can fail on what was made
	}
	if b.input != nil {
		_ = b.input.Destroy()
	}
	if b.output != nil {
		_ = b.output.Destroy()
	}
}

func (m *Model) forget() {
	for _, b := range m.bindings {
		b.close()
	}
	clear(m.bindings)
}

// Close frees the model; what still calls it gets ErrClosed.
func (m *Model) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.session == nil {
		return
	}
	m.forget()
	_ = m.session.Destroy() // it frees what is there
	m.session = nil
}
