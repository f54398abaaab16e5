"""L2: profiles, decisions and lists in RocksDB on the local disk; one writer, this process.

The RocksDB log is off, the journal is the only log: a put is in memory until its memtable is flushed, and a crash
takes the store back to what its SST files hold. `L2.flush` therefore flushes the data first and stores the position
last, so the position never claims more than is on disk; what is newer than the position is harmless, because every
profile ignores what it already has.

Atomic flush (RocksDB's option to flush several column families as one) is left off: a manual flush of one family does
not take the others along even with it on (tried: the family beside it was empty after SIGKILL), and our order of
flushes gives the guarantee without making every full memtable of one family flush all of them.

Cost, 1 KiB profiles, 200,000 keys, 2 cores: get 6 to 9 µs, list-get 3.5 to 6 µs per key, write 1.3 µs per key,
put with its compare 6 to 10 µs per key, a hop to the worker thread 90 µs. get and write hold the GIL, list-get and
flush release it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import rocksdict
import structlog

from service.errors import StartError, TierUnavailable
from service.tiers.base import Size, lsn_of, pack_lsn, slices, unpack_lsn

log = structlog.get_logger(__name__)

NAME = "l2"
DISK_FULL = "the disk is full"
MIB = 1 << 20
FAMILIES = ("profiles", "decisions", "lists", "meta")
POSITION_KEY = b"position"

INLINE_KEYS_MAX = 4  # keys; 4 gets are 30 µs hot and 0.4 ms from disk, a thread hop is 90 µs before the first get
NOW_KEYS_MAX = 256  # keys of one look-up that are read on the loop: 1 ms hot
NOW_STEP_KEYS = 16  # keys between two looks at the time: 0.1 ms hot, 1.6 ms from disk
NOW_S_MAX = 0.001  # s of one look-up after which the rest is read in the worker thread
NOW_SLOW_MAX = 2  # look-ups one after the other that took longer; a single one may have waited for the processor
NOW_PAUSE_S = 0.1  # s in which nothing is read on the loop after those
SLICE_KEYS = 128  # keys of one write on the loop: 0.17 ms at 1 KiB
FILL_KEYS = 512  # keys of one list-get: making the list of answers holds the GIL, 4,000 of them for 5 ms
SLICE_BYTES = 256 * 1024  # bytes of one write on the loop, for large values
CHUNK_KEYS = 512  # keys of one step of an iteration: 0.3 ms hot, 0.8 ms with a small cache
BLOOM_BITS_PER_KEY = 10  # 0.95 % false positives, which cost one block read
MEMTABLE_BYTES = 32 * MIB  # bytes; three families that take writes, up to four memtables each: at most 384 MiB
L0_SLOWDOWN_FILES = 24  # tables not compacted yet of one family, from where RocksDB holds writers and flushes back
L0_FILES_MAX = L0_SLOWDOWN_FILES - 4  # from where we flush no more; a full memtable may flush itself in between
# Flushed tables of decisions that are compacted together; RocksDB's default is 4. Each compaction rewrites, and packs with
# zstd, what the ones before it left: 2 million decisions, flushed 40,000 at a time, cost its threads 11.1 µs each with 4, 4.7
# with 12. The price: a get looks into more tables, 1 to 2 µs.
DECISIONS_L0_FILES = 12
FULL_PAUSE_S = 3.0  # s without a flush after one found no space: flushes that come faster keep RocksDB from its recovery
STALL_RETRIES_MAX = 200  # times STALL_WAIT_S: a stalled store gets 2 s before it counts as unavailable
STALL_WAIT_S = 0.01  # s

T = TypeVar("T")


class StoreLocked(StartError):
    """The directory is open in another process (or twice in this one)."""

    title = "Data directory in use"
    code = "store-locked"


class RocksStore:
    """The database in `directory`, created if it is missing. Raises StoreLocked, or StartError if it cannot be read.

    Everything but `close` and the coroutines belongs to the thread of the event loop.
    """

    def __init__(self, directory: Path, cache_bytes: int = 128 * MIB, memtable_bytes: int = MEMTABLE_BYTES) -> None:
        cache = rocksdict.Cache(cache_bytes)
        families = {name: _options(cache, memtable_bytes) for name in FAMILIES}
        families["decisions"].set_level_zero_file_num_compaction_trigger(DECISIONS_L0_FILES)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._db = rocksdict.Rdict(str(directory), _options(cache, memtable_bytes), families)
        except Exception as error:  # rocksdict raises bare Exception for every RocksDB status
            raise _open_error(directory, error) from None
        self._write_options = rocksdict.WriteOptions()
        self._write_options.disable_wal = True  # type: ignore[method-assign,assignment]  # a property; the stub errs
        # A stalled write would hold the GIL, and with it the loop, until a compaction ends: be told instead, and wait.
        self._write_options.no_slowdown = True
        self._full_until = 0.0
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="l2")  # one read beside a flush
        # Any: the stub knows only the mode that is not raw.
        self._families: dict[str, Any] = {name: self._db.get_column_family(name) for name in FAMILIES}
        self._handles = {name: self._db.get_column_family_handle(name) for name in FAMILIES}
        packed = self.get("meta", [POSITION_KEY])[0]
        # Not read again: a position whose own flush failed stands in the memtable, and a crash takes it back.
        self._flushed_position = 0 if packed is None else unpack_lsn(packed)
        self._owed: dict[tuple[str, bytes], bytes] = {}  # what `write_soon` could not write, the newest of each key

    async def run(self, call: Callable[..., T], *arguments: object) -> T:
        """`call(*arguments)` in a worker thread. Raises TierUnavailable."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)
        except Exception as error:  # bare Exception is all that rocksdict raises; RuntimeError from a closed executor
            raise TierUnavailable(NAME, str(error)) from error

    def try_write(self, family: str, items: Iterable[tuple[bytes, bytes | None]]) -> bool:
        """Write one batch now (None deletes); False: the store asks to wait for a flush. Raises TierUnavailable."""
        self._family(family)
        handle = self._handles[family]
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in items:
            if value is None:
                batch.delete(key, handle)
            else:
                batch.put(key, value, handle)
        try:
            self._db.write(batch, self._write_options)
        except Exception as error:
            if "Result incomplete" in str(error):  # RocksDB's status Incomplete, the answer to no_slowdown
                return False
            raise TierUnavailable(NAME, str(error)) from error
        return True

    async def write(self, family: str, items: Sequence[tuple[bytes, bytes]] | Sequence[tuple[bytes, None]]) -> None:
        """Write what is owed and then one batch, waiting out a stall without blocking the loop. Raises TierUnavailable."""
        for _ in range(STALL_RETRIES_MAX):
            if self._pay() and self.try_write(family, items):
                return
            await asyncio.sleep(STALL_WAIT_S)
        raise stalled()

    def write_soon(self, family: str, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Write a few journaled records with no await. What the store does not take now precedes all that `write` writes.

        So a position, which `write` writes, never claims a record that is not there. Until then it is in RAM alone, and nobody
        reads it from here.
        """
        self._owed |= {(family, key): value for key, value in items}
        with contextlib.suppress(TierUnavailable):
            self._pay()

    def _pay(self) -> bool:
        """False: the store is stalled. Raises TierUnavailable."""
        for owed, value in list(self._owed.items()):
            if not self.try_write(owed[0], [(owed[1], value)]):
                return False
            del self._owed[owed]
        return True

    def get(self, family: str, keys: list[bytes]) -> list[bytes | None]:
        """List-get on the calling thread. Raises TierUnavailable."""
        try:
            found: list[bytes | None] = self._family(family).get(keys)
        except Exception as error:
            raise TierUnavailable(NAME, str(error)) from error
        return found

    async def get_many(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of `keys`: on the loop for a few, in a worker thread for more. Raises TierUnavailable."""
        if len(keys) <= INLINE_KEYS_MAX:
            return self.get(family, list(keys)) if keys else []
        found: list[bytes | None] = []
        for start in range(0, len(keys), FILL_KEYS):
            found += await self.run(self.get, family, list(keys[start : start + FILL_KEYS]))
        return found

    async def keys_chunks(self, family: str) -> AsyncGenerator[list[bytes], None]:
        """Every key of a snapshot, in order, in steps of CHUNK_KEYS; other tasks run between the steps."""
        try:
            keys = self._family(family).keys()
            while chunk := [key for _, key in zip(range(CHUNK_KEYS), keys, strict=False)]:
                yield chunk
                await asyncio.sleep(0)
        except Exception as error:
            raise TierUnavailable(NAME, str(error)) from error
        finally:
            keys = None  # an iterator keeps the store open, and the traceback of whoever was cancelled keeps this frame

    async def flush(self, position: int) -> None:
        """Make every earlier write durable, then `position`. Raises TierUnavailable; the position is then the old one."""
        # Decisions last: their position stands among them, and it speaks for the lists too.
        for family in ("profiles", "lists", "decisions"):
            await self._flush(family)
        if position > self.read_position():
            await self.write("meta", [(POSITION_KEY, pack_lsn(position))])
            await self.flush_meta()
            self._flushed_position = position

    async def flush_meta(self) -> None:
        """Make what was written to `meta` durable. Raises TierUnavailable."""
        await self._flush("meta")

    async def compact(self, family: str) -> None:
        """Rewrite the family's files: what was overwritten or deleted is not in them any more. Raises TierUnavailable."""
        await self._flush(family)
        options = rocksdict.CompactOptions()
        # Files that overlap no others would only be moved, with old versions that an iterator had kept alive.
        options.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force())
        await self.run(self._family(family).compact_range, None, None, options)  # without the GIL

    async def _flush(self, family: str) -> None:
        """Raises TierUnavailable where RocksDB would make its caller wait for compactions: on a full disk, for ever."""
        if time.monotonic() < self._full_until:
            raise TierUnavailable(NAME, f"{DISK_FULL}; RocksDB looks every few seconds whether there is room again")
        for _ in range(STALL_RETRIES_MAX):
            if int(self._family(family).property_value("rocksdb.num-files-at-level0") or 0) < L0_FILES_MAX:
                try:
                    await self.run(self._family(family).flush)
                except TierUnavailable as error:
                    if is_disk_full(error):
                        self._full_until = time.monotonic() + FULL_PAUSE_S
                    raise
                return
            await asyncio.sleep(STALL_WAIT_S)
        raise stalled()

    def read_position(self) -> int:
        """The flushed position, 0 in an empty store. Raises TierUnavailable."""
        self._family("meta")
        return self._flushed_position

    def _family(self, name: str) -> Any:
        if not self._families:
            raise TierUnavailable(NAME, "the store is closed")
        return self._families[name]

    def statistics(self) -> dict[str, int]:
        """Estimated keys of each family, and the bytes of memtables and tables, for metrics."""
        found = {f"{name}_keys": _property(cf, "rocksdb.estimate-num-keys") for name, cf in self._families.items()}
        for name, key in (
            ("memtable_bytes", "rocksdb.cur-size-all-mem-tables"),
            ("sst_bytes", "rocksdb.total-sst-files-size"),
        ):
            found[name] = sum(_property(cf, key) for cf in self._families.values())
        return found

    def size(self, name: str) -> Size:
        """Keys, and bytes of memtables and tables, of one family. Raises TierUnavailable."""
        family = self._family(name)
        n_bytes = _property(family, "rocksdb.cur-size-all-mem-tables") + _property(family, "rocksdb.total-sst-files-size")
        return Size(_property(family, "rocksdb.estimate-num-keys"), n_bytes)

    def close(self) -> None:
        """Wait for the running calls, flush and close. What was not flushed with a position is kept too, if there is room."""
        self._executor.shutdown(wait=True)
        for store in (*self._families.values(), self._db):
            try:
                store.close()
            except Exception as error:  # of the flush: a full disk; the journal has what was not flushed
                log.error("the local store was closed without a last flush", problem=str(error))
        self._families.clear()
        self._handles.clear()  # each holds the database, and its lock file, open


