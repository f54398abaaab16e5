// Package main is the c-shared library: checks what comes over the boundary, recovers panics into a status and a message,
// and calls the packages that do the work. weir.h is its contract.
package main

/*
#include <stdlib.h>
#include <string.h>
#include "weir.h"

// The message of the calling thread. An exported call runs on the thread that made it, so it can keep it here.
static _Thread_local char last_error[1024];

static void keep_error(const char *message, size_t n) {
	if (n > sizeof last_error - 1) n = sizeof last_error - 1;
	memcpy(last_error, message, n);
	last_error[n] = 0;
}

static int64_t copy_error(char *buffer, int64_t size) {
	int64_t n = (int64_t)strlen(last_error);
	if (buffer != NULL && size > 0) {
		int64_t m = n < size - 1 ? n : size - 1;
		memcpy(buffer, last_error, (size_t)m);
		buffer[m] = 0;
	}
	return n;
}
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"unsafe"

	"weir/gocore/internal/ort"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/profile"
	"weir/gocore/internal/score"
)

func main() {} // a c-shared library needs one

// gcPercent of what is held may be garbage before it is looked for. What is held are a few large tables without pointers, and scoring
// allocates nothing, so that a collection is rare and short; at Go's own 100 the index of a million entities left 40 MiB of garbage.
const gcPercent = 20

func init() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

var (
	errNull     = errors.New("a pointer is null")
	errArgument = errors.New("not a usable argument")
)

// statuses: the first error that the failure wraps decides.
var statuses = []struct {
	err    error
	status C.int32_t
}{
	{errHandle, C.WEIR_BAD_HANDLE},
	{ort.ErrClosed, C.WEIR_BAD_HANDLE},
	{score.ErrBusy, C.WEIR_BUSY},
	{plan.ErrPlan, C.WEIR_BAD_PLAN},
	{profile.ErrUnknownProfile, C.WEIR_BAD_PROFILE},
	{ort.ErrRuntime, C.WEIR_NO_RUNTIME},
	{ort.ErrModel, C.WEIR_BAD_MODEL},
}

// statusOf is the status of err, whose message the calling thread keeps.
func statusOf(err error) C.int32_t {
	if err == nil {
		return C.WEIR_OK
	}
	keep(err.Error())
	var panicked *panicError
	if errors.As(err, &panicked) {
		return C.WEIR_PANIC
	}
	for _, known := range statuses {
		if errors.Is(err, known.err) {
			return known.status
		}
	}
	return C.WEIR_BAD_ARGUMENT
}

func keep(message string) {
	if message == "" {
		message = "no message"
	}
	C.keep_error((*C.char)(unsafe.Pointer(unsafe.StringData(message))), C.size_t(len(message)))
}

// panicError is a panic that was stopped at the boundary.
type panicError struct{ text string }

func (e *panicError) Error() string { return e.text }

// recovered turns a panic into an error; deferred first by whatever runs Go code for a caller.
func recovered(err *error) {
	if found := recover(); found != nil {
		*err = &panicError{fmt.Sprintf("panic in the Go core: %v\n%s", found, debug.Stack())}
	}
}

// recoverTo is the first line of every export.
func recoverTo(status *C.int32_t) {
	if found := recover(); found != nil {
		keep(fmt.Sprintf("panic in the Go core: %v\n%s", found, debug.Stack()))
		*status = C.WEIR_PANIC
	}
}

//export weir_abi_version
func weir_abi_version() C.int32_t { return C.WEIR_ABI_VERSION }

//export weir_last_error
func weir_last_error(buffer *C.char, size C.int64_t) C.int64_t { return C.copy_error(buffer, size) }

//export weir_panic
func weir_panic() (status C.int32_t) {
	defer recoverTo(&status)
	panic("asked for")
}

// bytesAt is n bytes of the caller's memory.
func bytesAt(address unsafe.Pointer, n C.int64_t, what string, most int64) ([]byte, error) {
	switch {
	case address == nil:
		return nil, fmt.Errorf("%s: %w", what, errNull)
	case n < 1 || int64(n) > most:
		return nil, fmt.Errorf("%w: %s: %d bytes, not 1 to %d", errArgument, what, int64(n), most)
	}
	return unsafe.Slice((*byte)(address), int(n)), nil
}
