"""Taking an entity's id out of what is kept of its transactions: bodies, decisions, journal entries. Pure.

What is left has the same size (features.transaction.blank), and still says that there was an entity, not which one.
"""

import msgspec

from features.plan import KindPlan
from features.transaction import Transaction, blank
from service.decisions import StoredDecision, decode_body, encode_body, is_erased
from service.journal import ERASURE, LABEL, TX, Entry
from service.records import decode_erasure, decode_label, encode_erasure, encode_label


class Scrubber:
    """Blanks the id `entity` of one kind. Every method gives None where there is nothing to blank."""

    def __init__(self, kind: KindPlan, entity: str) -> None:
        self.needle = entity.encode()  # bytes without it hold no such id
        self._kind_name = kind.name
        self._field = kind.id_field
        self._entity = entity
        self._blank = blank(entity)

    def body(self, body: bytes) -> bytes | None:
        """A transaction's canonical body."""
        if self.needle not in body:
            return None
        tx = decode_body(body)
        if getattr(tx, self._field) != self._entity:
            return None
        return encode_body(msgspec.structs.replace(tx, **{self._field: self._blank}))

    def stored(self, stored: StoredDecision) -> StoredDecision | None:
        """A decision."""
        body = self.body(stored.body)
        return None if body is None else msgspec.structs.replace(stored, body=body)

    def entry(self, entry: Entry) -> Entry | None:
        """A journal entry; an erasure that is blank is one that is done."""
        body = self._entry_body(entry)
        return None if body is None else msgspec.structs.replace(entry, body=body)

    def _entry_body(self, entry: Entry) -> bytes | None:
        if entry.kind == TX:
            return self.body(entry.body)
        if self.needle not in entry.body:
            return None
        if entry.kind == LABEL:
            record = decode_label(entry.body)
            body = self.body(record.body)
            return None if body is None else encode_label(msgspec.structs.replace(record, body=body))
        if entry.kind == ERASURE:
            erasure = decode_erasure(entry.body)
            if (erasure.kind, erasure.id) == (self._kind_name, self._entity):
                return encode_erasure(msgspec.structs.replace(erasure, id=self._blank))
        return None


def is_same_event(stored_body: bytes, body: bytes) -> bool:
    """Whether `body` is of the transaction whose body was stored, as far as what was erased of it since lets one tell."""
    stored, tx = decode_body(stored_body), decode_body(body)
    erased = {field: value for field in Transaction.__struct_fields__ if is_erased(value := getattr(stored, field))}
    if not erased or any((value := getattr(tx, f)) is None or blank(value) != erased[f] for f in erased):
        return False
    return msgspec.structs.replace(tx, **erased) == stored
