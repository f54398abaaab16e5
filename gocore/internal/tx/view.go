package tx

import (
	"strings"
	"unicode/utf8"
	"unsafe"

	"weir/gocore/internal/msgpack"
)

// printable are ranges of characters besides ASCII whose every one is printable in any Unicode version from 6 on, so that this Go
// and whatever Python is in use agree: letters of Europe, kana, ideographs, Hangul.
var printable = [...]struct{ first, last rune }{
	{0xa1, 0xac}, {0xae, 0x377}, {0x388, 0x38a}, {0x38e, 0x3a1}, {0x3a3, 0x527}, {0x3041, 0x3096}, {0x30a1, 0x30ff},
	{0x4e00, 0x9fcb}, {0xac00, 0xd7a3},
}

// blanks begin the ids that were erased: features/transaction.py.
var blanks = [...]string{"\x00", "\u0080", "\ue000", "\U000f0000"}

// IsBlank reports whether an id is what erasure leaves of one.
func IsBlank(id string) bool {
	for _, blank := range blanks {
		if strings.HasPrefix(id, blank) {
			return true
		}
	}
	return false
}

// UnlessBlank is id, or nothing of one that was erased: what the ledger keeps.
func UnlessBlank(id string) string {
	if IsBlank(id) {
		return ""
	}
	return id
}

// ViewJSON is Decode for a caller in a hurry: the texts are views of body, valid as long as its bytes stay as they are, and whatever
// Decode refuses, or other programs may judge in another way, is refused without a word. It allocates for escapes and refusals alone.
func ViewJSON(body []byte, t *Transaction) bool {
	*t = Transaction{MCC: -1}
	s := scanner{s: unsafe.String(unsafe.SliceData(body), len(body))}
	seen, f := s.transaction(t)
	return f == nil && t.isSure(seen, s.odd)
}

// ViewMessagePack is ViewJSON for a map of the same names and values. Absent fields are missing or nil, lat and lon may be integers.
func ViewMessagePack(body []byte, t *Transaction) bool {
	seen, odd, ok := t.readAll(body)
	return ok && t.isSure(seen, odd)
}

// ViewStored is ViewMessagePack for a body as it is kept, which was checked before it was: an id may have become a blank since, and
// no id is looked at twice. It refuses what the Python service's decode_body does, and maybe more.
func ViewStored(body []byte, t *Transaction) bool {
	seen, _, ok := t.readAll(body)
	return ok && seen&required == required
}

// readAll reads a map; odd is set if some id is not printable ASCII.
func (t *Transaction) readAll(body []byte) (seen int, odd, ok bool) {
	*t = Transaction{MCC: -1}
	r := msgpack.Reader{Data: body, Views: true}
	for n := r.Map(); n > 0; n-- {
		has, ok := t.read(&r, r.String(), &odd)
		if !ok || r.Err() != nil {
			return 0, false, false
		}
		if has < 0 {
			seen &^= -has
		} else {
			seen |= has
		}
	}
	return seen, odd, r.End() == nil
}

// read reads the value of the field called name; has is its bit, negative if it is nil.
func (t *Transaction) read(r *msgpack.Reader, name string, odd *bool) (has int, ok bool) {
	ok = true
	switch name {
	case "event_id":
		t.EventID = r.String()
		return hasEventID, isID(t.EventID, odd)
	case "ts":
		t.TS = r.Int()
		return hasTS, t.TS >= 0 && t.TS <= TSMax
	case "amount":
		t.Amount = r.Int()
		return hasAmount, t.Amount >= 0 && t.Amount <= AmountMax
	case "currency":
		t.Currency = r.String()
		return hasCurrency, isPlain(t.Currency) || utf8.ValidString(t.Currency)
	case "card_id":
		t.CardID = r.String()
		return hasCardID, isID(t.CardID, odd)
	case "merchant_id":
		t.MerchantID = r.String()
		return hasMerchantID, isID(t.MerchantID, odd)
	case "device_id":
		t.DeviceID, ok = nullableID(r, odd)
	case "ip":
		t.IP, ok = nullableID(r, odd)
	case "country":
		if t.Country = ""; !r.Nil() {
			t.Country = r.String()
			ok = isCountry(t.Country)
		}
	case "mcc":
		if t.MCC = -1; !r.Nil() {
			t.MCC = r.Int()
			ok = t.MCC >= 0 && t.MCC <= MCCMax
		}
	case "channel":
		if t.Channel = ""; r.Nil() {
			return -hasChannel, true
		}
		t.Channel = r.String()
		return hasChannel, channelCode(t.Channel) >= 0
	case "lat":
		return place(r, &t.Lat, 90, hasLat)
	case "lon":
		return place(r, &t.Lon, 180, hasLon)
	default:
		ok = false
	}
	return 0, ok
}

func nullableID(r *msgpack.Reader, odd *bool) (string, bool) {
	if r.Nil() {
		return "", true
	}
	id := r.String()
	return id, isID(id, odd)
}

// place reads a number of at most bound, either side of zero; NaN is none.
func place(r *msgpack.Reader, x *float64, bound float64, bit int) (has int, ok bool) {
	if *x = 0; r.Nil() {
		return -bit, true
	}
	*x = r.Float()
	return bit, *x >= -bound && *x <= bound
}

// isID reports whether id has 1 to IDLengthMax characters; odd is set if some are not printable ASCII.
func isID(id string, odd *bool) bool {
	if !isPlain(id) {
		*odd = true
		return utf8.ValidString(id) && utf8.RuneCountInString(id) <= IDLengthMax
	}
	return len(id) > 0 && len(id) <= IDLengthMax
}

// isPlain reports whether all of s is printable ASCII.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i]-' ' > '~'-' ' {
			return false
		}
	}
	return true
}

// isSure finishes what the types of the fields cannot say.
func (t *Transaction) isSure(seen int, odd bool) bool {
	t.HasPlace = seen&hasLat != 0
	if seen&required != required || t.HasPlace != (seen&hasLon != 0) || t.TS < TSSecondsMax {
		return false
	}
	if seen&hasChannel != 0 && channelCode(t.Channel) < 0 {
		return false
	}
	return !odd || (surely(t.EventID) && surely(t.CardID) && surely(t.MerchantID) && surely(t.DeviceID) && surely(t.IP))
}

// surely reports whether all of s is printable, whoever judges it.
func surely(s string) bool {
	for _, r := range s {
		if r < ' ' || r > '~' && !isPrintableRange(r) {
			return false
		}
	}
	return true
}

func isPrintableRange(r rune) bool {
	for _, known := range printable {
		if r >= known.first && r <= known.last {
			return true
		}
	}
	return false
}
