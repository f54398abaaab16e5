"""`weir bench ladder`: what one look-up costs in each tier, with one and with 64 keys per call, over real stores.

Embedded Valkey and Postgres hold the same profiles as a RocksDB in a temporary directory. Keys are drawn at random with a fixed
seed; every call's answer is checked. "L2, cold": RocksDB opened anew with its smallest cache and the files out of the page
cache. It does not show a network: the servers are on this machine, reached over UNIX sockets.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from features.plan import Plan, compile_plan
from features.profile import LSN_OFFSET
from features.spec import load_spec
from models.machine import Machine, machine
from service.embedded import EmbeddedServers
from service.fetch import entity_key
from service.tiers.bloom import MaybeSet
from service.tiers.l1 import L1
from service.tiers.l2 import L2, MIB, RocksStore
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

KEYS_PER_CALL = (1, 64)
PUT_KEYS = 1_000
SEED = 7
WARM_CACHE_BYTES = 1024 * MIB  # all profiles of the default size fit

Lookup = Callable[[Sequence[str]], Awaitable[int]]  # ids -> how many of them were found


class Rung(msgspec.Struct):
    """One tier and one number of keys per call: µs per call over all rounds, and per key at the median."""

    tier: str
    keys: int
    p50_us: float
    p99_us: float
    us_per_key: float
    calls: int


class LadderResult(msgspec.Struct):
    """What --json writes. `found` is the sum of all keys found: the work cannot have been skipped."""

    kind: str
    profiles: int
    profile_bytes: int
    rounds: int
    found: int
    rungs: list[Rung]
    machine: Machine


def register(app: typer.Typer) -> None:
    """Add `ladder` to `weir bench`."""
    app.command("ladder")(ladder)


def ladder(
    profiles: Annotated[int, typer.Option(min=1_000, help="Profiles in every tier.")] = 100_000,
    calls: Annotated[int, typer.Option(min=20, help="Calls per tier, number of keys and round.")] = 400,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run of seconds; its numbers mean little.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """What one look-up costs in each tier."""
    if quick:
        profiles, calls, rounds = 2_000, 20, 1
    result = uvloop.run(measure(profiles, calls, rounds))
    Console().print(_table(result))
    if json_out is not None:
        json_out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))


async def measure(profiles: int, calls: int, rounds: int) -> LadderResult:
    """Fill every tier with the same profiles, then time look-ups in all of them, interleaved."""
    plan = compile_plan(load_spec("cards"))
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-ladder-")))
        tiers = await _Tiers.open(plan, directory, profiles, stack)
        times: dict[tuple[str, int], list[float]] = {}
        found = 0
        rng = random.Random(SEED)
        for _ in range(rounds):
            await tiers.warm()
            for name, lookup, is_absent in tiers.lookups():
                for n_keys in KEYS_PER_CALL:
                    for _ in range(calls):
                        ids = [f"{'new' if is_absent else 'c'}{rng.randrange(profiles)}" for _ in range(n_keys)]
                        start = time.perf_counter()
                        n_found = await lookup(ids)
                        times.setdefault((name, n_keys), []).append((time.perf_counter() - start) * 1e6)
                        assert n_found == (0 if is_absent else n_keys), (name, n_found)
                        found += n_found
            cold = await tiers.cold(calls, rng)
            for n_keys, values in cold.items():
                times.setdefault(("L2, cold", n_keys), []).extend(values)
        rungs = [_rung(name, n_keys, values) for (name, n_keys), values in times.items()]
    return LadderResult("ladder", profiles, plan.kinds[0].size, rounds, found, rungs, machine())


class _Tiers:
    """Every tier, holding the same card profiles."""

    rocks: RocksStore
    l2: L2
    redis: RedisTier
    postgres: PostgresTier

    def __init__(self, plan: Plan, directory: Path, profiles: int) -> None:
        self.directory = directory / "l2"
        self.size = plan.kinds[0].size
        self.profiles = profiles
        self.l1 = L1(plan, profiles * self.size * 2, 1_000, lambda kind, entity, slot: None)
        self.bloom = MaybeSet(profiles, 0.01)
        self.bloom.cover()

    @classmethod
    async def open(cls, plan: Plan, directory: Path, profiles: int, stack: AsyncExitStack) -> "_Tiers":
        tiers = cls(plan, directory, profiles)
        servers = await EmbeddedServers.start(directory)
        stack.push_async_callback(servers.stop)
        tiers.rocks = RocksStore(tiers.directory, cache_bytes=WARM_CACHE_BYTES)
        stack.callback(lambda: tiers.rocks.close())
        tiers.l2 = L2(tiers.rocks)
        tiers.redis = RedisTier(servers.redis_url, deadline_ms=5_000)
        stack.push_async_callback(tiers.redis.close)
        pool = PostgresPool(servers.postgres_url)
        stack.push_async_callback(pool.close)
        tiers.postgres = PostgresTier(pool, deadline_ms=5_000, put_deadline_ms=30_000)
        for tier in (tiers.redis, tiers.postgres):
            await tier.read_position()
        await tiers._fill()
        return tiers

    async def _fill(self) -> None:
        for start in range(0, self.profiles, PUT_KEYS):
            batch = {}
            for number in range(start, min(start + PUT_KEYS, self.profiles)):
                profile = os.urandom(LSN_OFFSET) + (number + 1).to_bytes(8, "little") + os.urandom(self.size - LSN_OFFSET - 8)
                entity = f"c{number}"
                key = entity_key("card", entity)
                batch[key] = profile
                self.l1.slabs[0].put(self.l1.claim(0, entity), profile)
                self.l1.unpin(0, self.l1.slot_of(0, entity))
                self.bloom.add(key)
            for tier in (self.l2, self.redis, self.postgres):
                await tier.put(batch, start + PUT_KEYS)
        await self.l2.flush()

    def lookups(self) -> list[tuple[str, Lookup, bool]]:
        """(name, look-up, whether the keys are absent), in read order."""

        async def l1(ids: Sequence[str]) -> int:
            found = 0
            for entity in ids:
                slot = self.l1.find(0, entity)
                self.l1.unpin(0, slot)
                found += slot >= 0
            return found

        async def bloom(ids: Sequence[str]) -> int:
            for entity in ids:
                self.bloom.maybe_has(entity_key("card", entity))  # its rare false positives are no finds either
            return 0

        l2 = _filler(self.l2)
        return [
            ("L1 hit", l1, False),
            ("Bloom negative", bloom, True),
            ("L2 hit, in cache", l2, False),
            ("L2 miss", l2, True),
            ("redis hit", _filler(self.redis), False),
            ("postgres hit", _filler(self.postgres), False),
        ]

    async def warm(self) -> None:
        """Have every profile in RocksDB's cache."""
        for start in range(0, self.profiles, PUT_KEYS):
            await _filler(self.l2)([f"c{number}" for number in range(start, min(start + PUT_KEYS, self.profiles))])

    async def cold(self, calls: int, rng: random.Random) -> dict[int, list[float]]:
        """Look-ups in a RocksDB that was opened anew with the smallest cache, its files out of the page cache."""
        times: dict[int, list[float]] = {}
        for n_keys in KEYS_PER_CALL:
            self._reopen(MIB)
            for _ in range(max(calls // 10, 5)):
                ids = [f"c{rng.randrange(self.profiles)}" for _ in range(n_keys)]
                start = time.perf_counter()
                assert await _filler(self.l2)(ids) == n_keys
                times.setdefault(n_keys, []).append((time.perf_counter() - start) * 1e6)
        self._reopen(WARM_CACHE_BYTES)
        return times

    def _reopen(self, cache_bytes: int) -> None:
        self.rocks.close()
        _forget_files(self.directory)
        self.rocks = RocksStore(self.directory, cache_bytes=cache_bytes)
        self.l2 = L2(self.rocks)


def _filler(tier: Any) -> Lookup:
    async def fill(ids: Sequence[str]) -> int:
        found = await tier.fill([entity_key("card", entity) for entity in ids])
        return sum(profile is not None for profile in found)

    return fill


def _forget_files(directory: Path) -> None:
    """Ask the kernel to drop these files from the page cache."""
    for path in directory.iterdir():
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _rung(name: str, n_keys: int, values: list[float]) -> Rung:
    ordered = sorted(values)
    p50 = statistics.median(ordered)
    return Rung(name, n_keys, round(p50, 2), round(ordered[int(len(ordered) * 0.99)], 2), round(p50 / n_keys, 3), len(ordered))


def _table(result: LadderResult) -> Table:
    table = Table(title=f"{result.profiles:,} profiles of {result.profile_bytes:,} bytes in every tier; {result.rounds} rounds")
    for column in ("tier", "keys per call", "p50 µs", "p99 µs", "µs per key"):
        table.add_column(column, justify="left" if column == "tier" else "right")
    for rung in result.rungs:
        table.add_row(rung.tier, str(rung.keys), f"{rung.p50_us:,.1f}", f"{rung.p99_us:,.1f}", f"{rung.us_per_key:,.2f}")
    return table
