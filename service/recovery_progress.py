"""How far recovery is: for /readyz and /metrics, in a bar on a terminal, else in a line of the log every two seconds."""

import sys
import time
from collections.abc import Sequence

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.journal_format import SEGMENT_HEADER_BYTES, BadBlock, decode_segment_header
from service.journal_segments import Segment

log = structlog.get_logger(__name__)

LOG_S = 2.0  # between two lines of the log
DRAW_S = 0.1  # between two pictures of the bar


class RecoveryProgress:
    """What one start had to apply again. Seconds and CPU seconds (of the whole process) count until it was done."""

    def __init__(self) -> None:
        self.from_lsn = 0  # the first LSN that was applied
        self.n_entries = 0
        self.n_total = 0  # LSNs from there on: entries, and the few that were never used
        self.seconds = self.cpu_seconds = 0.0
        self._began = self._cpu_began = self._told_at = 0.0
        self._bar: Progress | None = None

    @property
    def share(self) -> float:
        """Of the entries that are applied: 0 to 1."""
        return min(self.n_entries / self.n_total, 1.0) if self.n_total else 1.0

    @property
    def text(self) -> str:
        """Why the service is not ready yet."""
        return f"recovering: {self.n_entries:,} of about {self.n_total:,} entries ({100 * self.share:.0f} %)"

    def begin(self, from_lsn: int, n_total: int) -> None:
        """Entries from `from_lsn` on are to be applied; nothing is told if there are none."""
        self.from_lsn, self.n_total = from_lsn, n_total
        self._began = self._told_at = time.monotonic()
        self._cpu_began = time.process_time()
        if not n_total:
            return
        log.info("recovery begins", from_lsn=from_lsn, entries=n_total)
        if sys.stderr.isatty():
            text = TextColumn("{task.percentage:>3.0f} % {task.fields[n]}")
            columns = (TextColumn("recovering"), BarColumn(), text, TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
            self._bar.add_task("", total=n_total, n="")
            self._bar.start()

    def step(self, n_entries: int, lsn: int) -> None:
        """So many more are applied, up to `lsn`."""
        self.n_entries += n_entries
        now = time.monotonic()
        self.seconds, self.cpu_seconds = now - self._began, time.process_time() - self._cpu_began
        if self._bar is not None and now - self._told_at > DRAW_S:
            self._told_at = now
            self._bar.update(self._bar.task_ids[0], completed=self.n_entries, n=f"{self.n_entries:,} entries", refresh=True)
        elif self._bar is None and now - self._told_at > LOG_S:
            self._told_at = now
            log.info("recovering", entries=self.n_entries, of=self.n_total, share=round(self.share, 3), lsn=lsn)

    def end(self, lsn: int, *, is_done: bool) -> None:
        """Everything up to `lsn` is applied: that is all, or else the process stops before it is."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.n_entries, n=f"{self.n_entries:,} entries")
            self._bar.stop()
            self._bar = None
        if self.n_total:
            event = "recovered" if is_done else "recovery ends early"
            seconds, cpu_seconds = round(self.seconds, 3), round(self.cpu_seconds, 3)
            log.info(event, entries=self.n_entries, seconds=seconds, cpu_seconds=cpu_seconds, lsn=lsn)


def count_lsns(segments: Sequence[Segment], from_lsn: int, last_lsn: int) -> int:
    """About how many entries the segments hold from `from_lsn` on: within one of them LSNs have few gaps."""
    lasts = [*map(_previous_last_lsn, segments[1:]), last_lsn]
    return sum(max(last - max(segment.first_lsn, from_lsn) + 1, 0) for segment, last in zip(segments, lasts, strict=False))


def _previous_last_lsn(segment: Segment) -> int:
    """0 where that cannot be read: whoever reads the entries will say so."""
    try:
        with segment.path.open("rb") as file:
            return decode_segment_header(file.read(SEGMENT_HEADER_BYTES))
    except (OSError, BadBlock):
        return 0
