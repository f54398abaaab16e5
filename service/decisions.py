"""Decisions by event_id: exact, for idempotency, labels and look-ups. New ones wait in RAM until RocksDB has them.

`find` asks RAM, then RocksDB. `find_recent` asks a rotating Bloom filter in between ("this event_id is new"): a new event costs
no read, and one from before the filter's window may count as new. Labels and people ask for those too.
Write-behind moves them down with `take` and `taken`; whatever a crash loses of them the journal brings back.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Protocol

import msgspec

from features.transaction import Transaction, is_blank
from service.decide import Decision


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

    def maybe_has(self, key: bytes) -> bool:
        """False: surely new."""

    def add(self, key: bytes) -> None:
        """Remember `key`."""

    def add_many(self, keys: Iterable[bytes]) -> None:
        """Remember all of `keys`."""

    def cover(self) -> None:
        """It holds every key of the column now: from here on its no counts."""


def is_erased(value: object) -> bool:
    """True for an id of which erasure has left a blank."""
    return isinstance(value, str) and value != "" and is_blank(value)


encode_body = msgspec.msgpack.Encoder().encode
decode_body = msgspec.msgpack.Decoder(Transaction).decode
encode_stored = msgspec.msgpack.Encoder().encode
decode_stored = msgspec.msgpack.Decoder(StoredDecision).decode


class Decisions:
    """The exact index over RAM and one column family. `column` None keeps everything in RAM."""

    def __init__(self, column: DecisionColumn | None, maybe: MaybeEvents | None) -> None:
        self._column = column
        self.maybe = maybe
        self._recent: dict[str, StoredDecision] = {}
        self._taken: dict[str, StoredDecision] = {}

    def __len__(self) -> int:
        return len(self._recent) + len(self._taken)

    def find(self, event_id: str) -> StoredDecision | None:
        """The stored decision, or None for an unknown event. At most one RocksDB read, on the calling thread."""
        found = self._recent.get(event_id) or self._taken.get(event_id)
        if found is not None or self._column is None:
            return found
        packed = self._column.get(event_id.encode())
        return None if packed is None else decode_stored(packed)

    def find_recent(self, event_id: str) -> StoredDecision | None:
        """`find` for an event that was accepted within the window of idempotency; a new one costs no read."""
        found = self._recent.get(event_id) or self._taken.get(event_id)
        if found is not None or (self.maybe is not None and not self.maybe.maybe_has(event_id.encode())):
            return found
        return self.find(event_id)

    async def find_many(self, event_ids: Sequence[str]) -> list[StoredDecision | None]:
        """`find` for many, with one read for all that are not in RAM."""
        found = [self._recent.get(event_id) or self._taken.get(event_id) for event_id in event_ids]
        missing = [number for number, stored in enumerate(found) if stored is None]
        if missing and self._column is not None:
            packed = await self._column.get_many([event_ids[number].encode() for number in missing])
            for number, value in zip(missing, packed, strict=True):
                found[number] = None if value is None else decode_stored(value)
        return found

    def add(self, event_id: str, decision: StoredDecision) -> None:
        """A new or a changed decision."""
        self._recent[event_id] = decision
        if self.maybe is not None:
            self.maybe.add(event_id.encode())

    def add_many(self, event_ids: Sequence[str], decisions: Sequence[StoredDecision]) -> None:
        """`add` each of a batch."""
        if len(event_ids) == 1:  # a lone one spares itself the lists
            self.add(event_ids[0], decisions[0])
            return
        self._recent.update(zip(event_ids, decisions, strict=True))
        if self.maybe is not None:
            self.maybe.add_many([event_id.encode() for event_id in event_ids])

    def label(self, event_id: str, stored: StoredDecision, label: str, lsn: int) -> None:
        """The event's label, set by the entry `lsn`."""
        self.add(event_id, msgspec.structs.replace(stored, label=label, label_lsn=lsn))

    def change_recent(self, change: Callable[[StoredDecision], StoredDecision | None]) -> int:
        """Replace each decision in RAM by `change(it)`, unless that is None; how many. Not between `take` and `taken`."""
        n = 0
        for decisions in (self._recent, self._taken):
            changed = {event_id: new for event_id, stored in decisions.items() if (new := change(stored)) is not None}
            decisions.update(changed)
            n += len(changed)
        return n

    def take(self, n_max: int, up_to_lsn: int) -> dict[bytes, bytes]:
        """Up to `n_max` of what the column lacks and the journal durably has, oldest first, by key.

        Then call `taken`, or `take` again after a failure. A label above `up_to_lsn` holds its decision back.
        """
        due = (event_id for event_id, stored in self._recent.items() if max(stored.lsn, stored.label_lsn) <= up_to_lsn)
        for event_id in list(islice(due, max(n_max - len(self._taken), 0))):
            self._taken[event_id] = self._recent.pop(event_id)
        return {event_id.encode(): encode_stored(stored) for event_id, stored in self._taken.items()}

    def position_below(self, lsn: int) -> int:
        """Every decision up to this LSN, at most `lsn`, is in the column, once what was taken is."""
        return min((stored.lsn - 1 for stored in self._recent.values() if stored.lsn <= lsn), default=lsn)

    def taken(self) -> None:
        """What `take` gave is in the column now."""
        self._taken = {}
