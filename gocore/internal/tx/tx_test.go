package tx

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"weir/gocore/internal/plan"
	"weir/gocore/internal/problem"
)

const fullBody = `{"event_id": "t-1", "ts": 1750000000000, "amount": 1299, "currency": "EUR", "card_id": "c1",
"merchant_id": "m1", "device_id": "d1", "ip": "203.0.113.7", "country": "DE", "mcc": 5411, "channel": "ecom",
"lat": 52.5, "lon": 13.4}`

func TestDecode_FullBody_EveryField(t *testing.T) {
	got, err := Decode([]byte(fullBody))
	want := Transaction{
		EventID: "t-1", TS: 1750000000000, Amount: 1299, Currency: "EUR", CardID: "c1", MerchantID: "m1", DeviceID: "d1",
		IP: "203.0.113.7", Country: "DE", MCC: 5411, Channel: "ecom", Lat: 52.5, Lon: 13.4, HasPlace: true,
	}
	if err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func TestDecode_Nesting_RefusedInAnyDepth(t *testing.T) {
	for _, depth := range []int{10, depthMax - 1, depthMax + 2, 100_000} {
		row := strings.Repeat("[", depth) + strings.Repeat("]", depth)
		rows, err := SplitArray([]byte("[" + row + "]"))
		if deep := depth > depthMax; (err != nil) != deep {
			t.Errorf("depth %d: %d rows, %v", depth, len(rows), err)
		}
	}
}

func TestColumns_LargestAmountAndRate_NoOverflow(t *testing.T) {
	rates := NewRates(map[string]int64{"KWD": 4_000_000_000})
	var columns [plan.Columns]int64
	err := rates.Columns(&Transaction{CardID: "c", MerchantID: "m", Currency: "KWD", Amount: AmountMax - 1}, &columns)
	if err != nil || columns[plan.Amount] != 39_999_999_996_000 {
		t.Fatalf("%d, %v", columns[plan.Amount], err)
	}
}

func TestIDOf_UnknownField_Nil(t *testing.T) {
	if IDOf("currency") != nil || IDOf("card_id")(&Transaction{CardID: "c"}) != "c" {
		t.Fatal("card_id is an id, currency is none")
	}
}

func TestDecodeBody_Damage_ErrFormat(t *testing.T) {
	got, err := Decode([]byte(fullBody))
	if err != nil {
		t.Fatal(err)
	}
	body := got.AppendBody(nil)
	for cut := range body {
		if _, err := DecodeBody(body[:cut]); err == nil {
			t.Fatalf("%d of %d bytes are taken for a body", cut, len(body))
		}
	}
	if _, err := DecodeBody(append(body, 0)); err == nil {
		t.Fatal("a byte too much is not noticed")
	}
}

func TestDecodeLabels_OneTooMany_BodyTooLarge(t *testing.T) {
	row := `{"event_id":"a","label":"fraud","ts":1750000000000}`
	if labels, err := DecodeLabels([]byte("["+row+","+row+"]"), 2); err != nil || len(labels) != 2 {
		t.Fatalf("%v, %v", labels, err)
	}
	if _, err := DecodeLabels([]byte("["+row+","+row+"]"), 1); !errors.Is(err, problem.BodyTooLarge) {
		t.Fatalf("%v", err)
	}
}

func BenchmarkDecode(b *testing.B) {
	body := []byte(fullBody)
	var packed []byte
	b.Run("tx", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Decode(body); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding-json", func(b *testing.B) { // what it is compared with: types only, nothing checked
		b.ReportAllocs()
		for b.Loop() {
			var fields struct {
				EventID    string  `json:"event_id"`
				TS         int64   `json:"ts"`
				Amount     int64   `json:"amount"`
				Currency   string  `json:"currency"`
				CardID     string  `json:"card_id"`
				MerchantID string  `json:"merchant_id"`
				DeviceID   *string `json:"device_id"`
				IP         *string `json:"ip"`
				Country    *string `json:"country"`
				MCC        *int64  `json:"mcc"`
				Channel    *string `json:"channel"`
				Lat, Lon   *float64
			}
			if err := json.Unmarshal(body, &fields); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("body-and-columns", func(b *testing.B) {
		b.ReportAllocs()
		t, _ := Decode(body)
		var columns [plan.Columns]int64
		for b.Loop() {
			packed = t.AppendBody(packed[:0])
			if err := testRates.Columns(&t, &columns); err != nil {
				b.Fatal(err)
			}
		}
	})
}
