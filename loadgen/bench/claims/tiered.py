"""The tiered pattern end to end: `weir serve` with an L1 for a share of the entities, with and without L2, L3 at a distance.

Every card and merchant gets its profile first, then write-behind is level, so that each profile lies in every tier that is on;
what L1 cannot hold has to be read. A service is started anew for each setting; the stores too.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from loadgen.bench.arms import best_arm, start_arm, start_stores
from loadgen.bench.children import BenchError, Child, add_key
from loadgen.bench.claims.result import ClaimsOptions, Tiered, TierLatency
from loadgen.bench.lag import until_level
from loadgen.bench.load.job import LoadJob
from loadgen.bench.load.progress import Step
from loadgen.bench.load.run import Watched, run_load
from loadgen.bench.payloads import N_MERCHANTS, Payloads
from loadgen.bench.sizing import ROOM, profile_bytes
from loadgen.bench.stacks.limits import on_cores
from loadgen.bench.stores import missing_stores
from loadgen.bench.tiers.line import stretched
from loadgen.bench.touch import touch_cards
from loadgen.sender import Client, SendError, Target

L1_BYTES_MIN = 64 * 1024
LEVEL_DEADLINE_S = 60.0
DEADLINE_S = 30.0
WARM_S = 1.0
L3 = ("redis", "postgres")


class _Histogram(msgspec.Struct):
    bounds: list[float]
    counts: list[int]


class _Tier(msgspec.Struct):
    name: str
    lookups: int = 0
    hits: int = 0
    latency_s: _Histogram | None = None


class _Tiers(msgspec.Struct):
    tiers: list[_Tier]


def settings_of(options: ClaimsOptions) -> list[tuple[float, bool, float]]:
    """(share of L1, L2 on, ms to L3): without L2 at every distance, with it at the nearest and the farthest."""
    near_far = sorted({options.distances_ms[0], options.distances_ms[-1]})
    plan = [(share, False, distance) for share in options.l1_shares for distance in options.distances_ms]
    return plan + [(share, True, distance) for share in options.l1_shares for distance in near_far]


async def measure_tiered(options: ClaimsOptions, step: Step) -> list[Tiered]:
    """One entry per setting. Raises BenchError."""
    if (reason := missing_stores()) is not None:
        raise BenchError(reason)
    cores = sorted(os.sched_getaffinity(0))
    found = []
    for share, has_l2, distance_ms in settings_of(options):
        step(f"L1 for {share:.0%}, {'L2' if has_l2 else 'no L2'}, L3 at {distance_ms:g} ms")
        with on_cores(cores[1:]):
            found.append(await _measure(options, share, has_l2, distance_ms, cores[:1]))
    return found


async def _measure(
    options: ClaimsOptions, share: float, has_l2: bool, distance_ms: float, server_cores: Sequence[int]
) -> Tiered:
    async with _service(options, share, has_l2, distance_ms, server_cores) as (child, target, round_trip_ms):
        payloads = Payloads(target, options.cards, alone=True)
        await touch_cards(child, target, payloads, options.cards)
        if await until_level(target, [*(["l2"] if has_l2 else []), *L3], LEVEL_DEADLINE_S) is None:
            raise BenchError(f"write-behind was not level within {LEVEL_DEADLINE_S:.0f} s")
        before = await _tiers(target)
        job = LoadJob(
            target.host, target.port, target.key, connections=options.users, warm_s=WARM_S, seconds=options.measure_s,
            cards=options.cards, merchants=N_MERCHANTS, deadline_s=DEADLINE_S,
        )  # fmt: skip
        run = await run_load("closed", job, Watched(lambda: [child.pid], child.stores.pids))
        after = await _tiers(target)
    if run.failures or run.server is None or not run.requests:
        raise BenchError(f"the tiered run failed: {run.errors[0].example if run.errors else 'nothing was answered'}")
    l1 = _ratio(before, after, "l1")
    return Tiered(
        l1_share=share,
        has_l2=has_l2,
        distance_ms=distance_ms,
        round_trip_ms=None if round_trip_ms is None else round(round_trip_ms, 3),
        requests_per_s=run.requests_per_s,
        p50_us=run.latency_us.p50,
        p99_us=run.latency_us.p99,
        failures=run.failures,
        cpu_us_per_request=round(run.server.cpu_ms_per_request * 1e3, 2),
        stores_cpu_us_per_request=round((run.server.database_cpu_ms_per_request or 0.0) * 1e3, 2),
        pss_mb=run.server.pss_mb,
        l1_hit_ratio=l1,
        tiers=[latency_between(before.get(name), tier) for name, tier in after.items() if name not in ("l1", "bloom")],
    )


@asynccontextmanager
async def _service(
    options: ClaimsOptions, share: float, has_l2: bool, distance_ms: float, server_cores: Sequence[int]
) -> AsyncIterator[tuple[Child, Target, float | None]]:
    l1_bytes = max(L1_BYTES_MIN, int(profile_bytes(options.cards, alone=True) * share * (ROOM if share >= 1 else 1)))
    async with AsyncExitStack() as stack:
        state = Path(tempfile.mkdtemp(prefix="weir-claims-"))  # short: sockets lie below it
        stack.callback(shutil.rmtree, state, ignore_errors=True)
        lender = start_stores("tiered", state / "stores", state)
        stack.callback(lender.kill)
        line = stack.enter_context(stretched(lender.stores.settings(), distance_ms))
        data_dir = state / "data"
        data_dir.mkdir()
        key = add_key(data_dir)
        settings = (*line.settings, f"l1.bytes_max={l1_bytes}", "l1.huge_pages=false")
        with on_cores(server_cores):
            child = await asyncio.to_thread(start_arm, best_arm(), data_dir, state, settings)
        stack.callback(child.kill)
        child.stores = lender.stores
        target = Target.parse(child.url, key)
        if not has_l2:
            await _turn_off_l2(target)
        yield child, target, line.round_trip_ms


async def _turn_off_l2(target: Target) -> None:
    body = msgspec.json.encode({"enabled": False, "reason": "weir bench claims"})
    await _ask(target, target.encode("PUT", "/v1/tiers/l2", body))


async def _tiers(target: Target) -> dict[str, _Tier]:
    body = await _ask(target, target.encode("GET", "/v1/tiers"))
    return {tier.name: tier for tier in msgspec.json.decode(body, type=_Tiers).tiers}


async def _ask(target: Target, request: bytes) -> bytes:
    """The body of a 200. Raises BenchError."""
    client = Client(target, DEADLINE_S)
    try:
        reply = await client.request(request)
    except SendError as error:
        raise BenchError(f"the service: {error}") from error
    finally:
        client.close()
    if reply.status != 200:
        raise BenchError(f"the service: {reply.status} {reply.body[:200]!r}")
    return reply.body


def _ratio(before: dict[str, _Tier], after: dict[str, _Tier], name: str) -> float | None:
    lookups = after[name].lookups - before[name].lookups
    return round((after[name].hits - before[name].hits) / lookups, 4) if lookups > 0 else None


def latency_between(before: _Tier | None, after: _Tier) -> TierLatency:
    """What was read between two looks at a tier's counters."""
    counts, bounds = [0], [0.0]
    if after.latency_s is not None:
        bounds, counts = after.latency_s.bounds, after.latency_s.counts
        if before is not None and before.latency_s is not None:
            counts = [now - then for now, then in zip(counts, before.latency_s.counts, strict=True)]
    return TierLatency(
        name=after.name,
        lookups=after.lookups - (before.lookups if before else 0),
        hits=after.hits - (before.hits if before else 0),
        reads=sum(counts),
        p50_us=_bound_us(bounds, counts, 0.5),
        p99_us=_bound_us(bounds, counts, 0.99),
    )


def _bound_us(bounds: Sequence[float], counts: Sequence[int], quantile: float) -> float | None:
    """The upper bound of the cell that the quantile lies in; None without values, infinite above all bounds."""
    total, seen = sum(counts), 0
    if total == 0:
        return None
    for bound, count in zip(bounds, counts, strict=False):
        seen += count
        if seen >= quantile * total:
            return round(bound * 1e6, 1)
    return float("inf")
