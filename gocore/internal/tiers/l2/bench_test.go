package l2

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand"
	"testing"
	"time"

	"weir/gocore/internal/profile"
	"weir/gocore/internal/tiers"
)

const (
	benchProfiles = 100_000
	benchBytes    = 1_408 // a card of the default spec
	benchBatch    = 500   // write-behind's
)

// benchSet makes profiles like real ones: a header of small numbers, a few closed tiles, zeros.
func benchSet(lsn uint64) []tiers.Profile {
	random := rand.New(rand.NewSource(7))
	set := make([]tiers.Profile, benchProfiles)
	for i := range set {
		b := make([]byte, benchBytes)
		b[0] = profile.Version
		binary.LittleEndian.PutUint64(b[profile.LSNOffset:], lsn)
		for word := 3; word < 40; word++ {
			binary.LittleEndian.PutUint64(b[word*8:], uint64(random.Intn(100_000)))
		}
		for range 20 {
			binary.LittleEndian.PutUint32(b[384+random.Intn(256)*4:], uint32(random.Intn(1_000)))
		}
		set[i] = tiers.Profile{Key: fmt.Appendf(nil, "card:card-%08d", i*7919%benchProfiles), Bytes: b}
	}
	return set
}

func benchStore(b *testing.B) (*Store, []tiers.Profile) {
	b.Helper()
	s, err := Open(b.TempDir(), Options{CacheBytes: 128 << 20, FlushInterval: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	set := benchSet(1)
	for i := 0; i < len(set); i += benchBatch {
		put(b, s, uint64(i+1), set[i:i+benchBatch]...)
	}
	if err := s.Flush(); err != nil {
		b.Fatal(err)
	}
	return s, set
}

// BenchmarkPut_Replace shows the steady state of write-behind: each profile gets newer bytes, 500 at a time. What
// compaction does later is not in it.
func BenchmarkPut_Replace(b *testing.B) {
	s, set := benchStore(b)
	lsn := uint64(2)
	at := 0
	b.ReportAllocs()
	for b.Loop() {
		part := set[at : at+benchBatch]
		for i := range part {
			binary.LittleEndian.PutUint64(part[i].Bytes[profile.LSNOffset:], lsn)
		}
		put(b, s, lsn, part...)
		lsn++
		at = (at + benchBatch) % len(set)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchBatch, "ns/profile")
}

// BenchmarkFill shows a look-up of one and of 64 keys, all there or none.
func BenchmarkFill(b *testing.B) {
	s, set := benchStore(b)
	for _, n := range []int{1, 64} {
		for what, suffix := range map[string]string{"hit": "", "miss": "x"} {
			keys := make([][]byte, len(set))
			for i, at := range rand.New(rand.NewSource(1)).Perm(len(set)) {
				keys[i] = append(append([]byte(nil), set[at].Key...), suffix...)
			}
			b.Run(fmt.Sprintf("%s/keys=%d", what, n), func(b *testing.B) {
				at := 0
				b.ReportAllocs()
				for b.Loop() {
					if _, err := s.Profiles().Fill(context.Background(), keys[at:at+n]); err != nil {
						b.Fatal(err)
					}
					at = (at + n) % (len(keys) - n)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/key")
			})
		}
	}
}
