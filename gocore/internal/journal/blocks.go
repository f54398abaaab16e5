package journal

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
)

// blockReader walks the blocks of one segment. offset is where the next one starts, last the last LSN passed.
type blockReader struct {
	file         *os.File
	buffered     *bufio.Reader
	end          int64  // bytes of the file that count
	lsnMin       uint64 // from the file's name: no LSN in it is lower
	previousLast uint64
	offset       int64
	last         uint64
}

func newBlockReader(file *os.File, end int64, lsnMin uint64) (*blockReader, *badBlock, error) {
	header := make([]byte, min(end, segmentHeaderBytes))
	if _, err := io.ReadFull(file, header); err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, nil, err
	}
	previousLast, damage, err := decodeSegmentHeader(header)
	if damage != nil || err != nil {
		return nil, damage, err
	}
	return &blockReader{
		file: file, buffered: bufio.NewReaderSize(file, 1<<18), end: end, lsnMin: lsnMin,
		previousLast: previousLast, offset: segmentHeaderBytes, last: previousLast,
	}, nil, nil
}

// next is the next block that reaches from, nil at the end. Those below are passed by their header alone.
func (r *blockReader) next(from uint64) (*Block, *badBlock, error) {
	var header [blockHeaderBytes]byte
	for r.offset < r.end {
		n, err := io.ReadFull(r.buffered, header[:])
		if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
			return nil, nil, err
		}
		h, damage := r.checkHeader(header[:n], r.offset)
		if damage != nil {
			return nil, damage, nil
		}
		size := h.length - blockLengthMin
		if h.last() < from {
			if _, err := r.buffered.Discard(int(size)); err != nil {
				return nil, nil, err
			}
			r.offset, r.last = r.offset+blockHeaderBytes+int64(size), h.last()
			continue
		}
		rest := make([]byte, h.length)
		copy(rest, header[blockCheckBytes:])
		if _, err := io.ReadFull(r.buffered, rest[blockLengthMin:]); err != nil {
			return nil, nil, err
		}
		if crc32.ChecksumIEEE(rest) != h.crc {
			return nil, bad(r.offset, "checksum of a block does not match"), nil
		}
		entries, problem := decodeEntries(h.entries, rest[blockLengthMin:])
		if problem != "" {
			return nil, bad(r.offset, "%s", problem), nil
		}
		r.offset, r.last = r.offset+blockHeaderBytes+int64(size), h.last()
		skipped := uint64(0)
		if from > h.first {
			skipped = from - h.first
		}
		return &Block{h.first + skipped, entries[skipped:]}, nil, nil
	}
	return nil, nil, nil
}

type blockHeader struct {
	length, crc, entries uint32
	first                uint64
}

func (h *blockHeader) last() uint64 { return h.first + uint64(h.entries) - 1 }

func (r *blockReader) checkHeader(b []byte, offset int64) (h blockHeader, damage *badBlock) {
	left := r.end - offset
	if left < blockHeaderBytes || len(b) < blockHeaderBytes {
		return h, bad(offset, "%d bytes are left, a block header has %d", left, blockHeaderBytes)
	}
	h = blockHeader{
		length: binary.LittleEndian.Uint32(b), crc: binary.LittleEndian.Uint32(b[4:]),
		first: binary.LittleEndian.Uint64(b[8:]), entries: binary.LittleEndian.Uint32(b[16:]),
	}
	if h.length < blockLengthMin || int64(h.length)+blockCheckBytes > left {
		return h, bad(offset, "block length %d does not fit the %d bytes that are left", h.length, left)
	}
	if h.entries == 0 || uint64(h.entries)*entryHeaderBytes > uint64(h.length) {
		return h, bad(offset, "%d entries cannot be in a block of %d bytes", h.entries, h.length)
	}
	if h.first <= r.last || h.first < r.lsnMin || h.first > lsnMax {
		return h, bad(offset, "first LSN %d does not follow %d", h.first, r.last)
	}
	return h, nil
}

// hasBlockAfter reports whether a readable block of the segment's epoch stands anywhere after the bad bytes at offset. Blocks
// carry no marker of their own; the epoch in a first LSN is what a search can hold on to.
func (r *blockReader) hasBlockAfter(offset int64) (bool, error) {
	data := make([]byte, r.end)
	if _, err := r.file.ReadAt(data, 0); err != nil && err != io.EOF {
		return false, err
	}
	epoch := binary.LittleEndian.AppendUint16(nil, uint16(r.lsnMin>>EpochShift))
	for at := offset + 1; ; at++ {
		from := at + epochAt
		if from >= r.end {
			return false, nil
		}
		found := bytes.Index(data[from:], epoch)
		if found < 0 {
			return false, nil
		}
		at += int64(found)
		if at+blockHeaderBytes > r.end {
			return false, nil
		}
		h, damage := r.checkHeader(data[at:at+blockHeaderBytes], at)
		start := at + blockCheckBytes
		if damage == nil && crc32.ChecksumIEEE(data[start:start+int64(h.length)]) == h.crc {
			return true, nil
		}
	}
}
