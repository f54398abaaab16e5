"""What every stack reads from Postgres: features of cards and merchants, seeded, so that the reference knows them unread.

    stack_cards(card_id text primary key, features real[30], packed bytea)       ids c00000000, c00000001, ...
    stack_merchants(merchant_id text primary key, features real[10], packed bytea)  ids m00000, m00001, ...

`packed` holds the same numbers, float32 little-endian. Ids are those of loadgen/bench/payloads.py. Rows lie about the mean of
the model's own features, so that scores spread.
"""

import asyncpg
import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.bench.children import BenchError
from loadgen.bench.payloads import N_MERCHANTS
from loadgen.stacks.weights import N_FEATURES, normalisation

N_CARD, N_MERCHANT = 30, 10  # features
N_CARDS = 10_000
SEED = 5
CONNECT_DEADLINE_S = 10.0
COMMAND_DEADLINE_S = 300.0  # s; a million cards are copied in half a minute
TABLES = (("stack_cards", "card_id"), ("stack_merchants", "merchant_id"))

Array = NDArray[np.float32]


class Population(msgspec.Struct, frozen=True):
    """Features float32: cards (n_cards, 30), merchants (1000, 10), from `seed`. More cards leave the first as they are."""

    seed: int
    cards: Array
    merchants: Array

    @classmethod
    def make(cls, n_cards: int = N_CARDS, seed: int = SEED) -> "Population":
        mean, deviation = normalisation()
        assert len(mean) == N_FEATURES == N_CARD + N_MERCHANT
        # Two generators: the merchants do not depend on the number of cards.
        cards, merchants = (
            np.random.default_rng((seed, table)).standard_normal((rows, columns), dtype=np.float32)
            for table, (rows, columns) in enumerate(((n_cards, N_CARD), (N_MERCHANTS, N_MERCHANT)))
        )
        return cls(
            seed,
            cards * deviation[:N_CARD] + mean[:N_CARD],
            merchants * deviation[N_CARD:] + mean[N_CARD:],
        )

    def vectors(self, cards: NDArray[np.int64], merchants: NDArray[np.int64]) -> Array:
        """Feature vectors float32 (n, 40) of pairs of row numbers."""
        return np.hstack((self.cards[cards], self.merchants[merchants]))


def card_id(number: int) -> str:
    """The id of a row of `Population.cards`."""
    return f"c{number:08d}"


def merchant_id(number: int) -> str:
    """The id of a row of `Population.merchants`."""
    return f"m{number:05d}"


async def seed_database(url: str, population: Population) -> None:
    """Make both tables and fill them, unless they hold this population already. Raises BenchError."""
    try:
        await _seed(url, population)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise BenchError(f"the stacks' database cannot be filled: {error or type(error).__name__}") from None


async def _seed(url: str, population: Population) -> None:
    connection = await asyncpg.connect(url, timeout=CONNECT_DEADLINE_S, command_timeout=COMMAND_DEADLINE_S)
    try:
        tables = (population.cards, population.merchants)
        for (table, key), rows, name in zip(TABLES, tables, (card_id, merchant_id), strict=True):
            content = f"seed {population.seed}, {len(rows)} rows of {rows.shape[1]}"
            if await _comment(connection, table) == content:
                continue
            async with connection.transaction():
                await connection.execute(f"DROP TABLE IF EXISTS {table}")
                columns = f"{key} text PRIMARY KEY, features real[{rows.shape[1]}] NOT NULL, packed bytea NOT NULL"
                await connection.execute(f"CREATE TABLE {table} ({columns})")
                packed = rows.astype("<f4", copy=False)
                records = ((name(n), row.tolist(), row.tobytes()) for n, row in enumerate(packed))
                await connection.copy_records_to_table(table, records=records)
                await connection.execute(f"COMMENT ON TABLE {table} IS '{content}'")
            await connection.execute(f"VACUUM ANALYZE {table}")
    finally:
        await connection.close()


async def _comment(connection: asyncpg.Connection, table: str) -> str | None:
    """What `table` says that it holds, or None."""
    found: str | None = await connection.fetchval("SELECT obj_description(to_regclass($1))", table)
    return found
