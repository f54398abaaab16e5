// Package problem holds the failures that a caller sees, as RFC 9457 problem details: the words, statuses and codes of the
// Python service (service/errors.py).
//
// A Kind is a sentinel: errors.Is(err, problem.Conflict). A message gives the value, the limit and the fix; never an API key.
package problem

import (
	"errors"
	"fmt"
	"strconv"

	"weir/gocore/internal/jsontext"
)

// ContentType of every reply that is a problem.
const ContentType = "application/problem+json"

const typePrefix = "urn:weir:problem:" // a URN, so that no reply points at a host that we do not run

// Kind is one class of failure.
type Kind struct {
	Status      int
	Code, Title string
}

// Error makes a Kind usable with errors.Is.
func (k *Kind) Error() string { return k.Title }

// The kinds that this server answers with.
var (
	BadRequest         = &Kind{400, "bad-request", "Bad request"}
	MalformedBody      = &Kind{400, "malformed-body", "Malformed body"}
	Unauthorized       = &Kind{401, "unauthorized", "Unauthorized"}
	Forbidden          = &Kind{403, "forbidden", "Forbidden"}
	NotFound           = &Kind{404, "not-found", "Not found"}
	MethodNotAllowed   = &Kind{405, "method-not-allowed", "Method not allowed"}
	RequestTimeout     = &Kind{408, "request-timeout", "Request timeout"}
	Conflict           = &Kind{409, "conflict", "Conflict"}
	BodyTooLarge       = &Kind{413, "body-too-large", "Body too large"}
	UnsupportedMedia   = &Kind{415, "unsupported-media-type", "Unsupported media type"}
	InvalidEvent       = &Kind{422, "invalid-event", "Invalid event"}
	Overloaded         = &Kind{429, "overloaded", "Overloaded"}
	Internal           = &Kind{500, "internal", "Internal error"}
	ScoringFailed      = &Kind{500, "scoring-failed", "Scoring failed"}
	TierUnavailable    = &Kind{503, "tier-unavailable", "Tier unavailable"}
	NotReady           = &Kind{503, "not-ready", "Not ready"}
	JournalUnavailable = &Kind{503, "journal-unavailable", "Journal unavailable"}
)

// Error is one failure: Field is the JSON path of the culprit in the request, empty if there is none; Allow goes with
// MethodNotAllowed.
type Error struct {
	Kind   *Kind
	Detail string
	Field  string
	Allow  string
}

// New makes an error of a kind.
func New(kind *Kind, field, format string, args ...any) *Error {
	return &Error{Kind: kind, Field: field, Detail: fmt.Sprintf(format, args...)}
}

// As is err as a problem; anything unexpected becomes Internal, its text is for the log alone.
func As(err error) *Error {
	var p *Error
	if errors.As(err, &p) {
		return p
	}
	return New(Internal, "", "unexpected; the service's log has it")
}

// Error is the detail.
func (e *Error) Error() string { return e.Detail }

// Unwrap is the kind.
func (e *Error) Unwrap() error { return e.Kind }

// Header is the header that the status asks for; name is empty if it asks for none.
func (e *Error) Header() (name, value string) {
	switch e.Kind {
	case Unauthorized:
		return "WWW-Authenticate", `Bearer realm="weir"`
	case MethodNotAllowed:
		return "Allow", e.Allow
	case Overloaded, NotReady:
		return "Retry-After", "1"
	}
	return "", ""
}

// Append appends the problem object.
func (e *Error) Append(dst []byte) []byte {
	dst = jsontext.AppendString(append(dst, `{"type":`...), typePrefix+e.Kind.Code)
	dst = jsontext.AppendString(append(dst, `,"title":`...), e.Kind.Title)
	dst = strconv.AppendInt(append(dst, `,"status":`...), int64(e.Kind.Status), 10)
	detail := e.Detail
	if detail == "" {
		detail = e.Kind.Title
	}
	dst = jsontext.AppendString(append(dst, `,"detail":`...), detail)
	if e.Field != "" {
		dst = jsontext.AppendString(append(dst, `,"field":`...), e.Field)
	}
	return append(dst, '}')
}
