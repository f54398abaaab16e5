package decide

import "testing"

func TestDecide_AtEachThresholdAndBelow_OutcomeAndReason(t *testing.T) {
	for _, c := range []struct {
		unknownOutcome string
		amount         int64
		risk           float64
		unknown        bool
		outcome        string
		reason         string
	}{
		{Review, 0, 0.29, false, Approve, ""},
		{Review, 0, 0.3, false, Review, "SCORE_ABOVE_REVIEW_THRESHOLD"},
		{Review, 0, 0.69, false, Review, "SCORE_ABOVE_REVIEW_THRESHOLD"},
		{Review, 0, 0.7, false, Decline, "SCORE_ABOVE_DECLINE_THRESHOLD"},
		{Review, 99, 0, true, Approve, ""},
		{Review, 100, 0, true, Review, "L3_UNKNOWN"},
		{Review, 100, 0.3, true, Review, "SCORE_ABOVE_REVIEW_THRESHOLD"},
		{Approve, 100, 0, true, Approve, "L3_UNKNOWN"},
		{Decline, 100, 0.3, true, Decline, "L3_UNKNOWN"},
		{Decline, 100, 0.7, true, Decline, "SCORE_ABOVE_DECLINE_THRESHOLD"},
		{Decline, 99, 0.3, true, Review, "SCORE_ABOVE_REVIEW_THRESHOLD"},
	} {
		p := Policy{Review: 0.3, Decline: 0.7, UnknownOutcome: c.unknownOutcome, UnknownAmountMin: 100}
		outcome, reasons := p.Decide(c.amount, c.risk, c.unknown)
		reason := ""
		if len(reasons) > 0 {
			reason = reasons[0]
		}
		if outcome != c.outcome || reason != c.reason {
			t.Errorf("%+v: %s %v", c, outcome, reasons)
		}
	}
}
