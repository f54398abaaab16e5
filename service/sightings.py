"""What the console sees of single decisions: a few of those that pass while somebody looks, and why they were made.

`Pipeline.onlooker` is None while nobody looks, and costs two attribute look-ups per batch. Otherwise it gets each batch, before
it is scored and once the journal has it, and takes only so many rows between two calls of `take`, those first that were not
simply approved. Of each it keeps the features, and where its profiles came from and how old they were: nothing else does.
"""

from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from features.plan import W_LAST_SEEN, Plan
from service.batch import Batch
from service.clock import Clock
from service.decide import Places
from service.decisions import decode_stored
from service.fetch import L1_HIT
from service.row_codec import Encoded
from service.tally import LOOKUP, STOPS
from service.ticket import Ticket
from service.trace import ABSENT, last_seen, trace

APPROVED_MAX: Final = 24  # rows between two takes; what passes beyond them is counted, not shown
OTHERS_MAX: Final = 48  # the same for decisions that are no plain approvals
TRACES_MAX: Final = 5_000  # traces that are remembered: 6 MiB; with numbers as objects 13
FEW_ROWS: Final = 4  # up to here a row at a time is faster than NumPy's indexing

log = structlog.get_logger(__name__)


class _Row(msgspec.Struct, frozen=True):
    """One row as it was when its batch ended; made into something readable when it is asked for.

    vector: float32 of the features; seen_ms: int64 by kind; took: s of the look-up and of each stop.
    """

    event_id: str
    stored: bytes
    vector: bytes
    sources: tuple[str, ...]
    seen_ms: bytes
    took: tuple[float, ...]
    now_ms: int


class Sightings:
    """Rows and traces of the decisions that pass."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self._plan = plan
        self._clock = clock
        self._rows: list[_Row] = []
        self._n_approved = self._n_others = 0
        self._traced: dict[str, _Row] = {}

    def before(self, batch: Batch) -> None:
        """Note when the batch's profiles saw their last event: scoring changes that. 2 µs for one row, 25 for 256."""
        try:
            batch.seen = _seen(batch)
        except Exception:  # whatever it was, it is no reason not to score
            log.exception("a batch could not be watched")

    def after(self, batch: Batch, encoded: Encoded, classes: Places) -> None:
        """Take some rows of a batch that is in the journal. Never raises."""
        if batch.seen is None:  # nobody looked yet when it was begun
            return
        try:
            room = APPROVED_MAX - self._n_approved, OTHERS_MAX - self._n_others
            if room == (0, 0):
                return
            others = np.flatnonzero(classes)[: room[1]].tolist()
            approved = np.flatnonzero(classes == 0)[: room[0]].tolist()
            self._n_others += len(others)
            self._n_approved += len(approved)
            for row in sorted(others + approved):
                self._keep(batch, encoded, row)
        except Exception:  # whatever it was, it is no reason not to answer
            log.exception("a batch could not be watched")

    def take(self) -> list[dict[str, Any]]:
        """The rows since the last call, newest last, in short; room for new ones."""
        rows, self._rows = self._rows, []
        self._n_approved = self._n_others = 0
        return [_short(row) for row in rows]

    def trace_of(self, event_id: str) -> dict[str, Any] | None:
        """How the event was decided, as `?trace=1` tells it; None if nobody looked then, or it was long ago."""
        row = self._traced.get(event_id)
        if row is None:
            return None
        us = {stop: seconds * 1e6 for stop, seconds in zip((LOOKUP, *STOPS), row.took, strict=True)}
        seen_ms = np.frombuffer(row.seen_ms, dtype=np.int64).tolist()
        vector = np.frombuffer(row.vector, dtype=np.float32).tolist()
        return trace(self._plan, row.sources, seen_ms, row.now_ms, vector, us)

    def forget(self) -> None:
        """Nobody looks any more, or somebody asked that an entity be forgotten."""
        self._rows.clear()
        self._traced.clear()

    def _keep(self, batch: Batch, encoded: Encoded, place: int) -> None:
        assert batch.seen is not None
        ticket, row = _ticket_of(batch, place)
        slots = batch.slots[place].tolist()
        event_id = batch.rows.event_ids[place]
        kept = _Row(
            event_id,
            bytes(encoded.stored[place]),
            batch.arena.vectors[place].tobytes(),
            tuple([ticket.sources.get((row, kind), L1_HIT) if slot >= 0 else ABSENT for kind, slot in enumerate(slots)]),
            batch.seen[place].tobytes(),
            (ticket.lookup_seconds, *[after - before for before, after in pairwise(batch.times)]),
            self._clock.now_ms(),
        )
        self._rows.append(kept)
        self._traced[event_id] = kept
        if len(self._traced) > TRACES_MAX:
            del self._traced[next(iter(self._traced))]


def _seen(batch: Batch) -> npt.NDArray[np.int64]:
    slabs, slots = batch.arena.slabs, batch.slots
    if batch.n_rows <= FEW_ROWS:
        return np.array([last_seen(slabs, row) for row in slots.tolist()], dtype=np.int64)
    seen = np.zeros(slots.shape, dtype=np.int64)
    for kind, slab in enumerate(slabs):
        named = np.flatnonzero(slots[:, kind] >= 0)
        seen[named, kind] = slab.words[slots[named, kind], W_LAST_SEEN]
    return seen


def _ticket_of(batch: Batch, place: int) -> tuple[Ticket, int]:
    """The ticket of a row of the batch, and the row's number in it."""
    for ticket in batch.tickets:
        if place < len(ticket.rows):
            return ticket, place
        place -= len(ticket.rows)
    raise AssertionError("every row belongs to a ticket")


def _short(row: _Row) -> dict[str, Any]:
    """A line of the live list."""
    stored = decode_stored(row.stored)
    tx = stored.transaction()
    return {
        "event_id": row.event_id,
        "lsn": stored.lsn,
        "ts": tx.ts,
        "amount": tx.amount,
        "currency": tx.currency,
        "card_id": tx.card_id,
        "merchant_id": tx.merchant_id,
        "score": stored.score,
        "outcome": stored.outcome,
        "reasons": stored.reasons,
        "degraded": stored.degraded,
        "scorer": stored.scorer,
        "tiers": row.sources,
    }
