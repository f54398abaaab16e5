"""Decisions by event_id: exact, for idempotency, labels and look-ups. New ones wait in RAM until RocksDB has them.

`find` asks RAM, then RocksDB. `suspects` asks RAM and a rotating Bloom filter ("this event_id is new"): a new event costs no
read, and one from before the filter's window may count as new. Labels and people ask for those too. In RAM stand the records
that the column will get, as bytes. Write-behind moves them down with `take` and `taken`, batch by batch in the order of their
LSNs; whatever a crash loses of them the journal brings back.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice, takewhile
from typing import Any, Protocol

import msgspec

from features.transaction import Transaction, is_blank
from service.decide import Decision
from service.pieces import Pieces
from service.rows import from_lines


class StoredDecision(msgspec.Struct, array_like=True, gc=False):
    """A decision as it is kept. `body` is the canonical MessagePack of the transaction."""

    lsn: int
    body: bytes
    score: float
    outcome: str
    model: str
    scorer: str
    degraded: tuple[str, ...]  # tuples: a hundred thousand lists would make every garbage collection longer
    reasons: tuple[str, ...]
    label: str | None = None
    label_lsn: int = 0

    def transaction(self) -> Transaction:
        """The transaction that was decided."""
        return decode_body(self.body)

    def decision(self, event_id: str) -> Decision:
        """The reply to the same event_id and body sent again."""
        return Decision(
            event_id, self.score, self.outcome, self.model, self.scorer, self.lsn, True, self.degraded, self.reasons
        )

    def reply(self) -> dict[str, Any]:
        """What GET /v1/decisions shows."""
        tx = self.transaction()
        shown = {field: None if is_erased(value) else value for field, value in msgspec.to_builtins(tx).items()}
        return {
            "event_id": tx.event_id,
            "lsn": self.lsn,
            "score": self.score,
            "outcome": self.outcome,
            "reasons": self.reasons,
            "model": self.model,
            "scorer": self.scorer,
            "degraded": self.degraded,
            "label": self.label,
            "transaction": shown,
        }


class DecisionColumn(Protocol):
    """Exact records on disk: the column family `decisions`."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of `keys`."""


class MaybeEvents(Protocol):
    """A filter over event ids that never says no wrongly."""

    def suspects(self, keys: Sequence[bytes]) -> list[int]:
        """The places of those that may be known; all others are surely new."""

    def add_many(self, keys: Iterable[bytes]) -> None:
        """Remember all of `keys`."""

    def cover(self) -> None:
        """It holds every key of the column now: from here on its no counts."""


def is_erased(value: object) -> bool:
    """True for an id of which erasure has left a blank."""
    return isinstance(value, str) and value != "" and is_blank(value)


SAMPLED_BATCHES_MAX = 2_048  # that `sample` looks at: 0.1 ms

encode_body = msgspec.msgpack.Encoder().encode
decode_body = msgspec.msgpack.Decoder(Transaction).decode
encode_stored = msgspec.msgpack.Encoder().encode
decode_stored = msgspec.msgpack.Decoder(StoredDecision).decode


class _Batch(msgspec.Struct):
    """Events whose records came together, and the LSNs between which they lie. records: until they are listed by event."""

    first_lsn: int
    last_lsn: int
    lines: bytes  # the event ids, a line feed after each
    records: Pieces | None

    @property
    def event_ids(self) -> list[str]:
        return from_lines(self.lines)


