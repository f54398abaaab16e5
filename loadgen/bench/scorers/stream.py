"""The events that every scoring engine gets: entities drawn uniformly, time moving at a stated rate, from a fixed seed.

Columns are made directly, as decoding is none of an engine's work. Every event names a card, a merchant, a device and an
address; an entity's number is its slot in a slab and its place in a list of objects alike. A card pays near its home,
now and then anywhere.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.plan import COLUMNS, TS, W_LAST_SEEN, Plan
from features.slab import Slab
from models.arena import Arena

Int64s = npt.NDArray[np.int64]

START_MS = 1_750_000_000_000  # a Sunday afternoon
CHUNK_ROWS = 1_024  # events per block where only the profiles matter
PLACE = 180_000_000  # millionths of a degree, shifted to be positive
NEAR = 50_000  # standard deviation of places around a card's home, millionths of a degree: 5 km
TRAVEL = 0.02  # share of events that are anywhere on earth


class Block(NamedTuple):
    """Consecutive events: lsns int64 (rows,), slots int64 (rows, kinds), columns int64 (rows, len(COLUMNS))."""

    lsns: Int64s
    slots: Int64s
    columns: Int64s

    def part(self, start: int, n: int) -> "Block":
        """Rows [start, start + n)."""
        rows = slice(start, start + n)
        return Block(self.lsns[rows], self.slots[rows], self.columns[rows])

    def fill(self, arena: Arena) -> int:
        """Write all of them to the arena's first rows; how many they are."""
        n = len(self.lsns)
        arena.lsns[:n], arena.slots[:n], arena.columns[:n] = self
        return n

    def events(self) -> list[tuple[list[int], list[int]]]:
        """The slots and the columns of each event as Python integers."""
        return list(zip(self.slots.tolist(), self.columns.tolist(), strict=True))


class Stream:
    """Events of `entities` entities, in equal shares per kind. `step_us`: how far time moves per event; may be changed."""

    def __init__(self, plan: Plan, entities: int, step_us: float, seed: int) -> None:
        self.per_kind = entities // len(plan.kinds)
        self.step_us = step_us
        self._kinds = [COLUMNS.index(kind.id_field) for kind in plan.kinds]
        self._rng = np.random.default_rng(seed)
        self._homes = self._rng.integers(0, PLACE, self.per_kind), self._rng.integers(0, 2 * PLACE, self.per_kind)
        self._now_us = START_MS * 1000.0
        self._lsn = 1

    def each_once(self, rows_min: int) -> Iterator[Block]:
        """Event i is of entity i of each kind, and over again: every entity at least once, `rows_min` events at least."""
        total = max(self.per_kind, rows_min)
        for start in range(0, total, CHUNK_ROWS):
            numbers = np.arange(start, min(start + CHUNK_ROWS, total)) % self.per_kind
            yield self._block(np.repeat(numbers[:, None], len(self._kinds), axis=1))

    def draw(self, n_rows: int) -> Block:
        """Events of entities that are drawn uniformly and independently per kind."""
        return self._block(self._rng.integers(0, self.per_kind, (n_rows, len(self._kinds))))

    def _block(self, slots: Int64s) -> Block:
        n_rows, rng = len(slots), self._rng
        columns = np.empty((n_rows, len(COLUMNS)), dtype=np.int64)
        ts = (self._now_us + self.step_us * np.arange(1, n_rows + 1)) // 1000
        lat, lon = self._places(slots[:, 0])
        given = {
            "ts": ts,
            "amount": rng.lognormal(8, 1, n_rows),
            "country": rng.choice((82, 161), n_rows, p=(0.9, 0.1)),
            "mcc": rng.integers(5_000, 6_000, n_rows),
            "channel": rng.integers(0, 3, n_rows),
            "lat": lat,
            "lon": lon,
        }
        for name, values in given.items():
            columns[:, COLUMNS.index(name)] = values
        for kind, column in enumerate(self._kinds):  # any 32-bit hash will do
            columns[:, column] = (slots[:, kind] * 2_654_435_761 + kind * 97) & 0xFFFFFFFF
        lsns = np.arange(self._lsn, self._lsn + n_rows)
        self._lsn += n_rows
        self._now_us += self.step_us * n_rows
        return Block(lsns, slots, columns)

    def _places(self, cards: Int64s) -> tuple[Int64s, Int64s]:
        """Where each event is: near its card's home, or anywhere."""
        rng, n_rows = self._rng, len(cards)
        is_away = rng.random(n_rows) < TRAVEL
        places = []
        for homes, limit in zip(self._homes, (PLACE, 2 * PLACE), strict=True):
            near = homes[cards] + rng.normal(0, NEAR, n_rows).astype(np.int64)
            places.append(np.where(is_away, rng.integers(0, limit, n_rows), near.clip(0, limit)))
        return places[0], places[1]


def ring_moves(plan: Plan, slabs: list[Slab], block: Block) -> int:
    """How many rings `block` will move on when it is applied to `slabs`."""
    ts, moves = block.columns[:, TS], 0
    for kind, slab in zip(plan.kinds, slabs, strict=True):
        slots = block.slots[:, kind.number]
        order = np.argsort(slots, kind="stable")
        before = slab.words[slots, W_LAST_SEEN]
        again = order[1:][slots[order[1:]] == slots[order[:-1]]]
        before[again] = ts[order[:-1][slots[order[1:]] == slots[order[:-1]]]]
        moves += sum(int((ts // ring.tile_ms != before // ring.tile_ms).sum()) for ring in kind.rings)
    return moves
