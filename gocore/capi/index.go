package main

// #include "weir.h"
import "C"

import (
	"fmt"
	"unsafe"

	"weir/gocore/internal/index"
)

var indexes = handles[index.Index]{what: "index"}

//export weir_index_open
func weir_index_open(handle *C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	return statusOf(give(&indexes, index.New(), handle))
}

//export weir_index_close
func weir_index_close(handle C.uint64_t) (status C.int32_t) {
	defer recoverTo(&status)
	_, err := indexes.take(uint64(handle))
	return statusOf(err)
}

//export weir_index_put
func weir_index_put(handle C.uint64_t, start *C.uint8_t, size C.int64_t, first *C.int64_t, n C.int64_t) (status C.int32_t) {
	defer recoverTo(&status)
	x, err := indexes.get(uint64(handle))
	if err != nil {
		return statusOf(err)
	}
	list, err := spanAt(start, size, "ids")
	if err != nil {
		return statusOf(err)
	}
	slots, err := wordsAt(first, n, "slots")
	if err == nil {
		err = x.PutMany(list, slots)
	}
	return statusOf(err)
}

//export weir_index_remove
func weir_index_remove(handle C.uint64_t, first *C.int64_t, n C.int64_t, start *C.uint8_t, size C.int64_t, written *C.int64_t) (status C.int32_t) {
	defer recoverTo(&status)
	x, err := indexes.get(uint64(handle))
	if err != nil {
		return statusOf(err)
	}
	slots, err := idsOf(x, first, n, start, size, written)
	if err == nil {
		err = x.RemoveMany(slots)
	}
	return statusOf(err)
}

//export weir_index_find
func weir_index_find(handle C.uint64_t, start *C.uint8_t, size C.int64_t, first *C.int64_t, n C.int64_t) (status C.int32_t) {
	defer recoverTo(&status)
	x, err := indexes.get(uint64(handle))
	if err != nil {
		return statusOf(err)
	}
	list, err := spanAt(start, size, "ids")
	if err != nil {
		return statusOf(err)
	}
	slots, err := wordsAt(first, n, "slots")
	if err == nil {
		_, _, err = x.FindMany(list, slots)
	}
	return statusOf(err)
}

//export weir_index_ids
func weir_index_ids(handle C.uint64_t, first *C.int64_t, n C.int64_t, start *C.uint8_t, size C.int64_t, written *C.int64_t) (status C.int32_t) {
	defer recoverTo(&status)
	x, err := indexes.get(uint64(handle))
	if err != nil {
		return statusOf(err)
	}
	_, err = idsOf(x, first, n, start, size, written)
	return statusOf(err)
}

// idsOf writes the ids that have the slots, a line feed after each; `written` gets their bytes, also where there is no room.
func idsOf(x *index.Index, first *C.int64_t, n C.int64_t, start *C.uint8_t, size C.int64_t, written *C.int64_t) ([]int64, error) {
	slots, err := wordsAt(first, n, "slots")
	if err != nil {
		return nil, err
	}
	room, err := spanAt(start, size, "ids")
	if err == nil && written == nil {
		err = fmt.Errorf("written: %w", errNull)
	}
	if err != nil {
		return nil, err
	}
	list := x.AppendIDs(room[:0:len(room)], slots) // where there is too little room, append goes elsewhere
	*written = C.int64_t(len(list))
	if len(list) > len(room) {
		return nil, fmt.Errorf("%w: %d bytes of ids, there is room for %d", errArgument, len(list), len(room))
	}
	return slots, nil
}

// indexesAt are the indexes with these handles, one for each of `kinds` kinds.
func indexesAt(start *C.uint64_t, n C.int64_t, kinds int, found []*index.Index) ([]*index.Index, error) {
	switch {
	case start == nil:
		return nil, fmt.Errorf("indexes: %w", errNull)
	case int64(n) != int64(kinds):
		return nil, fmt.Errorf("%w: %d indexes for %d kinds", errArgument, int64(n), kinds)
	}
	for _, handle := range unsafe.Slice(start, kinds) {
		x, err := indexes.get(uint64(handle))
		if err != nil {
			return nil, err
		}
		found = append(found, x)
	}
	return found, nil
}
