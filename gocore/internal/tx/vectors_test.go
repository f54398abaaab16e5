package tx

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/problem"
)

// vector is one input and what the Python service made of it: testdata/vectors.jsonl holds one in each line, bytes as Latin-1.
type vector struct {
	Kind     string
	In       string
	Body     string
	Columns  *[plan.Columns]int64
	Currency string
	Rows     []string
	Labels   [][3]any
	Status   int
	Field    string
	Detail   string
}

var testRates = NewRates(map[string]int64{
	"EUR": 1000000, "USD": 920000, "GBP": 1170000, "CHF": 1050000, "SEK": 88000, "NOK": 86000, "DKK": 134000, "PLN": 232000,
	"CZK": 40000, "HUF": 2500, "CAD": 670000, "AUD": 600000, "JPY": 610000,
})

func latin1(s string) []byte {
	var b []byte
	for _, r := range s {
		b = append(b, byte(r))
	}
	return b
}

// vectorFile may be set to a larger file that Python made from random mutations.
func vectorFile() string {
	if path := os.Getenv("WEIR_TEST_TX_VECTORS"); path != "" {
		return path
	}
	return "testdata/vectors.jsonl"
}

func TestDecode_PythonsVectors_SameAnswer(t *testing.T) {
	file, err := os.Open(vectorFile())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	n := 0
	for lines.Scan() {
		var v vector
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		n++
		checkVector(t, &v)
	}
	if n < 250 {
		t.Fatalf("only %d vectors were read", n)
	}
}

func checkVector(t *testing.T, v *vector) {
	t.Helper()
	in := latin1(v.In)
	var err error
	switch v.Kind {
	case "tx":
		var got Transaction
		if got, err = Decode(in); err == nil && v.Status == 0 {
			checkTransaction(t, v, &got)
		}
	case "rows", "lines":
		rows := SplitLines(in)
		if v.Kind == "rows" {
			rows, err = SplitArray(in)
		}
		if err == nil && len(rows) != len(v.Rows) {
			t.Errorf("%q: rows %q, Python has %q", in, rows, v.Rows)
			return
		}
		for i, row := range rows {
			if string(row) != string(latin1(v.Rows[i])) {
				t.Errorf("%q: row %d is %q, Python has %q", in, i, row, v.Rows[i])
			}
		}
	case "labels":
		var labels []Label
		labels, err = DecodeLabels(in, 3)
		if err == nil && len(labels) != len(v.Labels) {
			t.Errorf("%q: %d labels, Python has %d", in, len(labels), len(v.Labels))
		}
	}
	var refused *problem.Error
	switch {
	case v.Status == 0 && err != nil:
		t.Errorf("%q: refused (%v), Python takes it", in, err)
	case v.Status != 0 && !errors.As(err, &refused):
		t.Errorf("%q: taken, Python says %d %s: %s", in, v.Status, v.Field, v.Detail)
	case v.Status != 0 && (refused.Kind.Status != v.Status || refused.Field != v.Field || refused.Detail != v.Detail):
		t.Errorf("%q:\n got  %d %q: %s\n want %d %q: %s", in, refused.Kind.Status, refused.Field, refused.Detail, v.Status, v.Field, v.Detail)
	}
}

func checkTransaction(t *testing.T, v *vector, got *Transaction) {
	t.Helper()
	body := got.AppendBody(nil)
	if hex.EncodeToString(body) != v.Body {
		t.Errorf("%q: body\n got  %x\n want %s", v.In, body, v.Body)
	}
	again, err := DecodeBody(body)
	if err != nil || again != *got {
		t.Errorf("%q: decoded again it is %+v (%v), was %+v", v.In, again, err, *got)
	}
	var columns [plan.Columns]int64
	err = testRates.Columns(got, &columns)
	switch {
	case v.Columns == nil:
		if err == nil || !strings.HasPrefix(err.Error(), "currency: "+v.Currency) {
			t.Errorf("%q: currency: %v, want %s", v.In, err, v.Currency)
		}
	case err != nil || columns != *v.Columns:
		t.Errorf("%q: columns %v (%v), want %v", v.In, columns, err, *v.Columns)
	}
}
