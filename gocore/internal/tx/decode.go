package tx

import (
	"math"
	"strconv"
	"unicode/utf8"
)

const intDigitsMax = 4300 // the longest integer that Python reads

// Places of the fields that must be there.
const (
	hasEventID = 1 << iota
	hasTS
	hasAmount
	hasCurrency
	hasCardID
	hasMerchantID
	hasChannel
	hasLat
	hasLon
	required = 1<<6 - 1
)

var requiredNames = [...]string{"event_id", "ts", "amount", "currency", "card_id", "merchant_id"}

// Decode reads one transaction and checks it; currency and clock are not judged. Errors are problems of kind MalformedBody
// (no JSON, no object) or InvalidEvent, which names the field.
func Decode(body []byte) (Transaction, error) {
	t := Transaction{MCC: -1}
	s := scanner{s: string(body)}
	seen, f := s.transaction(&t)
	if f != nil {
		return Transaction{}, refusal(f, s.s)
	}
	t.HasPlace = seen&hasLat != 0
	if err := check(&t, s.odd, seen&hasChannel != 0, t.HasPlace, seen&hasLon != 0); err != nil {
		return Transaction{}, err
	}
	return t, nil
}

// transaction reads the object and what may follow it; seen says which fields were given.
func (s *scanner) transaction(t *Transaction) (seen int, f *fault) {
	if f := s.open('{', "object"); f != nil {
		return 0, f
	}
	for first := true; ; first = false {
		name, more, f := s.member(first)
		if f != nil {
			return 0, f
		}
		if !more {
			break
		}
		has, f := s.field(t, name)
		if f != nil {
			return 0, f
		}
		if has < 0 {
			seen &^= -has
		} else {
			seen |= has
		}
	}
	if seen&required != required {
		for i, name := range requiredNames {
			if seen&(1<<i) == 0 {
				return 0, &fault{kind: missing, field: name}
			}
		}
	}
	return seen, s.end()
}

// field reads the value of the field called name; has is its bit, negative if it is null.
func (s *scanner) field(t *Transaction, name string) (has int, f *fault) {
	given := true
	switch name {
	case "event_id":
		t.EventID, _, f = s.id(name, false)
		has = hasEventID
	case "ts":
		t.TS, _, f = s.integer(name, TSMax, false)
		has = hasTS
	case "amount":
		t.Amount, _, f = s.integer(name, AmountMax, false)
		has = hasAmount
	case "currency":
		t.Currency, _, f = s.str(name, false)
		has = hasCurrency
	case "card_id":
		t.CardID, _, f = s.id(name, false)
		has = hasCardID
	case "merchant_id":
		t.MerchantID, _, f = s.id(name, false)
		has = hasMerchantID
	case "device_id":
		t.DeviceID, _, f = s.id(name, true)
	case "ip":
		t.IP, _, f = s.id(name, true)
	case "country":
		t.Country, f = s.country(name)
	case "mcc":
		if t.MCC, given, f = s.integer(name, MCCMax, true); !given {
			t.MCC = -1
		}
	case "channel":
		t.Channel, given, f = s.str(name, true)
		has = hasChannel
	case "lat":
		t.Lat, given, f = s.float(name, 90)
		has = hasLat
	case "lon":
		t.Lon, given, f = s.float(name, 180)
		has = hasLon
	default:
		return 0, unknownField(name)
	}
	if !given {
		has = -has
	}
	return has, f
}

func unknownField(name string) *fault {
	if !utf8.ValidString(name) {
		return &fault{kind: notUTF8}
	}
	return &fault{kind: unknown, field: name}
}

// open passes the bracket that begins the body.
func (s *scanner) open(bracket byte, what string) *fault {
	if !s.space() {
		return ended()
	}
	if s.s[s.i] != bracket {
		start := s.i
		got, f := s.kind()
		switch {
		case f != nil:
			return f
		case got == "float" && isInfinite(s.s[start:s.i]):
			return &fault{kind: whole, reason: "number out of range"}
		}
		return &fault{kind: whole, reason: "expected " + what + ", got " + got}
	}
	s.i++
	return nil
}

