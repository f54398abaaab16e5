package settings

import (
	"errors"
	"strings"
	"testing"
)

func TestLoad_Nothing_Defaults(t *testing.T) {
	s, err := Load(nil)
	if err != nil || s.Port != 8080 || s.Sync != "interval" || s.BatchMax != 128 || s.BloomFPP != 0.01 || !s.L2 || s.ReviewThreshold != -1 {
		t.Fatalf("%+v, %v", s, err)
	}
}

func TestLoad_Assignments_LaterWins(t *testing.T) {
	s, err := Load([]string{"server.port=1", "time.clock = stream", "server.port=2", "queue.events_max=1_000", "redis.url=unix:///run/v"})
	if err != nil || s.Port != 2 || s.Clock != "stream" || s.EventsMax != 1000 {
		t.Fatalf("%+v, %v", s, err)
	}
}

func TestLoad_WhatDoesNotFit_ErrSettingSaysWhy(t *testing.T) {
	for assignment, why := range map[string]string{
		"port=1":                      "did you mean server.port?",
		"server.port=65536":           "from 0 to 65535",
		"server.port=x":               "expected int",
		"journal.sync=never":          "group, interval, os",
		"l2.enabled=1":                "true or false",
		"bloom.fpp=0.6":               "to 0.5",
		"bloom.fpp=NaN":               "to 0.5",
		"redis.url=nonsense":          "redis://..., rediss://..., unix://...",
		"postgres.url=redis://x":      "postgresql://..., postgres://...",
		"nothing":                     "key=value",
		"l9.colour=red":               "--help",
		"queue.batch_max=10000":       "queue.events_max",
		"decide.review_threshold=1.5": "-1 to 1",
	} {
		if _, err := Load([]string{assignment}); !errors.Is(err, ErrSetting) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", assignment, err)
		}
	}
	if _, err := Load([]string{"decide.review_threshold=0.5", "decide.decline_threshold=0.4"}); !errors.Is(err, ErrSetting) {
		t.Error(err)
	}
}

func TestDescribe_NamesEverySetting(t *testing.T) {
	if n := strings.Count(Describe(), "\n"); n != len(table) {
		t.Fatalf("%d lines for %d settings", n, len(table))
	}
}
