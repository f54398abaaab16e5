package main

import (
	"net/http/httptest"
	"strings"
	"testing"
)

const tx = `{"event_id":"t-1","ts":1750000000000,"amount":1299,"currency":"EUR","card_id":"c1","merchant_id":"m1","mcc":5411}`

// TestRoutes_Bodies_StatusAndReply: what decodes gets as many decisions as it has transactions, what does not is refused.
func TestRoutes_Bodies_StatusAndReply(t *testing.T) {
	for _, c := range []struct {
		path, body string
		status     int
		reply      string
	}{
		{"/v1/score", tx, 200, decision},
		{"/v1/score", `{"amount":"12"}`, 400, ""},
		{"/v1/score", tx[:20], 400, ""},
		{"/v1/score/batch", "[" + tx + "," + tx + "]", 200, "[" + decision + "," + decision + "]"},
		{"/v1/score/batch", "[]", 200, "[]"},
	} {
		recorder := httptest.NewRecorder()
		routes().ServeHTTP(recorder, httptest.NewRequest("POST", c.path, strings.NewReader(c.body)))
		if recorder.Code != c.status || c.reply != "" && recorder.Body.String() != c.reply {
			t.Errorf("%s %s: %d %s", c.path, c.body, recorder.Code, recorder.Body)
		}
	}
}
