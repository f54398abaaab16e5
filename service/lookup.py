"""Looking up: every row gets the slots of its profiles, now or as they arrive, and its place behind earlier rows of its card.

Nearly always everything is in L1: a column per kind is looked up at once, and one ticket takes all rows. A row that misses a
profile waits only for its own. Where rows are requests of their own, it waits in a unit of its own, with the later rows of its
card behind it; rows of a turn whose profiles arrive together go on in one ticket. The rows of one request wait together, since
they keep their order.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from features.plan import Plan
from service.fetch import Fetcher, Miss, places_of
from service.rows import Rows
from service.ticket import Sink, Ticket, Unit
from service.tiers.l1 import L1

CARD = "card_id"

Waits = list[tuple[Miss, list[int]]]  # profiles that are being looked for, with the rows that wait for each


class LookUp:
    """`ready` gets every ticket that had to wait, once it has all its profiles and nobody ahead. Its slots are pinned."""

    def __init__(self, plan: Plan, l1: L1, fetcher: Fetcher, ready: Callable[[Ticket], None]) -> None:
        self._card_kind = next((kind.number for kind in plan.kinds if kind.id_field == CARD), 0)
        self._l1 = l1
        self._fetcher = fetcher
        self._ready = ready
        self._waiting_cards: dict[str, Unit] = {}  # the last unit with that card
        self._released: list[Unit] = []  # that lack nothing any more, of this step
        fetcher.on_arrived = self._release

    def look_up(self, rows: Rows, sink: Sink, wanted: int, *, alone: bool, after: Ticket | None = None) -> Ticket | None:
        """A ticket of the rows. It can be scored at once if is_enqueued, and not before `after`; if not is_pinned, its slots
        hold only until something else is looked up. `alone`: each row is a request; then the ticket has those that can be
        scored at once, and there is none if there are none.
        """
        start = time.perf_counter()
        slots, n_missing = rows.slots, rows.n_missing
        if slots is None:
            slots = self._l1.find_rows(rows.entities)
            n_missing = int(np.count_nonzero(slots < 0)) - sum(ids.count("") for ids in rows.entities)
        self._l1.visit_rows(slots)
        ticket = Ticket(rows, slots, sink, wanted)
        ticket.started = start
        ticket.lookup_seconds = time.perf_counter() - start
        if not (n_missing or self._fetcher.partial or self._waiting_cards or (after is not None and not after.is_enqueued)):
            ticket.is_enqueued = True
            return ticket
        self._l1.pin_rows(slots)
        ticket.is_pinned = True
        waits = self._find_below(ticket) if n_missing else []
        if self._fetcher.partial:
            self._note_partial(ticket)
        ticket.lookup_seconds = time.perf_counter() - start
        return self._split(ticket, waits) if alone else self._whole(ticket, waits, after)

    @property
    def is_clear(self) -> bool:
        """Nobody waits, and no profile is partial: rows whose profiles are all in L1 can be scored at once."""
        return not (self._waiting_cards or self._fetcher.partial)

    def found(self, rows: Rows, sink: Sink, wanted: int, seconds: float) -> Ticket:
        """A ticket of rows that found all their profiles in L1, while all was clear; looking took so many seconds."""
        assert rows.slots is not None
        self._l1.visit_rows(rows.slots)
        ticket = Ticket(rows, rows.slots, sink, wanted)
        ticket.is_enqueued = True
        ticket.started, ticket.lookup_seconds = time.perf_counter(), seconds
        return ticket

    def _find_below(self, ticket: Ticket) -> Waits:
        """Ask for what L1 lacks. What is new, or waits in memory, has its slot at once; the rest is waited for."""
        waits: Waits = []
        slots, l1, fetcher = ticket.slots, self._l1, self._fetcher
        for kind, entities in enumerate(ticket.rows.entities):
            absent = np.flatnonzero(slots[:, kind] < 0).tolist()
            if not absent:
                continue
            places = places_of([entities[row] for row in absent])
            names = list(places)
            below = fetcher.find_below(kind, names)
            for name, slot, source in zip(names, below.slots, below.sources, strict=True):
                if slot < 0:
                    continue
                first, *others = [absent[place] for place in places[name]]
                slots[first, kind] = slot
                ticket.sources[first, kind] = source
                if others:  # it was here when they were looked up
                    slots[others, kind] = slot
                    l1.pin_slot(kind, slot, len(others))
                    l1.n_hits += len(others)
            for place, miss in below.misses:
                rows = [absent[place] for place in places[names[place]]]
                fetcher.n_misses += len(rows) - 1
                waits.append((miss, rows))
        return waits

    def _note_partial(self, ticket: Ticket) -> None:
        partial = self._fetcher.partial
        for kind, entities in enumerate(ticket.rows.entities):
            for row, entity in enumerate(entities):
                levels = partial.get((kind, entity))
                if levels:
                    ticket.degrade(row, levels)

    def _whole(self, ticket: Ticket, waits: Waits, after: Ticket | None) -> Ticket:
        """All rows together."""
        unit = Unit(ticket, None)
        for miss, rows in waits:
            unit.n_needs += len(rows)
            for row in rows:
                miss.waiters.append(functools.partial(self._arrived, unit, row))
        if after is not None and not after.is_enqueued:
            unit.wait_behind(after.unit)
        cards, waiting = ticket.rows.entities[self._card_kind], self._waiting_cards
        if waiting and not waiting.keys().isdisjoint(cards):
            for card in cards:
                unit.wait_behind(waiting.get(card))
        if unit.n_needs:
            ticket.unit = unit
            waiting.update(dict.fromkeys(cards, unit))
        else:
            ticket.is_enqueued = True
        return ticket

    def _split(self, ticket: Ticket, waits: Waits) -> Ticket | None:
        """Those that have to wait share a ticket; the others are returned in one."""
        cards, waiting = ticket.rows.entities[self._card_kind], self._waiting_cards
        missing = {row for _, rows in waits for row in rows}
        held: list[int] = []
        held_cards: set[str] = set()
        for row, card in enumerate(cards):
            if row in missing or card in waiting or card in held_cards:
                held.append(row)
                held_cards.add(card)
        if not held:
            ticket.is_enqueued = True
            return ticket
        free = sorted(set(range(len(cards))).difference(held))
        hold = self._part(ticket, held) if free else ticket
        units = {row: Unit(hold, place) for place, row in enumerate(held)}
        for miss, rows in waits:
            for row in rows:
                unit = units[row]
                unit.n_needs += 1
                assert unit.row is not None
                miss.waiters.append(functools.partial(self._arrived, unit, unit.row))
        for row, unit in units.items():
            card = cards[row]
            unit.wait_behind(waiting.get(card))
            waiting[card] = unit
        if not free:
            return None
        first = self._part(ticket, free)
        first.is_enqueued = True
        return first

    def _part(self, ticket: Ticket, numbers: Sequence[int]) -> Ticket:
        """A ticket of these rows."""
        part = Ticket(ticket.rows.only(numbers), ticket.slots[list(numbers)], ticket.sink.only(numbers), ticket.wanted)
        part.is_pinned = True
        part.started, part.lookup_seconds = ticket.started, ticket.lookup_seconds
        if not (ticket.degraded or ticket.sources):
            return part
        places = {number: place for place, number in enumerate(numbers)}
        part.degraded = {places[row]: levels for row, levels in ticket.degraded.items() if row in places}
        part.sources = {(places[row], kind): source for (row, kind), source in ticket.sources.items() if row in places}
        return part

    def _arrived(self, unit: Unit, row: int, miss: Miss) -> None:
        """A profile that a row waited for has its slot now."""
        ticket = unit.ticket
        ticket.slots[row, miss.kind] = miss.slot
        self._l1.pin_slot(miss.kind, miss.slot)
        ticket.sources[row, miss.kind] = miss.source
        if miss.degraded:
            ticket.degrade(row, miss.degraded)
        unit.n_needs -= 1
        if not unit.n_needs:
            self._released.append(unit)

    def _release(self) -> None:
        """Let the units go that have everything, and then those that waited only for them."""
        released, self._released = deque(self._released), []
        ready: dict[Ticket, list[int]] = {}
        while released:
            unit = released.popleft()
            ticket, rows = unit.ticket, range(len(unit.ticket.rows)) if unit.row is None else (unit.row,)
            ready.setdefault(ticket, []).extend(rows)
            cards = ticket.rows.entities[self._card_kind]
            for row in rows:
                if self._waiting_cards.get(cards[row]) is unit:
                    del self._waiting_cards[cards[row]]
            for follower in unit.followers:
                follower.n_needs -= 1
                # Only the last of those ahead releases it: once more, and it would be scored twice.
                if not follower.n_needs:
                    released.append(follower)
            unit.followers.clear()
        # Rows that share a card were looked up one after the other, and are scored in this order.
        for ticket in sorted(ready, key=lambda ticket: ticket.started):
            numbers = ready[ticket]
            whole = ticket if len(numbers) == len(ticket.rows) else self._part(ticket, sorted(numbers))
            whole.is_enqueued = True
            self._ready(whole)


def slots_of(tickets: Sequence[Ticket]) -> npt.NDArray[np.int64]:
    """int64 (rows, kinds): the slots of all their rows."""
    return tickets[0].slots if len(tickets) == 1 else np.concatenate([ticket.slots for ticket in tickets])
