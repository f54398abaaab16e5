"""A consumer of the journal below L1: what one level still lacks, and how it comes by that.

A live consumer is told of every change as it happens. One whose level was down, off or met anew is not: it forgets what it knew
and reads the journal from the level's own position, a portion at a time (`missed`), until it has reached the end and is live
again. So a restart, an outage and a toggle are the same thing, and an outage of any length costs no memory.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence

from service.dirty import Dirty
from service.l1_keys import L1Keys
from service.levels import DOWN, OFF, Level
from service.metrics import LATENCY_BOUNDS, Histogram

Portion = tuple[dict[bytes, int], int]  # keys with the LSN of a change; everything up to this LSN is in them or was before

PROBE_INTERVAL_S = 1.0  # between two attempts to reach a level that is down


class Consumer:
    """`position`: what the level has stored. `marked_lsn`: every change above that and up to here is in one of the maps."""

    def __init__(self, level: Level, position: int, l1_keys: L1Keys) -> None:
        self.level = level
        self._l1_keys = l1_keys
        self.position = position
        self.marked_lsn = position
        self.is_live = level.state not in (DOWN, OFF)
        self.dirty = Dirty(l1_keys)
        self.in_flight: dict[bytes, int] = {}
        self.missed: AsyncIterator[Portion] | None = None
        self.needs_complete = False  # the journal alone cannot tell what it lacks
        self.turn = asyncio.Lock()  # held by whoever writes to the level or meets it
        self.has_claimed = False  # the level knows that this run's LSNs are taken
        self.probe_at = 0.0
        self.write_seconds = Histogram(LATENCY_BOUNDS)  # of writes that succeeded
        level.lacks = self.lacking

    def add(self, key: bytes, lsn: int) -> None:
        """`key` was changed by the entry `lsn`; an earlier change that is still unwritten stays the first."""
        self.dirty.add(key, lsn)

    def forget(self) -> None:
        """The level has to be met anew: what it lacks is read from the journal then."""
        assert not self.in_flight, "a flight that is forgotten is a lost update"
        self.dirty, self.missed, self.is_live, self.has_claimed = Dirty(self._l1_keys), None, False, False

    def meet(self, position: int, missed: AsyncIterator[Portion], needs_complete: bool) -> None:
        """The level answered: it stands at `position`, and `missed` gives what has changed since."""
        self.forget()
        self.position = self.marked_lsn = position
        self.missed, self.needs_complete = missed, needs_complete

    def take(self, n_max: int, but: Collection[bytes] = ()) -> list[bytes]:
        """Move up to n_max keys, the oldest first, into flight."""
        assert not self.in_flight, "a flight that is forgotten is a lost update"
        self.in_flight = self.dirty.take(n_max, but)
        return list(self.in_flight)

    def give_back(self, keys: Sequence[bytes]) -> None:
        """These keys of the flight were not written: they are dirty again, with their first LSN."""
        self.dirty.put_back({key: self.in_flight.pop(key) for key in keys})

    def position_after_flight(self) -> int:
        """The level's position once the flight is written, or a little less."""
        return max(self.position, (self.dirty.first_lsn() if self.dirty else self.marked_lsn + 1) - 1)

    def holds(self, key: bytes) -> bool:
        """True while the level may lack the newest bytes of `key`."""
        return not self.is_live or key in self.dirty or key in self.in_flight

    def lacking(self, keys: Sequence[bytes]) -> Collection[bytes]:
        """Those of which the level may lack the newest bytes."""
        if not self.is_live:
            return keys
        found = self.dirty.among(keys)
        return found | (self.in_flight.keys() & keys) if self.in_flight else found

    def holds_left(self, key: bytes) -> bool:
        """`holds` for a profile that is not in L1, which costs no look into it."""
        return not self.is_live or key in self.dirty.kept_by_key() or key in self.in_flight

    def first_unwritten(self, key: bytes) -> int | None:
        """The first change of `key` that the level may lack; None if it has them all."""
        if not self.is_live:
            return self.position + 1
        lsns = self.dirty.lsn_of(key), self.in_flight.get(key)
        return min((lsn for lsn in lsns if lsn is not None), default=None)

    def unwritten_below_l1(self) -> list[bytes]:
        """The keys that are known to be unwritten, but for those of profiles in L1."""
        return [*self.dirty.kept_by_key(), *self.in_flight]

    @property
    def n_dirty(self) -> int:
        """Profiles that are known to be unwritten."""
        return len(self.dirty) + len(self.in_flight)

    def may_probe(self) -> bool:
        """Whether a level that is down may be tried; then not again for PROBE_INTERVAL_S."""
        now = time.monotonic()
        if now < self.probe_at:
            return False
        self.probe_at = now + PROBE_INTERVAL_S
        return True

    def wait_before_probe(self, seconds: float = PROBE_INTERVAL_S) -> None:
        """A call has just failed."""
        self.probe_at = time.monotonic() + seconds

    def probe_at_once(self) -> None:
        """Somebody has just turned the level on."""
        self.probe_at = 0.0
