"""How far the consumers of the journal are behind, read from GET /v1/tiers: while something else runs, and until it is 0."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import msgspec
import numpy as np

from loadgen.bench.children import BenchError
from loadgen.sender import Client, SendError, Target

READ_DEADLINE_S = 30.0  # s; a busy service answers late, not never
POLL_S = 0.2  # s between looks while waiting


class LagPoint(msgspec.Struct):
    """Journal entries that each consumer lacked, `at_s` seconds after the watch began."""

    at_s: float
    lags: dict[str, int]


class _Consumer(msgspec.Struct):
    name: str
    lag: int = 0


class _Tiers(msgspec.Struct):
    consumers: list[_Consumer] = []


_tiers = msgspec.json.Decoder(_Tiers)


async def read_lags(client: Client, target: Target) -> dict[str, int]:
    """Consumer -> entries that it lacks. Raises BenchError."""
    try:
        reply = await client.request(target.encode("GET", "/v1/tiers"))
    except SendError as error:
        raise BenchError(f"GET /v1/tiers: {error}") from error
    if reply.status != 200:
        raise BenchError(f"GET /v1/tiers: {reply.status} {reply.body[:200]!r}")
    return {consumer.name: consumer.lag for consumer in _tiers.decode(reply.body).consumers}


@contextlib.asynccontextmanager
async def watched(target: Target, every_s: float) -> AsyncIterator[list[LagPoint]]:
    """Fills the list that it gives while the body runs, and once more at its end. Raises BenchError at the end."""
    points: list[LagPoint] = []
    client, started = Client(target, READ_DEADLINE_S), time.perf_counter()

    async def read() -> None:
        lags = await read_lags(client, target)
        points.append(LagPoint(round(time.perf_counter() - started, 3), lags))

    async def watch() -> None:
        while True:
            await read()
            await asyncio.sleep(every_s)

    task = asyncio.create_task(watch())
    try:
        yield points
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await read()
    finally:
        task.cancel()
        client.close()


async def until_level(target: Target, consumers: Sequence[str], seconds: float) -> float | None:
    """Seconds until none of `consumers` lacks anything; None if that takes longer than `seconds`. Raises BenchError."""
    client, started = Client(target, READ_DEADLINE_S), time.perf_counter()
    try:
        while (took := time.perf_counter() - started) < seconds:
            lags = await read_lags(client, target)
            if not any(lags.get(name, 0) for name in consumers):
                return round(took, 2)
            await asyncio.sleep(POLL_S)
    finally:
        client.close()
    return None


async def until_idle(target: Target, seconds: float) -> bool:
    """Wait until no consumer of the journal lacks anything, so that no call to a store is under way: a server that is paused in
    one finds its deadline past when it goes on, takes the store for gone and has it catch up from the journal, at full speed.
    False if that takes longer than `seconds`. Raises BenchError.
    """
    client, end_at = Client(target, READ_DEADLINE_S), time.perf_counter() + seconds
    try:
        while any((await read_lags(client, target)).values()):
            if time.perf_counter() > end_at:
                return False
            await asyncio.sleep(POLL_S)
    finally:
        client.close()
    return True


def slope_per_s(points: Sequence[LagPoint], consumer: str) -> float | None:
    """By how many entries a second the lag of `consumer` grows: least squares over the last three quarters of the series."""
    rest = points[len(points) // 4 :]
    known = [(point.at_s, point.lags[consumer]) for point in rest if consumer in point.lags]
    if len(known) < 3:
        return None
    at, lags = np.array(known, dtype=np.float64).T
    return round(float(np.polyfit(at, lags, 1)[0]), 2)
