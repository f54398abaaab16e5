"""The audit: who changed what and why, one line of JSON per change, appended and fsynced before the change is answered.

It names no card and no person: of an erased entity it keeps a digest, by which somebody who knows the id finds the entry.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

AUDIT_FILE = "audit.ndjson"
_TAIL_BYTES = 1 << 20  # read at most, from the end

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Audit:
    """The file of one data directory. Raises OSError if it cannot be opened or written."""

    def __init__(self, directory: Path, wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._path = directory / AUDIT_FILE
        self._wall_ms = wall_ms
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, who: str, action: str, **what: object) -> None:
        """Add an entry: `who` is the name of a key. Waits for the disk: call it on another thread."""
        line = _encode({"ts": self._wall_ms(), "who": who, "action": action, **what}) + b"\n"
        written = os.write(self._fd, line)
        if written != len(line):
            os.write(self._fd, b"\n")  # half a line stays alone
            raise OSError(errno.ENOSPC, f"wrote {written} of {len(line)} bytes", str(self._path))
        os.fsync(self._fd)

    def newest(self, n_max: int) -> list[dict[str, Any]]:
        """The last entries, newest first, as far as they stand in the last MiB."""
        size = os.fstat(self._fd).st_size
        data = os.pread(self._fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        lines = data.splitlines()[1 if size > _TAIL_BYTES else 0 :]
        entries: list[dict[str, Any]] = []
        for line in reversed(lines):
            if len(entries) == n_max:
                break
            try:
                entries.append(_decode(line))
            except msgspec.DecodeError:  # half a line: the disk was full
                continue
        return entries

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def digest(kind: str, entity: str) -> str:
    """How an erased entity is named."""
    return hashlib.sha256(f"{kind}:{entity}".encode()).hexdigest()[:16]
