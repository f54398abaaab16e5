"""What the journal's entries hold besides raw bytes: the outcome of a transaction, a label, a change of a list.

MessagePack arrays, in the order of the fields; a field is only ever added at the end.
"""

from collections.abc import Iterator

import msgspec

from features.plan import Plan
from features.transaction import Transaction, is_blank
from service.decisions import StoredDecision, decode_body
from service.journal import ERASURE, LABEL, LIST, TX, Entry
from service.lists import ListChange

__all__ = ["ERASURE", "LABEL", "LIST", "TX"]  # the kinds of entries, beside what they hold


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


class ErasureRecord(msgspec.Struct, array_like=True, gc=False):
    """An entity to be forgotten, with all that was journaled of it before. A blank id is an erasure that is done."""

    kind: str
    id: str


_encode = msgspec.msgpack.Encoder().encode
decode_label = msgspec.msgpack.Decoder(LabelRecord).decode
decode_list_change = msgspec.msgpack.Decoder(ListChange).decode
decode_erasure = msgspec.msgpack.Decoder(ErasureRecord).decode
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


def encode_erasure(record: ErasureRecord) -> bytes:
    """The body of an erasure's entry."""
    return _encode(record)


def entities_of_entry(plan: Plan, entry: Entry) -> Iterator[tuple[int, str]]:
    """(kind number, id) of every profile that the entry changes; ids that were erased are left out."""
    if entry.kind == ERASURE:
        record = decode_erasure(entry.body)
        if not is_blank(record.id):
            yield next(kind.number for kind in plan.kinds if kind.name == record.kind), record.id
    elif entry.kind in (TX, LABEL):
        tx = decode_body(entry.body if entry.kind == TX else decode_label(entry.body).body)
        yield from ((kind, entity) for kind, entity in enumerate(journaled_entities(plan, tx)) if entity is not None)


def journaled_entities(plan: Plan, tx: Transaction) -> tuple[str | None, ...]:
    """The ids of a journaled transaction, one per kind: None where it has none, or had one that was erased."""
    ids = [getattr(tx, kind.id_field) for kind in plan.kinds]
    return tuple(None if entity is None or is_blank(entity) else entity for entity in ids)
