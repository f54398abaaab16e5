package tx

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// scanner walks over JSON text, left to right. Its words are those of msgspec, so that both services refuse alike; positions
// are bytes from the start of the text.
type scanner struct {
	s   string
	i   int
	odd bool // a string held something besides printable ASCII
}

// fault is why text is refused: where (path is the place in an array, "[3]", field a name) and, in some kinds, the reason.
type fault struct {
	kind        faultKind
	path, field string
	reason      string
}

type faultKind int

const (
	syntax  faultKind = iota // no JSON
	notUTF8                  // a string's bytes are no characters
	nested                   // more than depthMax levels
	whole                    // JSON, but not the container that was expected
	value                    // field: a value that does not fit it
	missing                  // field is not there
	unknown                  // field is not known
)

const truncated = "Input data was truncated"

func broken(reason string, at int) *fault {
	return &fault{kind: syntax, reason: "JSON is malformed: " + reason + " (byte " + strconv.Itoa(at) + ")"}
}

func ended() *fault { return &fault{kind: syntax, reason: truncated} }

// space moves to the next byte that is none; false at the end.
func (s *scanner) space() bool {
	for s.i < len(s.s) {
		switch s.s[s.i] {
		case ' ', '\n', '\r', '\t':
			s.i++
		default:
			return true
		}
	}
	return false
}

// text reads a string; s.i is at its opening quote.
func (s *scanner) text() (string, *fault) {
	text, f := s.rawText()
	if f == nil && s.odd && !utf8.ValidString(text) {
		return "", &fault{kind: notUTF8}
	}
	return text, f
}

// rawText is text that may not be UTF-8.
func (s *scanner) rawText() (string, *fault) {
	start := s.i + 1
	for i := start; i < len(s.s); i++ {
		c := s.s[i]
		if c == '"' {
			s.i = i + 1
			return s.s[start:i], nil
		}
		if c < ' ' || c == '\\' || c >= 0x7f {
			return s.oddText(start, i)
		}
	}
	return "", ended()
}

// oddText reads on at i, where something else than a printable ASCII character stands.
func (s *scanner) oddText(start, i int) (string, *fault) {
	s.odd = true
	var made []byte // nil as long as the text is the body's
	from := start
	for i < len(s.s) {
		switch c := s.s[i]; {
		case c == '"':
			s.i = i + 1
			text := s.s[from:i]
			if made != nil {
				text = string(append(made, text...))
			}
			return text, nil
		case c < ' ':
			return "", broken("invalid character", i)
		case c == '\\':
			made = append(made, s.s[from:i]...)
			var f *fault
			if made, i, f = s.escape(made, i+1); f != nil {
				return "", f
			}
			from = i
		default:
			i++
		}
	}
	return "", ended()
}

// escape appends what the escape means whose letter stands at i, and returns the place after it.
func (s *scanner) escape(made []byte, i int) ([]byte, int, *fault) {
	if i == len(s.s) {
		return nil, 0, ended()
	}
	c := s.s[i]
	i++
	if at := strings.IndexByte(`"\/bfnrt`, c); at >= 0 {
		return append(made, "\"\\/\b\f\n\r\t"[at]), i, nil
	}
	if c != 'u' {
		return nil, 0, broken("invalid escape character in string", i)
	}
	high, i, f := s.hex(i)
	switch {
	case f != nil:
		return nil, 0, f
	case high < 0xD800 || high >= 0xE000:
		return utf8.AppendRune(made, high), i, nil
	case high >= 0xDC00:
		return nil, 0, broken("invalid utf-16 surrogate pair", i)
	case len(s.s)-i < 6:
		return nil, 0, ended()
	case s.s[i:i+2] != `\u`:
		return nil, 0, broken("unexpected end of escaped utf-16 surrogate pair", i)
	}
	low, i, f := s.hex(i + 2)
	if f != nil {
		return nil, 0, f
	}
	if low < 0xDC00 || low >= 0xE000 {
		return nil, 0, broken("invalid utf-16 surrogate pair", i)
	}
	return utf8.AppendRune(made, 0x10000+(high-0xD800)<<10+(low-0xDC00)), i, nil
}

