package msgpack

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
)

func TestInt_EachWidthAndItsLimits_ShortestAndBack(t *testing.T) {
	for n, head := range map[int64]string{
		0: "00", 127: "7f", 128: "cc80", 255: "ccff", 256: "cd0100", 65535: "cdffff", 65536: "ce00010000",
		math.MaxUint32: "ceffffffff", math.MaxUint32 + 1: "cf0000000100000000", math.MaxInt64: "cf7fffffffffffffff",
		-1: "ff", -32: "e0", -33: "d0df", -128: "d080", -129: "d1ff7f", -32768: "d18000", -32769: "d2ffff7fff",
		math.MinInt32: "d280000000", math.MinInt32 - 1: "d3ffffffff7fffffff", math.MinInt64: "d38000000000000000",
	} {
		b := AppendInt(nil, n)
		r := Reader{Data: b}
		if got := fmt.Sprintf("%x", b); got != head || r.Int() != n || r.End() != nil {
			t.Errorf("%d: %s, want %s, %v", n, got, head, r.Err())
		}
	}
}

func TestString_EachWidth_Back(t *testing.T) {
	for _, n := range []int{0, 31, 32, 255, 256, 65535, 65536} {
		s := strings.Repeat("x", n)
		r := Reader{Data: AppendBytes(AppendString(nil, s), []byte(s))}
		if r.String() != s || !bytes.Equal(r.Bytes(), []byte(s)) || r.End() != nil {
			t.Errorf("%d: %v", n, r.Err())
		}
	}
}

func TestArray_EachWidth_Back(t *testing.T) {
	for _, n := range []int{0, 15, 16, 65535, 65536} {
		list := make([]string, n)
		r := Reader{Data: AppendStrings(nil, list)}
		if got := r.Strings(); len(got) != n || r.End() != nil {
			t.Errorf("%d: %d, %v", n, len(got), r.Err())
		}
	}
}

func TestReader_WhatIsNotThere_ErrFormatOnceAndForAll(t *testing.T) {
	for name, read := range map[string]func(r *Reader){
		"int":          func(r *Reader) { r.Data = []byte{0xa1, 'x'}; r.Int() },
		"large":        func(r *Reader) { r.Data = AppendUint(nil, math.MaxUint64); r.Int() },
		"text":         func(r *Reader) { r.Data = []byte{1}; _ = r.String() },
		"bytes":        func(r *Reader) { r.Data = []byte{1}; r.Bytes() },
		"array":        func(r *Reader) { r.Data = []byte{1}; r.Array() },
		"long array":   func(r *Reader) { r.Data = []byte{0xdd, 0xff, 0xff, 0xff, 0xff, 0}; r.Array() },
		"map":          func(r *Reader) { r.Data = nil; r.Map() },
		"short string": func(r *Reader) { r.Data = []byte{0xdb, 0xff, 0xff, 0xff, 0xff}; _ = r.String() },
		"float":        func(r *Reader) { r.Data = []byte{0xcb, 0}; r.Float() },
		"rest":         func(r *Reader) { r.Data = []byte{1} },
	} {
		r := &Reader{}
		read(r)
		if err := r.End(); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
		if r.Int() != 0 || r.String() != "" || r.Strings() != nil {
			t.Errorf("%s: values after a failure", name)
		}
	}
}

func TestFloat_Integer_TakenAsOne(t *testing.T) {
	r := Reader{Data: AppendFloat(AppendInt(nil, -5), 0.1)}
	if r.Float() != -5 || r.Float() != 0.1 || r.Err() != nil {
		t.Error(r.Err())
	}
	r = Reader{Data: AppendNil([]byte{1})}
	if r.Nil() || r.Int() != 1 || !r.Nil() || r.Nil() {
		t.Error("Nil takes nil alone")
	}
}
