"""Requests for the benchmarks, made while sending: every event is new, cards are drawn from a fixed population.

All fields have a fixed width, so the head with its Content-Length is constant and a request is one bytes format (1 µs).
"""

import time

import numpy as np

from loadgen.sender import Target

N_MERCHANTS = 1_000
DRAWS = 1 << 17  # card, merchant and amount are drawn once and gone through in a circle
BODY = (
    b'{"event_id":"b-%012d","ts":%013d,"amount":%05d,"currency":"EUR","card_id":"c%08d","merchant_id":"m%05d",'
    b'"device_id":"d%08d","ip":"2001:db8::%08x","country":"DE","mcc":5411,"channel":"ecom"}'
)
BODY_BYTES = len(BODY % (0, 0, 0, 0, 0, 0, 0))


class Payloads:
    """Requests to `target`. `zipf` 0 draws cards uniformly, else rank r with weight r^-zipf. The seed fixes the draws."""

    def __init__(self, target: Target, n_cards: int, zipf: float = 0.0, seed: int = 7, batch_rows: int = 256) -> None:
        rng = np.random.default_rng(seed)
        weights = np.arange(1, n_cards + 1, dtype=np.float64) ** -zipf
        ranks = rng.choice(n_cards, size=DRAWS, p=weights / weights.sum())
        # A rank is not a neighbourhood: spread the hot cards over the whole range of ids.
        self._cards: list[int] = rng.permutation(n_cards)[ranks].tolist()
        self._merchants: list[int] = rng.integers(0, N_MERCHANTS, DRAWS).tolist()
        self._amounts: list[int] = rng.integers(10_000, 99_999, DRAWS).tolist()
        self._batch_rows = batch_rows
        self.n_events = 0
        self.aim(target)

    def aim(self, target: Target) -> None:
        """Make requests to `target` from now on; events stay new."""
        head = target.head("POST", "/v1/score").replace(b"%", b"%%")
        self._one = b"%s%d\r\n\r\n%s" % (head, BODY_BYTES, BODY)
        self._batch_head = target.head("POST", "/v1/score/batch")

    def one(self) -> bytes:
        """POST /v1/score with the next event."""
        return self._one % self._fields(time.time_ns() // 1_000_000)

    def batch(self) -> bytes:
        """POST /v1/score/batch with the next `batch_rows` events."""
        now_ms = time.time_ns() // 1_000_000
        return self._batch([BODY % self._fields(now_ms) for _ in range(self._batch_rows)])

    def each_card(self, start: int, stop: int) -> bytes:
        """A batch with one event for each of the cards start..stop."""
        now_ms = time.time_ns() // 1_000_000
        rows = []
        for card in range(start, stop):
            fields = self._fields(now_ms)
            rows.append(BODY % (*fields[:3], card, fields[4], card, card))
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

    def _fields(self, now_ms: int) -> tuple[int, int, int, int, int, int, int]:
        n = self.n_events
        self.n_events = n + 1
        at = n & (DRAWS - 1)
        card = self._cards[at]
        return (n, now_ms, self._amounts[at], card, self._merchants[at], card, card)
