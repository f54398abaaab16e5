"""An index of the ids of one kind of entity, held by the core: id to slot and back. `Intake` looks ids up in it by itself.

It takes about 40 bytes an entity; a dict of str takes 160. Cost of a call for one id 0.8 µs; in lists of 500, 0.2 µs an id, of
which the core needs 0.03 to 0.06.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gocore.binding import Core

LISTED_BYTES: Final = 1 << 14  # room for a list of ids at first

Int64s = npt.NDArray[np.int64]


class GoIndex:
    """One call at a time, none while an Intake that has it takes a chunk. Ids are not empty and hold no line feed."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.handle = core.open_index()
        core.release_with(self, "weir_index_close", self.handle)
        self._written = np.zeros(1, dtype=np.int64)
        self._written_at = core.words_in(self._written)
        self._listed = np.empty(LISTED_BYTES, dtype=np.uint8)

    def find(self, entities: Sequence[str]) -> Int64s:
        """int64 (entities,): the slot of each, -1 for what is not here, and for ""."""
        slots = np.empty(len(entities), dtype=np.int64)
        if len(entities):
            ids = ("\n".join(entities) + "\n").encode()
            core = self._core
            core.check(core.call_index_find(self.handle, core.bytes_in(ids), len(ids), core.words_in(slots), len(slots)))
        return slots

    def put(self, entities: Sequence[str], slots: Int64s) -> None:
        """Give entities that are not here slots that nobody has, int64 (entities,). Raises BadArgument otherwise."""
        ids, core = ("\n".join(entities) + "\n").encode(), self._core
        status = core.call_index_put(self.handle, core.bytes_in(ids), len(ids), core.words_in(slots), len(slots))
        if status:
            core.check(status)

    def remove(self, slots: Int64s) -> list[str]:
        """Take out who has these slots, and return who that was. Raises BadArgument if nobody has one."""
        return self._list(self._core.call_index_remove, slots)

    def ids(self, slots: Sequence[int] | Int64s) -> list[str]:
        """Who has these slots; "" where nobody does."""
        return self._list(self._core.call_index_ids, np.asarray(slots, dtype=np.int64))

    def _list(self, call: Callable[[int, Any, int, Any, int, Any], int], slots: Int64s) -> list[str]:
        """The ids that `call` writes for these slots, in room for all of them."""
        if not len(slots):
            return []
        core = self._core
        while True:
            room = self._listed
            status = call(
                self.handle, core.words_in(slots), len(slots), core.bytes_in(room), len(room), self._written_at
            )  # fmt: skip
            if not status or self._written.item() <= len(room):
                break
            self._listed = np.empty(1 << self._written.item().bit_length(), dtype=np.uint8)
        if status:
            core.check(status)
        return room[: self._written.item() - 1].tobytes().decode().split("\n")
