// Package jsontext writes JSON as the Python service writes it, and reads any JSON into a tree for error messages.
//
// Appending allocates nothing beyond the destination. The tree is for failing paths only: it allocates freely.
package jsontext

import (
	"math"
	"strconv"
)

const hexDigits = "0123456789abcdef"

// AppendString appends s, which is valid UTF-8, as a JSON string. Only what JSON demands is escaped.
func AppendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(append(dst, s[from:]...), '"')
}

// AppendStrings appends a JSON array of strings.
func AppendStrings(dst []byte, list []string) []byte {
	dst = append(dst, '[')
	for i, s := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendString(dst, s)
	}
	return append(dst, ']')
}

// AppendFloat appends a finite f by its fewest digits: always with a point or an exponent, plain from 1e-5 to below 1e16.
func AppendFloat(dst []byte, f float64) []byte {
	size := math.Abs(f)
	if size != 0 && (size < 1e-5 || size >= 1e16) {
		start := len(dst)
		dst = strconv.AppendFloat(dst, f, 'e', -1, 64)
		return trimExponent(dst, start)
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
	for _, c := range dst[start:] {
		if c == '.' {
			return dst
		}
	}
	return append(dst, '.', '0')
}

// trimExponent turns 1e+16 into 1e16 and 1e-07 into 1e-7.
func trimExponent(dst []byte, start int) []byte {
	at := start
	for dst[at] != 'e' {
		at++
	}
	at++
	to := at
	if dst[at] == '-' {
		to++
	}
	at++
	if dst[at] == '0' && at+1 < len(dst) {
		at++
	}
	return append(dst[:to], dst[at:]...)
}
