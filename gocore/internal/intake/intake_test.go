package intake

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"weir/gocore/internal/index"
	"weir/gocore/internal/plan"
	"weir/gocore/internal/plan/plantest"
	"weir/gocore/internal/tx"
)

const full = `{"event_id": "t-1", "ts": 1750000000000, "amount": 1299, "currency": "USD", "card_id": "c1",
"merchant_id": "m1", "device_id": "d1", "ip": "203.0.113.7", "country": "DE", "mcc": 5411, "channel": "ecom",
"lat": 52.5, "lon": 13.4}`

func newIntake(tb testing.TB) *Intake {
	tb.Helper()
	in, err := New(plantest.Load(tb, "cards"))
	if err != nil {
		tb.Fatal(err)
	}
	return in
}

// newJob has these bodies, and room for so many bytes of canonical bodies and of ids in a list.
func newJob(in *Intake, bodyBytes, idBytes int, bodies ...string) *Job {
	n := len(bodies)
	j := &Job{
		Status: make([]uint8, n), Columns: make([]int64, n*plan.Columns), Bodies: make([]byte, bodyBytes), BodyEnds: make([]int64, n),
		IDs: make([]byte, in.Lists()*idBytes), IDBytes: idBytes, IDEnds: make([]int64, in.Lists()),
	}
	for _, body := range bodies {
		j.Text = append(j.Text, body...)
		j.Ends = append(j.Ends, int64(len(j.Text)))
	}
	return j
}

func (j *Job) list(number int) string {
	return string(j.IDs[number*j.IDBytes:][:j.IDEnds[number]])
}

func (j *Job) body(row int) []byte {
	start := int64(0)
	if row > 0 {
		start = j.BodyEnds[row-1]
	}
	return j.Bodies[start:j.BodyEnds[row]]
}

