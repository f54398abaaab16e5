"""postgres: profiles in Postgres, and the pool that the ledger uses too; this is the only module that knows asyncpg.

One round trip per call: `fill` is one `= ANY`, `put` one statement that compares LSNs, writes and moves the position,
so it is all or nothing. Deadlines cover the wait for a connection; a call that misses its own terminates its connection
instead of asking a silent server to cancel. `PostgresPool.generation` counts the servers that were met: after a
restart, a restore or a failover `fill` and `put` raise TierUnavailable until `read_position` accepted the new one. So they do
once the tables themselves went back, in a server that went on.

Cost over a unix socket, 1 KiB profiles: fill 0.2 ms for one key, 0.7 ms for 64; put 0.4 ms for one (its fsync), 1.2 ms for 64,
14 to 19 µs per key in large ones.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from service.errors import TierUnavailable
from service.tiers.base import ENTITY_KEYS_FROM, Gate, Size, lsn_of, slices

NAME = "postgres"
CONSUMER = "postgres"  # the tier's row in weir_positions
SLICE_KEYS = 256  # keys of one statement: encoding them holds the loop for about 1 ms
SLICE_BYTES = 1 << 19  # bytes of one statement
CHUNK_KEYS = 2_000  # keys of one page of an iteration: 2 ms on the loop
CONNECT_DEADLINE_MS = 5_000  # ms to connect and create the schema
CHUNK_DEADLINE_MS = 10_000  # ms for one page of an iteration
CLOSE_TIMEOUT_S = 2.0  # s that running calls get to end
SCHEMA_LOCK = 0x57454952  # advisory lock "WEIR": two services that start at once create the schema once

# One entry per schema version; an entry that was released is never edited, the next change is a new entry.
MIGRATIONS = (
    """
    CREATE TABLE weir_profiles (key bytea PRIMARY KEY, lsn bigint NOT NULL, profile bytea NOT NULL)
        WITH (fillfactor = 70);  -- room for the new version of a profile in its own page: no index entry per update
    CREATE TABLE weir_positions (consumer text PRIMARY KEY, lsn bigint NOT NULL);
    INSERT INTO weir_positions VALUES ('postgres', 0), ('ledger', 0);
    CREATE TABLE weir_ledger (
        lsn bigint PRIMARY KEY,
        event_id text NOT NULL,
        ts bigint NOT NULL,          -- ms UTC, event time
        card_id text NOT NULL,
        merchant_id text NOT NULL,
        amount bigint NOT NULL,      -- minor units of currency
        currency text NOT NULL,
        score double precision NOT NULL,
        outcome text NOT NULL,
        model text NOT NULL,
        scorer text NOT NULL,
        reasons text[] NOT NULL,
        tx bytea NOT NULL,           -- the body as it was accepted, JSON in UTF-8
        label smallint               -- 1 fraud, 0 legit, null unknown
    );
    CREATE INDEX weir_ledger_event_id ON weir_ledger (event_id);
    """,
)

# A row beside the profiles counts the puts, in the place of the LSN: tables that were restored in a running server, which no
# start tells of, have counted fewer than we saw acknowledged. Each fill reads it along; no put of ours moves their position.
_PUTS_KEY = b"\x00puts"

_FILL = "SELECT key, profile, lsn FROM weir_profiles WHERE key = ANY($1::bytea[])"
_PUT = """
    WITH counted AS (
        INSERT INTO weir_profiles AS c (key, lsn, profile) VALUES ($6, 1, ''::bytea)
        ON CONFLICT (key) DO UPDATE SET lsn = c.lsn + 1 RETURNING lsn
    ), newer AS (
        INSERT INTO weir_profiles AS p (key, lsn, profile)
        SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[])
        ON CONFLICT (key) DO UPDATE SET lsn = EXCLUDED.lsn, profile = EXCLUDED.profile WHERE p.lsn < EXCLUDED.lsn
    ), moved AS (
        UPDATE weir_positions SET lsn = $4 WHERE consumer = $5 AND lsn < $4 AND (SELECT lsn FROM counted) > $7
    )
    SELECT lsn FROM counted
"""
_BURY = """
    DELETE FROM weir_profiles AS p USING unnest($1::bytea[], $2::bigint[]) AS t (key, lsn)
    WHERE p.key = t.key AND p.lsn = t.lsn
