"""Looking up: every row gets the slots of its profiles, now or as they arrive, and its place behind earlier rows of its card.

Nearly always everything is in L1: a column per kind is looked up at once, and one ticket takes all rows. A row that misses a
profile waits only for its own. Where rows are requests of their own, it goes on in a ticket of its own, with the later rows
of its card behind it; the rows of one request wait together, since they keep their order.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from features.plan import Plan
from service.fetch import L1_HIT, Fetcher, Miss
from service.rows import Rows
from service.ticket import Sink, Ticket, Wait
from service.tiers.l1 import L1

CARD = "card_id"


class LookUp:
    """`ready` gets every ticket that had to wait, once it has all its profiles and nobody ahead. Its slots are pinned."""

    def __init__(self, plan: Plan, l1: L1, fetcher: Fetcher, ready: Callable[[Ticket], None]) -> None:
        self._n_kinds = len(plan.kinds)
        self._card_kind = next((kind.number for kind in plan.kinds if kind.id_field == CARD), 0)
        self._l1 = l1
        self._fetcher = fetcher
        self._ready = ready
        self._waiting_cards: dict[str, Ticket] = {}  # the last ticket with that card

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
        ticket.arrived = self._arrived
        ticket.started = start
        ticket.lookup_seconds = time.perf_counter() - start
        if not (n_missing or self._fetcher.partial or self._waiting_cards or (after is not None and not after.is_enqueued)):
            ticket.is_enqueued = True
            return ticket
        self._l1.pin_rows(slots)
        ticket.is_pinned = True
        waits = self._find_below(ticket) if n_missing else {}
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

    def _find_below(self, ticket: Ticket) -> dict[int, Wait]:
        """Ask for what L1 lacks. What is new, or waits in memory, has its slot at once; who waits for the rest, by row."""
        waits: dict[int, Wait] = {}
        slots = ticket.slots
        for kind, entities in enumerate(ticket.rows.entities):
            asked: set[str] = set()
            for row in np.flatnonzero(slots[:, kind] < 0).tolist():
                entity = entities[row]
                if not entity:
                    continue
                wait = waits.get(row) or Wait(row)
                find = self._fetcher.find if entity in asked else self._fetcher.find_below
                asked.add(entity)
                slot, source = find(kind, entity, wait.arrived)
                if slot >= 0:
                    slots[row, kind] = slot
                    if source != L1_HIT:
                        ticket.sources[row, kind] = source
                else:
                    wait.n_missing += 1
                    waits[row] = wait
        return waits

    def _note_partial(self, ticket: Ticket) -> None:
        partial = self._fetcher.partial
        for kind, entities in enumerate(ticket.rows.entities):
            for row, entity in enumerate(entities):
                levels = partial.get((kind, entity))
                if levels:
                    ticket.degrade(row, levels)

    def _whole(self, ticket: Ticket, waits: Mapping[int, Wait], after: Ticket | None) -> Ticket:
        """All rows together."""
        for wait in waits.values():
            wait.ticket = ticket
            ticket.n_missing += wait.n_missing
        ticket.wait_behind(after)
        cards = ticket.rows.entities[self._card_kind]
        if self._waiting_cards and not self._waiting_cards.keys().isdisjoint(cards):
            for card in cards:
                ticket.wait_behind(self._waiting_cards.get(card))
        self._wait_or_go(ticket)
        return ticket

    def _split(self, ticket: Ticket, waits: Mapping[int, Wait]) -> Ticket | None:
        """Who has to wait gets a ticket of its own; the others are returned together."""
        cards, waiting = ticket.rows.entities[self._card_kind], self._waiting_cards
        held: list[int] = []
        held_cards: set[str] = set()
        for row, card in enumerate(cards):
            if row in waits or card in waiting or card in held_cards:
                held.append(row)
                held_cards.add(card)
        if not held:
            ticket.is_enqueued = True
            return ticket
        free = sorted(set(range(len(cards))).difference(held))
        first = self._part(ticket, free) if free else None
        if first is not None:
            first.is_enqueued = True
        for row in held:
            own = self._part(ticket, [row])
            wait = waits.get(row)
            if wait is not None:
                wait.ticket, wait.row, own.n_missing = own, 0, wait.n_missing
            own.wait_behind(waiting.get(cards[row]))
            self._wait_or_go(own)
        return first

    def _part(self, ticket: Ticket, numbers: Sequence[int]) -> Ticket:
        """A ticket of these rows."""
        part = Ticket(ticket.rows.only(numbers), ticket.slots[list(numbers)], ticket.sink.only(numbers), ticket.wanted)
        part.arrived, part.is_pinned = ticket.arrived, True
        part.started, part.lookup_seconds = ticket.started, ticket.lookup_seconds
        if not (ticket.degraded or ticket.sources):
            return part
        for place, number in enumerate(numbers):
            if number in ticket.degraded:
                part.degraded[place] = ticket.degraded[number]
            for kind in range(self._n_kinds):
                if (number, kind) in ticket.sources:
                    part.sources[place, kind] = ticket.sources[number, kind]
        return part

    def _wait_or_go(self, ticket: Ticket) -> None:
        if ticket.n_missing or ticket.n_ahead:
            self._waiting_cards.update(dict.fromkeys(ticket.rows.entities[self._card_kind], ticket))
        else:
            ticket.is_enqueued = True

    def _arrived(self, ticket: Ticket, row: int, miss: Miss) -> None:
        """A profile that a row waited for has its slot now."""
        ticket.slots[row, miss.kind] = self._l1.pin(miss.kind, miss.entity)
        ticket.sources[row, miss.kind] = miss.source
        ticket.degrade(row, miss.degraded)
        ticket.n_missing -= 1
        self._release(ticket)

    def _release(self, ticket: Ticket) -> None:
        """Let a ticket go that has everything, and then those that waited only for it."""
        released = deque([ticket] if not (ticket.n_missing or ticket.n_ahead) else [])
        while released:
            ticket = released.popleft()
            for card in ticket.rows.entities[self._card_kind]:
                if self._waiting_cards.get(card) is ticket:
                    del self._waiting_cards[card]
            ticket.is_enqueued = True
            self._ready(ticket)
            for follower in ticket.followers:
                follower.n_ahead -= 1
                # Only the last of those ahead releases it: once more, and it would be scored twice.
                if not (follower.n_ahead or follower.n_missing):
                    released.append(follower)
            ticket.followers.clear()


def slots_of(tickets: Sequence[Ticket]) -> npt.NDArray[np.int64]:
    """int64 (rows, kinds): the slots of all their rows."""
    return tickets[0].slots if len(tickets) == 1 else np.concatenate([ticket.slots for ticket in tickets])