// member passes what stands before the next value of an object, and gives its name; more is false after the last one.
func (s *scanner) member(first bool) (name string, more bool, f *fault) {
	if !s.space() {
		return "", false, ended()
	}
	c := s.s[s.i]
	switch {
	case c == '}':
		s.i++
		return "", false, nil
	case first:
	case c == ',':
		s.i++
		if !s.space() {
			return "", false, ended()
		}
		if c = s.s[s.i]; c == '}' {
			return "", false, broken("trailing comma in object", s.i)
		}
	default:
		return "", false, broken("expected ',' or '}'", s.i)
	}
	if c != '"' {
		return "", false, broken("object keys must be strings", s.i)
	}
	odd := s.odd
	if name, f = s.rawText(); f != nil {
		return "", false, f
	}
	s.odd = odd // a name is no id
	if !s.space() {
		return "", false, ended()
	}
	if s.s[s.i] != ':' {
		return "", false, broken("expected ':'", s.i)
	}
	s.i++
	s.space() // an unknown name is refused first, a missing value then
	return name, true, nil
}

// id reads 1 to IDLengthMax characters.
func (s *scanner) id(field string, nullable bool) (string, bool, *fault) {
	text, given, f := s.str(field, nullable)
	if f != nil || !given {
		return "", given, f
	}
	if text == "" {
		return "", true, &fault{kind: value, field: field, reason: "expected str of length >= 1"}
	}
	if len(text) > IDLengthMax && utf8.RuneCountInString(text) > IDLengthMax {
		return "", true, &fault{kind: value, field: field, reason: "expected str of length <= " + strconv.Itoa(IDLengthMax)}
	}
	return text, true, nil
}

func (s *scanner) country(field string) (string, *fault) {
	text, given, f := s.str(field, true)
	if f != nil || !given {
		return "", f
	}
	if utf8.RuneCountInString(text) > 2 {
		return "", &fault{kind: value, field: field, reason: "expected str of length <= 2"}
	}
	if !isCountry(text) {
		return "", &fault{kind: value, field: field, reason: "expected str matching regex '^[A-Z]{2}$'"}
	}
	return text, nil
}

func isCountry(text string) bool {
	return len(text) == 2 && text[0] >= 'A' && text[0] <= 'Z' && text[1] >= 'A' && text[1] <= 'Z'
}

// str reads a string; given is false for a null where one is allowed.
func (s *scanner) str(field string, nullable bool) (text string, given bool, f *fault) {
	if s.peek() == '"' {
		text, f = s.text()
		return text, true, f
	}
	return "", false, s.other(field, "str", nullable)
}

// other is for a value of another type than want: fine if it is a null and may be one.
func (s *scanner) other(field, want string, nullable bool) *fault {
	start := s.i
	got, f := s.kind()
	if f != nil || nullable && got == "null" {
		return f
	}
	if got == "float" && isInfinite(s.s[start:s.i]) {
		return &fault{kind: value, field: field, reason: "number out of range"}
	}
	if nullable {
		want += " | null"
	}
	return &fault{kind: value, field: field, reason: "expected " + want + ", got " + got}
}

// integer reads 0 to high, written as an integer.
func (s *scanner) integer(field string, high int64, nullable bool) (n int64, given bool, f *fault) {
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		return 0, false, s.other(field, "int", nullable)
	}
	start := s.i
	read, f := s.number()
	switch {
	case f != nil:
		return 0, true, f
	case !read.whole:
		s.i = start
		return 0, true, s.other(field, "int", nullable)
	case len(read.text) > intDigitsMax:
		return 0, true, &fault{kind: value, field: field, reason: "integer value out of range"}
	case read.negative && (read.digits > 0 || read.overflow):
		return 0, true, &fault{kind: value, field: field, reason: "expected int >= 0"}
	case read.overflow || read.digits > uint64(high):
		return 0, true, &fault{kind: value, field: field, reason: "expected int <= " + strconv.FormatInt(high, 10)}
	}
	return int64(read.digits), true, nil
}

// float reads a number of at most bound, either side of zero.
func (s *scanner) float(field string, bound float64) (x float64, given bool, f *fault) {
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		return 0, false, s.other(field, "float", true)
	}
	read, f := s.number()
	if f != nil {
		return 0, true, f
	}
	if read.whole && !read.overflow {
		x = float64(read.digits)
		if read.negative && read.digits > 0 { // -0 is an integer, and that has no sign
			x = -x
		}
	} else if x, _ = strconv.ParseFloat(read.text, 64); math.IsInf(x, 0) {
		return 0, true, &fault{kind: value, field: field, reason: "number out of range"}
	}
	if x < -bound || x > bound {
		reason := "expected float <= " + strconv.FormatFloat(bound, 'f', 1, 64)
		if x < 0 {
			reason = "expected float >= -" + strconv.FormatFloat(bound, 'f', 1, 64)
		}
		return 0, true, &fault{kind: value, field: field, reason: reason}
	}
	return x, true, nil
}

func isInfinite(literal string) bool {
	x, _ := strconv.ParseFloat(literal, 64)
	return math.IsInf(x, 0)
}