class L2:
    """The tier of profiles over a RocksStore. `put` is durable, and its position readable, after `flush`."""

    name = NAME

    def __init__(self, store: RocksStore) -> None:
        self._store = store
        self._n_writes = 0  # tells a put that was waiting for its read that somebody wrote meanwhile
        self._put_position = 0
        self._n_slow, self._pause_until = 0, 0.0

    def fill_now(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See NearTier. None at all of more than NOW_KEYS_MAX, and for NOW_PAUSE_S after reads that went to the disk."""
        start = time.perf_counter()
        if len(keys) > NOW_KEYS_MAX or start < self._pause_until:
            return []
        found: list[bytes | None] = []
        while len(found) < len(keys):
            found += self._store.get("profiles", list(keys[len(found) : len(found) + NOW_STEP_KEYS]))
            now = time.perf_counter()
            if now - start > NOW_S_MAX:
                self._n_slow += 1
                if self._n_slow >= NOW_SLOW_MAX:
                    self._n_slow, self._pause_until = NOW_SLOW_MAX - 1, now + NOW_PAUSE_S
                return found
        self._n_slow = 0
        return found

    async def fill(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See Tier. A few keys are read on the loop, more in a worker thread."""
        return await self._store.get_many("profiles", keys)

    async def put(self, profiles: Mapping[bytes, bytes], position: int) -> None:
        """See Tier. Visible at once; durable, with `position`, after `flush`."""
        items = list(profiles.items())
        for start in range(0, len(items), FILL_KEYS):
            some = items[start : start + FILL_KEYS]
            n_writes = self._n_writes
            stored = await self._store.get_many("profiles", [key for key, _ in some])
            at = 0
            for part in slices(some, SLICE_KEYS, SLICE_BYTES):
                n_writes = await self._put_part(part, stored[at : at + len(part)], n_writes)
                at += len(part)
                await asyncio.sleep(0)
        self._put_position = max(self._put_position, position)

    async def _put_part(self, part: Sequence[tuple[bytes, bytes]], stored: Sequence[bytes | None], n_writes: int) -> int:
        """Write what is newer than `stored`, read when _n_writes was `n_writes`. Returns that with our own writes."""
        n_others = self._n_writes - n_writes
        for _ in range(STALL_RETRIES_MAX):
            if n_others:  # somebody wrote meanwhile: compare with what is there at this moment
                stored = self._store.get("profiles", [key for key, _ in part])
            n_before = self._n_writes
            if self._write_newer(part, stored):
                return self._n_writes - n_others
            await asyncio.sleep(STALL_WAIT_S)
            n_others += self._n_writes - n_before
        raise stalled()

    async def bury(self, tombstones: Mapping[bytes, int]) -> None:
        """See Graveyard. Nothing is awaited between the look and the delete."""
        stored = self._store.get("profiles", list(tombstones))
        lsns = [None if profile is None else lsn_of(profile) for profile in stored]
        dead = [(key, None) for key, lsn in zip(tombstones, lsns, strict=True) if lsn == tombstones[key]]
        if dead and not self._store.try_write("profiles", dead):
            raise stalled()
        self._n_writes += bool(dead)

    def _write_newer(self, part: Sequence[tuple[bytes, bytes]], stored: Sequence[bytes | None]) -> bool:
        newer = [item for item, old in zip(part, stored, strict=True) if old is None or lsn_of(old) < lsn_of(item[1])]
        if newer and not self._store.try_write("profiles", newer):
            return False
        self._n_writes += bool(newer)
        return True

    async def flush(self, position: int | None = None) -> None:
        """Make all puts that returned before this call durable, then the position (default: the highest put).

        Raises TierUnavailable; then the position that is stored is still the old one.
        """
        await self._store.flush(self._put_position if position is None else position)

    @property
    def has_unflushed(self) -> bool:
        """Whether puts have moved the position since the last flush. Raises TierUnavailable."""
        return self._put_position > self._store.read_position()

    @property
    def flushed_position(self) -> int:
        """Every profile up to this LSN is durable. Raises TierUnavailable."""
        return self._store.read_position()

    async def read_position(self) -> int:
        """See Tier: the position of the last flush."""
        return self.flushed_position

    async def size(self) -> Size:
        """See Sized: RocksDB's estimates."""
        return self._store.size("profiles")

    def keys_chunks(self) -> AsyncGenerator[list[bytes], None]:
        """The keys of all profiles in chunks, for rebuilding the Bloom filter."""
        return self._store.keys_chunks("profiles")


class Column:
    """Exact keyed records beside the profiles: `decisions` or `lists`. Durable after `L2.flush`."""

    def __init__(self, store: RocksStore, family: str) -> None:
        assert family in ("decisions", "lists"), family
        self._store = store
        self._family = family

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, read on the calling thread (7 µs hot, 0.1 ms from disk). Raises TierUnavailable."""
        return self._store.get(self._family, [key])[0]

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of `keys`. Raises TierUnavailable."""
        return await self._store.get_many(self._family, keys)

    async def put_many(self, records: Mapping[bytes, bytes]) -> None:
        """Store every record, the newest call wins, in slices that never hold the loop for long."""
        for part in slices(records.items(), SLICE_KEYS, SLICE_BYTES):
            await self._store.write(self._family, part)
            await asyncio.sleep(0)

    def put_now(self, records: Mapping[bytes, bytes]) -> bool:
        """Store all records with no await; False if the store is stalled, and then none. Raises TierUnavailable."""
        return self._store.try_write(self._family, records.items())

    def put_soon(self, records: Mapping[bytes, bytes]) -> None:
        """Store a few journaled records with no await; what the store refuses (stalled, full) it gets before any position."""
        self._store.write_soon(self._family, records.items())

    async def delete(self, keys: Sequence[bytes]) -> None:
        """Forget `keys`; unknown ones are ignored."""
        for start in range(0, len(keys), SLICE_KEYS):
            await self._store.write(self._family, [(key, None) for key in keys[start : start + SLICE_KEYS]])

    def keys_chunks(self) -> AsyncGenerator[list[bytes], None]:
        """All keys in chunks."""
        return self._store.keys_chunks(self._family)


def is_disk_full(error: TierUnavailable) -> bool:
    """True if RocksDB had no space. It looks once every few seconds whether it has, and goes on by itself."""
    return "No space left" in error.detail or DISK_FULL in error.detail


def stalled() -> TierUnavailable:
    """The error of a store whose flushes and compactions did not catch up in time."""
    seconds = STALL_RETRIES_MAX * STALL_WAIT_S
    return TierUnavailable(NAME, f"writes stalled for {seconds:.0f} s; the disk is too slow, or too full, for its compactions")


def _options(cache: rocksdict.Cache, memtable_bytes: int) -> rocksdict.Options:
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    table.set_format_version(5)  # filters laid out by cache line
    # Index and filter blocks stay out of the cache (about 9 bytes per 1 KiB profile): inside a cache that is too small
    # for everything they were evicted whole, and a get rose from 8 to 194 µs.
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_block_based_table_factory(table)
    # Profiles are mostly zeros: lz4 halves them for 0.3 µs; zstd only where data has come to rest.
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_bottommost_compression_type(rocksdict.DBCompressionType.zstd())
    options.set_write_buffer_size(memtable_bytes)
    options.set_max_write_buffer_number(4)  # three may wait for their flush before a write stalls
    options.set_level_zero_slowdown_writes_trigger(L0_SLOWDOWN_FILES)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)  # RocksDB's own info log
    options.set_max_log_file_size(4 * MIB)
    return options


def _open_error(directory: Path, error: Exception) -> StartError:
    text = str(error)
    if "lock" in text.lower() and str(directory / "LOCK") in text:
        return StoreLocked(f"{directory} is used by another process; stop it, or give this one another data directory")
    return StartError(f"cannot open the store in {directory}: {text}")


def _property(family: Any, name: str) -> int:
    value: int | None = family.property_int_value(name)
    return value or 0
