"""Turning tiers off and on under load: no stale read after any order of toggles, nothing lost, and it outlives a restart."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from features.transaction import Transaction
from models.scorers import NAMES, missing_scorer
from service.decide import Decision
from service.errors import NotFound, StartError, TierUnavailable
from service.levels import OFF, ON
from service.shadow import WRONG

if TYPE_CHECKING:
    from tests.integration.conftest import Running, Start

SMALL_L1 = "l1.bytes_max=65536"
WHO = "tester"
TIERS = ("l1", "bloom", "l2", "redis", "postgres")


async def all_on(running: "Running") -> None:
    """Every tier on and whole."""
    engine = running.engine
    for tier in TIERS:
        await engine.switch_tier(tier, True, "the end", WHO)
    async with asyncio.timeout(30):
        while not (  # noqa: ASYNC110  # no event tells
            all(level.state == ON for level in engine.levels)
            and not any(engine.write_behind.lags().values())
            and not engine.pipeline.touched
            and not engine.fetcher.partial
        ):
            await asyncio.sleep(0.01)


async def assert_whole(running: "Running", decisions: Sequence[Decision]) -> int:
    """Scores that were not degraded are the journal's, and so is every profile in every level; how many were degraded."""
    await all_on(running)
    truth = await running.assert_true()
    wrong = [d.event_id for d in decisions if not d.degraded and d.score != truth.scores[d.event_id]]
    assert not wrong, f"{len(wrong)} of {len(decisions)} scores are of no truth, as {wrong[:3]}"
    for level in running.engine.levels:
        found = await level.tier.fill(list(truth.profiles))
        assert found == list(truth.profiles.values()), level.name
    return sum(1 for d in decisions if d.degraded)


