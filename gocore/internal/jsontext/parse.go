package jsontext

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// depthMax is where Python's parsers give up, about.
const depthMax = 990

// unreadable stands for a byte or an escape that is no character: private, so never printable.
const unreadable = '\uE000'

// Parse reads data as JSON. With forgive it also takes raw control characters, bytes that are not UTF-8, lone surrogates, NaN
// and Infinity, and marks where they were. ok is false if it is not even that.
func Parse(data string, forgive bool) (value Value, ok bool) {
	p := parser{s: data, forgive: forgive}
	p.space()
	if !p.value(&value, 0) {
		return Value{}, false
	}
	p.space()
	return value, p.i == len(p.s)
}

type parser struct {
	s       string
	i       int
	forgive bool
}

func (p *parser) space() {
	for p.i < len(p.s) && (p.s[p.i] == ' ' || p.s[p.i] == '\n' || p.s[p.i] == '\r' || p.s[p.i] == '\t') {
		p.i++
	}
}

func (p *parser) take(c byte) bool {
	if p.i < len(p.s) && p.s[p.i] == c {
		p.i++
		return true
	}
	return false
}

func (p *parser) literal(word string, v *Value, as Type) bool {
	if !strings.HasPrefix(p.s[p.i:], word) {
		return false
	}
	p.i += len(word)
	*v = Value{Type: as, Text: word}
	return true
}

func (p *parser) value(v *Value, depth int) bool {
	if p.i == len(p.s) || depth > depthMax {
		return false
	}
	switch c := p.s[p.i]; {
	case c == '{':
		return p.object(v, depth)
	case c == '[':
		return p.array(v, depth)
	case c == '"':
		v.Type = String
		return p.text(&v.Text, &v.Bad)
	case c == 'n':
		return p.literal("null", v, Null)
	case c == 't':
		return p.literal("true", v, Bool)
	case c == 'f':
		return p.literal("false", v, Bool)
	}
	for _, word := range []string{"NaN", "Infinity", "-Infinity"} {
		if p.forgive && p.literal(word, v, Number) {
			v.Bad = true
			return true
		}
	}
	return p.number(v)
}

func (p *parser) array(v *Value, depth int) bool {
	v.Type = Array
	p.i++
	p.space()
	if p.take(']') {
		return true
	}
	for {
		var item Value
		p.space()
		if !p.value(&item, depth+1) {
			return false
		}
		v.Items = append(v.Items, item)
		p.space()
		if p.take(']') {
			return true
		}
		if !p.take(',') {
			return false
		}
	}
}

func (p *parser) object(v *Value, depth int) bool {
	v.Type = Object
	p.i++
	p.space()
	if p.take('}') {
		return true
	}
	for {
		var m Member
		p.space()
		if p.i == len(p.s) || p.s[p.i] != '"' || !p.text(&m.Name, &m.Bad) {
			return false
		}
		p.space()
		if !p.take(':') {
			return false
		}
		p.space()
		if !p.value(&m.Value, depth+1) {
			return false
		}
		v.put(m)
		p.space()
		if p.take('}') {
			return true
		}
		if !p.take(',') {
			return false
		}
	}
}

func (p *parser) number(v *Value) bool {
	start := p.i
	p.take('-')
	if !p.take('0') && !p.digits() {
		return false
	}
	whole := true
	if p.i < len(p.s) && p.s[p.i] == '.' {
		p.i++
		whole = false
		if !p.digits() {
			return false
		}
	}
	if p.i < len(p.s) && (p.s[p.i]|0x20) == 'e' {
		p.i++
		whole = false
		if !p.take('+') {
			p.take('-')
		}
		if !p.digits() {
			return false
		}
	}
	v.Type, v.Text = Number, p.s[start:p.i]
	if !whole {
		if _, err := strconv.ParseFloat(v.Text, 64); err != nil {
			v.Bad = true
			return p.forgive
		}
	}
	return true
}

func (p *parser) digits() bool {
	start := p.i
	for p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '9' {
		p.i++
	}
	return p.i > start
}

func (p *parser) text(out *string, bad *bool) bool {
	p.i++
	var b strings.Builder
	for p.i < len(p.s) {
		c := p.s[p.i]
		switch {
		case c == '"':
			p.i++
			*out = b.String()
			return !*bad || p.forgive
		case c == '\\':
			if !p.escape(&b, bad) {
				return false
			}
		case c < ' ':
			*bad = true
			b.WriteByte(c)
			p.i++
		case c < utf8.RuneSelf:
			b.WriteByte(c)
			p.i++
		default:
			r, size := utf8.DecodeRuneInString(p.s[p.i:])
			if r == utf8.RuneError && size == 1 {
				*bad = true
				r = unreadable
			}
			b.WriteRune(r)
			p.i += size
		}
	}
	return false
}

func (p *parser) escape(b *strings.Builder, bad *bool) bool {
	p.i++
	if p.i == len(p.s) {
		return false
	}
	c := p.s[p.i]
	p.i++
	if at := strings.IndexByte(`"\/bfnrt`, c); at >= 0 {
		plain := "\"\\/\b\f\n\r\t"[at]
		b.WriteByte(plain)
		*bad = *bad || plain < ' ' && p.forgive // a search for the culprit cannot tell \n from a raw line break
		return true
	}
	high, ok := p.hex(c)
	if !ok {
		return false
	}
	if high >= 0xDC00 && high < 0xE000 || high >= 0xD800 && high < 0xDC00 && !strings.HasPrefix(p.s[p.i:], `\u`) {
		*bad = true
		b.WriteRune(unreadable)
		return true
	}
	if high < 0xD800 || high >= 0xE000 {
		b.WriteRune(rune(high))
		*bad = *bad || high < ' ' && p.forgive
		return true
	}
	again := p.i
	p.i += 2
	low, ok := p.hex('u')
	if !ok {
		return false
	}
	if low < 0xDC00 || low >= 0xE000 {
		*bad = true
		b.WriteRune(unreadable)
		p.i = again // the second escape stands for itself
		return true
	}
	b.WriteRune(0x10000 + rune(high-0xD800)<<10 + rune(low-0xDC00))
	return true
}

func (p *parser) hex(u byte) (uint64, bool) {
	if u != 'u' || p.i+4 > len(p.s) {
		return 0, false
	}
	n, err := strconv.ParseUint(p.s[p.i:p.i+4], 16, 16)
	p.i += 4
	return n, err == nil
}
