package httpapi

import (
	"bytes"
	"mime"
	"strconv"
	"strings"
	"unicode/utf8"

	"weir/gocore/internal/decide"
	"weir/gocore/internal/jsontext"
	"weir/gocore/internal/pipeline"
	"weir/gocore/internal/problem"
	"weir/gocore/internal/tx"
)

const ndjson = "application/x-ndjson"

// score is POST /v1/score: one transaction in, one decision out.
func (f *Front) score(x *exchange) error {
	body, err := x.read(f.BodyBytesMax, f.RequestDeadline.Milliseconds())
	if err != nil {
		return err
	}
	flags, err := x.flags()
	if err != nil {
		return err
	}
	var items [1]pipeline.Submission
	if items[0].Tx, err = tx.Decode(body); err != nil {
		return err
	}
	answers, err := f.answer(x, items[:], flags)
	if err != nil {
		return err
	}
	if answers[0].Err != nil {
		return answers[0].Err
	}
	x.reply = appendDecision(x.reply, items[0].Tx.EventID, &answers[0], flags.explain)
	return nil
}

// scoreBatch is POST /v1/score/batch: a JSON array or NDJSON. It answers 200 if the body can be taken apart; what is wrong with a
// row is said in its place.
func (f *Front) scoreBatch(x *exchange) error {
	flags, err := x.flags()
	if err != nil {
		return err
	}
	body, err := x.read(f.BatchBodyBytesMax, f.RequestDeadline.Milliseconds())
	if err != nil {
		return err
	}
	rows, isLines, err := f.split(x, body)
	if err != nil {
		return err
	}
	items := make([]pipeline.Submission, len(rows))
	for i, row := range rows {
		items[i].Tx, items[i].Err = tx.Decode(row)
	}
	var answers []pipeline.Answer
	if len(items) > 0 {
		if answers, err = f.answer(x, items, flags); err != nil {
			return err
		}
	}
	separator := byte(',')
	if isLines {
		x.contentType, separator = ndjson, '\n'
	} else {
		x.reply = append(x.reply, '[')
	}
	for i := range answers {
		if i > 0 && !isLines {
			x.reply = append(x.reply, separator)
		}
		if answers[i].Err != nil {
			x.reply = f.appendRefusal(x.reply, rows[i], answers[i].Err)
		} else {
			x.reply = appendDecision(x.reply, items[i].Tx.EventID, &answers[i], flags.explain)
		}
		if isLines {
			x.reply = append(x.reply, separator)
		}
	}
	if !isLines {
		x.reply = append(x.reply, ']')
	}
	return nil
}

// answer has items scored, or tried without commitment.
func (f *Front) answer(x *exchange, items []pipeline.Submission, flags flags) ([]pipeline.Answer, error) {
	if flags.commit {
		return f.Pipeline.Score(items)
	}
	if err := f.Pipeline.CheckOpen(); err != nil {
		return nil, err
	}
	answers := make([]pipeline.Answer, len(items))
	for i := range items {
		if answers[i].Err = items[i].Err; answers[i].Err == nil {
			answers[i] = f.Pipeline.DryRun(x.request.Context(), &items[i].Tx)
		}
	}
	return answers, nil
}

// split takes the body apart. NDJSON is told by its type, or by a body that starts with `{` where the type says nothing.
func (f *Front) split(x *exchange, body []byte) (rows [][]byte, isLines bool, err error) {
	kind, _, err := mime.ParseMediaType(x.request.Header.Get("Content-Type"))
	if err != nil {
		kind, _, _ = strings.Cut(strings.ToLower(x.request.Header.Get("Content-Type")), ";")
		kind = strings.TrimSpace(kind)
	}
	switch {
	case kind == ndjson || kind == "application/ndjson" || kind == "application/jsonl" || kind == "application/json-lines":
		isLines = true
	case !strings.Contains(kind, "/") || strings.HasSuffix(kind, "json"), // what is no type says nothing
		kind == "text/plain" || kind == "application/octet-stream" || kind == "application/x-www-form-urlencoded":
		isLines = bytes.HasPrefix(bytes.TrimLeft(body, " \t\n\r\v\f"), []byte("{"))
	default:
		return nil, false, problem.New(problem.UnsupportedMedia, "Content-Type", "%s is not read here; send application/json or %s", kind, ndjson)
	}
	if isLines {
		rows = tx.SplitLines(body)
	} else if rows, err = tx.SplitArray(body); err != nil {
		return nil, false, err
	}
	if len(rows) > f.BatchRowsMax {
		return nil, false, problem.New(problem.BodyTooLarge, "body",
			"%d transactions in one batch, at most %d; split it or raise server.batch_rows_max", len(rows), f.BatchRowsMax)
	}
	return rows, isLines, nil
}

// appendDecision appends the JSON reply to one transaction; reason codes of an approved one only with explain.
func appendDecision(dst []byte, eventID string, a *pipeline.Answer, explain bool) []byte {
	d := a.Decision
	dst = jsontext.AppendString(append(dst, `{"event_id":`...), eventID)
	dst = jsontext.AppendFloat(append(dst, `,"score":`...), d.Score)
	dst = jsontext.AppendString(append(dst, `,"outcome":`...), d.Outcome)
	dst = jsontext.AppendString(append(dst, `,"model":`...), d.Model)
	dst = jsontext.AppendString(append(dst, `,"scorer":`...), d.Scorer)
	dst = strconv.AppendUint(append(dst, `,"lsn":`...), d.LSN, 10)
	dst = strconv.AppendBool(append(dst, `,"replayed":`...), a.Replayed)
	dst = jsontext.AppendStrings(append(dst, `,"degraded":`...), d.Degraded)
	if explain || d.Outcome != decide.Approve {
		dst = jsontext.AppendStrings(append(dst, `,"reasons":`...), d.Reasons)
	}
	return append(dst, '}')
}

// appendRefusal appends a problem in place, with the event_id of its row if it has one, so that its sender can tell which it was.
func (f *Front) appendRefusal(dst []byte, row []byte, err error) []byte {
	refused := problem.As(err)
	f.Metrics.refuse(refused.Kind)
	dst = refused.Append(append(dst, `{"error":`...))
	if tree, ok := jsontext.Parse(string(row), false); ok {
		id := tree.Get("event_id")
		if id != nil && id.Type == jsontext.String && utf8.RuneCountInString(id.Text) <= tx.IDLengthMax {
			dst = jsontext.AppendString(append(dst, `,"event_id":`...), id.Text)
		}
	}
	return append(dst, '}')
}
