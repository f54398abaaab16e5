"""Decisions by event_id: exact, for idempotency, labels and look-ups. New ones wait in RAM until RocksDB has them.

`find` asks RAM, then the rotating Bloom filter ("this event_id is new"), then RocksDB: a new event costs no read.
Write-behind moves them down with `take` and `taken`; whatever a crash loses of them the journal brings back.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from features.transaction import Transaction
from service.decide import Decision


class StoredDecision(msgspec.Struct, array_like=True, gc=False):
    """A decision as it is kept. `body` is the canonical MessagePack of the transaction."""

    lsn: int
    body: bytes
    score: float
    outcome: str
    model: str
    scorer: str
    degraded: list[str]
    reasons: list[str]
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
            "transaction": tx,
        }


class DecisionColumn(Protocol):
    """Exact records on disk: the column family `decisions`."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""


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


encode_body = msgspec.msgpack.Encoder().encode
decode_body = msgspec.msgpack.Decoder(Transaction).decode
_encode_stored = msgspec.msgpack.Encoder().encode
_decode_stored = msgspec.msgpack.Decoder(StoredDecision).decode


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
        """The stored decision, or None for a new event. At most one RocksDB read, on the calling thread."""
        found = self._recent.get(event_id) or self._taken.get(event_id)
        if found is not None or self._column is None:
            return found
        key = event_id.encode()
        if self.maybe is not None and not self.maybe.maybe_has(key):
            return None
        packed = self._column.get(key)
        return None if packed is None else _decode_stored(packed)

    def add(self, event_id: str, decision: StoredDecision) -> None:
        """A new or a changed decision."""
        self._recent[event_id] = decision
        if self.maybe is not None:
            self.maybe.add(event_id.encode())

    def label(self, event_id: str, stored: StoredDecision, label: str, lsn: int) -> None:
        """The event's label, set by the entry `lsn`."""
        self.add(event_id, msgspec.structs.replace(stored, label=label, label_lsn=lsn))

    def take(self) -> dict[bytes, bytes]:
        """Everything that the column lacks, by key, to be written; then call `taken`, or `take` again after a failure."""
        self._taken = {**self._taken, **self._recent}
        self._recent = {}
        return {event_id.encode(): _encode_stored(stored) for event_id, stored in self._taken.items()}

    def taken(self) -> None:
        """What `take` gave is in the column now."""
        self._taken = {}
