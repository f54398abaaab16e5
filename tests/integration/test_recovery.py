"""Recovery: whatever a stop, a lost store or a new data directory took, the journal and the stores give back."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
import redis

from features.transaction import Transaction
from service.errors import InvalidEvent, StartError
from service.levels import CATCHING_UP, DOWN, ON

if TYPE_CHECKING:
    from tests.conftest import Proxy
    from tests.integration.conftest import Running

Start = Callable[..., Any]
ProxyTo = Callable[[str], Awaitable["Proxy"]]
SMALL_L1 = "l1.bytes_max=65536"
NEVER_FLUSHED = ("l2.flush_interval_ms=3600000", "write_behind.interval_ms=60000")


async def wait_until_settled(running: "Running", seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while (  # noqa: ASYNC110  # no event tells
            sum(running.engine.write_behind.lags().values())
            or running.engine.pipeline.touched
            or running.engine.fetcher.partial
            or any(level.state != ON for level in running.engine.levels)
        ):
            await asyncio.sleep(0.01)


def pg_socket(url: str) -> str:
    return unquote(urlsplit(url).query.removeprefix("host=")) + "/.s.PGSQL.5432"


def pg_over(url: str, port: int) -> str:
    return f"postgresql://weir@127.0.0.1:{port}{urlsplit(url).path}"


async def test_restart_after_a_kill_before_any_flush_brings_everything_back(start: Start, stream: list[Transaction]) -> None:
    """Nothing but the journal was on disk: profiles, labels, decisions and lists are as they were."""
    running = await start(*NEVER_FLUSHED)
    decisions = await running.send(stream[:500])
    for tx in stream[:100]:
        await running.label(tx.event_id)
    for tx in stream[:30]:
        await running.label(tx.event_id, "legit")
    await running.engine.put_list("deny", "card", "c1", "stolen", None)
    decisions += await running.send(stream[500:600])
    running.copy_as_killed("killed")
    epoch = running.engine.journal.last_lsn >> 48
    for attempt in range(2):
        again = await start(SMALL_L1, "queue.events_max=1", "queue.batch_max=1", *NEVER_FLUSHED, directory="killed")
        truth = await again.assert_true()
        assert (len(truth.lsns), truth.n_labels) == (600, 130)
        for decision in decisions:
            stored = await again.engine.decision(decision.event_id)
            assert (stored.lsn, stored.score) == (decision.lsn, decision.score)
        assert (await again.engine.decision(stream[50].event_id)).label == "fraud"
        assert (await again.engine.decision(stream[10].event_id)).label == "legit"
        assert again.engine.lists.get("deny", "card", "c1", 0) is not None, f"restart {attempt + 1}"
        assert again.engine.journal.next_lsn >> 48 == epoch + attempt + 1
        await again.stop()
    print(f"{len(truth.lsns)} events, {truth.n_labels} labels, {len(truth.profiles)} profiles, twice")  # noqa: T201  # shown by -rP


async def test_list_change_survives_the_restart_after_the_next(start: Start, stream: list[Transaction]) -> None:
    """A list entry that a kill left only in the journal is still there when the journal is no longer replayed."""
    running = await start(*NEVER_FLUSHED)
    await running.send(stream[:10])
    await running.engine.put_list("deny", "card", "gone", "mistake", None)
    await running.engine.put_list("deny", "card", "c1", "stolen", None)
    await running.engine.delete_list("deny", "card", "gone")
    running.copy_as_killed("killed")
    for _ in range(3):
        again = await start(directory="killed")
        assert [key for key, _ in again.engine.lists.items()] == [("deny", "card", "c1")]
        await again.stop()


async def test_l2_deleted_beside_full_stores_is_built_again(
    start: Start, stream: list[Transaction], redis_url: str, postgres_url: str
) -> None:
    """L2's directory deleted, journal kept: same bytes, decisions again, and L2 does not claim to be complete."""
    urls = (f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    running = await start(*urls)
    await running.send(stream[:600])
    await wait_until_settled(running)
    await running.stop()
    shutil.rmtree(running.settings.data_dir / "l2")
    running = await start(SMALL_L1, *urls)
    assert not running.engine.levels[0].is_complete
    assert len((await running.assert_true()).lsns) == 600
    assert all(d.replayed for d in await running.send(stream[:600]))
    more = await running.send(stream[600:900])
    truth = await running.assert_true()
    assert {d.event_id: d.score for d in more} == {d.event_id: truth.scores[d.event_id] for d in more}
    await wait_until_settled(running)
    assert len(await running.ledger_rows()) == 900


async def test_new_data_directory_goes_on_from_the_stores(
    start: Start, stream: list[Transaction], redis_url: str, postgres_url: str
) -> None:
    """Everything local is gone: profiles come from L3, scores go on as if nothing had happened, LSNs lie above all seen."""
    urls = (f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    running = await start(*urls, directory="old")
    await running.send(stream[:600])
    await wait_until_settled(running)
    await running.stop()
    old_last = running.engine.journal.last_lsn
    with redis.Redis(unix_socket_path=unquote(urlsplit(redis_url).path)) as client:
        n_dropped = client.delete(*client.scan_iter("weir:p:card:*"))  # a Redis that evicted: only postgres has the cards
    running = await start(SMALL_L1, *urls, directory="new")
    assert running.engine.journal.next_lsn >> 48 > old_last >> 48
    decisions = await running.send(stream[600:1000])
    both = running.truth_of(*(running.settings.data_dir.parent / name / "journal" for name in ("old", "new")))
    assert {d.event_id: d.score for d in decisions} == {d.event_id: both.scores[d.event_id] for d in decisions}
    assert await running.profiles(both.profiles) == both.profiles
    await wait_until_settled(running)
    rows = await running.ledger_rows()
    assert rows == both.lsns
    print(f"{len(rows)} ledger rows over two directories, {n_dropped} cards evicted from redis, {len(both.profiles)} profiles")  # noqa: T201  # shown by -rP


async def test_new_data_directory_does_not_read_a_redis_that_is_behind_postgres(
    start: Start, stream: list[Transaction], redis_url: str, postgres_url: str
) -> None:
    """Redis holds an older state than Postgres, no journal can tell the difference: it is refilled before it is read."""
    pg = f"postgres.url={postgres_url}"
    running = await start(pg, f"redis.url={redis_url}", directory="old")
    await running.send(stream[:300])
    await wait_until_settled(running)
    await running.stop()
    running = await start(pg, directory="old")
    await running.send(stream[300:600])
    await wait_until_settled(running)
    await running.stop()
    running = await start(pg, f"redis.url={redis_url}", directory="new")
    decisions = await running.send(stream[600:900])
    both = running.truth_of(*(running.settings.data_dir.parent / name / "journal" for name in ("old", "new")))
    assert {d.event_id: d.score for d in decisions} == {d.event_id: both.scores[d.event_id] for d in decisions}
    await wait_until_settled(running)
    redis_tier = running.engine.levels[1].tier
    assert await redis_tier.fill(list(both.profiles)) == list(both.profiles.values())


async def test_replay_without_the_stores_counts_nothing_twice_when_they_return(
    start: Start, stream: list[Transaction], postgres_url: str, proxy_to: ProxyTo
) -> None:
    """L2 lost, Postgres down at the start: what is replayed blindly is not added to what Postgres has of the same events."""
    proxy = await proxy_to(pg_socket(postgres_url))
    url = f"postgres.url={pg_over(postgres_url, proxy.port)}"
    running = await start(url)
    await running.send(stream[:400])
    for tx in stream[:50]:
        await running.label(tx.event_id)
    await wait_until_settled(running)
    await running.stop()
    shutil.rmtree(running.settings.data_dir / "l2")
    await proxy.stop()
    running = await start(url)
    assert running.engine.fetcher.partial
    assert running.engine.levels[1].state == DOWN
    await running.send(stream[400:500])
    await running.label(stream[0].event_id, "legit")
    await proxy.start()
    await wait_until_settled(running)
    truth = await running.assert_true()
    held = await running.engine.levels[1].tier.fill(list(truth.profiles))
    assert held == list(truth.profiles.values())
    print(f"{len(truth.lsns)} events, {truth.n_labels} labels, {len(truth.profiles)} profiles")  # noqa: T201  # shown by -rP


async def test_l2_killed_before_its_first_flush_is_still_complete(
    start: Start, stream: list[Transaction], redis_url: str
) -> None:
    """That it was there from the first event on is known after a kill, although Redis holds something by then."""
    running = await start("l2.flush_interval_ms=3600000", f"redis.url={redis_url}")
    await running.send(stream[:200], batch=20)
    await wait_until_settled(running)
    running.copy_as_killed("killed")
    again = await start(f"redis.url={redis_url}", directory="killed")
    assert again.level("l2").is_complete
    await again.assert_true()


async def test_first_start_without_postgres_does_not_take_l2_for_complete(
    start: Start, stream: list[Transaction], postgres_url: str, proxy_to: ProxyTo
) -> None:
    """A store that could not be asked may hold anything: a miss in the new L2 proves nothing, the profiles are partial."""
    proxy = await proxy_to(pg_socket(postgres_url))
    await proxy.stop()
    running = await start(f"postgres.url={pg_over(postgres_url, proxy.port)}", "bloom.enabled=false")
    assert not running.engine.levels[0].is_complete
    decisions = await running.send(stream[:50])
    assert decisions[0].degraded == ("postgres",)
    await proxy.start()
    await wait_until_settled(running)
    truth = await running.assert_true()
    assert await running.ledger_rows() == truth.lsns
    assert not (await running.send(stream[50:60]))[0].degraded


async def test_without_l2_the_stores_and_the_journal_are_enough(
    start: Start, stream: list[Transaction], redis_url: str, postgres_url: str
) -> None:
    """No L2, tiny L1, stop and start in the middle: scores and bytes are those of the journal."""
    urls = ("l2.enabled=false", SMALL_L1, f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    running = await start(*urls)
    decisions = await running.send(stream[:500], batch=20)
    running.copy_as_killed("killed")
    await running.stop()
    running = await start(*urls)
    decisions += await running.send(stream[500:1000], batch=20)
    truth = await running.assert_true()
    assert {d.event_id: d.score for d in decisions} == truth.scores


async def test_journal_that_lacks_what_the_stores_have_refuses_the_start(start: Start, stream: list[Transaction]) -> None:
    """A journal rolled back below L2's position is named, and only --accept-loss goes on."""
    running = await start()
    await running.send(stream[:50])
    running.copy_as_killed("early")
    await running.send(stream[50:100])
    await running.stop()
    data = running.settings.data_dir
    shutil.rmtree(data / "journal")
    shutil.copytree(data.parent / "early" / "journal", data / "journal")
    with pytest.raises(StartError, match="accept-loss"):
        await start()
    await start(accept_loss=True)


async def test_stream_clock_goes_on_after_a_clean_restart(start: Start, stream: list[Transaction]) -> None:
    """With nothing left to replay, an event that was too old before the restart is too old after it."""
    running = await start("time.past_ms_max=86400000")
    await running.send(stream[:1000])
    for _ in range(2):
        with pytest.raises(InvalidEvent):
            await running.submit(Transaction("old", stream[0].ts, 1, "EUR", "c1", "m1"))
        await running.stop()
        running = await start("time.past_ms_max=86400000")


async def test_level_behind_at_the_start_is_not_read_before_it_has_caught_up(
    start: Start, stream: list[Transaction], redis_url: str
) -> None:
    """A Redis that missed a run is written first: catching_up, then on, with everything."""
    running = await start(f"redis.url={redis_url}")
    await running.send(stream[:200])
    await wait_until_settled(running)
    await running.stop()
    running = await start()
    await running.send(stream[200:400])
    await running.stop()
    running = await start(f"redis.url={redis_url}", "write_behind.interval_ms=200")
    assert running.engine.levels[1].state in (CATCHING_UP, ON)
    await wait_until_settled(running)
    truth = await running.assert_true()
    assert await running.engine.levels[1].tier.fill(list(truth.profiles)) == list(truth.profiles.values())
