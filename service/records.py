"""What the journal's entries hold besides raw bytes: the outcome of a transaction, a label, a change of a list.

MessagePack arrays, in the order of the fields; a field is only ever added at the end.
"""

import msgspec

from service.decisions import StoredDecision
from service.journal import LABEL, LIST, TX
from service.lists import ListChange

__all__ = ["LABEL", "LIST", "TX"]  # the kinds of entries, beside what they hold


class Outcome(msgspec.Struct, array_like=True, gc=False):
    """The decision beside a transaction's body; its LSN is the entry's."""

    score: float
    outcome: str
    model: str
    scorer: str
    degraded: tuple[str, ...]
    reasons: tuple[str, ...]


class LabelRecord(msgspec.Struct, array_like=True, gc=False):
    """A label as it was applied: `delta` frauds were added to the profiles of the transaction in `body`, whose LSN it names."""

    event_id: str
    label: str
    ts: int
    delta: int
    body: bytes
    tx_lsn: int


_encode = msgspec.msgpack.Encoder().encode
decode_label = msgspec.msgpack.Decoder(LabelRecord).decode
decode_list_change = msgspec.msgpack.Decoder(ListChange).decode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode


def encode_outcome(stored: StoredDecision) -> bytes:
    """The decision part of a transaction's entry."""
    return _encode((stored.score, stored.outcome, stored.model, stored.scorer, stored.degraded, stored.reasons))


def decode_outcome(lsn: int, body: bytes, packed: bytes) -> StoredDecision:
    """Inverse of encode_outcome."""
    o = _decode_outcome(packed)
    return StoredDecision(lsn, body, o.score, o.outcome, o.model, o.scorer, o.degraded, o.reasons)


def encode_label(record: LabelRecord) -> bytes:
    """The body of a label's entry."""
    return _encode(record)


def encode_list_change(change: ListChange) -> bytes:
    """The body of a list change's entry."""
    return _encode(change)