func TestTake_BothFormats_WhatDecodeAndColumnsGive(t *testing.T) {
	in, p := newIntake(t), plantest.Load(t, "cards")
	event, err := tx.Decode([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	canonical := event.AppendBody(nil)
	var columns [plan.Columns]int64
	if err := tx.NewRates(p.Currencies).Columns(&event, &columns); err != nil {
		t.Fatal(err)
	}
	for _, packed := range []bool{false, true} {
		body := full
		if packed {
			body = string(canonical)
		}
		j := newJob(in, 1000, 100, body, "", body)
		j.Packed = packed
		in.Take(j)
		if !bytes.Equal(j.Status, []byte{Taken, Left, Taken}) || j.NumLeft != 1 {
			t.Fatalf("packed %v: status %v, %d left", packed, j.Status, j.NumLeft)
		}
		for _, row := range []int{0, 2} {
			if [plan.Columns]int64(j.Columns[row*plan.Columns:]) != columns || !bytes.Equal(j.body(row), canonical) {
				t.Errorf("packed %v: columns %v, body %x", packed, j.Columns, j.body(row))
			}
		}
		if len(j.body(1)) > 0 || [plan.Columns]int64(j.Columns[plan.Columns:]) != [plan.Columns]int64{} {
			t.Errorf("packed %v: the row that was left has a body or columns", packed)
		}
		for list, want := range []string{"t-1\n\nt-1\n", "c1\n\nc1\n", "m1\n\nm1\n", "d1\n\nd1\n", "203.0.113.7\n\n203.0.113.7\n"} {
			if j.list(list) != want {
				t.Errorf("list %d: %q, want %q", list, j.list(list), want)
			}
		}
	}
}

func TestTake_NoRows_NothingButEnds(t *testing.T) {
	in := newIntake(t)
	j := newJob(in, 0, 0)
	j.NumLeft = 7
	j.IDEnds[0] = 7
	if in.Take(j); j.NumLeft != 0 || j.IDEnds[0] != 0 {
		t.Errorf("%d left, %d bytes of ids", j.NumLeft, j.IDEnds[0])
	}
}

func TestTake_TooLittleRoom_LeavesTheRowAndGoesOn(t *testing.T) {
	in := newIntake(t)
	long := strings.Replace(full, "t-1", strings.Repeat("x", 60), 1)
	whole := newJob(in, 1000, 1000, long, full)
	in.Take(whole)
	longBody, shortBody := len(whole.body(0)), len(whole.body(1))
	for name, c := range map[string]struct {
		bodies, ids int
		status      []byte
	}{
		"all fit exactly":       {longBody + shortBody, 65, []byte{Taken, Taken}},
		"a byte of body less":   {longBody + shortBody - 1, 65, []byte{Taken, Left}},
		"the long one does not": {longBody - 1, 65, []byte{Left, Taken}},
		"a byte of id less":     {1000, 64, []byte{Taken, Left}},
		"a long id does not":    {1000, 61, []byte{Left, Taken}},
		"a line feed for each":  {1000, 2, []byte{Left, Left}},
		"no bodies":             {0, 65, []byte{Left, Left}},
	} {
		j := newJob(in, c.bodies, c.ids, long, full)
		in.Take(j)
		if !bytes.Equal(j.Status, c.status) {
			t.Errorf("%s: %v, want %v", name, j.Status, c.status)
		}
		for list := range in.Lists() {
			if strings.Count(j.list(list), "\n") != 2 {
				t.Errorf("%s: list %d is %q", name, list, j.list(list))
			}
		}
	}
}

func TestTake_CutAnywhere_Left(t *testing.T) {
	in := newIntake(t)
	event, _ := tx.Decode([]byte(full))
	for packed, body := range map[bool]string{false: full, true: string(event.AppendBody(nil))} {
		for cut := range len(body) {
			j := newJob(in, 1000, 100, body[:cut], body)
			j.Packed = packed
			if in.Take(j); j.Status[0] != Left || j.Status[1] != Taken {
				t.Fatalf("packed %v, %d bytes: %v", packed, cut, j.Status)
			}
		}
	}
}

func TestTake_WhatOthersMayJudgeInAnotherWay_Left(t *testing.T) {
	in := newIntake(t)
	for id, want := range map[string]uint8{
		"plain ~": Taken, "Zoë": Taken, `Zo\u00eb`: Taken, "東京": Taken, `a\"b`: Taken, "\u00a0": Left, "\u00ad": Left, "\u0378": Left,
		"😀": Left, `a\n`: Left, `\u007f`: Left, "\x7f": Left, "\xff": Left, `\ud800`: Left, "": Left,
		strings.Repeat("é", 128): Taken, strings.Repeat("é", 129): Left, strings.Repeat("x", 128): Taken, strings.Repeat("x", 129): Left,
	} {
		j := newJob(in, 1000, 300, strings.Replace(full, "t-1", id, 1))
		if in.Take(j); j.Status[0] != want {
			t.Errorf("%q: %d, want %d", id, j.Status[0], want)
		}
	}
}

func TestNew_KindWithoutAnID_ErrPlan(t *testing.T) {
	p := *plantest.Load(t, "cards")
	p.Kinds = append([]plan.Kind{}, p.Kinds...)
	p.Kinds[0].IDField = "currency"
	if _, err := New(&p); !errors.Is(err, plan.ErrPlan) {
		t.Errorf("%v; want ErrPlan", err)
	}
}

func chunk(in *Intake, rows int, packed bool) *Job {
	bodies := make([]string, rows)
	for i := range bodies {
		bodies[i] = strings.NewReplacer("t-1", fmt.Sprintf("event-%08d", i), "c1", fmt.Sprintf("card-%06d", i)).Replace(full)
		if packed {
			event, _ := tx.Decode([]byte(bodies[i]))
			bodies[i] = string(event.AppendBody(nil))
		}
	}
	j := newJob(in, 300*rows, 30*rows, bodies...)
	j.Packed = packed
	return j
}

func TestTake_GoodRows_NoAllocation(t *testing.T) {
	in := newIntake(t)
	for _, packed := range []bool{false, true} {
		j := chunk(in, 64, packed)
		if n := testing.AllocsPerRun(50, func() { in.Take(j) }); n != 0 || j.NumLeft != 0 {
			t.Errorf("packed %v: %v allocations, %d left", packed, n, j.NumLeft)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	in := newIntake(b)
	for _, packed := range []bool{false, true} {
		b.Run(fmt.Sprintf("msgpack=%v", packed), func(b *testing.B) {
			j := chunk(in, 256, packed)
			b.ReportAllocs()
			for b.Loop() {
				in.Take(j)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/256, "ns/row")
		})
	}
}

func TestTake_Indexes_SlotsOfTheIDsThatAreThere(t *testing.T) {
	in := newIntake(t)
	indexes := make([]*index.Index, in.Lists()-1)
	for kind := range indexes {
		indexes[kind] = index.New()
	}
	event, _ := tx.Decode([]byte(full))
	for kind, field := range in.fields[1:] {
		if kind != 1 {
			if err := indexes[kind].Put([]byte(event.ID(field)), 7*kind+3); err != nil {
				t.Fatal(err)
			}
		}
	}
	bodies := slices.Repeat([]string{full, "{}"}, 200)
	j := newJob(in, 100_000, 10_000, bodies...)
	j.Indexes, j.Slots = indexes, make([]int64, len(bodies)*len(indexes))
	in.Take(j)
	for row := range bodies {
		for kind := range indexes {
			want := int64(7*kind + 3)
			if row%2 == 1 || kind == 1 {
				want = -1
			}
			if got := j.Slots[row*len(indexes)+kind]; got != want {
				t.Fatalf("row %d, kind %d: slot %d, want %d", row, kind, got, want)
			}
		}
	}
	if j.Missing != 200 {
		t.Errorf("%d missing, want 200", j.Missing)
	}
}
