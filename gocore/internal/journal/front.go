package journal

import (
	"encoding/binary"
	"hash/crc32"
)

// Front is the block that b begins with; it follows the LSN before. ok is false if b holds less than the block says, or what is no
// block: only who knows whether b is all there is can tell which.
func Front(b []byte, before uint64) (front FrontBlock, ok bool) {
	if len(b) < blockHeaderBytes {
		return front, false
	}
	reader := blockReader{end: int64(len(b)), last: before}
	h, damage := reader.checkHeader(b[:blockHeaderBytes], 0)
	if damage != nil {
		return front, false
	}
	return FrontBlock{First: h.first, Entries: h.entries, crc: h.crc, checked: b[blockCheckBytes : blockCheckBytes+h.length]}, true
}

// FrontBlock is a block as it stands in memory. Its entries have not been looked at.
type FrontBlock struct {
	First   uint64
	Entries uint32
	crc     uint32
	checked []byte
}

// Last is the LSN of its last entry.
func (f *FrontBlock) Last() uint64 { return f.First + uint64(f.Entries) - 1 }

// Size is how many bytes it takes in a segment.
func (f *FrontBlock) Size() int { return blockCheckBytes + len(f.checked) }

// Body is the entries' bytes, for Next, if the checksum is theirs.
func (f *FrontBlock) Body() (entries []byte, ok bool) {
	return f.checked[blockLengthMin:], crc32.ChecksumIEEE(f.checked) == f.crc
}

// Next takes the entry off the front of entries; its bytes are views.
func Next(entries []byte) (entry Entry, rest []byte, ok bool) {
	if len(entries) < entryHeaderBytes {
		return entry, nil, false
	}
	body := uint64(binary.LittleEndian.Uint32(entries[1:]))
	decision := uint64(binary.LittleEndian.Uint32(entries[5:]))
	kind := entries[0]
	b := entries[entryHeaderBytes:]
	if body+decision > uint64(len(b)) {
		return entry, nil, false
	}
	return Entry{kind, b[:body:body], b[body : body+decision : body+decision]}, b[body+decision:], true
}

// Checksum is that of a block's bytes after length and checksum.
func Checksum(b []byte) uint32 { return crc32.ChecksumIEEE(b) }