class Decisions:
    """The exact index over RAM and one column family. `column` None keeps everything in RAM."""

    def __init__(self, column: DecisionColumn | None, maybe: MaybeEvents | None) -> None:
        self._column = column
        self.maybe = maybe
        self._listed: dict[str, bytes] = {}
        self._batches: deque[_Batch] = deque()  # of what stands in _listed, and behind that what is not listed yet
        self._n_unlisted = 0  # batches
        self._n_unlisted_rows = 0
        self._labelled: dict[str, StoredDecision] = {}  # newer than what the other two, or the column, have of them
        self._taken: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._listed) + self._n_unlisted_rows + len(self._labelled) + len(self._taken)

    def find(self, event_id: str) -> StoredDecision | None:
        """The stored decision, or None for an unknown event. At most one RocksDB read, on the calling thread."""
        found = self._find_in_ram(event_id)
        if found is not None or self._column is None:
            return found
        packed = self._column.get(event_id.encode())
        return None if packed is None else decode_stored(packed)

    def suspects(self, event_ids: Sequence[str]) -> list[int]:
        """The places of events that may have been accepted within the window of idempotency: ask `find` for those.

        The others are new, and cost no read: 0.4 µs each.
        """
        found: set[int] = set()
        for known in (self._recent, self._taken, self._labelled):
            if known and not known.keys().isdisjoint(event_ids):
                found.update(place for place, event_id in enumerate(event_ids) if event_id in known)
        if self.maybe is not None:
            found.update(self.maybe.suspects([event_id.encode() for event_id in event_ids]))
        elif self._column is not None:
            return list(range(len(event_ids)))
        return sorted(found)

    async def find_many(self, event_ids: Sequence[str]) -> list[StoredDecision | None]:
        """`find` for many, with one read for all that are not in RAM."""
        found = [self._find_in_ram(event_id) for event_id in event_ids]
        missing = [number for number, stored in enumerate(found) if stored is None]
        if missing and self._column is not None:
            packed = await self._column.get_many([event_ids[number].encode() for number in missing])
            for number, value in zip(missing, packed, strict=True):
                found[number] = None if value is None else decode_stored(value)
        return found

    def add_batch(
        self, event_id_lines: bytes, records: Pieces, first_lsn: int, last_lsn: int, is_remembered: bool = False
    ) -> None:
        """New decisions, as `encode_stored` gives them, with LSNs from `first_lsn` to `last_lsn`. event_id_lines: as in Rows.

        `is_remembered`: their ids are in `maybe` already. They are listed by event once somebody asks.
        """
        self._batches.append(_Batch(first_lsn, last_lsn, event_id_lines, records))
        self._n_unlisted += 1
        self._n_unlisted_rows += len(records)
        if self.maybe is not None and not is_remembered:
            self.maybe.add_many(event_id_lines.split(b"\n")[:-1])

    def label(self, event_id: str, stored: StoredDecision, label: str, lsn: int) -> None:
        """The event's label, set by the entry `lsn`."""
        self.change(event_id, msgspec.structs.replace(stored, label=label, label_lsn=lsn))

    def change(self, event_id: str, stored: StoredDecision) -> None:
        """What a decision has become by a label."""
        self._labelled[event_id] = stored
        self._recent.pop(event_id, None)
        if self.maybe is not None:
            self.maybe.add_many([event_id.encode()])

    def change_recent(self, change: Callable[[StoredDecision], StoredDecision | None], needle: bytes) -> int:
        """Replace each decision in RAM by `change(it)`, unless that is None; how many. Not between `take` and `taken`.

        `change` is not asked about a record that does not hold `needle`.
        """
        labelled = {event_id: new for event_id, stored in self._labelled.items() if (new := change(stored)) is not None}
        self._labelled.update(labelled)
        n = len(labelled)
        for decisions in (self._recent, self._taken):
            suspects = [(event_id, packed) for event_id, packed in decisions.items() if needle in packed]
            changed = {event_id: new for event_id, packed in suspects if (new := change(decode_stored(packed))) is not None}
            decisions.update((event_id, encode_stored(new)) for event_id, new in changed.items())
            n += len(changed)
        return n

    def sample(self, after_lsn: int, n: int, rng: random.Random) -> list[bytes]:
        """Bodies of about `n` of the newest events above this LSN, drawn at random, with repetition."""
        newest = list(takewhile(lambda batch: batch.last_lsn > after_lsn, islice(reversed(self._batches), SAMPLED_BATCHES_MAX)))
        drawn = rng.choices(newest, [batch.lines.count(b"\n") for batch in newest], k=n) if newest else []
        found = [self._recent.get(rng.choice(batch.event_ids)) for batch in drawn]
        return [decode_stored(packed).body for packed in found if packed is not None]

    def take(self, n_min: int, up_to_lsn: int) -> dict[bytes, bytes]:
        """At least `n_min`, by key, of what the column lacks and the journal durably has, oldest first; less if that is all.

        Then call `taken`, or `take` again after a failure. A label above `up_to_lsn` holds its decision back.
        """
        taken, recent, labelled = self._taken, self._recent, self._labelled
        while self._batches and len(taken) < n_min and self._batches[0].last_lsn <= up_to_lsn:
            for event_id in self._batches.popleft().event_ids:
                packed = recent.pop(event_id, None)
                if packed is not None:  # else a label has changed it since
                    taken[event_id] = packed
        if labelled and len(taken) < n_min:
            due = [e for e, stored in labelled.items() if max(stored.lsn, stored.label_lsn) <= up_to_lsn]
            for event_id in due[:n_min]:
                taken[event_id] = encode_stored(labelled.pop(event_id))
        return {event_id.encode(): packed for event_id, packed in taken.items()}

    def position_below(self, lsn: int) -> int:
        """Every decision up to this LSN, at most `lsn`, is in the column, once what was taken is."""
        waiting = chain((batch.first_lsn for batch in self._batches), (stored.lsn for stored in self._labelled.values()))
        return min((first_lsn - 1 for first_lsn in waiting if first_lsn <= lsn), default=lsn)

    def taken(self) -> None:
        """What `take` gave is in the column now."""
        self._taken = {}

    @property
    def _recent(self) -> dict[str, bytes]:
        """Records by event: 0.3 µs for each that is not listed yet."""
        if self._n_unlisted:
            for batch in islice(self._batches, len(self._batches) - self._n_unlisted, None):
                assert batch.records is not None
                self._listed.update(zip(batch.event_ids, batch.records.as_list(), strict=True))
                batch.records = None
            self._n_unlisted = self._n_unlisted_rows = 0
        return self._listed

    def _find_in_ram(self, event_id: str) -> StoredDecision | None:
        labelled = self._labelled.get(event_id)
        if labelled is not None:
            return labelled
        packed = self._recent.get(event_id) or self._taken.get(event_id)
        return None if packed is None else decode_stored(packed)
