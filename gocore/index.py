"""An index of the ids of one kind of entity, held by the core: id to slot and back. `Intake` looks ids up in it by itself.

It takes about 40 bytes an entity; a dict of str takes 160. Cost of a call for one id 0.8 µs; in lists of 500, 0.2 µs an id, of
which the core needs 0.03 to 0.06.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from gocore.binding import Core

ID_BYTES: Final = 1 << 16  # room for one id
LISTED_BYTES: Final = 1 << 14  # room for a list of ids at first

Int64s = npt.NDArray[np.int64]


class GoIndex:
    """One call at a time, none while an Intake that has it takes a chunk. Ids are not empty and hold no line feed."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.handle = core.open_index()
        core.release_with(self, "weir_index_close", self.handle)
        self._id, self._written = np.zeros(ID_BYTES, dtype=np.uint8), np.zeros(1, dtype=np.int64)
        self._id_at, self._written_at = core.bytes_in(self._id), core.words_in(self._written)
        self._listed = np.empty(LISTED_BYTES, dtype=np.uint8)

    def find(self, entities: Sequence[str]) -> Int64s:
        """int64 (entities,): the slot of each, -1 for what is not here, and for ""."""
        slots = np.empty(len(entities), dtype=np.int64)
        if len(entities):
            ids = ("\n".join(entities) + "\n").encode()
            core = self._core
            core.check(core.call_index_find(self.handle, core.bytes_in(ids), len(ids), core.words_in(slots), len(slots)))
        return slots

    def put(self, entity: str, slot: int) -> None:
        """Give an entity that is not here a slot that nobody has. Raises BadArgument otherwise."""
        encoded = entity.encode()
        status = self._core.call_index_put(self.handle, self._core.bytes_in(encoded), len(encoded), slot)
        if status:
            self._core.check(status)

    def remove(self, slot: int) -> str:
        """Take out who has the slot, and return who that was. Raises BadArgument if nobody has it."""
        status = self._core.call_index_remove(self.handle, slot, self._id_at, ID_BYTES, self._written_at)
        if status:
            self._core.check(status)
        return self._id[: self._written.item()].tobytes().decode()

    def ids(self, slots: Sequence[int] | Int64s) -> list[str]:
        """Who has these slots; "" where nobody does."""
        wanted, core = np.asarray(slots, dtype=np.int64), self._core
        if not len(wanted):
            return []
        while True:
            room = self._listed
            arguments = core.words_in(wanted), len(wanted), core.bytes_in(room), len(room), self._written_at
            status = core.call_index_ids(self.handle, *arguments)
            if not status or self._written.item() <= len(room):
                break
            self._listed = np.empty(1 << self._written.item().bit_length(), dtype=np.uint8)
        core.check(status)
        return room[: self._written.item() - 1].tobytes().decode().split("\n")
