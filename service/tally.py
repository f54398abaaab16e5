"""What is counted of every micro-batch that is in the journal, at 1.1 µs a batch.

A batch leaves a row of numbers; some hundreds of rows at a time are sorted into histograms by NumPy. Observed one by one they
would cost 3 µs a batch, which is felt where a batch is a single transaction. /metrics reads them after `fold`.
"""

from typing import TYPE_CHECKING, Final

import numpy as np

from service.metrics import LATENCY_BOUNDS, ROWS_BOUNDS, WAVES_BOUNDS, Histogram

if TYPE_CHECKING:
    from models.scorer import Scorer
    from service.batch import Batch

STOPS: Final = ("score", "decide", "journal")  # what lies between the times of a batch
LOOKUP: Final = "lookup"
FOLD_BATCHES: Final = 256  # folded at a time: 0.1 ms


class ScorerTally:
    """What one engine scored. `seconds`: of its batches."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.seconds = Histogram(LATENCY_BOUNDS)


class BatchTally:
    """rows, waves, seconds by stop: of batches. scorers: by engine. degraded: transactions by tier that could not be asked."""

    def __init__(self) -> None:
        self.rows, self.waves = Histogram(ROWS_BOUNDS), Histogram(WAVES_BOUNDS)
        self.seconds = {stop: Histogram(LATENCY_BOUNDS) for stop in (LOOKUP, *STOPS)}
        self.scorers: dict[str, ScorerTally] = {}
        self.degraded: dict[str, int] = {}
        self._noted: list[tuple[float, ...]] = []  # times at the start and after each stop, look-up, rows, waves
        self._scorer: Scorer | None = None  # that scored them

    def note(self, batch: "Batch") -> None:
        """Count a batch whose times are complete."""
        noted, tickets = self._noted, batch.tickets
        if batch.scorer is not self._scorer or len(noted) >= FOLD_BATCHES:
            self.fold()
            self._scorer = batch.scorer
        lookup = tickets[0].lookup_seconds if len(tickets) == 1 else sum([ticket.lookup_seconds for ticket in tickets])
        noted.append((*batch.times, lookup, batch.n_rows, batch.waves))
        if batch.degraded:
            self._note_degraded(batch)

    def fold(self) -> None:
        """Sort what was noted into the histograms."""
        if not self._noted:
            return
        assert self._scorer is not None
        noted = np.array(self._noted)
        self._noted.clear()
        took = np.diff(noted[:, : len(STOPS) + 1])
        lookup, rows, waves = noted[:, len(STOPS) + 1 :].T
        for place, stop in enumerate(STOPS):
            self.seconds[stop].observe_all(took[:, place])
        self.seconds[LOOKUP].observe_all(lookup)
        self.rows.observe_all(rows)
        self.waves.observe_all(waves[waves > 0])  # an engine that does not tell them has none
        scorer = self.scorers.setdefault(self._scorer.name, ScorerTally())
        scorer.n_rows += int(rows.sum())
        scorer.seconds.observe_all(took[:, 0])

    def _note_degraded(self, batch: "Batch") -> None:
        for levels in batch.degraded.values():
            for level in levels:
                self.degraded[level] = self.degraded.get(level, 0) + 1
