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
    """Owned by the event loop's thread; 0.1 µs a row to enter and to leave."""

    def __init__(self) -> None:
        self._rows: dict[str, Rows] = {}  # the rows among which the event is
        self._twins: dict[str, list[Twin]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def enter(self, rows: Rows) -> None:
        """These are under way."""
        self._rows.update(zip(rows.event_ids, repeat(rows)))

    def has_none_of(self, event_ids: Sequence[str]) -> bool:
        """True if none of them is under way."""
        return self._rows.keys().isdisjoint(event_ids)

    def body(self, event_id: str) -> bytes | None:
        """The canonical body of an event that is under way, or None."""
        rows = self._rows.get(event_id)
        return None if rows is None else rows.body(rows.event_ids.index(event_id))

    def add_twin(self, event_id: str, twin: Twin) -> None:
        """Answer `twin` too, once the event is answered."""
        self._twins.setdefault(event_id, []).append(twin)

    def leave(self, event_ids: Sequence[str], answer_twin: Callable[[int, Twin], None]) -> None:
        """They are being answered; `answer_twin` gets the place of each that has twins, and each of those."""
        deque(map(self._rows.__delitem__, event_ids), maxlen=0)
        if self._twins:
            for place, event_id in enumerate(event_ids):
                for twin in self._twins.pop(event_id, ()):
                    answer_twin(place, twin)
