"""Rows that miss profiles: those of a turn that can go on together do, in one ticket, and no row before an earlier one of its
card."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from features.plan import Plan, compile_plan
from features.spec import load_spec
from service.codec import JSON
from service.fetch import Fetcher
from service.levels import Level
from service.lookup import LookUp
from service.row_codec import ReferenceCodec
from service.ticket import REPLIES, Answer, Ticket
from service.tiers.l1 import L1


class SlowTier:
    """Knows nobody; answers once the keys of a call may be answered."""

    name = "postgres"

    def __init__(self) -> None:
        self.calls: list[tuple[list[bytes], asyncio.Event]] = []

    async def fill(self, keys: Sequence[bytes]) -> list[bytes | None]:
        answered = asyncio.Event()
        self.calls.append((list(keys), answered))
        await answered.wait()
        return [None] * len(keys)

    async def put(self, profiles: Mapping[bytes, bytes], position: int) -> None:
        raise AssertionError("nothing is written")

    async def read_position(self) -> int:
        return 0


class Numbers:
    """A sink that only knows which rows it is for."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)

    def answer(self, number: int, answer: Answer) -> None:
        raise AssertionError("nothing is answered")

    def answer_all(self, answers: Sequence[Answer]) -> None:
        raise AssertionError("nothing is answered")

    def only(self, numbers: Sequence[int]) -> "Numbers":
        return Numbers([self.numbers[number] for number in numbers])


class Bench:
    """A look-up whose L1 holds the merchant m; `gone` are the numbers of the rows of each ticket that went on."""

    def __init__(self, plan: Plan) -> None:
        self.tier = SlowTier()
        self.l1 = L1(plan, 1 << 20, 64, lambda kind, entities, slots: None)
        self.gone: list[list[int]] = []
        self._plan = plan
        self._n_rows = 0
        fetcher = Fetcher(plan, self.l1, [Level(self.tier, True)], None, _NothingWaits())
        self._lookup = LookUp(plan, self.l1, fetcher, self._go)
        self.l1.unpin(1, self.l1.claim(1, "m"))

    def look_up(self, *cards: str, alone: bool = True, after: Ticket | None = None) -> Ticket | None:
        """One row for each of the cards; numbers go on from call to call."""
        first, self._n_rows = self._n_rows, self._n_rows + len(cards)
        bodies = [
            b'{"event_id":"e%d","ts":1750000000000,"amount":1,"currency":"EUR","card_id":"%b","merchant_id":"m"}'
            % (first + n, card.encode())
            for n, card in enumerate(cards)
        ]
        rows, refused = ReferenceCodec(self._plan).decode(bodies, JSON)
        assert not refused
        ticket = self._lookup.look_up(rows, Numbers(range(first, self._n_rows)), REPLIES, alone=alone, after=after)
        if ticket is not None and ticket.is_enqueued:
            self._go(ticket)
        return ticket

    async def answer(self, call: int) -> None:
        """Let the tier answer one of its calls."""
        await turn()
        self.tier.calls[call][1].set()
        await turn()

    def _go(self, ticket: Ticket) -> None:
        assert ticket.is_enqueued
        assert (ticket.slots[:, :2] >= 0).all()
        assert ticket.rows.entities[1] == ["m"] * len(ticket.rows)
        assert all(
            self.l1.slot_of(0, card) == slot for card, slot in zip(ticket.rows.entities[0], ticket.slots[:, 0], strict=True)
        )
        assert isinstance(ticket.sink, Numbers)
        self.gone.append(ticket.sink.numbers)
        if ticket.is_pinned:
            self.l1.unpin_rows(ticket.slots)


class _NothingWaits:
    fullness = ""

    def waiting(self, key: bytes) -> bytes | None:
        return None

    def take_waiting(self, key: bytes) -> bytes | None:
        return None


async def turn() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def bench() -> Bench:
    """An empty look-up."""
    return Bench(compile_plan(load_spec("cards")))


def assert_all_unpinned(bench: Bench) -> None:
    assert all(pins == 0 for sieve in bench.l1.sieves for pins in sieve.pins)


async def test_look_up_rows_that_miss_together_go_on_in_one_ticket(bench: Bench) -> None:
    """Who is here goes at once; the others share a read and a ticket, in their order, repeated cards too."""
    bench.l1.unpin(0, bench.l1.claim(0, "here"))
    bench.look_up("a", "here", "b", "a", "c")
    assert bench.gone == [[1]]
    await bench.answer(0)
    assert bench.gone == [[1], [0, 2, 3, 4]]
    assert [len(keys) for keys, _ in bench.tier.calls] == [3]
    assert_all_unpinned(bench)


async def test_look_up_part_of_a_turn_goes_on_as_soon_as_it_can(bench: Bench) -> None:
    """Rows of one turn wait each for its own profiles: a read of the turn before brings one of them, the rest follows."""
    bench.look_up("a")
    await turn()
    bench.look_up("b", "a", "c")
    await turn()
    await bench.answer(0)
    assert bench.gone == [[0], [2]]
    bench.look_up("b", "a")
    assert bench.gone == [[0], [2], [5]], "a is here, b is waited for"
    await bench.answer(1)
    assert bench.gone == [[0], [2], [5], [1, 3], [4]]
    assert_all_unpinned(bench)


async def test_look_up_rows_of_one_card_go_in_their_order(bench: Bench) -> None:
    """A request that waits for another card holds back the later rows of both its cards, and only those."""
    bench.look_up("a")
    await turn()
    whole = bench.look_up("b", "a", alone=False)
    await turn()
    part = bench.look_up("d", alone=False, after=whole)
    await turn()
    bench.look_up("b", "d", "e")
    await turn()
    await bench.answer(3)
    assert bench.gone == [[6]]
    await bench.answer(0)
    await bench.answer(2)
    assert bench.gone == [[6], [0]], "the second part waits for the first, and the row after it for both"
    await bench.answer(1)
    assert bench.gone == [[6], [0], [1, 2], [3], [4, 5]]
    assert part is not None
    assert part.is_enqueued
    assert_all_unpinned(bench)