"""
_POSITION = "SELECT lsn, (SELECT lsn FROM weir_profiles WHERE key = $2) AS puts FROM weir_positions WHERE consumer = $1"
_KEYS = "SELECT key FROM weir_profiles WHERE key > $1 AND key >= $3 ORDER BY key LIMIT $2"
_INCARNATION = "SELECT pg_postmaster_start_time()::text || '/' || current_database()"

_SIZE = "SELECT reltuples::bigint, pg_total_relation_size(oid) FROM pg_class WHERE oid = 'weir_profiles'::regclass"

# InternalClientError: asyncpg's answer, now and then, when the server's last words meet a new query on their way.
_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """A connection that is given back to the pool without a round trip: none of our statements leaves any state."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        return ""


class PostgresPool:
    """At most `size_max` connections to the database at `url`, opened when needed. `open` before the first use."""

    def __init__(self, url: str, size_max: int = 4) -> None:
        self.generation = 0  # grows whenever a connection meets another server than the one before
        self._url = url
        self._size_max = size_max
        self._gate = Gate(size_max)  # as many places as connections: acquiring one never waits
        self._opening = asyncio.Lock()
        self._pool: Any = None
        self._incarnation = ""

    async def open(self, deadline_ms: int = CONNECT_DEADLINE_MS) -> None:
        """Connect and bring the schema up to date; nothing to do if that was done. Raises TierUnavailable."""
        if self._pool is not None:
            return
        with _as_unavailable(deadline_ms):
            async with asyncio.timeout(deadline_ms / 1000), self._opening:
                if self._pool is None:
                    pool = await self._create()
                    try:
                        await _migrate(pool)
                    except BaseException:
                        pool.terminate()
                        raise
                    self._pool = pool

    async def _create(self) -> Any:
        return await asyncpg.create_pool(
            self._url,
            min_size=0,  # else the pool would try to connect by itself, beside our probes, and log each failure
            max_size=self._size_max,
            max_queries=1 << 62,  # asyncpg would reconnect every 50,000 queries: a blip of 5 ms for nothing
            max_inactive_connection_lifetime=0,
            connection_class=_Connection,
            init=self._greet,
            server_settings={"application_name": "weir"},
        )

    async def _greet(self, connection: Any) -> None:
        incarnation = await connection.fetchval(_INCARNATION)
        if incarnation != self._incarnation:
            self._incarnation = incarnation
            self.generation += 1

    @asynccontextmanager
    async def connection(self, deadline_ms: int) -> AsyncIterator[Any]:
        """An asyncpg connection for the body, which has to end within the deadline. Raises TierUnavailable."""
        if self._pool is None:
            raise TierUnavailable(NAME, "not connected")
        with _as_unavailable(deadline_ms):
            async with self._gate.enter(deadline_ms), _lease(self._pool) as connection:
                yield connection

    async def close(self) -> None:
        """Let running calls end, within CLOSE_TIMEOUT_S, and close the connections."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await pool.close()
        except (TimeoutError, *_ERRORS):
            pool.terminate()


class PostgresTier:
    """The tier of profiles over a PostgresPool, which it does not own."""

    name = NAME

    def __init__(self, pool: PostgresPool, deadline_ms: int = 100, put_deadline_ms: int = 2_000) -> None:
        self._pool = pool
        self._deadline_ms = deadline_ms
        self._put_deadline_ms = put_deadline_ms
        self._generation = 0  # of the server whose position was read
        self._puts_seen = 0  # puts that its tables have acknowledged to us

    async def fill(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See Tier: one `= ANY`."""
        if not keys:
            return []
        puts_seen = self._puts_seen
        async with self._pool.connection(self._deadline_ms) as connection:
            self._check_generation()
            rows = await connection.fetch(_FILL, [_PUTS_KEY, *keys])
        found = {key: (profile, lsn) for key, profile, lsn in rows}
        _, puts = found.pop(_PUTS_KEY, (b"", 0))
        if puts < puts_seen:
            raise _went_back(puts, puts_seen)
        nothing = None, 0
        return [found.get(key, nothing)[0] for key in keys]

    async def put(self, profiles: Mapping[bytes, bytes], position: int) -> None:
        """See Tier: one statement per SLICE_KEYS profiles, the position with the last one."""
        # In key order, so that two puts at once lock rows in the same order and cannot deadlock.
        parts = list(slices(sorted(profiles.items()), SLICE_KEYS, SLICE_BYTES)) or [[]]
        async with self._pool.connection(self._put_deadline_ms) as connection:
            self._check_generation()
            for i, part in enumerate(parts):
                keys, values = [key for key, _ in part], [profile for _, profile in part]
                lsns = [lsn_of(profile) for profile in values]
                moves_to = position if i == len(parts) - 1 else 0
                seen = self._puts_seen
                puts: int = await connection.fetchval(_PUT, keys, lsns, values, moves_to, CONSUMER, _PUTS_KEY, seen)
                if puts <= seen:
                    raise _went_back(puts - 1, seen)
                self._puts_seen = max(self._puts_seen, puts)

    async def read_position(self) -> int:
        """See Tier. Connects if nobody did yet, and accepts the server that is met now."""
        await self._pool.open()
        async with self._pool.connection(self._deadline_ms) as connection:
            found = await connection.fetchrow(_POSITION, CONSUMER, _PUTS_KEY)
            self._generation = self._pool.generation
        position: int = found["lsn"]
        self._puts_seen = found["puts"] or 0
        return position

    async def bury(self, tombstones: Mapping[bytes, int]) -> None:
        """See Graveyard."""
        async with self._pool.connection(self._put_deadline_ms) as connection:
            self._check_generation()
            await connection.execute(_BURY, list(tombstones), list(tombstones.values()))

    async def size(self) -> Size:
        """See Sized: rows as of the last vacuum or analyze; bytes with the index."""
        async with self._pool.connection(self._put_deadline_ms) as connection:
            row = await connection.fetchrow(_SIZE)
        return Size(max(int(row[0]), 0), int(row[1]))

    async def keys_chunks(self) -> AsyncGenerator[list[bytes], None]:
        """All entities' keys in order, in pages that each have their own deadline; no long transaction. Raises TierUnavailable.

        Not one snapshot: a key that is put meanwhile may be missing, so its writer adds it to the filter itself.
        """
        last = b""
        while True:
            async with self._pool.connection(CHUNK_DEADLINE_MS) as connection:
                rows = await connection.fetch(_KEYS, last, CHUNK_KEYS, ENTITY_KEYS_FROM)
            if not rows:
                return
            chunk = [row[0] for row in rows]
            last = chunk[-1]
            yield chunk

    def _check_generation(self) -> None:
        if self._generation != self._pool.generation:
            raise TierUnavailable(NAME, "the server was restarted or replaced; its position has to be read again")


