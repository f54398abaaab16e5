"""The deny list and the allow list: exact, in RAM, with expiry. Changes are journaled before they count.

An entry is found by list name, kind and id; one that has expired counts as absent and is dropped when it is met.
"""

from collections.abc import Sequence

import msgspec

from features.plan import KindPlan

LIST_NAMES = ("deny", "allow")


class ListEntry(msgspec.Struct, frozen=True, gc=False):
    """Why an entity is listed and until when (ms UTC; None: for good)."""

    reason: str
    expires: int | None
    lsn: int


class ListChange(msgspec.Struct, frozen=True, gc=False):
    """A journaled change: `entry` None means that the entity leaves the list."""

    list_name: str
    kind: str
    id: str
    reason: str | None
    expires: int | None


class Lists:
    """Both lists. Falsy while they are empty, so that the hot path can skip them."""

    def __init__(self, kinds: Sequence[KindPlan]) -> None:
        self._kinds = [kind.name for kind in kinds]
        self._entries: dict[tuple[str, str, str], ListEntry] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    def get(self, list_name: str, kind: str, entity: str, now_ms: int) -> ListEntry | None:
        """The entry, or None if there is none or it has expired at `now_ms`."""
        entry = self._entries.get((list_name, kind, entity))
        if entry is not None and entry.expires is not None and entry.expires <= now_ms:
            del self._entries[list_name, kind, entity]
            return None
        return entry

    def match(self, list_name: str, entities: Sequence[str | None], now_ms: int) -> list[str]:
        """The kinds whose entity stands on the list; `entities` has one id per kind, None or "" for none."""
        return [
            kind
            for kind, entity in zip(self._kinds, entities, strict=True)
            if entity and self.get(list_name, kind, entity, now_ms) is not None
        ]

    def apply(self, change: ListChange, lsn: int) -> None:
        """Make a journaled change count. One that is already known (by LSN) changes nothing."""
        key = (change.list_name, change.kind, change.id)
        have = self._entries.get(key)
        if have is not None and have.lsn >= lsn:
            return
        if change.reason is None:
            self._entries.pop(key, None)
        else:
            self._entries[key] = ListEntry(change.reason, change.expires, lsn)

    def items(self) -> list[tuple[tuple[str, str, str], ListEntry]]:
        """Every entry with its (list name, kind, id), for storing them."""
        return list(self._entries.items())