func (s *scanner) hex(i int) (rune, int, *fault) {
	if len(s.s)-i < 4 {
		return 0, 0, ended()
	}
	var r rune
	for end := i + 4; i < end; {
		c := s.s[i]
		i++
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, 0, broken("invalid character in unicode escape", i)
		}
	}
	return r, i, nil
}

// number is a numeric literal: its value if it is an integer that fits 64 bits and a sign, and its text.
type number struct {
	text     string
	digits   uint64
	negative bool
	whole    bool
	overflow bool
}

func (s *scanner) number() (n number, f *fault) {
	start, i := s.i, s.i
	n.whole = true
	if s.s[i] == '-' {
		n.negative = true
		i++
		if i < len(s.s) && (s.s[i] < '0' || s.s[i] > '9') {
			return n, broken("invalid character", i)
		}
	}
	first := i
	for i < len(s.s) && s.s[i] >= '0' && s.s[i] <= '9' {
		d := uint64(s.s[i] - '0')
		n.overflow = n.overflow || n.digits > (math.MaxUint64-d)/10
		n.digits = n.digits*10 + d
		i++
	}
	if i == first {
		return n, broken("invalid number", i)
	}
	if s.s[first] == '0' && i > first+1 {
		return n, broken("invalid number", first+1)
	}
	if i < len(s.s) && (s.s[i] == '.' || s.s[i]|0x20 == 'e') {
		n.whole = false
		if i, f = s.fraction(i); f != nil {
			return n, f
		}
	}
	n.text = s.s[start:i]
	s.i = i
	return n, nil
}

// fraction passes what follows the integer part of a number; i is at its point or its e.
func (s *scanner) fraction(i int) (int, *fault) {
	digits := func() bool {
		from := i
		for i < len(s.s) && s.s[i] >= '0' && s.s[i] <= '9' {
			i++
		}
		return i > from
	}
	if s.s[i] == '.' {
		i++
		if !digits() {
			return 0, broken("invalid number", i)
		}
	}
	if i < len(s.s) && s.s[i]|0x20 == 'e' {
		i++
		if i < len(s.s) && (s.s[i] == '+' || s.s[i] == '-') {
			i++
		}
		if !digits() {
			return 0, broken("invalid number", i)
		}
	}
	return i, nil
}

// literal passes the rest of true, false or null.
func (s *scanner) literal(word string) *fault {
	if len(s.s)-s.i < len(word) {
		return ended()
	}
	if !strings.HasPrefix(s.s[s.i:], word) {
		return broken("invalid character", s.i+len(word))
	}
	s.i += len(word)
	return nil
}

// peek is the byte at s.i, 0 at the end.
func (s *scanner) peek() byte {
	if s.i < len(s.s) {
		return s.s[s.i]
	}
	return 0
}

// kind says what the value at s.i is, in msgspec's words, and passes it unless it is a container.
func (s *scanner) kind() (string, *fault) {
	switch c := s.peek(); {
	case s.i == len(s.s):
		return "", ended()
	case c == '"':
		_, f := s.rawText()
		return "str", f
	case c == '{':
		return "object", nil
	case c == '[':
		return "array", nil
	case c == 't':
		return "bool", s.literal("true")
	case c == 'f':
		return "bool", s.literal("false")
	case c == 'n':
		return "null", s.literal("null")
	case c == '-' || c >= '0' && c <= '9':
		n, f := s.number()
		if f != nil || n.whole && !n.overflow {
			return "int", f
		}
		return "float", nil
	default:
		return "", broken("invalid character", s.i)
	}
}

// end reports what stands after the value.
func (s *scanner) end() *fault {
	if s.space() {
		return broken("trailing characters", s.i+1)
	}
	return nil
}
