"""Many events as bytes at once, for clients that must be much cheaper than the server: digits are written by numpy.

The same events as `Payloads`, in rows of one width: a line of NDJSON, or a whole request with its head. About 0.1 µs a row,
where a format string costs 1 µs. A row is a copy of a template in which the digits of every field are overwritten.
"""

import numpy as np
import numpy.typing as npt

from loadgen.bench.payloads import BODY, BODY_ALONE, Draws

_DECIMAL = np.array([list(b"%04d" % n) for n in range(10_000)], dtype=np.uint8)
_HEX = np.array([list(b"%04x" % n) for n in range(1 << 16)], dtype=np.uint8)

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


class Rows:
    """Makes rows `prefix` + event + `suffix`. Event n has the id "b-%012d" % n, on every call."""

    def __init__(self, draws: Draws, prefix: bytes = b"", suffix: bytes = b"\n", *, alone: bool = False) -> None:
        body, n_fields = (BODY_ALONE, 5) if alone else (BODY, 7)
        self._draws = draws
        self._alone = alone
        self._row = np.frombuffer(prefix + body % ((0,) * n_fields) + suffix, dtype=np.uint8)
        self.width = len(self._row)
        places: list[int] = []
        at = len(prefix)
        for piece in body.split(b"%")[:-1]:  # a format is four or three characters, and not in the row
            at += len(piece) - (_format_length(piece) if places else 0)
            places.append(at)
            at += _FIELD_DIGITS[len(places) - 1]
        self._places = places

    def make(self, first: int, n: int, now_ms: int) -> Bytes:
        """Events first..first+n with drawn cards: uint8 (n, width), contiguous."""
        numbers = np.arange(first, first + n, dtype=np.int64)
        at = numbers & (len(self._draws.cards) - 1)
        return self._fill(numbers, now_ms, self._draws.cards[at], at)

    def each_card(self, first: int, start: int, n: int, now_ms: int) -> Bytes:
        """Events first..first+n, one for each of the cards start..start+n."""
        numbers = np.arange(first, first + n, dtype=np.int64)
        return self._fill(numbers, now_ms, np.arange(start, start + n), numbers & (len(self._draws.cards) - 1))

    def _fill(self, numbers: Numbers, now_ms: int, cards: Numbers, at: Numbers) -> Bytes:
        rows = np.tile(self._row, (len(numbers), 1))
        places = self._places
        _decimals(rows, places[0], numbers, 12)
        rows[:, places[1] : places[1] + 13] = np.frombuffer(b"%013d" % now_ms, dtype=np.uint8)
        _decimals(rows, places[2], self._draws.amounts[at], 5)
        _decimals(rows, places[3], cards, 8)
        _decimals(rows, places[4], self._draws.merchants[at], 5)
        if not self._alone:
            _decimals(rows, places[5], cards, 8)
            rows[:, places[6] : places[6] + 4] = _HEX[cards >> 16]
            rows[:, places[6] + 4 : places[6] + 8] = _HEX[cards & 0xFFFF]
        return rows


_FIELD_DIGITS = (12, 13, 5, 8, 5, 8, 8)


def _format_length(piece: bytes) -> int:
    """How much of a piece behind a "%" is its format: "012d" or "08x"."""
    return next(n for n, c in enumerate(piece) if c in b"dx") + 1


def _decimals(rows: Bytes, place: int, numbers: Numbers, n_digits: int) -> None:
    """The last `n_digits` digits of each number, four at a time from the right."""
    end = place + n_digits
    while end > place:
        n = min(4, end - place)
        rows[:, end - n : end] = _DECIMAL[numbers % 10_000][:, 4 - n :]
        numbers = numbers // 10_000
        end -= n
