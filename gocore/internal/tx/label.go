package tx

import (
	"strconv"

	"weir/gocore/internal/problem"
)

// What a label says.
const (
	Fraud = "fraud"
	Legit = "legit"
)

// Label is what a past transaction turned out to be; TS is when that became known, ms UTC.
type Label struct {
	EventID, Label string
	TS             int64
}

var labelNames = [...]string{"event_id", "label", "ts"}

// DecodeLabels reads a JSON array of labels: all of them, or none and a problem.
func DecodeLabels(body []byte, rowsMax int) ([]Label, error) {
	s := scanner{s: string(body)}
	labels, f := s.labels()
	if f != nil {
		return nil, refusal(f, s.s)
	}
	if len(labels) > rowsMax {
		return nil, problem.New(problem.BodyTooLarge, "body", "%d labels in one request, at most %d", len(labels), rowsMax)
	}
	for row, label := range labels {
		at := "[" + strconv.Itoa(row) + "]."
		if !IsPrintable(label.EventID) {
			return nil, problem.New(problem.InvalidEvent, at+"event_id", "event_id holds characters that cannot be printed")
		}
		if label.TS < TSSecondsMax {
			return nil, invalid(at+"ts", strconv.FormatInt(label.TS, 10)+" looks like seconds; send milliseconds since 1970 UTC")
		}
	}
	return labels, nil
}

func (s *scanner) labels() (labels []Label, f *fault) {
	if f := s.open('[', "array"); f != nil {
		return nil, f
	}
	for {
		more, f := s.item(len(labels) == 0)
		if f != nil {
			return nil, f
		}
		if !more {
			return labels, s.end()
		}
		label, f := s.label()
		if f != nil {
			f.path = "[" + strconv.Itoa(len(labels)) + "]"
			return nil, f
		}
		labels = append(labels, label)
	}
}

func (s *scanner) label() (l Label, f *fault) {
	if s.s[s.i] != '{' {
		return l, s.other("", "object", false)
	}
	s.i++
	seen := 0
	for first := true; ; first = false {
		name, more, f := s.member(first)
		if f != nil {
			return l, f
		}
		if !more {
			break
		}
		switch name {
		case "event_id":
			l.EventID, _, f = s.id(name, false)
			seen |= 1
		case "label":
			l.Label, _, f = s.str(name, false)
			if f == nil && l.Label != Fraud && l.Label != Legit {
				f = &fault{kind: value, field: name, reason: "invalid enum value " + Quote(l.Label)}
			}
			seen |= 2
		case "ts":
			l.TS, _, f = s.integer(name, TSMax, false)
			seen |= 4
		default:
			f = unknownField(name)
		}
		if f != nil {
			return l, f
		}
	}
	for i, name := range labelNames {
		if seen&(1<<i) == 0 {
			return l, &fault{kind: missing, field: name}
		}
	}
	return l, nil
}
