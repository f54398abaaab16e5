package msgpack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unsafe"
)

// ErrFormat is wrapped when bytes are not what was asked for.
var ErrFormat = errors.New("not the MessagePack that was expected")

// Reader takes values off the front of Data. The first failure sticks: later reads give zero values, Err says what it was.
// With Views, text is a view of Data too: for whoever lets go of it before Data changes.
type Reader struct {
	Data  []byte
	Views bool
	err   error
}

// Err is the first failure, or nil.
func (r *Reader) Err() error { return r.err }

// End reports a failure, or bytes that are left over.
func (r *Reader) End() error {
	if r.err == nil && len(r.Data) > 0 {
		r.fail(fmt.Sprintf("%d bytes are left over", len(r.Data)))
	}
	return r.err
}

func (r *Reader) fail(problem string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrFormat, problem)
	}
	r.Data = nil
}

// next is the next n bytes, nil at the end.
func (r *Reader) next(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.Data) {
		r.fail("it ends early")
		return nil
	}
	taken := r.Data[:n:n]
	r.Data = r.Data[n:]
	return taken
}

// size reads an unsigned big-endian number of n bytes.
func (r *Reader) size(n int) uint64 {
	var wide [8]byte
	copy(wide[8-n:], r.next(n))
	return binary.BigEndian.Uint64(wide[:])
}

func (r *Reader) tag() byte {
	b := r.next(1)
	if b == nil {
		return 0xc1 // never used by MessagePack
	}
	return b[0]
}

// Nil reports whether the next value is nil, and if so takes it.
func (r *Reader) Nil() bool {
	if len(r.Data) > 0 && r.Data[0] == 0xc0 {
		r.Data = r.Data[1:]
		return true
	}
	return false
}

// Int reads an integer that fits an int64.
func (r *Reader) Int() int64 {
	switch t := r.tag(); {
	case t < 0x80:
		return int64(t)
	case t >= 0xe0:
		return int64(int8(t))
	case t >= 0xcc && t <= 0xcf:
		n := r.size(1 << (t - 0xcc))
		if n > math.MaxInt64 {
			r.fail(fmt.Sprintf("integer %d is too large", n))
		}
		return int64(n)
	case t >= 0xd0 && t <= 0xd3:
		width := 1 << (t - 0xd0)
		shift := 64 - 8*width
		return int64(r.size(width)<<shift) >> shift
	default:
		r.fail(fmt.Sprintf("%#x begins no integer", t))
		return 0
	}
}

// Float reads a float64, or a float32 or an integer as one.
func (r *Reader) Float() float64 {
	if len(r.Data) == 0 {
		r.tag()
		return 0
	}
	switch r.Data[0] {
	case 0xca:
		r.tag()
		return float64(math.Float32frombits(uint32(r.size(4))))
	case 0xcb:
		r.tag()
		return math.Float64frombits(r.size(8))
	}
	return float64(r.Int())
}

// String reads text, copied unless Views is set.
func (r *Reader) String() string {
	var text []byte
	switch t := r.tag(); {
	case t&0xe0 == 0xa0:
		text = r.next(int(t & 0x1f))
	case t >= 0xd9 && t <= 0xdb:
		text = r.next(int(r.size(1 << (t - 0xd9))))
	default:
		r.fail(fmt.Sprintf("%#x begins no text", t))
	}
	if r.Views {
		return unsafe.String(unsafe.SliceData(text), len(text))
	}
	return string(text)
}

// Bytes reads raw bytes: a view of the input.
func (r *Reader) Bytes() []byte {
	t := r.tag()
	if t >= 0xc4 && t <= 0xc6 {
		return r.next(int(r.size(1 << (t - 0xc4))))
	}
	r.fail(fmt.Sprintf("%#x begins no bytes", t))
	return nil
}

// Array reads the head of an array: how many items follow.
func (r *Reader) Array() int {
	return r.head(0x90, 0xdc, "array")
}

// Map reads the head of a map: how many pairs follow.
func (r *Reader) Map() int {
	return r.head(0x80, 0xde, "map")
}

func (r *Reader) head(short, long byte, what string) int {
	t := r.tag()
	n := -1
	switch {
	case t&0xf0 == short:
		n = int(t & 0x0f)
	case t == long || t == long+1:
		n = int(r.size(2 << (t - long)))
	}
	if n < 0 || n > len(r.Data) { // an item takes a byte at least
		r.fail(fmt.Sprintf("%#x begins no %s that fits", t, what))
		return 0
	}
	return n
}

// Strings reads an array of text.
func (r *Reader) Strings() []string {
	n := r.Array()
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = r.String()
	}
	return list
}
