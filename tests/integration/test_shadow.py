"""Shadow reads against real stores: what agrees, what is only late, and every way in which a copy can be wrong."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
import structlog
from structlog.testing import capture_logs

from features.profile import lsn_of
from features.transaction import Transaction
from service import shadow
from service.fetch import entity_key
from service.levels import OFF
from service.shadow import SAMPLES_MAX
from service.tiers.base import LSN_OFFSET

if TYPE_CHECKING:
    from tests.integration.conftest import Running, Start

FULL = "shadow.share=1.0"
SLOW = "write_behind.interval_ms=60000"  # nothing is written unless it is flushed


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Any]:
    """The Redis behind the tier, for tampering."""
    client: Any = redis.asyncio.Redis.from_url(redis_url)
    async with client:
        yield client


async def turn_alone(running: "Running") -> None:
    """Stop the task, so that every turn is the test's."""
    await running.engine.shadow.stop()


async def flush(running: "Running") -> None:
    for consumer in running.engine.write_behind.consumers:
        await running.engine.write_behind.flush(consumer)


def results(running: "Running", tier: str) -> dict[str, int]:
    """What there was of one tier, without zeros."""
    return {result: count for result, count in running.engine.shadow.tallies[tier].results.items() if count}


def forget(running: "Running") -> None:
    for tally in running.engine.shadow.tallies.values():
        tally.results.clear()


async def test_what_is_flushed_is_the_same_and_what_is_not_is_behind(start: "Start", stream: list[Transaction]) -> None:
    """L1's profiles are read from L2: behind by the entries that it lacks until they are written, then the same."""
    running = await start(FULL, SLOW)
    await turn_alone(running)
    shadow = running.engine.shadow
    await running.send(stream[:50])
    await shadow.turn()
    seen = results(running, "l2")
    assert seen.keys() == {"behind"}
    assert 0 < seen["behind"] <= SAMPLES_MAX
    behind = shadow.tallies["l2"].behind
    assert sum(behind.counts) == seen["behind"]
    forget(running)
    await running.send(stream[50:100])
    await flush(running)
    await shadow.turn()
    assert results(running, "l2").keys() == {"same"}
    shown = {tier["name"]: tier for tier in running.engine.tiers()}
    assert shown["l2"]["shadow"]["same"] == results(running, "l2")["same"]
    assert shown["l2"]["shadow"]["share"] == 1.0
    assert sum(shown["l2"]["shadow"]["behind_entries"]["counts"]) == seen["behind"]


async def test_no_more_is_sampled_than_asked_for(start: "Start", stream: list[Transaction]) -> None:
    """A share of 1 % of 2,000 transactions' hits is near 1 %; a flood is bounded; a share of 0 samples and costs nothing."""
    running = await start("shadow.share=0.01", SLOW)
    await turn_alone(running)
    n_hits = running.engine.l1.n_hits
    for first in range(0, 1_000, 100):
        await running.send(stream[first : first + 100])
        await running.engine.shadow.turn()
    n_hits = running.engine.l1.n_hits - n_hits
    n_reads = sum(results(running, "l2").values())
    assert 0.3 * n_hits / 100 < n_reads <= n_hits / 100, "those drawn twice are left out"
    await running.stop()
    running = await start("shadow.share=0", SLOW, directory="off")
    await running.send(stream[:100])
    assert running.engine.shadow._task is None
    assert all(level.on_found is None for level in running.engine.levels)


async def test_hits_of_l2_are_read_from_redis(start: "Start", stream: list[Transaction], redis_url: str) -> None:
    """With L1 off L2 answers, and Redis, the next tier that is on, is compared with it; a tier that is off is not read."""
    running = await start(FULL, f"redis.url={redis_url}")
    await turn_alone(running)
    await running.send(stream[:50])
    await flush(running)
    await running.engine.switch_tier("l1", False, "test", "tester")
    forget(running)
    await running.send(stream[50:100])
    await running.engine.shadow.turn()
    assert set(results(running, "redis")) <= {"same", "behind"}
    assert results(running, "redis")
    await running.engine.switch_tier("redis", False, "test", "tester")
    assert running.level("redis").state == OFF
    forget(running)
    await running.send(stream[100:150])
    await running.engine.shadow.turn()
    assert results(running, "redis") == {}


@pytest.mark.parametrize(
    ("tampering", "expected"), [("other bytes", "mismatch"), ("gone", "absent"), ("older", "lost"), ("newer", "ahead")]
)
async def test_wrong_copy_is_found_counted_and_logged(
    start: "Start", stream: list[Transaction], redis_url: str, store: Any, tampering: str, expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Somebody changes a profile in the store: each way of it is told from the others; the log has a digest, no id."""
    running = await start(FULL, SLOW, f"redis.url={redis_url}")
    await turn_alone(running)
    await running.engine.switch_tier("l2", False, "test", "tester")
    tx = stream[0]
    await running.send([tx])
    await flush(running)
    for kind in running.plan.kinds:
        entity = getattr(tx, kind.id_field)
        if entity is None:
            continue
        name = b"weir:p:" + entity_key(kind.name, entity)
        profile = bytearray(await store.get(name))
        lsn = lsn_of(bytes(profile))
        if tampering == "gone":
            await store.delete(name)
            continue
        if tampering == "other bytes":
            profile[-1] ^= 1
        else:
            lsn += 1 if tampering == "newer" else -1
            profile[LSN_OFFSET : LSN_OFFSET + 8] = lsn.to_bytes(8, "little")
        await store.set(name, bytes(profile))
    running.engine.l1.n_hits += 4  # as if it had just been asked for again
    running.engine.shadow._seen_lsn = 0
    # A logger that another test has used already writes to where that one wanted it.
    monkeypatch.setattr(shadow, "log", structlog.get_logger())
    with capture_logs() as logs:
        await running.engine.shadow.turn()
    assert results(running, "redis").keys() == {expected}
    told = [entry for entry in logs if entry["event"] == "shadow read differs"]
    assert bool(told) == (expected != "absent"), "a Redis may lack a profile: a miss there proves nothing"
    assert {(entry["result"], entry["above"], entry["below"]) for entry in told} <= {(expected, "l1", "redis")}
    assert all(tx.card_id not in str(entry) for entry in told)


async def test_store_that_fails_a_shadow_read_is_down(
    start: "Start", stream: list[Transaction], redis_url: str, store: Any
) -> None:
    """As by any read: it is met again before it is trusted; scoring goes on."""
    running = await start(FULL, SLOW, f"redis.url={redis_url}")
    await turn_alone(running)
    await running.engine.switch_tier("l2", False, "test", "tester")
    await running.send(stream[:20])
    await flush(running)
    await store.delete("weir:position")  # it was put back to before our puts
    await running.send(stream[20:40])
    await running.engine.shadow.turn()
    assert running.level("redis").state == "down"
    assert "went back" in running.level("redis").reason
    assert not any(d.degraded for d in await running.send(stream[:1])), "the profiles are in L1"
