// Command bench-json is a yardstick of weir bench http: net/http that decodes the same JSON and replies with a constant. It
// keeps no state and scores nothing: what a service written in Go with the standard library can at best reach on this machine.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
)

const decision = `{"event_id":"x","score":0.0123,"outcome":"approve","model":"bare","scorer":"none","lsn":1,` +
	`"replayed":false,"degraded":[]}`

// transaction has the fields of POST /v1/score.
type transaction struct {
	EventID    string   `json:"event_id"`
	TS         int64    `json:"ts"`
	Amount     int64    `json:"amount"`
	Currency   string   `json:"currency"`
	CardID     string   `json:"card_id"`
	MerchantID string   `json:"merchant_id"`
	DeviceID   *string  `json:"device_id"`
	IP         *string  `json:"ip"`
	Country    *string  `json:"country"`
	MCC        *int     `json:"mcc"`
	Channel    *string  `json:"channel"`
	Lat        *float64 `json:"lat"`
	Lon        *float64 `json:"lon"`
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("ready url=http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, routes()))
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/score", func(w http.ResponseWriter, r *http.Request) {
		var tx transaction
		if decode(w, r, &tx) {
			reply(w, []byte(decision))
		}
	})
	mux.HandleFunc("POST /v1/score/batch", func(w http.ResponseWriter, r *http.Request) {
		var txs []transaction
		if decode(w, r, &txs) {
			rows := bytes.Repeat([]byte(","+decision), len(txs))
			reply(w, append(append([]byte("["), bytes.TrimPrefix(rows, []byte(","))...), ']'))
		}
	})
	return mux
}

func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func reply(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // a client that has gone needs no reply
}
