package main

// #include "weir.h"
import "C"

import (
	"fmt"
	"unsafe"

	"weir/gocore/internal/maybe"
)

const (
	filtersMax = 64 // looked at together
	fewFilters = 8  // up to here no memory is asked for
)

var filters = handles[maybe.Filter]{what: "filter"}

//export weir_filter_open
func weir_filter_open(keys C.int64_t, fpp C.double, handle *C.uint64_t, size *C.int64_t) (status C.int32_t) {
	defer recoverTo(&status)
	if size == nil {
		return statusOf(fmt.Errorf("bytes: %w", errNull))
	}
	filter, err := maybe.New(int64(keys), float64(fpp))
	if err != nil {
		return statusOf(err)
	}
	*size = C.int64_t(filter.Bytes())
	return statusOf(give(&filters, filter, handle))
}

//export weir_filter_close
func weir_filter_close(handle C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	_, err := filters.take(uint64(handle))
	return statusOf(err)
}

//export weir_filter_find
func weir_filter_find(first *C.uint64_t, n_filters C.int64_t, start *C.uint8_t, size C.int64_t, found *C.uint8_t, n C.int64_t, add C.int32_t) (status C.int32_t) {
	defer recoverTo(&status)
	var room [fewFilters]*maybe.Filter
	several, err := filtersAt(first, n_filters, room[:0])
	if err != nil {
		return statusOf(err)
	}
	list, err := spanAt(start, size, "keys")
	if err != nil {
		return statusOf(err)
	}
	answers, err := spanAt(found, n, "found")
	switch {
	case err != nil:
	case add != 0:
		err = maybe.Take(several, list, answers)
	default:
		err = maybe.Find(several, list, answers)
	}
	return statusOf(err)
}

// filtersAt are the filters with these handles, one at least.
func filtersAt(start *C.uint64_t, n C.int64_t, several []*maybe.Filter) ([]*maybe.Filter, error) {
	switch {
	case start == nil:
		return nil, fmt.Errorf("filters: %w", errNull)
	case n < 1 || n > filtersMax:
		return nil, fmt.Errorf("%w: %d filters, not 1 to %d", errArgument, int64(n), filtersMax)
	}
	for _, handle := range unsafe.Slice(start, int(n)) {
		filter, err := filters.get(uint64(handle))
		if err != nil {
			return nil, err
		}
		several = append(several, filter)
	}
	return several, nil
}
