package tx

import (
	"strconv"
	"strings"
	"unicode"

	"weir/gocore/internal/jsontext"
	"weir/gocore/internal/problem"
)

const (
	searchedBytesMax = 64 << 10 // bytes of a broken body that are searched for the culprit
	shownLengthMax   = 40       // characters of an offending value or name in a message
)

// refusal words a fault for the caller, and names the field. Paid only on the failing path.
func refusal(f *fault, body string) error {
	switch f.kind {
	case whole:
		return problem.New(problem.MalformedBody, "body", "the body as a whole: %s", f.reason)
	case missing:
		field := join(f.path, f.field)
		return problem.New(problem.InvalidEvent, field, "%s is missing", field)
	case unknown:
		field := join(f.path, shown(f.field))
		return problem.New(problem.InvalidEvent, field, "%s is not a field that is known here", field)
	case value:
		field := join(f.path, f.field)
		return problem.New(problem.InvalidEvent, field, "%s is %s: %s", field, shownValue(body, field), f.reason)
	}
	reason := f.reason
	switch f.kind {
	case notUTF8:
		reason = "not UTF-8"
	case nested:
		reason = "JSON is nested too deeply"
	}
	if strings.Trim(body, " \t\n\r\v\f") == "" {
		return problem.New(problem.MalformedBody, "body", "the body is empty")
	}
	if len(body) <= searchedBytesMax {
		if tree, ok := jsontext.Parse(body, true); ok {
			if path := findBad(&tree, ""); path != "" {
				return problem.New(problem.MalformedBody, path, "%s: %s", path, reason)
			}
		}
	}
	return problem.New(problem.MalformedBody, "body", "body: %s", reason)
}

// findBad is the path of the first value or name that only a parser that forgives takes; "" if there is none.
func findBad(v *jsontext.Value, path string) string {
	if v.Bad {
		return path
	}
	for i := range v.Items {
		if found := findBad(&v.Items[i], path+"["+strconv.Itoa(i)+"]"); found != "" {
			return found
		}
	}
	for i := range v.Members {
		m := &v.Members[i]
		inner := join(path, shown(m.Name))
		if m.Bad {
			return inner
		}
		if found := findBad(&m.Value, inner); found != "" {
			return found
		}
	}
	return ""
}

// shownValue is the value at path as JSON, shortened. A path is a field's name, or [3].name in an array.
func shownValue(body, path string) string {
	const unshown = "not acceptable"
	tree, ok := jsontext.Parse(body, false)
	if !ok {
		return unshown
	}
	at := &tree
	if strings.HasPrefix(path, "[") {
		place, name, _ := strings.Cut(path[1:], "]")
		n, _ := strconv.Atoi(place) // our own number
		if n >= len(at.Items) {
			return unshown
		}
		at, path = &at.Items[n], strings.TrimPrefix(name, ".")
	}
	if path != "" {
		if at = at.Get(path); at == nil {
			return unshown
		}
	}
	if at.Type == jsontext.Number && len(at.Text) > intDigitsMax {
		return unshown
	}
	text := []rune(string(at.Append(nil)))
	if len(text) > shownLengthMax {
		return string(text[:shownLengthMax-3]) + "..."
	}
	return string(text)
}

// join is the path of a field; either part may be empty.
func join(path, field string) string {
	if field == "" {
		return path
	}
	return strings.TrimLeft(path+"."+field, ".")
}

// shown is a name that the caller made up, safe to send back: printable and short.
func shown(name string) string {
	if name == "" {
		return "(empty)"
	}
	text := []rune(name)
	text = text[:min(len(text), shownLengthMax)]
	for i, r := range text {
		if !unicode.IsPrint(r) {
			text[i] = '?'
		}
	}
	return string(text)
}
