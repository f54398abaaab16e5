package jsontext

import (
	"math"
	"strings"
	"testing"
)

func TestAppendFloat_EachSize_AsMsgspecWritesIt(t *testing.T) {
	for f, want := range map[float64]string{
		0: "0.0", 1: "1.0", -100: "-100.0", 0.1: "0.1", 123.456: "123.456", 1e15: "1000000000000000.0", 9999999999999998: "9999999999999998.0",
		1e16: "1e16", 1.2345678912345678e16: "1.2345678912345678e16", 1e22: "1e22", 1.5e300: "1.5e300", 0.00001: "0.00001",
		1.5e-5: "0.000015", 1e-6: "1e-6", 1.25e-7: "1.25e-7", -2e-10: "-2e-10", 5e-324: "5e-324", 1e-100: "1e-100",
	} {
		if got := string(AppendFloat(nil, f)); got != want {
			t.Errorf("%g: %s, want %s", f, got, want)
		}
	}
	if got := string(AppendFloat(nil, math.Copysign(0, -1))); got != "-0.0" {
		t.Error(got)
	}
}

func TestAppendString_WhatJSONForbids_Escaped(t *testing.T) {
	got := string(AppendString(nil, "a\x00\x1f\x7f\b\f\n\r\t\"\\/é\u2028<>&"))
	if want := `"a\u0000\u001f` + "\x7f" + `\b\f\n\r\t\"\\/é` + "\u2028" + `<>&"`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := string(AppendStrings(nil, []string{"a", `"`})); got != `["a","\""]` {
		t.Error(got)
	}
}

func TestParse_Strict_OnlyJSON(t *testing.T) {
	for text, want := range map[string]string{
		`{"a":[1,-0,1e3,"x\u00e9\ud83d\ude00"],"b":null,"a":2}`: `{"a":2,"b":null}`,
		` [true , false] `: `[true,false]`,
		`""`:               `""`,
	} {
		v, ok := Parse(text, false)
		if got := string(v.Append(nil)); !ok || got != want {
			t.Errorf("%s: %s, %v", text, got, ok)
		}
	}
	for _, text := range []string{
		``, `{`, `[1,]`, `{"a":1,}`, `01`, `1.`, `1e`, `-`, `NaN`, `"a` + "\n" + `"`, `"\ud800"`, `"\q"`, `"\u12"`, `1 2`, "\"\xff\"", `nul`,
		`1e999`, strings.Repeat("[", 2000) + strings.Repeat("]", 2000),
	} {
		if _, ok := Parse(text, false); ok {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestParse_Forgiving_MarksWhatIsBad(t *testing.T) {
	for text, isBad := range map[string]bool{
		"\"\xff\"": true, `"\ud800"`: true, `"\ud800\u0041"`: true, `"\udc00"`: true, "\"a\tb\"": true, `"\t"`: true, `NaN`: true, `-Infinity`: true,
		`1e999`: true, `"x"`: false, `"\ud83d\ude00"`: false, `1`: false,
	} {
		v, ok := Parse(text, true)
		if !ok || v.Bad != isBad {
			t.Errorf("%q: %v, bad %v", text, ok, v.Bad)
		}
	}
}
