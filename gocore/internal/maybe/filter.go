// Package maybe is a Bloom filter of event ids: "this one is new" without a look at what is stored.
//
// It is blocked: all bits of a key lie in one cache line, so a look-up waits for memory once (Putze, Sanders, Singler, "Cache-, Hash-
// and Space-Efficient Bloom Filters", 2007). That costs a third more bits than a plain filter of the same rate of false positives. A
// filter belongs to one caller at a time. Cost: 20 ns a key in the cache (BenchmarkTake).
package maybe

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"unsafe"

	"weir/gocore/internal/prefetch"
)

const (
	blockWords = 8
	blockBits  = 64 * blockWords
	bitsOfKey  = 8   // set for each key
	spare      = 1.4 // blocked and with 8 bits a key, for rates from 0.05 to 10^-4 (TestFilter_RateOfFalsePositives)
	group      = 32  // keys that are looked for together
	separator  = '\n'
	// KeysMax bounds the capacity of a filter.
	KeysMax = 1 << 31
)

// ErrFilter is wrapped when a filter cannot be made, or a list is none.
var ErrFilter = errors.New("not possible with a filter")

type block [blockWords]uint64

// seed is everybody's: a key is hashed once for all generations that it is looked for in.
var seed = maphash.MakeSeed()

// Filter says of each key that was added "maybe", of others mostly "no".
type Filter struct{ blocks []block }

// New is an empty filter that says maybe wrongly at most at rate fpp once it holds `keys` keys. Errors wrap ErrFilter.
func New(keys int64, fpp float64) (*Filter, error) {
	if keys < 1 || keys > KeysMax || !(fpp > 0 && fpp < 1) {
		return nil, fmt.Errorf("%w: %d keys at a rate of %v, at most %d and between 0 and 1", ErrFilter, keys, fpp, int64(KeysMax))
	}
	// m = n log2(1/p) / ln 2, and never less than the eight bits of a key need.
	perKey := max(spare*math.Log2(1/fpp)/math.Ln2, bitsOfKey)
	return &Filter{make([]block, int64(perKey*float64(keys))/blockBits+1)}, nil
}

// Bytes is the memory of its bits.
func (f *Filter) Bytes() int { return len(f.blocks) * blockBits / 8 }

// Take looks len(found) keys, each with a line feed after it, up in all filters and adds them to the first: found gets 1 for each
// that may have been there, also by an earlier place of this list, else 0. An empty key is neither looked up nor added.
func Take(filters []*Filter, list []byte, found []uint8) error {
	return each(filters, list, found, true)
}

// Find is Take without adding.
func Find(filters []*Filter, list []byte, found []uint8) error {
	return each(filters, list, found, false)
}

func each(filters []*Filter, list []byte, found []uint8, add bool) error {
	var hashes [group]uint64
	var empty [group]bool
	for len(found) > 0 {
		n := min(group, len(found))
		for i := range n {
			end := bytes.IndexByte(list, separator)
			if end < 0 {
				return fmt.Errorf("%w: %d keys, each with a line feed, are missing from the list", ErrFilter, len(found)-i)
			}
			empty[i] = end == 0
			hashes[i] = maphash.Bytes(seed, list[:end])
			for _, f := range filters {
				prefetch.Lines(unsafe.Pointer(f.block(hashes[i])), 1)
			}
			list = list[end+1:]
		}
		for i, hash := range hashes[:n] {
			found[i] = 0
			if empty[i] {
				continue
			}
			mask := maskOf(hash)
			for _, f := range filters {
				if f.block(hash).has(&mask) {
					found[i] = 1
					break
				}
			}
			if add {
				filters[0].block(hash).add(&mask)
			}
		}
		found = found[n:]
	}
	return nil
}

func (f *Filter) block(hash uint64) *block {
	at, _ := bits.Mul64(hash, uint64(len(f.blocks))) // the upper bits choose the block, the lower ones the bits in it
	return &f.blocks[at]
}

// maskOf has the bits of a key: nine bits of a product each, which are as good as new ones.
func maskOf(hash uint64) (mask block) {
	const odd = 0x9E3779B97F4A7C15
	for range bitsOfKey {
		hash *= odd
		bit := hash >> (64 - 9)
		hash ^= hash >> 29
		mask[bit/64] |= 1 << (bit % 64)
	}
	return mask
}

func (b *block) has(mask *block) bool {
	missing := uint64(0)
	for i := range b {
		missing |= mask[i] &^ b[i]
	}
	return missing == 0
}

func (b *block) add(mask *block) {
	for i := range b {
		b[i] |= mask[i]
	}
}
