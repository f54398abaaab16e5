"""What the last `weir doctor --skew` found, kept in the data directory for /metrics: the check runs beside the service."""

import time
from pathlib import Path
from typing import Final

import msgspec

from service.durable_file import replace_file

SKEW_FILE: Final = "skew.json"


class SkewNote(msgspec.Struct, frozen=True):
    """When it was, UNIX time in s, and its counts of vectors."""

    at_s: float
    compared: int
    differing: int


def write_note(data_dir: Path, compared: int, differing: int) -> None:
    """Leave a note of a check that has just ended. Raises OSError."""
    replace_file(data_dir / SKEW_FILE, msgspec.json.encode(SkewNote(round(time.time(), 3), compared, differing)))


class SkewNotes:
    """Reads the note, again only if it has changed; None without one, or if it cannot be read."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / SKEW_FILE
        self._changed_ns = 0
        self._note: SkewNote | None = None

    def newest(self) -> SkewNote | None:
        """Costs a stat."""
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                self._note = msgspec.json.decode(self._path.read_bytes(), type=SkewNote)
                self._changed_ns = changed_ns
        except (OSError, msgspec.DecodeError):
            self._note, self._changed_ns = None, 0
        return self._note
