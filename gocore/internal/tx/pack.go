package tx

import (
	"fmt"

	"weir/gocore/internal/msgpack"
)

// AppendBody appends the canonical MessagePack of t: a map in the order of the contract's fields, absent ones left out. The
// same transaction is always the same bytes, whoever wrote its JSON and whichever service read it.
func (t *Transaction) AppendBody(dst []byte) []byte {
	n := 6
	for _, given := range [...]bool{t.DeviceID != "", t.IP != "", t.Country != "", t.MCC >= 0, t.Channel != ""} {
		if given {
			n++
		}
	}
	if t.HasPlace {
		n += 2
	}
	dst = msgpack.AppendMap(dst, n)
	dst = msgpack.AppendString(append(dst, "\xa8event_id"...), t.EventID)
	dst = msgpack.AppendInt(append(dst, "\xa2ts"...), t.TS)
	dst = msgpack.AppendInt(append(dst, "\xa6amount"...), t.Amount)
	dst = msgpack.AppendString(append(dst, "\xa8currency"...), t.Currency)
	dst = msgpack.AppendString(append(dst, "\xa7card_id"...), t.CardID)
	dst = msgpack.AppendString(append(dst, "\xabmerchant_id"...), t.MerchantID)
	if t.DeviceID != "" {
		dst = msgpack.AppendString(append(dst, "\xa9device_id"...), t.DeviceID)
	}
	if t.IP != "" {
		dst = msgpack.AppendString(append(dst, "\xa2ip"...), t.IP)
	}
	if t.Country != "" {
		dst = msgpack.AppendString(append(dst, "\xa7country"...), t.Country)
	}
	if t.MCC >= 0 {
		dst = msgpack.AppendInt(append(dst, "\xa3mcc"...), t.MCC)
	}
	if t.Channel != "" {
		dst = msgpack.AppendString(append(dst, "\xa7channel"...), t.Channel)
	}
	if t.HasPlace {
		dst = msgpack.AppendFloat(append(dst, "\xa3lat"...), t.Lat)
		dst = msgpack.AppendFloat(append(dst, "\xa3lon"...), t.Lon)
	}
	return dst
}

// DecodeBody is the inverse of AppendBody. Errors wrap msgpack.ErrFormat.
func DecodeBody(body []byte) (Transaction, error) {
	return decode(msgpack.Reader{Data: body})
}

// ViewBody is DecodeBody without a copy: the texts are views of body, valid as long as its bytes stay as they are.
func ViewBody(body []byte) (Transaction, error) {
	return decode(msgpack.Reader{Data: body, Views: true})
}

func decode(r msgpack.Reader) (Transaction, error) {
	t := Transaction{MCC: -1}
	for n := r.Map(); n > 0; n-- {
		switch name := r.String(); name {
		case "event_id":
			t.EventID = r.String()
		case "ts":
			t.TS = r.Int()
		case "amount":
			t.Amount = r.Int()
		case "currency":
			t.Currency = r.String()
		case "card_id":
			t.CardID = r.String()
		case "merchant_id":
			t.MerchantID = r.String()
		case "device_id":
			t.DeviceID = r.String()
		case "ip":
			t.IP = r.String()
		case "country":
			t.Country = r.String()
		case "mcc":
			t.MCC = r.Int()
		case "channel":
			t.Channel = r.String()
		case "lat":
			t.Lat, t.HasPlace = r.Float(), true
		case "lon":
			t.Lon, t.HasPlace = r.Float(), true
		default:
			if r.Err() != nil {
				return Transaction{}, r.Err()
			}
			return Transaction{}, fmt.Errorf("%w: a transaction has no field %q", msgpack.ErrFormat, name)
		}
	}
	if err := r.End(); err != nil {
		return Transaction{}, err
	}
	return t, nil
}
