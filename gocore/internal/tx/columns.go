package tx

import (
	"hash/crc32"
	"math"
	"slices"
	"strings"
	"unsafe"

	"weir/gocore/internal/plan"
)

// Rates turn a currency's minor units into base minor units, in millionths.
type Rates struct {
	millionths map[string]int64
	names      string
}

// NewRates takes the rates of a plan.
func NewRates(currencies map[string]int64) *Rates {
	names := make([]string, 0, len(currencies))
	for name := range currencies {
		names = append(names, name)
	}
	slices.Sort(names)
	return &Rates{currencies, strings.Join(names, ", ")}
}

// Columns are the event columns of one checked transaction: docs/reference/plan-format.md. The error is a problem of kind InvalidEvent.
func (r *Rates) Columns(t *Transaction, out *[plan.Columns]int64) error {
	if r.TryColumns(t, out) {
		return nil
	}
	shown := []rune(t.Currency)
	return invalid("currency", Quote(string(shown[:min(len(shown), 16)]))+" has no rate; the spec knows "+r.names)
}

// TryColumns is Columns for a caller who needs no words; false for a currency without a rate, and then out is as it was.
func (r *Rates) TryColumns(t *Transaction, out *[plan.Columns]int64) bool {
	rate, ok := r.millionths[t.Currency]
	if !ok {
		return false
	}
	amount := t.Amount
	if rate != 1_000_000 {
		amount = convert(amount, rate)
	}
	*out = [plan.Columns]int64{
		plan.TS: t.TS, plan.Amount: amount, plan.Country: -1, plan.MCC: t.MCC, plan.Channel: -1,
		plan.CardID: hash(t.CardID), plan.MerchantID: hash(t.MerchantID), plan.DeviceID: hash(t.DeviceID), plan.IP: hash(t.IP),
		plan.Lat: -1, plan.Lon: -1,
	}
	if t.Country != "" {
		out[plan.Country] = int64(t.Country[0]-'A')*26 + int64(t.Country[1]-'A')
	}
	if t.Channel != "" {
		out[plan.Channel] = channelCode(t.Channel)
	}
	if t.HasPlace {
		out[plan.Lat] = int64(math.RoundToEven(t.Lat*1e6)) + 90_000_000
		out[plan.Lon] = int64(math.RoundToEven(t.Lon*1e6)) + 180_000_000
	}
	return true
}

// convert is (amount * rate + half) / million. The product may leave an int64: amounts reach 10^10, rates 10^9 and more.
func convert(amount, rate int64) int64 {
	const million = 1_000_000
	whole, part := amount/million, amount%million
	return whole*rate + (part*rate+million/2)/million
}

// hash is the CRC-32 of an id, -1 of an absent one.
func hash(id string) int64 {
	if id == "" {
		return -1
	}
	return int64(crc32.ChecksumIEEE(unsafe.Slice(unsafe.StringData(id), len(id)))) // read only; a conversion would copy
}
