package httpapi

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"

	"weir/gocore/internal/problem"
	"weir/gocore/internal/tx"
)

const (
	keptBytesMax  = 1 << 20  // a buffer that grew beyond it is not kept for the next request
	drainBytesMax = 16 << 20 // twice what a batch may have
)

// exchange is one request and its reply. Its buffers are reused: nothing of it may be kept.
type exchange struct {
	writer      http.ResponseWriter
	request     *http.Request
	contentType string
	requestID   string
	body        bytes.Buffer
	reply       []byte
}

var exchanges = sync.Pool{New: func() any { return &exchange{} }}

func newExchange(w http.ResponseWriter, request *http.Request) *exchange {
	x := exchanges.Get().(*exchange)
	x.writer, x.request, x.contentType, x.requestID = w, request, "application/json", ""
	x.body.Reset()
	x.reply = x.reply[:0]
	return x
}

func (x *exchange) release() {
	x.writer, x.request = nil, nil
	if x.body.Cap() <= keptBytesMax && cap(x.reply) <= keptBytesMax {
		exchanges.Put(x)
	}
}

// send writes the reply. A caller who hung up is nobody's error.
func (x *exchange) send(status int) {
	header := x.writer.Header()
	header["Content-Type"] = []string{x.contentType}
	header["Content-Length"] = []string{strconv.Itoa(len(x.reply))}
	x.writer.WriteHeader(status)
	if x.request.Method != "HEAD" {
		_, _ = x.writer.Write(x.reply)
	}
}

// read is the body, decompressed. Problems are BodyTooLarge, before reading where the length is announced, UnsupportedMedia,
// RequestTimeout and MalformedBody.
func (x *exchange) read(bytesMax int64, deadlineMS int64) ([]byte, error) {
	encoding := strings.ToLower(x.request.Header.Get("Content-Encoding"))
	if encoding != "" && encoding != "identity" && encoding != "gzip" && encoding != "deflate" {
		return nil, problem.New(problem.UnsupportedMedia, "Content-Encoding", "%s is not read here; send gzip, deflate, identity",
			tx.Quote(cut(x.request.Header.Get("Content-Encoding"))))
	}
	if announced := x.request.ContentLength; announced > bytesMax {
		return nil, tooLarge(announced, bytesMax)
	}
	source, err := decompressed(x.request.Body, encoding)
	if err == nil {
		_, err = x.body.ReadFrom(io.LimitReader(source, bytesMax+1))
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, problem.New(problem.RequestTimeout, "body", "the body did not arrive within server.request_deadline_ms = %d ms", deadlineMS)
	case err != nil:
		return nil, problem.New(problem.MalformedBody, "body", "the body is not what its Content-Encoding and length say")
	case int64(x.body.Len()) > bytesMax:
		return nil, tooLarge(int64(x.body.Len()), bytesMax)
	}
	return x.body.Bytes(), nil
}

// drain reads what is left of a refused body. A reply to a client that still sends would be lost: the connection is reset under it.
// One that asked first (Expect) sends nothing.
func (x *exchange) drain() {
	if x.request.ContentLength != 0 && x.request.Header.Get("Expect") == "" {
		_, _ = io.CopyN(io.Discard, x.request.Body, drainBytesMax) // beyond it, or past the deadline, the connection is cut
	}
}

func decompressed(body io.Reader, encoding string) (io.Reader, error) {
	switch encoding {
	case "gzip":
		return gzip.NewReader(body)
	case "deflate":
		return zlib.NewReader(body)
	}
	return body, nil
}

func tooLarge(length, bytesMax int64) error {
	return problem.New(problem.BodyTooLarge, "body", "the body has %d bytes or more, at most %d are read here", length, bytesMax)
}

// flags are the query parameters of the scoring routes.
type flags struct {
	commit, explain, trace bool
}

// flags reads the query. A parameter that is not known is refused: `?comit=false` must not change state because of a typo.
func (x *exchange) flags() (flags, error) {
	f := flags{commit: true}
	if x.request.URL.RawQuery == "" {
		return f, nil
	}
	targets := map[string]*bool{"commit": &f.commit, "explain": &f.explain, "trace": &f.trace}
	if err := x.readFlags(targets, "commit, explain, trace"); err != nil {
		return f, err
	}
	if f.trace {
		return f, problem.New(problem.InvalidEvent, "?trace", "trace is not possible on this server; leave it out")
	}
	return f, nil
}

// noFlags refuses every query parameter.
func (x *exchange) noFlags() error {
	if x.request.URL.RawQuery == "" {
		return nil
	}
	return x.readFlags(nil, "")
}

func (x *exchange) readFlags(targets map[string]*bool, known string) error {
	seen := map[string]bool{}
	for _, pair := range strings.Split(x.request.URL.RawQuery, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, value = unescape(name), unescape(value)
		target := targets[name]
		switch {
		case target == nil:
			return problem.New(problem.InvalidEvent, "?"+cut(name), "there is no query parameter %s here; there are %s", tx.Quote(cut(name)), known)
		case value != "1" && value != "true" && value != "0" && value != "false":
			return problem.New(problem.InvalidEvent, "?"+name, "%s is %s: expected true, false, 1 or 0", name, tx.Quote(cut(value)))
		case seen[name]:
			return problem.New(problem.InvalidEvent, "?"+name, "%s is given more than once", name)
		}
		seen[name] = true
		*target = value == "1" || value == "true"
	}
	return nil
}

func unescape(s string) string {
	if plain, err := url.QueryUnescape(s); err == nil {
		return strings.ToValidUTF8(plain, "\uFFFD")
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// cut is the first 40 characters of what a caller made up.
func cut(s string) string {
	text := []rune(s)
	return string(text[:min(len(text), 40)])
}
