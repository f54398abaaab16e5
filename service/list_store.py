"""Where the lists rest: RocksDB's column family `lists`, so that they outlive the journal's segments."""

import msgspec

from service.lists import ListChange, ListEntry, Lists
from service.tiers.l2 import Column

_SEPARATOR = b"\x00"  # ids are printable
_GONE = b""  # the value of an entry that left its list

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ListEntry).decode


class ListStore:
    """Writes each change down and reads all of them at start."""

    def __init__(self, column: Column) -> None:
        self._column = column

    async def put(self, change: ListChange, lists: Lists, now_ms: int) -> None:
        """Write the state of one entry, which is journaled, before anything else runs; what the store refuses it gets later."""
        key = _SEPARATOR.join(part.encode() for part in (change.list_name, change.kind, change.id))
        entry = lists.get(change.list_name, change.kind, change.id, now_ms)
        self._column.put_soon({key: _GONE if entry is None else _encode(entry)})

    async def load(self, lists: Lists) -> None:
        """Fill `lists` with what is stored."""
        async for keys in self._column.keys_chunks():
            for key, packed in zip(keys, await self._column.get_many(keys), strict=True):
                if packed:
                    list_name, kind, entity = (part.decode() for part in key.split(_SEPARATOR))
                    entry = _decode(packed)
                    lists.apply(ListChange(list_name, kind, entity, entry.reason, entry.expires), entry.lsn)
