package tx

import (
	"bytes"
	"strings"
)

// depthMax is how many levels of nesting are passed; Python gives up at about as many.
const depthMax = 990

// SplitLines takes NDJSON apart: the lines that are not blank, still encoded. Whatever is wrong with one shows when it is decoded.
func SplitLines(body []byte) [][]byte {
	var rows [][]byte
	for len(body) > 0 {
		line := body
		if at := bytes.IndexByte(body, '\n'); at >= 0 {
			line, body = body[:at], body[at+1:]
		} else {
			body = nil
		}
		if len(bytes.Trim(line, " \t\r\v\f")) > 0 {
			rows = append(rows, line)
		}
	}
	return rows
}

// SplitArray takes a JSON array apart into its values, still encoded. Errors are problems of kind MalformedBody.
func SplitArray(body []byte) ([][]byte, error) {
	s := scanner{s: string(body)}
	rows, f := s.rows(body)
	if f != nil {
		return nil, refusal(f, s.s)
	}
	return rows, nil
}

func (s *scanner) rows(body []byte) (rows [][]byte, f *fault) {
	if f := s.open('[', "array"); f != nil {
		return nil, f
	}
	for {
		more, f := s.item(len(rows) == 0)
		if f != nil {
			return nil, f
		}
		if !more {
			return rows, s.end()
		}
		start := s.i
		if f := s.skip(1); f != nil {
			return nil, f
		}
		rows = append(rows, body[start:s.i:s.i])
	}
}

// item passes what stands before the next value of an array; more is false after the last one.
func (s *scanner) item(first bool) (more bool, f *fault) {
	if !s.space() {
		return false, ended()
	}
	switch c := s.s[s.i]; {
	case c == ']':
		s.i++
		return false, nil
	case first:
		return true, nil
	case c != ',':
		return false, broken("expected ',' or ']'", s.i)
	}
	s.i++
	if !s.space() {
		return false, ended()
	}
	if s.s[s.i] == ']' {
		return false, broken("trailing comma in array", s.i)
	}
	return true, nil
}

// skip passes one value without making anything of it.
func (s *scanner) skip(depth int) *fault {
	if depth > depthMax {
		return &fault{kind: nested}
	}
	switch c := s.s[s.i]; {
	case c == '"':
		return s.skipText()
	case c == '[':
		s.i++
		for first := true; ; first = false {
			more, f := s.item(first)
			if f != nil || !more {
				return f
			}
			if f := s.skip(depth + 1); f != nil {
				return f
			}
		}
	case c == '{':
		s.i++
		for first := true; ; first = false {
			more, f := s.skipName(first)
			if f != nil || !more {
				return f
			}
			if f := s.skip(depth + 1); f != nil {
				return f
			}
		}
	case c == '-' || c >= '0' && c <= '9':
		_, f := s.number()
		return f
	case c == 't':
		return s.skipLiteral("true")
	case c == 'f':
		return s.skipLiteral("false")
	case c == 'n':
		return s.skipLiteral("null")
	default:
		return broken("invalid character", s.i)
	}
}

// skipName is member for a name that nobody reads.
func (s *scanner) skipName(first bool) (more bool, f *fault) {
	if !s.space() {
		return false, ended()
	}
	switch c := s.s[s.i]; {
	case c == '}':
		s.i++
		return false, nil
	case first:
	case c != ',':
		return false, broken("expected ',' or '}'", s.i)
	default:
		s.i++
		if !s.space() {
			return false, ended()
		}
		if s.s[s.i] == '}' {
			return false, broken("trailing comma in object", s.i)
		}
	}
	if s.s[s.i] != '"' {
		return false, broken(`expected '"'`, s.i)
	}
	if f := s.skipText(); f != nil {
		return false, f
	}
	if !s.space() {
		return false, ended()
	}
	if s.s[s.i] != ':' {
		return false, broken("expected ':'", s.i)
	}
	s.i++
	if !s.space() {
		return false, ended()
	}
	return true, nil
}

func (s *scanner) skipText() *fault {
	for i := s.i + 1; i < len(s.s); {
		switch c := s.s[i]; {
		case c == '"':
			s.i = i + 1
			return nil
		case c < ' ':
			return broken("invalid character", i)
		case c == '\\':
			if i+1 < len(s.s) && !strings.ContainsRune(`"\/bfnrtu`, rune(s.s[i+1])) {
				return broken("invalid escaped character", i+1)
			}
			var scratch [8]byte
			_, after, f := s.escape(scratch[:0], i+1)
			if f != nil {
				f.reason = strings.Replace(f.reason, "end of escaped utf-16 surrogate pair", "end of hex escape", 1)
				return f
			}
			i = after
		default:
			i++
		}
	}
	return ended()
}

func (s *scanner) skipLiteral(word string) *fault {
	if len(s.s)-s.i < len(word) {
		return ended()
	}
	if !strings.HasPrefix(s.s[s.i:], word) {
		return broken("invalid character", s.i+1)
	}
	s.i += len(word)
	return nil
}
