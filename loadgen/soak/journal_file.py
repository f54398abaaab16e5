"""The journal, read from its files by what docs/reference/journal.md says of them, with nothing of the service.

So what is counted here is what anybody would count who has only the document. Little-endian; CRC-32.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

TX, LABEL, LIST, ERASURE = 1, 2, 3, 4
_SEGMENT = struct.Struct("<8sIIQ")  # magic, version, checksum, last LSN before
_BLOCK = struct.Struct("<IIQI")  # length, checksum, first LSN, entries
_ENTRY = struct.Struct("<BII")  # kind, body length, decision length
_CHECKED = struct.Struct("<QI")  # what the length begins to count at


class JournalFileError(Exception):
    """The files are not what the document says."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One thing that happened."""

    lsn: int
    kind: int
    body: bytes
    decision: bytes


def read_blocks(directory: Path) -> Iterator[list[Entry]]:
    """Every block of the journal at `directory`, in the order of LSNs. Raises JournalFileError at the first thing amiss."""
    last_lsn = 0
    for path in sorted(directory.glob("*.seg")):
        data = path.read_bytes()
        magic, version, _, _ = _SEGMENT.unpack_from(data)
        if (magic, version) != (b"WEIRJRNL", 1):
            raise JournalFileError(f"{path}: not a segment of version 1")
        at = _SEGMENT.size
        while at < len(data):
            entries, at = _read_block(path, data, at)
            if entries[0].lsn <= last_lsn:
                raise JournalFileError(f"{path}: LSN {entries[0].lsn} after {last_lsn}")
            last_lsn = entries[-1].lsn
            yield entries


def _read_block(path: Path, data: bytes, at: int) -> tuple[list[Entry], int]:
    length, checksum, first_lsn, n_entries = _BLOCK.unpack_from(data, at)
    start, end = at + _BLOCK.size - _CHECKED.size, at + _BLOCK.size - _CHECKED.size + length
    if end > len(data) or zlib.crc32(memoryview(data)[start:end]) != checksum:
        raise JournalFileError(f"{path}: the block at byte {at} is damaged")
    entries, place = [], at + _BLOCK.size
    for number in range(n_entries):
        kind, n_body, n_decision = _ENTRY.unpack_from(data, place)
        body = place + _ENTRY.size
        decision = body + n_body
        place = decision + n_decision
        entries.append(Entry(first_lsn + number, kind, data[body:decision], data[decision:place]))
    if place != end:
        raise JournalFileError(f"{path}: the entries of the block at byte {at} end at {place}, the block at {end}")
    return entries, end
