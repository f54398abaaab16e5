// Package decide goes from a risk score to an outcome: thresholds, then the policy for what could not be known. Pure, no
// allocation.
//
// Only exact knowledge declines: the model's score. A profile that a tier could not be asked for changes the outcome by the
// written policy, never by accident. The deny and allow lists of the Python service are not part of this server.
package decide

// Outcomes.
const (
	Approve = "approve"
	Review  = "review"
	Decline = "decline"
)

// Reason codes, shared by all decisions: nobody changes them.
var (
	aboveDecline = []string{"SCORE_ABOVE_DECLINE_THRESHOLD"}
	aboveReview  = []string{"SCORE_ABOVE_REVIEW_THRESHOLD"}
	unknownL3    = []string{"L3_UNKNOWN"}
)

// Policy is thresholds on the risk score, and the outcome for an unknown profile from UnknownAmountMin (base minor units) on.
type Policy struct {
	Review, Decline  float64
	UnknownOutcome   string
	UnknownAmountMin int64
}

// Decide is the outcome and its reason codes. amount is in base minor units; unknown says that a profile could not be asked for.
func (p *Policy) Decide(amount int64, risk float64, unknown bool) (outcome string, reasons []string) {
	counts := unknown && amount >= p.UnknownAmountMin
	switch {
	case risk >= p.Decline:
		return Decline, aboveDecline
	case counts && p.UnknownOutcome == Decline:
		return Decline, unknownL3
	case risk >= p.Review:
		return Review, aboveReview
	case counts:
		return p.UnknownOutcome, unknownL3
	}
	return Approve, nil
}
