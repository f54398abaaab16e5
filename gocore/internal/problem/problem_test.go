package problem

import (
	"errors"
	"fmt"
	"testing"
)

func TestAppend_WithAndWithoutField_PythonsBody(t *testing.T) {
	got := string(New(InvalidEvent, "amount", "amount is %d: expected int >= 0", -1).Append(nil))
	want := `{"type":"urn:weir:problem:invalid-event","title":"Invalid event","status":422,"detail":"amount is -1: expected int >= 0","field":"amount"}`
	if got != want {
		t.Error(got)
	}
	got = string((&Error{Kind: NotFound}).Append(nil))
	if want = `{"type":"urn:weir:problem:not-found","title":"Not found","status":404,"detail":"Not found"}`; got != want {
		t.Error(got)
	}
}

func TestAs_Unexpected_InternalWithoutItsText(t *testing.T) {
	if p := As(errors.New("card c1")); p.Kind != Internal || p.Detail != "unexpected; the service's log has it" {
		t.Errorf("%+v", p)
	}
	wrapped := fmt.Errorf("outer: %w", New(Conflict, "event_id", "x"))
	if p := As(wrapped); p.Kind != Conflict || !errors.Is(wrapped, Conflict) || errors.Is(wrapped, NotFound) {
		t.Errorf("%+v", p)
	}
}

func TestHeader_EachKind_WhatItsStatusAsksFor(t *testing.T) {
	for kind, want := range map[*Kind]string{Unauthorized: "WWW-Authenticate", MethodNotAllowed: "Allow", Overloaded: "Retry-After", NotReady: "Retry-After", Conflict: ""} {
		if name, _ := New(kind, "", "").Header(); name != want {
			t.Errorf("%s: %s", kind.Code, name)
		}
	}
}
