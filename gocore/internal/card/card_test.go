package card

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"weir/gocore/internal/plan/plantest"
)

const artifact = "../../../models/artifacts/cards"

func TestLoad_PackagedModel_Fits(t *testing.T) {
	c, err := Load(artifact, plantest.Load(t, "cards"))
	if err != nil || c.Spec != "cards" || len(c.ONNX) == 0 || !(c.Review > 0 && c.Review < c.Decline && c.Decline < 1) {
		t.Fatalf("%+v, %v", c, err)
	}
}

func TestLoad_WhatDoesNotFit_ErrCard(t *testing.T) {
	for name, change := range map[string]func(card, model []byte) ([]byte, []byte){
		"model": func(c, m []byte) ([]byte, []byte) { return c, append(m, 0) },
		"plan": func(c, m []byte) ([]byte, []byte) {
			return bytes.Replace(c, []byte(`"plan_hash": "0`), []byte(`"plan_hash": "1`), 1), m
		},
		"version": func(c, m []byte) ([]byte, []byte) {
			return bytes.Replace(c, []byte(`"card_version": 1`), []byte(`"card_version": 2`), 1), m
		},
		"threshold": func(c, m []byte) ([]byte, []byte) {
			return bytes.Replace(c, []byte(`"review": 0.`), []byte(`"review": 9.`), 1), m
		},
		"no JSON": func(c, m []byte) ([]byte, []byte) { return c[1:], m },
	} {
		directory := t.TempDir()
		card, err := os.ReadFile(filepath.Join(artifact, "card.json"))
		if err != nil {
			t.Fatal(err)
		}
		model, err := os.ReadFile(filepath.Join(artifact, "model.onnx"))
		if err != nil {
			t.Fatal(err)
		}
		card, model = change(card, model)
		if err := errors.Join(
			os.WriteFile(filepath.Join(directory, "card.json"), card, 0o600),
			os.WriteFile(filepath.Join(directory, "model.onnx"), model, 0o600),
		); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(directory, plantest.Load(t, "cards")); !errors.Is(err, ErrCard) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load(t.TempDir(), plantest.Load(t, "cards")); !errors.Is(err, ErrCard) {
		t.Errorf("nothing there: %v", err)
	}
}
