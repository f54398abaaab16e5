"""Ledger: the long-term table of decisions in Postgres, one row per journaled transaction.

Rows, labels and the consumer position `ledger` move in one transaction under the row lock of the position, so an append
that is repeated, or that overlaps one which succeeded unnoticed, adds nothing twice. Cost: 1.5 ms + 9 µs per row.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from features.transaction import is_blank
from service.decisions import decode_body
from service.errors import TierUnavailable
from service.scrub import Scrubber
from service.tiers.postgres import PostgresPool

CONSUMER = "ledger"  # its row in weir_positions
SCRUB_ROWS = 500  # rows rewritten in one step: 2 ms on the loop
SCRUB_DEADLINE_MS = 60_000  # ms for one step: no index leads to the ids in a body
PIECE_BYTES = 1 << 17  # of encoded rows handed to the connection between two turns of the loop: 0.1 ms
YIELD_ROWS = 64  # rows encoded between two turns of the loop: 0.4 ms

_LOCK = "SELECT lsn FROM weir_positions WHERE consumer = $1 FOR UPDATE"
_POSITION = "SELECT lsn FROM weir_positions WHERE consumer = $1"
_ADVANCE = "UPDATE weir_positions SET lsn = $2 WHERE consumer = $1"
_HOLDING = """
    SELECT lsn, tx FROM weir_ledger WHERE lsn < $1 AND position($2::bytea IN tx) > 0 AND lsn > $3 ORDER BY lsn LIMIT $4
"""
_SCRUB = """
    UPDATE weir_ledger AS l SET tx = n.tx, card_id = n.card_id, merchant_id = n.merchant_id
    FROM unnest($1::bigint[], $2::bytea[], $3::text[], $4::text[]) AS n (lsn, tx, card_id, merchant_id) WHERE l.lsn = n.lsn
"""
_LABEL = """
    UPDATE weir_ledger AS l SET label = n.label FROM unnest($1::bigint[], $2::smallint[]) AS n (lsn, label)
    WHERE l.lsn = n.lsn
"""


class LedgerRow(msgspec.Struct, frozen=True, gc=False):
    """One decided transaction, as columns of weir_ledger, in their order."""

    lsn: int
    event_id: str
    ts: int  # ms UTC
    card_id: str
    merchant_id: str
    amount: int  # minor units of `currency`
    currency: str
    score: float
    outcome: str
    model: str
    scorer: str
    reasons: Sequence[str]
    tx: bytes  # the accepted body


class Ledger:
    """Appends to weir_ledger through a pool that it does not own."""

    def __init__(self, pool: PostgresPool, deadline_ms: int = 10_000) -> None:
        self._pool = pool
        self._deadline_ms = deadline_ms

    async def append(
        self, rows: Sequence[LedgerRow], position: int, labels: Mapping[int, int] | None = None, after: int = 0
    ) -> None:
        """Add the rows above the stored position, set `labels` (LSN of the tx -> 1 or 0), move to `position`; or nothing.

        `rows` are every transaction between the stored position and `position`, in LSN order. A repeated call does
        nothing. Raises TierUnavailable; then the call may be repeated, but if the ledger does not reach `after` any more, what
        follows the position that is read then has to be appended first.
        """
        assert not rows or rows[-1].lsn <= position, "a row above the position would be added again"
        async with self._pool.connection(self._deadline_ms) as connection:
            stored = await _begin(connection, after)
            if position <= stored:
                await connection.execute("ROLLBACK")
                return
            await connection.copy_records_to_table(
                "weir_ledger", records=_records(rows, stored), columns=LedgerRow.__struct_fields__
            )
            await _end(connection, position, labels)

    async def append_encoded(self, rows: memoryview, position: int, labels: Mapping[int, int], after: int) -> int:
        """The same for rows that are encoded already: the bytes of a COPY in the format binary; empty, there are none.

        They are every transaction above `after` up to `position`, so they fit a ledger that stands there and no other. Returns
        the position that it has then; if that is not `position`, nothing was added, and what follows it has to be encoded anew.
        `rows` is read until this returns or raises, never after. Raises TierUnavailable, as `append`.
        """
        async with self._pool.connection(self._deadline_ms) as connection:
            stored = await _begin(connection, after)
            if stored != after:
                await connection.execute("ROLLBACK")
                return stored
            if rows:
                await connection.copy_to_table(
                    "weir_ledger", source=_pieces(rows), columns=LedgerRow.__struct_fields__, format="binary"
                )
            await _end(connection, position, labels)
        return position

    async def scrub(self, scrubber: Scrubber, below_lsn: int) -> int:
        """Blank the id in every row below `below_lsn`; how many there were. Reads the whole table. Raises TierUnavailable."""
        n_rows, last = 0, -1
        while True:
            async with self._pool.connection(SCRUB_DEADLINE_MS) as connection:
                found = await connection.fetch(_HOLDING, below_lsn, scrubber.needle, last, SCRUB_ROWS)
                if not found:
                    return n_rows
                last = found[-1]["lsn"]
                bodies = [(row["lsn"], body) for row in found if (body := scrubber.body(row["tx"])) is not None]
                txs = [decode_body(body) for _, body in bodies]
                ids = [["" if is_blank(entity) else entity for entity in (tx.card_id, tx.merchant_id)] for tx in txs]
                columns = [[lsn for lsn, _ in bodies], [body for _, body in bodies], [c for c, _ in ids], [m for _, m in ids]]
                await connection.execute(_SCRUB, *columns)
                n_rows += len(bodies)

    async def read_position(self) -> int:
        """Every transaction up to this LSN is in the ledger; 0 if empty. Connects if needed. Raises TierUnavailable."""
        await self._pool.open()
        async with self._pool.connection(self._deadline_ms) as connection:
            position: int = await connection.fetchval(_POSITION, CONSUMER)
        return position


async def _begin(connection: Any, after: int) -> int:
    """Begin a transaction and lock the position, which is returned. Raises TierUnavailable if it lies below `after`."""
    # Not connection.transaction(): it rolls back politely, which would wait for a server that fell silent.
    await connection.execute("BEGIN")
    stored: int = await connection.fetchval(_LOCK, CONSUMER)
    if stored < after:  # restored or emptied in a server that went on: rows between would be missing for ever
        raise TierUnavailable(CONSUMER, f"it went back to LSN {stored}, {after} was acknowledged")
    return stored


async def _end(connection: Any, position: int, labels: Mapping[int, int] | None) -> None:
    if labels:
        await connection.execute(_LABEL, list(labels), list(labels.values()))
    await connection.execute(_ADVANCE, CONSUMER, position)
    await connection.execute("COMMIT")


async def _pieces(rows: memoryview) -> AsyncIterator[memoryview]:
    """Small enough to be copied in no time; between two of them everybody else has a turn."""
    for start in range(0, len(rows), PIECE_BYTES):
        yield rows[start : start + PIECE_BYTES]
        await asyncio.sleep(0)


async def _records(rows: Sequence[LedgerRow], above: int) -> AsyncIterator[tuple[object, ...]]:
    """Tuples for COPY; asyncpg would otherwise encode 512 KiB in one go and hold the loop for that long."""
    for i, row in enumerate(rows):
        if row.lsn > above:
            yield msgspec.structs.astuple(row)
        if i % YIELD_ROWS == YIELD_ROWS - 1:
            await asyncio.sleep(0)
