"""A batch: the rows of some tickets that are scored together, and the thread of the Go core that may do it.

A batch fills the arena and ends in one of two ways: concluded, or taken back.
"""

import asyncio
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.arena import Arena
from models.scorer import AsideScorer, Scorer
from service.decide import Places
from service.lookup import slots_of
from service.row_codec import Encoded
from service.rows import concat
from service.ticket import Ticket

FEW_ROWS = 8  # up to here NumPy fills an array faster from a range than from an array made of it


class Batch:
    """Rows in the arena, numbered from `first_lsn`. times: perf_counter at the start and after each stop. wanted: what any of
    its tickets wants."""

    __slots__ = (
        "arena",
        "degraded",
        "first_lsn",
        "n_rows",
        "rows",
        "scorer",
        "seen",
        "slots",
        "tickets",
        "times",
        "vectors",
        "wanted",
        "waves",
    )

    def __init__(
        self, tickets: Sequence[Ticket], arena: Arena, first_lsn: int, scorer: Scorer, times: list[float] | None = None
    ) -> None:  # fmt: skip
        """Fills the arena, unless there are times: then the rows of the one ticket are in it and scored, none is degraded."""
        self.tickets = tickets
        self.rows = tickets[0].rows if len(tickets) == 1 else concat([ticket.rows for ticket in tickets])
        self.slots = slots_of(tickets)
        self.n_rows = n = len(self.rows)
        self.arena = arena
        self.first_lsn = first_lsn
        self.scorer = scorer
        self.waves = 0
        self.seen: npt.NDArray[np.int64] | None = None  # (rows, kinds): when profiles saw their last event, if watched
        self.vectors: npt.NDArray[np.float32] | None = None  # a copy of the arena's, if traces are wanted
        self.degraded: dict[int, tuple[str, ...]] = {}
        if times is not None:
            self.wanted = tickets[0].wanted
            self.times = times
            return
        arena.lsns[:n] = range(first_lsn, first_lsn + n) if n <= FEW_ROWS else np.arange(first_lsn, first_lsn + n)
        arena.slots[:n] = self.slots
        arena.columns[:n] = self.rows.columns
        self.wanted = at = 0
        for ticket in tickets:
            self.wanted |= ticket.wanted
            for row, levels in ticket.degraded.items():
                self.degraded[at + row] = levels
            at += len(ticket.rows)
        self.times = [time.perf_counter()]

    @property
    def last_lsn(self) -> int:
        return self.first_lsn + self.n_rows - 1


class Onlooker(Protocol):
    """Looks at batches as they pass (service/sightings.py). Raises nothing."""

    def before(self, batch: Batch) -> None:
        """It is about to be scored."""

    def after(self, batch: Batch, encoded: Encoded, classes: Places) -> None:
        """It is in the journal; classes: (rows,), 0 for a plain approval."""


class Aside:
    """One batch at a time on a thread of the core, which signals an eventfd that the loop watches."""

    def __init__(self, done: Callable[[], None]) -> None:
        self.scorer: AsideScorer | None = None
        self._arena: Arena | None = None
        self._done = done
        self._fd = -1

    def start(self, scorer: AsideScorer, arena: Arena, n_rows: int, watch: Callable[[int, Callable[[], None]], object]) -> None:
        """Hand the arena's first rows over; `done` is called on the loop. `watch`: the loop's add_reader."""
        if self._fd < 0:
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            watch(self._fd, self._signalled)
        scorer.submit(arena, n_rows, self._fd)
        self.scorer, self._arena = scorer, arena

    def wait(self) -> None:
        """Block until the core is done: a few hundred µs. Raises what scoring raised."""
        assert self.scorer is not None
        assert self._arena is not None
        scorer, self.scorer = self.scorer, None
        select.select([self._fd], [], [])
        os.eventfd_read(self._fd)
        scorer.collect(self._arena)

    def close(self) -> None:
        """Give the eventfd back, unless the core still has it to signal; a later start takes a new one."""
        if self._fd >= 0 and self.scorer is None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _signalled(self) -> None:
        if self.scorer is not None:  # else somebody could not wait and has ended it
            self._done()
