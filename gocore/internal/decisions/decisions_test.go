package decisions

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"testing"

	"weir/gocore/internal/msgpack"
)

// column is a store in memory that can fail.
type column struct {
	records  map[string][]byte
	position uint64
	gets     int
	err      error
}

func (c *column) Get(key []byte) ([]byte, error) {
	c.gets++
	return c.records[string(key)], c.err
}

func (c *column) PutMany(keys, values [][]byte, position uint64) error {
	if c.err != nil {
		return c.err
	}
	for i := range keys {
		c.records[string(keys[i])] = values[i]
	}
	c.position = max(c.position, position)
	return nil
}

// seen is a filter without false positives.
type seen struct {
	keys   map[string]bool
	absent int
}

func (s *seen) MaybeHas(key []byte) bool { return s.keys[string(key)] }
func (s *seen) Add(key []byte)           { s.keys[string(key)] = true }
func (s *seen) ConfirmAbsent()           { s.absent++ }

func TestRecords_PythonsBytes_BothWays(t *testing.T) {
	data, err := os.ReadFile("testdata/records.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		LSN                                 uint64
		Body, Outcome, Model, Scorer, Label string
		Score                               float64
		Degraded, Reasons                   []string
		LabelLSN                            uint64 `json:"label_lsn"`
		Stored, Packed                      string
		LabelRecord                         string `json:"label_record"`
		LabelWord                           string `json:"label_word"`
		LabelTS                             int64  `json:"label_ts"`
		Delta                               int64
	}
	if err := json.Unmarshal(data, &vectors); err != nil || len(vectors) < 10 {
		t.Fatal(len(vectors), err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, v := range vectors {
		want := &Stored{
			LSN: v.LSN, Body: unhex(v.Body), Score: v.Score, Outcome: v.Outcome, Model: v.Model, Scorer: v.Scorer,
			Degraded: v.Degraded, Reasons: v.Reasons, Label: v.Label, LabelLSN: v.LabelLSN,
		}
		if len(want.Degraded) == 0 {
			want.Degraded = nil
		}
		if len(want.Reasons) == 0 {
			want.Reasons = nil
		}
		if got := hex.EncodeToString(want.Append(nil)); got != v.Stored {
			t.Errorf("LSN %d: %s, Python has %s", v.LSN, got, v.Stored)
		}
		if got := hex.EncodeToString(want.AppendOutcome(nil)); got != v.Packed {
			t.Errorf("LSN %d: outcome %s, Python has %s", v.LSN, got, v.Packed)
		}
		if got, err := Decode(unhex(v.Stored)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("LSN %d: %+v, %v", v.LSN, got, err)
		}
		unlabelled := *want
		unlabelled.Label, unlabelled.LabelLSN = "", 0
		if got, err := DecodeOutcome(v.LSN, want.Body, unhex(v.Packed)); err != nil || !reflect.DeepEqual(got, &unlabelled) {
			t.Errorf("LSN %d: %+v, %v", v.LSN, got, err)
		}
		label := LabelRecord{fmt.Sprint("e-", v.LSN), v.LabelWord, v.LabelTS, v.Delta, want.Body, v.LSN}
		if got := hex.EncodeToString(label.Append(nil)); got != v.LabelRecord {
			t.Errorf("LSN %d: label %s, Python has %s", v.LSN, got, v.LabelRecord)
		}
		if got, err := DecodeLabel(unhex(v.LabelRecord)); err != nil || !reflect.DeepEqual(got, label) {
			t.Errorf("LSN %d: %+v, %v", v.LSN, got, err)
		}
	}
}

func TestDecode_Damage_ErrFormat(t *testing.T) {
	record := (&Stored{LSN: 300, Body: []byte("body"), Outcome: "approve", Reasons: []string{"A"}}).Append(nil)
	for cut := range record {
		if _, err := Decode(record[:cut]); !errors.Is(err, msgpack.ErrFormat) {
			t.Fatalf("%d of %d bytes: %v", cut, len(record), err)
		}
	}
}

func TestFlush_BeyondTheDurableLSN_StaysInRAM(t *testing.T) {
	store := &column{records: map[string][]byte{}}
	x := New(store, nil)
	x.Add("durable", &Stored{LSN: 3})
	x.Add("later", &Stored{LSN: 8})
	x.Add("labelled later", &Stored{LSN: 5, Label: "fraud", LabelLSN: 9})
	if err := x.Flush(context.Background(), 7); err != nil {
		t.Fatal(err)
	}
	if len(store.records) != 1 || store.records["durable"] == nil || store.position != 4 {
		t.Fatalf("%d records, position %d", len(store.records), store.position)
	}
	if err := x.Flush(context.Background(), 9); err != nil {
		t.Fatal(err)
	}
	if len(store.records) != 3 || store.position != 9 || x.Len() != 0 {
		t.Fatalf("%d records, position %d, %d left", len(store.records), store.position, x.Len())
	}
}

func TestIndex_BeforeAndAfterFlush_Found(t *testing.T) {
	store, filter := &column{records: map[string][]byte{}}, &seen{keys: map[string]bool{}}
	x := New(store, filter)
	for i := range 2*flushMax + 1 {
		x.Add(fmt.Sprint("e", i), &Stored{LSN: uint64(i), Body: []byte("b")})
	}
	check := func(when string) {
		t.Helper()
		for i := range 2*flushMax + 1 {
			if s, err := x.FindRecent(fmt.Sprint("e", i)); err != nil || s == nil || s.LSN != uint64(i) {
				t.Fatalf("%s, %d: %+v, %v", when, i, s, err)
			}
		}
	}
	check("before")
	if store.gets != 0 || x.Len() != 2*flushMax+1 {
		t.Fatalf("%d reads, %d in RAM", store.gets, x.Len())
	}
	store.err = errors.New("full")
	if err := x.Flush(context.Background(), 2*flushMax-1); !errors.Is(err, store.err) {
		t.Fatal(err)
	}
	x.Add("e3", &Stored{LSN: 3, Body: []byte("b"), Label: "fraud"})
	if x.Len() < 2*flushMax+1 || store.position != 0 {
		t.Fatalf("after a failure %d in RAM, position %d", x.Len(), store.position)
	}
	store.err = nil
	if err := x.Flush(context.Background(), 2*flushMax); err != nil {
		t.Fatal(err)
	}
	check("after")
	if x.Len() != 0 || store.position != 2*flushMax {
		t.Fatalf("%d in RAM, position %d", x.Len(), store.position)
	}
	if s, _ := x.Find("e3"); s.Label != "fraud" {
		t.Fatal("the label that came between two attempts is lost")
	}
}

func TestFindRecent_NewEvent_NoRead(t *testing.T) {
	store, filter := &column{records: map[string][]byte{}}, &seen{keys: map[string]bool{"maybe": true}}
	x := New(store, filter)
	if s, err := x.FindRecent("new"); s != nil || err != nil || store.gets != 0 {
		t.Fatalf("%v, %v, %d reads", s, err, store.gets)
	}
	if s, err := x.FindRecent("maybe"); s != nil || err != nil || store.gets != 1 || filter.absent != 1 {
		t.Fatalf("%v, %v, %d reads, %d confirmed", s, err, store.gets, filter.absent)
	}
	if s, err := x.Find("new"); s != nil || err != nil || store.gets != 2 {
		t.Fatal("Find asks the store")
	}
	store.err = errors.New("gone")
	if _, err := x.FindRecent("maybe"); !errors.Is(err, store.err) {
		t.Fatal(err)
	}
	if s, err := New(nil, nil).FindRecent("x"); s != nil || err != nil {
		t.Fatal("without a store everything is in RAM")
	}
}
