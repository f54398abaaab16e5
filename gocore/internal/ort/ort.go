// Package ort runs ONNX models through libonnxruntime, over memory that the caller owns: nothing is copied.
//
// The library is the very file that the onnxruntime wheel ships; it is opened once and never closed. One intra-op thread
// and no spinning: the service owns its cores, and a small network has nothing to share out. Telemetry is off before the
// library loads (the variable) and again once it has (the call): a bank's scorer must not phone home.
package ort

import (
	"errors"
	"fmt"
	"os"
	"sync"

	onnx "github.com/yalue/onnxruntime_go"
)

// ErrRuntime is wrapped when libonnxruntime cannot be opened, or another one already is.
var ErrRuntime = errors.New("onnxruntime is not usable")

// ErrModel is wrapped when a model cannot be loaded, does not fit, or fails.
var ErrModel = errors.New("not a usable model")

// ErrClosed is returned for a model that was closed.
var ErrClosed = errors.New("the model is closed")

const telemetryVariable = "ORT_DISABLE_TELEMETRY"

var opened struct {
	sync.Mutex
	path string
}

// Open loads libonnxruntime from path; the same path again does nothing. All errors wrap ErrRuntime.
func Open(path string) error {
	opened.Lock()
	defer opened.Unlock()
	if opened.path != "" {
		if opened.path != path {
			return fmt.Errorf("%w: %s is open already, %s cannot be beside it", ErrRuntime, opened.path, path)
		}
		return nil
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%w: %w", ErrRuntime, err)
	}
	if err := os.Setenv(telemetryVariable, "1"); err != nil {
		return fmt.Errorf("%w: %w", ErrRuntime, err)
	}
	onnx.SetSharedLibraryPath(path)
	if err := onnx.InitializeEnvironment(onnx.WithLogLevelError()); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrRuntime, path, err)
	}
	if err := onnx.DisableTelemetry(); err != nil {
		err = errors.Join(err, onnx.DestroyEnvironment()) // nothing may run with it on
		return fmt.Errorf("%w: %s: telemetry stays on: %w", ErrRuntime, path, err)
	}
	opened.path = path
	return nil
}

// Version is that of the open library.
func Version() string { return onnx.GetVersion() }

func sessionOptions() (*onnx.SessionOptions, error) {
	options, err := onnx.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		options.SetIntraOpNumThreads(1),
		options.SetInterOpNumThreads(1),
		options.SetExecutionMode(onnx.ExecutionModeSequential),
		options.AddSessionConfigEntry("session.intra_op.allow_spinning", "0"),
		options.SetLogSeverityLevel(onnx.LoggingLevelError),
	)
	if err != nil {
		return nil, errors.Join(err, options.Destroy())
	}
	return options, nil
}
