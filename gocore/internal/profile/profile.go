// Package profile is the running state of one entity as bytes: what a slab of them is, and what is checked when one comes
// from elsewhere. The layout is docs/reference/profile-format.md, word numbers come from the plan. Only package advance changes one.
//
// Profiles are little-endian; so is every machine that this package is built for (an arm64 or amd64).
package profile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"weir/gocore/internal/plan"
)

// Version is the first byte of every profile; 0 is an empty slot.
const Version = 1

// LSNOffset is where the LSN of the last event applied stands, in bytes.
const LSNOffset = plan.WLSN * 8

// flagPartial, in byte 2: begun while the stored profile could not be asked for.
const flagPartial = 1

// ErrUnknownProfile is wrapped by every error of Check: another version, kind, size or layout, or damage.
var ErrUnknownProfile = errors.New("not a profile of this plan")

// Check reports whether b is a profile of kind.
func Check(kind *plan.Kind, b []byte) error {
	if len(b) != kind.Size {
		return fmt.Errorf("%w: a %s profile has %d bytes, not %d", ErrUnknownProfile, kind.Name, kind.Size, len(b))
	}
	if b[0] != Version || int(b[1]) != kind.Number {
		return fmt.Errorf("%w: version %d, kind %d; this plan reads %d, %d", ErrUnknownProfile, b[0], b[1], Version, kind.Number)
	}
	if layout := int64(binary.LittleEndian.Uint64(b[plan.WLayout*8:])); layout != kind.Layout {
		return fmt.Errorf("%w: a %s profile of layout %016x, this plan's is %016x", ErrUnknownProfile, kind.Name, layout, kind.Layout)
	}
	return nil
}

// VersionWord is the first word of a new profile of kind.
func VersionWord(kind *plan.Kind) int64 { return Version | int64(kind.Number)<<8 }

// IsEmpty reports whether b is an empty slot.
func IsEmpty(b []byte) bool { return b[0] == 0 }

// IsPartial reports whether the profile was begun while the stored one could not be asked for.
func IsPartial(b []byte) bool { return b[2]&flagPartial != 0 }

// LSN is the position of the last event or label applied.
func LSN(b []byte) uint64 { return binary.LittleEndian.Uint64(b[LSNOffset:]) }

// AsBytes is the words of a profile as bytes, in place.
func AsBytes(words []int64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
}
