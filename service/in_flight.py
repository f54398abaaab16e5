"""Transactions that were accepted for scoring and have no answer yet, by event_id, and who else asked for the same answer."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import NamedTuple

from service.rows import Rows
from service.ticket import Sink


class Twin(NamedTuple):
    """The same event sent again while the first is under way: where its answer goes, and in which form."""

    sink: Sink
    number: int
    wanted: int


class InFlight:
    """Owned by the event loop's thread. Rows that come and go in one turn of the loop, with nobody asking, cost no look-up."""

    def __init__(self) -> None:
        self._unlisted: list[Rows] = []
        self._rows: dict[str, Rows] = {}  # the rows among which the event is, of those that are listed
        self._twins: dict[str, list[Twin]] = {}
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def enter(self, rows: Rows) -> None:
        """These are under way."""
        self._n += len(rows)
        self._unlisted.append(rows)

    def has_none_of(self, event_ids: Sequence[str]) -> bool:
        """True if none of them is under way."""
        return self._listed().keys().isdisjoint(event_ids)

    def body(self, event_id: str) -> bytes | None:
        """The canonical body of an event that is under way, or None."""
        rows = self._listed().get(event_id)
        return None if rows is None else rows.body(rows.event_ids.index(event_id))

    def add_twin(self, event_id: str, twin: Twin) -> None:
        """Answer `twin` too, once the event is answered."""
        self._twins.setdefault(event_id, []).append(twin)

    def leave(self, rows: Rows, answer_twin: Callable[[int, Twin], None]) -> None:
        """They are being answered; `answer_twin` gets the place of each that has twins, and each of those."""
        self._n -= len(rows)
        if len(self._unlisted) == 1 and self._unlisted[0] is rows:
            self._unlisted.clear()
        else:
            deque(map(self._listed().__delitem__, rows.event_ids), maxlen=0)
        if self._twins:
            for place, event_id in enumerate(rows.event_ids):
                for twin in self._twins.pop(event_id, ()):
                    answer_twin(place, twin)

    def _listed(self) -> dict[str, Rows]:
        for rows in self._unlisted:
            self._rows.update(zip(rows.event_ids, repeat(rows)))
        self._unlisted.clear()
        return self._rows
