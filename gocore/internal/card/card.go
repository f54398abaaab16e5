// Package card reads the model card beside a model: what the model is, which plan it belongs to, its thresholds. A model file
// that does not match its card is refused, and so is a card of another plan, as the features would not mean the same.
package card

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"weir/gocore/internal/plan"
)

const version = 1

// ErrCard is wrapped when a card or its model cannot be used.
var ErrCard = errors.New("model card not usable")

// Card is what a server needs of it. Review and Decline are risk scores from which on a transaction is reviewed or declined.
type Card struct {
	Model           string // name and version, as decisions name it
	Spec            string
	Review, Decline float64
	ONNX            []byte
}

// Load reads card.json and model.onnx in directory, and checks them against each other and against the plan.
func Load(directory string, p *plan.Plan) (*Card, error) {
	path := filepath.Join(directory, "card.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; `weir train --out %s` makes one", ErrCard, err, directory)
	}
	var file struct {
		CardVersion  int      `json:"card_version"`
		Name         string   `json:"name"`
		Version      string   `json:"version"`
		SHA256       string   `json:"sha256"`
		Spec         string   `json:"spec"`
		PlanHash     string   `json:"plan_hash"`
		FeatureNames []string `json:"feature_names"`
		Thresholds   struct {
			Review  *float64 `json:"review"`
			Decline *float64 `json:"decline"`
		} `json:"thresholds"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCard, path, err)
	}
	if file.CardVersion != version {
		return nil, fmt.Errorf("%w: %s: card version %d, this program reads %d", ErrCard, path, file.CardVersion, version)
	}
	review, decline := file.Thresholds.Review, file.Thresholds.Decline
	if review == nil || decline == nil || !(0 <= *review && *review <= *decline && *decline <= 1) {
		return nil, fmt.Errorf("%w: %s: thresholds must be 0 <= review <= decline <= 1", ErrCard, path)
	}
	model := file.Name + "@" + file.Version
	if file.PlanHash != p.Hash || !slices.Equal(file.FeatureNames, p.FeatureNames()) {
		return nil, fmt.Errorf("%w: model %s was trained for spec %q with plan %.12s, this is plan %.12s", ErrCard, model, file.Spec, file.PlanHash, p.Hash)
	}
	onnx, err := os.ReadFile(filepath.Join(directory, "model.onnx"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCard, err)
	}
	sum := sha256.Sum256(onnx)
	if actual := hex.EncodeToString(sum[:]); actual != file.SHA256 {
		return nil, fmt.Errorf("%w: %s: sha256 %.12s is not the card's %.12s; the file is damaged or belongs to another card", ErrCard, directory, actual, file.SHA256)
	}
	return &Card{Model: model, Spec: file.Spec, Review: *review, Decline: *decline, ONNX: onnx}, nil
}