@pytest.mark.parametrize("l1", [SMALL_L1, "l1.bytes_max=268435456"])
async def test_any_order_of_toggles_under_load_reads_nothing_stale(
    start: "Start", stream: list[Transaction], redis_url: str, postgres_url: str, rng: random.Random, l1: str
) -> None:
    """Tiers go off and on and engines change at random while events come: what was not degraded is right, no shadow read finds
    anything wrong, and all tiers are whole in the end."""
    running = await start(l1, "shadow.share=1.0", f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    n_toggles = 0
    scorers = [name for name in NAMES if missing_scorer(name) is None]

    async def toggle() -> None:
        nonlocal n_toggles
        while True:
            if rng.random() < 0.2:
                await running.engine.switch_scorer(rng.choice(scorers), "random", WHO)
            else:
                await running.engine.switch_tier(rng.choice(TIERS), rng.random() < 0.5, "random", WHO)
            n_toggles += 1
            await asyncio.sleep(rng.random() * 0.03)

    toggling = asyncio.create_task(toggle())
    decisions = []
    for start_row in range(0, len(stream), 10):
        decisions += await running.send(stream[start_row : start_row + 10])
        await asyncio.sleep(0.003)
    toggling.cancel()
    await asyncio.gather(toggling, return_exceptions=True)
    n_degraded = await assert_whole(running, decisions)
    assert n_toggles > 20
    results: Counter[str] = sum((tally.results for tally in running.engine.shadow.tallies.values()), Counter())
    assert results.total() > 0
    assert not any(results[name] for name in WRONG), results
    print(f"{len(decisions)} events, {n_toggles} toggles, {n_degraded} degraded, shadow reads {dict(results)}")  # noqa: T201  # shown by -rP


async def test_all_tiers_off_scores_and_says_so(
    start: "Start", stream: list[Transaction], redis_url: str, postgres_url: str
) -> None:
    """With nothing on, each event stands alone and is degraded; the journal is kept, and gives everything back."""
    running = await start(SMALL_L1, f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    engine = running.engine
    decisions = await running.send(stream[:300], batch=20)
    for tier in TIERS:
        await engine.switch_tier(tier, False, "nothing", WHO)
    assert [tier["state"] for tier in engine.tiers()] == ["off"] * 5
    assert engine.warnings()
    assert len(engine.l1) == 0
    alone = await running.send(stream[300:600], batch=20)
    assert all(set(d.degraded) == {"l2", "redis", "postgres"} for d in alone)
    assert engine.write_behind.n_waiting == 0
    assert not engine.fetcher.partial
    assert min((await engine.write_behind.trim_positions()).values()) < min(d.lsn for d in alone)
    await all_on(running)
    assert not engine.warnings()
    decisions += await running.send(stream[600:900], batch=20)
    assert await assert_whole(running, decisions) == 0


async def test_toggles_outlive_a_restart(start: "Start", stream: list[Transaction], redis_url: str, postgres_url: str) -> None:
    """What was turned off is off after a restart, whatever the settings say, and whole once it is on again."""
    urls = (SMALL_L1, f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    running = await start(*urls)
    decisions = await running.send(stream[:200], batch=20)
    for tier in ("l2", "bloom", "l1"):
        await running.engine.switch_tier(tier, False, "compare", WHO)
    decisions += await running.send(stream[200:400], batch=20)
    await running.stop()
    running = await start(*urls)
    states = {tier["name"]: tier["enabled"] for tier in running.engine.tiers()}
    assert states == {"l1": False, "bloom": False, "l2": False, "redis": True, "postgres": True}
    decisions += await running.send(stream[400:600], batch=20)
    assert not any(d.degraded for d in decisions), "redis and postgres have everything"
    await assert_whole(running, decisions)
    # 3 off, 3 on again: what was on already is no change.
    assert [entry["action"] for entry in running.engine.audit.newest(100)].count("tier") == 6
    await running.stop()
    (running.settings.data_dir / "toggles.json").write_text("[1]")
    with pytest.raises(StartError, match=r"toggles\.json.*remove it"):
        await start(*urls)


async def test_level_off_longer_than_the_journal_is_refilled(
    start: "Start", stream: list[Transaction], redis_url: str, postgres_url: str
) -> None:
    """A level whose position the journal has trimmed gets everything from a complete one before it is read."""
    urls = ("journal.segment_bytes=65536", f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    running = await start(*urls)
    engine = running.engine
    await running.send(stream[:100], batch=20)
    await all_on(running)
    await engine.switch_tier("redis", False, "a long time", WHO)
    position = next(c.position for c in engine.write_behind.consumers if c.level.name == "redis")
    before = (await running.assert_true()).profiles
    await running.send(stream[100:1500], batch=20)
    async with asyncio.timeout(15):
        while min((await engine.write_behind.trim_positions()).values()) < engine.journal.last_lsn:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert engine.journal.trim(engine.journal.last_lsn) > 0
    assert engine.journal.trimmed_lsn > position
    await engine.switch_tier("redis", True, "back", WHO)
    async with asyncio.timeout(30):
        while running.level("redis").state != ON or any(engine.write_behind.lags().values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    l2, redis = running.level("l2"), running.level("redis")
    keys = [key async for chunk in l2.tier.keys_chunks() for key in chunk]
    assert await redis.tier.fill(keys) == await l2.tier.fill(keys)
    assert len(keys) > len(before)


async def test_entity_that_could_not_be_asked_for_is_not_called_unknown(
    start: "Start", stream: list[Transaction], postgres_url: str
) -> None:
    """Only Postgres has it, and Postgres is away: a 503 that says so, not the 404 of an entity that nobody has seen."""
    running = await start("l1.bytes_max=65536", "l2.enabled=false", f"postgres.url={postgres_url}")
    await running.send(stream[:200], batch=20)
    await all_below_l1_have(running, "postgres")
    await running.engine.switch_tier("l1", False, "empty", WHO)
    card = stream[0].card_id
    assert (await running.engine.entity("card", card))["unavailable"] == []
    running.level("postgres").fail(TierUnavailable("postgres", "a test"))
    with pytest.raises(TierUnavailable, match="postgres"):
        await running.engine.entity("card", card)


async def all_below_l1_have(running: "Running", name: str) -> None:
    """Wait until a level lacks nothing."""
    async with asyncio.timeout(15):
        while running.engine.write_behind.lags()[name] or running.engine.pipeline.touched:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)


async def test_tier_that_does_not_exist_is_refused(start: "Start") -> None:
    """A tier that this installation lacks is named with those that there are; nothing changes."""
    running = await start()
    for name in ("redis", "ledger", "L1", ""):
        with pytest.raises(NotFound, match=r"there are l1, bloom, l2$"):
            await running.engine.switch_tier(name, False, "x", WHO)
    assert running.level("l2").state != OFF
    assert running.engine.audit.newest(10) == []
