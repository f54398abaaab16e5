package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	ort "github.com/yalue/onnxruntime_go"
)

const (
	nCard, nMerchant, nFeatures = 30, 10, 40
	idLengthMax                 = 128
	amountMax                   = 10_000_000_000
	tsMin, tsMax                = 100_000_000_000, 1 << 62
	batchRowsMax                = 1024

	cardQuery      = "SELECT features FROM stack_cards WHERE card_id = $1"
	merchantQuery  = "SELECT features FROM stack_merchants WHERE merchant_id = $1"
	cardsQuery     = "SELECT card_id, features FROM stack_cards WHERE card_id = ANY($1)"
	merchantsQuery = "SELECT merchant_id, features FROM stack_merchants WHERE merchant_id = ANY($1)"
)

type tx struct {
	EventID    string `json:"event_id"`
	CardID     string `json:"card_id"`
	MerchantID string `json:"merchant_id"`
	Amount     *int64 `json:"amount"`
	TS         *int64 `json:"ts"`
}

func (t *tx) validate() error {
	for _, id := range []string{t.EventID, t.CardID, t.MerchantID} {
		if n := utf8.RuneCountInString(id); n < 1 || n > idLengthMax {
			return fmt.Errorf("an id has %d characters: expected 1 to %d", n, idLengthMax)
		}
	}
	if t.Amount == nil || *t.Amount < 0 || *t.Amount > amountMax {
		return errors.New("amount: expected minor units, 0 to 10^10")
	}
	if t.TS == nil || *t.TS < tsMin || *t.TS > tsMax {
		return errors.New("ts: expected milliseconds")
	}
	return nil
}

type decision struct {
	EventID string  `json:"event_id"`
	Score   float32 `json:"score"`
	Outcome string  `json:"outcome"`
}

func decide(t *tx, risk float32) decision {
	outcome := "approve"
	if risk >= 0.9 {
		outcome = "decline"
	} else if risk >= 0.5 {
		outcome = "review"
	}
	return decision{t.EventID, risk, outcome}
}

// cardModel may be run by many goroutines at the same time.
type cardModel struct{ session *ort.DynamicAdvancedSession }

func openCardModel(path string) (*cardModel, error) {
	session, err := openSession(path, "features", "risk")
	return &cardModel{session}, err
}

// openSession opens a model that runs on the thread that asks.
func openSession(path, input, output string) (*ort.DynamicAdvancedSession, error) {
	options, err := ort.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	defer options.Destroy()
	if err := options.SetIntraOpNumThreads(1); err != nil {
		return nil, err
	}
	return ort.NewDynamicAdvancedSession(path, []string{input}, []string{output}, options)
}

// infer returns the risk scores of len(vectors)/40 rows.
func (m *cardModel) infer(vectors []float32) ([]float32, error) {
	rows := int64(len(vectors) / nFeatures)
	input, err := ort.NewTensor(ort.NewShape(rows, nFeatures), vectors)
	if err != nil {
		return nil, err
	}
	defer input.Destroy()
	risks := make([]float32, rows)
	output, err := ort.NewTensor(ort.NewShape(rows), risks)
	if err != nil {
		return nil, err
	}
	defer output.Destroy()
	return risks, m.session.Run([]ort.Value{input}, []ort.Value{output})
}

func (s *server) score(w http.ResponseWriter, r *http.Request) {
	var t tx
	if !decode(w, r, &t) {
		return
	}
	if err := t.validate(); err != nil {
		fail(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	card, err := s.features(r.Context(), cardQuery, t.CardID)
	if err == nil {
		var merchant []float32
		merchant, err = s.features(r.Context(), merchantQuery, t.MerchantID)
		card = append(card, merchant...)
	}
	if err != nil {
		failQuery(w, err)
		return
	}
	risks, err := s.cards.infer(card)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	reply(w, http.StatusOK, decide(&t, risks[0]))
}

func (s *server) scoreBatch(w http.ResponseWriter, r *http.Request) {
	var txs []tx
	if !decode(w, r, &txs) {
		return
	}
	if len(txs) < 1 || len(txs) > batchRowsMax {
		fail(w, http.StatusUnprocessableEntity, fmt.Sprintf("%d rows: expected 1 to %d", len(txs), batchRowsMax))
		return
	}
	cardIDs, merchantIDs := make([]string, len(txs)), make([]string, len(txs))
	for i := range txs {
		if err := txs[i].validate(); err != nil {
			fail(w, http.StatusUnprocessableEntity, fmt.Sprintf("row %d: %v", i, err))
			return
		}
		cardIDs[i], merchantIDs[i] = txs[i].CardID, txs[i].MerchantID
	}
	vectors, err := s.vectors(r.Context(), cardIDs, merchantIDs)
	if err != nil {
		failQuery(w, err)
		return
	}
	risks, err := s.cards.infer(vectors)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	decisions := make([]decision, len(txs))
	for i := range txs {
		decisions[i] = decide(&txs[i], risks[i])
	}
	reply(w, http.StatusOK, decisions)
}

// features of one entity; pgx.ErrNoRows if there is no such one.
func (s *server) features(ctx context.Context, query, id string) ([]float32, error) {
	features := make([]float32, 0, nFeatures)
	if err := s.pool.QueryRow(ctx, query, id).Scan(&features); err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	return features, nil
}

// vectors returns the features of all rows, one after the other.
func (s *server) vectors(ctx context.Context, cardIDs, merchantIDs []string) ([]float32, error) {
	cards, err := s.featuresOf(ctx, cardsQuery, cardIDs)
	if err != nil {
		return nil, err
	}
	merchants, err := s.featuresOf(ctx, merchantsQuery, merchantIDs)
	if err != nil {
		return nil, err
	}
	vectors := make([]float32, 0, len(cardIDs)*nFeatures)
	for i, id := range cardIDs {
		card, merchant := cards[id], merchants[merchantIDs[i]]
		if card == nil || merchant == nil {
			return nil, fmt.Errorf("row %d: %w", i, pgx.ErrNoRows)
		}
		vectors = append(append(vectors, card...), merchant...)
	}
	return vectors, nil
}

func (s *server) featuresOf(ctx context.Context, query string, ids []string) (map[string][]float32, error) {
	rows, err := s.pool.Query(ctx, query, ids)
	if err != nil {
		return nil, err
	}
	found := make(map[string][]float32, len(ids))
	var id string
	var features []float32
	_, err = pgx.ForEachRow(rows, []any{&id, &features}, func() error {
		found[id], features = features, nil
		return nil
	})
	return found, err
}

// decode reads the body as JSON, or replies 422.
func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err.Error())
	}
	return err == nil
}

func failQuery(w http.ResponseWriter, err error) {
	if errors.Is(err, pgx.ErrNoRows) {
		fail(w, http.StatusNotFound, "no such card or merchant: "+err.Error())
		return
	}
	fail(w, http.StatusInternalServerError, err.Error())
}
