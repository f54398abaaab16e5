package httpapi

import (
	"strconv"

	"weir/gocore/internal/jsontext"
	"weir/gocore/internal/pipeline"
	"weir/gocore/internal/tx"
)

// labels is POST /v1/labels: what past transactions turned out to be. All labels of a request are well-formed, or none is taken.
func (f *Front) labels(x *exchange) error {
	if err := x.noFlags(); err != nil {
		return err
	}
	body, err := x.read(f.BatchBodyBytesMax, f.RequestDeadline.Milliseconds())
	if err != nil {
		return err
	}
	labels, err := tx.DecodeLabels(body, f.BatchRowsMax)
	if err != nil {
		return err
	}
	answers, err := f.Pipeline.Label(labels)
	if err != nil {
		return err
	}
	applied := 0
	x.reply = append(x.reply, `{"labels":[`...)
	for i := range answers {
		a := &answers[i]
		if i > 0 {
			x.reply = append(x.reply, ',')
		}
		x.reply = jsontext.AppendString(append(x.reply, `{"event_id":`...), a.EventID)
		x.reply = jsontext.AppendString(append(x.reply, `,"status":`...), a.Status)
		if x.reply = append(x.reply, `,"lsn":`...); a.Status == pipeline.UnknownEvent {
			x.reply = append(x.reply, "null}"...)
		} else {
			x.reply = append(strconv.AppendUint(x.reply, a.LSN, 10), '}')
		}
		if a.Status == pipeline.Applied {
			applied++
		}
	}
	x.reply = strconv.AppendInt(append(x.reply, `],"applied":`...), int64(applied), 10)
	x.reply = append(x.reply, '}')
	return nil
}