def _went_back(puts: int, puts_seen: int) -> TierUnavailable:
    return TierUnavailable(
        NAME, f"its tables went back to put {puts}, {puts_seen} were acknowledged; they were restored or emptied"
    )


@asynccontextmanager
async def _lease(pool: Any) -> AsyncIterator[Any]:
    """A connection of the pool for the body; terminated if that fails, which also ends a transaction that is open."""
    connection = await pool.acquire()
    try:
        yield connection
    except BaseException:
        connection.terminate()  # a polite cancel or rollback would wait for the server that just missed its deadline
        raise
    finally:
        await pool.release(connection)


async def _migrate(pool: Any) -> None:
    async with _lease(pool) as connection:
        await connection.execute("BEGIN")  # connection.transaction() would roll back politely, see _lease
        await connection.execute("SELECT pg_advisory_xact_lock($1)", SCHEMA_LOCK)
        if await connection.fetchval("SELECT to_regclass('weir_schema')") is None:
            await connection.execute("CREATE TABLE weir_schema (version int NOT NULL)")
            await connection.execute("INSERT INTO weir_schema VALUES (0)")
        version: int = await connection.fetchval("SELECT version FROM weir_schema")
        if version > len(MIGRATIONS):
            raise TierUnavailable(
                NAME, f"its schema is version {version}, this Weir knows {len(MIGRATIONS)}; run the newer Weir"
            )
        for migration in MIGRATIONS[version:]:
            await connection.execute(migration)
        if version < len(MIGRATIONS):
            await connection.execute("UPDATE weir_schema SET version = $1", len(MIGRATIONS))
        await connection.execute("COMMIT")


@contextmanager
def _as_unavailable(deadline_ms: int) -> Iterator[None]:
    """Whatever can go wrong between us and the server, as TierUnavailable."""
    try:
        yield
    except TimeoutError:
        raise TierUnavailable(NAME, f"no answer in {deadline_ms} ms") from None
    except _ERRORS as error:
        raise TierUnavailable(NAME, _told(error)) from error


def _told(error: BaseException) -> str:
    """What the server said, without the DETAIL that str() of its errors has: that may be the whole row."""
    if isinstance(error, asyncpg.PostgresError):
        return f"{type(error).__name__}: {error.args[0] if error.args else ''}"
    return str(error) or type(error).__name__
