"""Requests for the benchmarks, made while sending: every event is new, cards are drawn from a fixed population.

All fields have a fixed width, so the head with its Content-Length is constant and a request is one bytes format (1 µs).
"""

import time

import msgspec
import numpy as np
import numpy.typing as npt

from loadgen.sender import Target

N_MERCHANTS = 1_000
DRAWS = 1 << 17  # card, merchant and amount are drawn once and gone through in a circle
BODY_ALONE = b'{"event_id":"b-%012d","ts":%013d,"amount":%05d,"currency":"EUR","card_id":"c%08d","merchant_id":"m%05d"'
BODY = BODY_ALONE + b',"device_id":"d%08d","ip":"2001:db8::%08x","country":"DE","mcc":5411,"channel":"ecom"}'
BODY_ALONE += b"}"


class Draws(msgspec.Struct, frozen=True):
    """What is drawn for each event, in order, in a circle: int64 arrays of one length, a power of two."""

    cards: npt.NDArray[np.int64]
    merchants: npt.NDArray[np.int64]
    amounts: npt.NDArray[np.int64]

    @classmethod
    def make(cls, n_cards: int, zipf: float = 0.0, seed: int = 7, n: int = DRAWS) -> "Draws":
        """`zipf` 0 draws cards uniformly, else rank r with weight r^-zipf. With many more cards than `n` not all are drawn."""
        assert n & (n - 1) == 0, n
        rng = np.random.default_rng(seed)
        weights = np.arange(1, n_cards + 1, dtype=np.float64) ** -zipf
        ranks = rng.choice(n_cards, size=n, p=weights / weights.sum())
        # A rank is not a neighbourhood: spread the hot cards over the whole range of ids.
        cards = rng.permutation(n_cards)[ranks]
        return cls(cards, rng.integers(0, N_MERCHANTS, n), rng.integers(10_000, 99_999, n))


class Payloads:
    """Requests to `target`. Cards are drawn as `Draws.make` says; `alone`: events name a card and a merchant only."""

    def __init__(
        self,
        target: Target,
        n_cards: int,
        zipf: float = 0.0,
        seed: int = 7,
        batch_rows: int = 256,
        draws: int = DRAWS,
        *,
        alone: bool = False,
    ) -> None:
        drawn = Draws.make(n_cards, zipf, seed, draws)
        self._cards: list[int] = drawn.cards.tolist()
        self._merchants: list[int] = drawn.merchants.tolist()
        self._amounts: list[int] = drawn.amounts.tolist()
        self._body, self._n_fields = (BODY_ALONE, 5) if alone else (BODY, 7)
        self._batch_rows = batch_rows
        self._mask = draws - 1
        self.n_events = 0
        self.aim(target)

    def aim(self, target: Target) -> None:
        """Make requests to `target` from now on; events stay new."""
        body_bytes = len(self._body % ((0,) * self._n_fields))
        self._head = b"%s%d\r\n\r\n" % (target.head("POST", "/v1/score"), body_bytes)
        self._one = self._head.replace(b"%", b"%%") + self._body
        self._batch_head = target.head("POST", "/v1/score/batch")

    def one(self) -> bytes:
        """POST /v1/score with the next event."""
        return self._one % self._fields(time.time_ns() // 1_000_000)

    def parts(self) -> tuple[bytes, list[bytes]]:
        """Requests in pieces, for a client that puts them together itself: the head, and what follows the time in each draw.

        Between them stand the event's id (14 characters), `","ts":` and 13 digits.
        """
        tail = self._body.partition(b"%013d")[2]
        draws = zip(self._amounts, self._cards, self._merchants, strict=True)
        n = self._n_fields - 2
        tails = [tail % (amount, card, merchant, card, card)[:n] for amount, card, merchant in draws]
        return self._head + b'{"event_id":"', tails

    def batch(self) -> bytes:
        """POST /v1/score/batch with the next `batch_rows` events."""
        now_ms = time.time_ns() // 1_000_000
        return self._batch([self._body % self._fields(now_ms) for _ in range(self._batch_rows)])

    def each_card(self, start: int, stop: int) -> bytes:
        """A batch with one event for each of the cards start..stop."""
        now_ms = time.time_ns() // 1_000_000
        rows = []
        for card in range(start, stop):
            fields = self._fields(now_ms)
            rows.append(self._body % (*fields[:3], card, *fields[4:5], card, card)[: self._n_fields])
        return self._batch(rows)

    def each_card_alone(self, start: int, stop: int) -> bytes:
        """Like `each_card`, of one merchant and with no device or address: a new card is the only new entity."""
        now_ms, first = time.time_ns() // 1_000_000, self.n_events
        self.n_events += stop - start
        return self._batch(
            [
                b'{"event_id":"b-%012d","ts":%013d,"amount":1000,"currency":"EUR","card_id":"c%08d","merchant_id":"m1"}'
                % (first + card - start, now_ms, card)
                for card in range(start, stop)
            ]
        )

    def _batch(self, rows: list[bytes]) -> bytes:
        body = b"[" + b",".join(rows) + b"]"
        return b"%s%d\r\n\r\n%s" % (self._batch_head, len(body), body)

    def _fields(self, now_ms: int) -> tuple[int, ...]:
        n = self.n_events
        self.n_events = n + 1
        at = n & self._mask
        card = self._cards[at]
        return (n, now_ms, self._amounts[at], card, self._merchants[at], card, card)[: self._n_fields]
