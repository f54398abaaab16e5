"""Steal: processor time that a virtual machine wants while its host gives it to others. Linux only (/proc/stat).

It explains what nothing inside the machine can: with a third stolen, a round of a server that does two things at a time is a
third as fast, since one of its two processors often stands still while the other waits for it.
"""

from pathlib import Path

_STAT = Path("/proc/stat")
_STEAL = 7  # of user, nice, system, idle, iowait, irq, softirq, steal


class StealMeter:
    """From its making on."""

    def __init__(self, stat: Path = _STAT) -> None:
        self._stat = stat
        self._before = self._read()

    def share(self) -> float:
        """Of the time of all processors, 0 to 1; 0 where nobody tells."""
        total, stolen = (now - before for now, before in zip(self._read(), self._before, strict=True))
        return round(stolen / total, 4) if total else 0.0

    def _read(self) -> tuple[int, int]:
        """Ticks so far: all, and stolen ones."""
        try:
            first = self._stat.read_text(encoding="ascii").split("\n", 1)[0].split()
        except OSError:
            return 0, 0
        ticks = [int(word) for word in first[1 : _STEAL + 2]]
        return sum(ticks), ticks[_STEAL] if len(ticks) > _STEAL else 0
