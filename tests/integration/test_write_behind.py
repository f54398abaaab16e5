"""Write-behind under failing stores: nothing is lost, nothing stale is read, partial profiles become whole."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec
import pytest
import redis

from features.profile import is_partial, lsn_of
from features.transaction import Transaction
from service.consumer import Consumer
from service.errors import TierUnavailable
from service.fetch import entity_key
from service.l1_keys import L1Keys
from service.levels import CATCHING_UP, DOWN, OFF, ON, Level
from service.tiers.base import Tier

if TYPE_CHECKING:
    from tests.conftest import Proxy
    from tests.integration.conftest import Running

Start = Callable[..., Any]
ProxyTo = Callable[[str], Awaitable["Proxy"]]
SMALL_L1 = "l1.bytes_max=65536"


class MemoryTier:
    """A tier in a dict that can be told to fail. `keys_chunks` lists it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.profiles: dict[bytes, bytes] = {}
        self.position = 0
        self.is_broken = False
        self.puts = 0

    async def fill(self, keys: Sequence[bytes]) -> list[bytes | None]:
        await self._answer()
        return [self.profiles.get(key) for key in keys]

    async def put(self, profiles: Mapping[bytes, bytes], position: int) -> None:
        await self._answer()
        self.puts += 1
        for key, profile in profiles.items():
            if key not in self.profiles or lsn_of(self.profiles[key]) < lsn_of(profile):
                self.profiles[key] = profile
        self.position = max(self.position, position)

    async def read_position(self) -> int:
        await self._answer()
        return self.position

    async def _answer(self) -> None:
        await asyncio.sleep(0.001)
        if self.is_broken:
            raise TierUnavailable(self.name, "broken on purpose")


async def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)


def settled(running: "Running") -> Callable[[], bool]:
    """Every level that is not off is on and has everything, no profile is partial, nothing waits."""
    engine = running.engine

    def check() -> bool:
        lag = sum(engine.write_behind.lags().values()) + len(engine.pipeline.touched)
        return not lag and not engine.fetcher.partial and all(level.state in (ON, OFF) for level in engine.levels)

    return check


async def assert_stores_true(running: "Running", levels: Sequence[str]) -> int:
    """Each of `levels` holds every profile with the bytes that the journal says."""
    await wait_until(settled(running))
    truth = await running.assert_true()
    for level in running.engine.levels:
        if level.name in levels:
            found = dict(zip(truth.profiles, await level.tier.fill(list(truth.profiles)), strict=True))
            wrong = [key for key, profile in truth.profiles.items() if found[key] != profile]
            assert not wrong, f"{level.name}: {len(wrong)} of {len(found)} differ, as {wrong[:3]}"
    return len(truth.profiles)


def give_up_after(running: "Running", ms: int) -> None:
    """From now on the remote levels may take so long to answer a read."""
    for level in running.engine.levels[1:]:
        setattr(level.tier, "_deadline_ms", ms)  # noqa: B010  # mypy: of a protocol


def unix_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return unquote(parts.path)
    return unquote(parts.query.removeprefix("host=")) + "/.s.PGSQL.5432"


def tcp_url(url: str, port: int) -> str:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"redis://127.0.0.1:{port}"
    return f"postgresql://weir@127.0.0.1:{port}{parts.path}"


def flush_all(url: str) -> None:
    with redis.Redis(unix_socket_path=unix_path(url)) as client:
        client.flushall()


async def test_all_levels_get_every_profile(start: Start, stream: list[Transaction], redis_url: str, postgres_url: str) -> None:
    """With L1 at 64 KiB, L2, Redis and Postgres each end with the very bytes of a fresh engine; nothing waits in RAM."""
    running = await start(SMALL_L1, f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    decisions = await running.send(stream, batch=50)
    n_profiles = await assert_stores_true(running, ["l2", "redis", "postgres"])
    assert running.engine.write_behind.n_waiting == 0
    truth = running.truth()
    assert {d.event_id: d.score for d in decisions} == truth.scores
    assert sum(running.engine.l1.n_evicted) > 1000
    last_lsn = running.engine.journal.last_lsn
    assert [c.position for c in running.engine.write_behind.consumers] == [last_lsn] * 3
    print(f"{len(truth.lsns)} events, {n_profiles} profiles in 3 levels, {sum(running.engine.l1.n_evicted)} evictions")  # noqa: T201  # shown by -rP


async def test_redis_emptied_under_load_catches_up_and_gives_nothing_stale(
    start: Start, stream: list[Transaction], redis_url: str, postgres_url: str
) -> None:
    """Emptied twice while events come, L2 off, L1 tiny: scores stay those of the journal, Redis has everything in the end."""
    running = await start(SMALL_L1, "l2.enabled=false", f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    decisions = await running.send(stream[:600], batch=20)
    for part in (stream[600:1200], stream[1200:]):
        flush_all(redis_url)
        decisions += await running.send(part, batch=20)
        await wait_until(lambda: running.level("redis").state != DOWN)
    await assert_stores_true(running, ["redis", "postgres"])
    truth = running.truth()
    wrong = [d.event_id for d in decisions if not d.degraded and d.score != truth.scores[d.event_id]]
    n_degraded = sum(1 for d in decisions if d.degraded)
    assert not wrong
    assert len(truth.lsns) == len(stream)
    print(f"{len(decisions)} events, {n_degraded} degraded, {len(truth.profiles)} profiles")  # noqa: T201  # shown by -rP


@pytest.mark.parametrize("failure", ["stopped", "paused"])
async def test_remote_stores_lost_at_first_sight_partial_profiles_become_whole(
    start: Start, stream: list[Transaction], redis_url: str, postgres_url: str, proxy_to: ProxyTo, failure: str
) -> None:
    """L2 fresh beside full stores that fall away: degraded is named, the policy applied, nothing lost once they are back."""
    running = await start(f"redis.url={redis_url}", f"postgres.url={postgres_url}", directory="old")
    await running.send(stream[:800])
    before = (await running.assert_true()).profiles
    await running.stop()
    proxies = [await proxy_to(unix_path(url)) for url in (redis_url, postgres_url)]
    running = await start(
        f"redis.url={tcp_url(redis_url, proxies[0].port)}", f"postgres.url={tcp_url(postgres_url, proxies[1].port)}",
        "bloom.enabled=false", SMALL_L1, directory="new",
    )  # fmt: skip
    engine = running.engine
    old_epoch = max(lsn_of(profile) for profile in before.values()) >> 48
    assert engine.journal.next_lsn >> 48 > old_epoch
    known = await running.send(stream[800:1000], batch=20)
    assert not any(d.degraded for d in known)
    for proxy in proxies:
        if failure == "stopped":
            await proxy.stop()
        else:
            proxy.freeze()
    give_up_after(running, 100)
    blind = await running.send(stream[1000:1300], batch=20)
    degraded = [d for d in blind if d.degraded]
    assert degraded
    # L2 is named too where it had not been given a profile yet when that was asked for.
    assert {"redis", "postgres"} <= {name for d in degraded for name in d.degraded} <= {"l2", "redis", "postgres"}
    assert all(d.outcome != "approve" for d in degraded)
    assert all("L3_UNKNOWN" in (d.reasons or []) for d in degraded if d.outcome == "review" and d.score < 0.05)
    unsure = [tx for tx in stream[1000:1300] if (2, tx.device_id) in engine.fetcher.partial or tx.card_id]
    for tx in unsure[:40]:
        await running.label(tx.event_id)
    for tx in unsure[:20]:
        await running.label(tx.event_id, "legit")
    assert engine.fetcher.partial
    for proxy in proxies:
        proxy.thaw()
        if failure == "stopped":
            await proxy.start()
    give_up_after(running, 10_000)
    more = await running.send(stream[1300:1500], batch=20)
    n_profiles = await _assert_continued(running, before, ["l2", "redis", "postgres"])
    last = await running.send(stream[1500:], batch=20)
    assert not any(d.degraded for d in last)
    await _assert_continued(running, before, ["l2", "redis", "postgres"])
    print(  # noqa: T201  # shown by -rP
        f"{failure}: {len(degraded)} of {len(blind)} degraded, {sum(1 for d in more if d.degraded)} after, {n_profiles} whole"
    )


async def _assert_continued(running: "Running", before: Mapping[bytes, bytes], levels: Sequence[str]) -> int:
    """The old journal and the new one, one after the other, give the bytes that the levels that hold a profile have."""
    await wait_until(settled(running))
    old, new = (
        running.settings.data_dir.parent / "old" / "journal",
        running.settings.data_dir.parent / "new" / "journal",
    )
    truth = running.truth_of(old, new)
    changed = [key for key, profile in truth.profiles.items() if before.get(key) != profile]
    found = await running.profiles(truth.profiles)
    wrong = [key for key, profile in truth.profiles.items() if found[key] != profile]
    assert not wrong, f"{len(wrong)} of {len(found)} differ, as {wrong[:4]}"
    for level in running.engine.levels:
        if level.name in levels:
            held = dict(zip(changed, await level.tier.fill(changed), strict=True))
            wrong = [key for key in changed if held[key] != truth.profiles[key]]
            assert not wrong, f"{level.name}: {len(wrong)} of {len(held)} differ, as {wrong[:4]}"
    assert not any(is_partial(profile) for profile in found.values() if profile)
    return len(changed)


async def test_redis_paused_under_load_is_left_alone_and_catches_up(
    start: Start, stream: list[Transaction], redis_url: str, proxy_to: ProxyTo
) -> None:
    """A Redis that falls silent costs no decision anything, L2 being complete; when it answers again it gets what it missed."""
    proxy = await proxy_to(unix_path(redis_url))
    running = await start(f"redis.url={tcp_url(redis_url, proxy.port)}", "redis.deadline_ms=100", SMALL_L1)
    decisions = await running.send(stream[:500], batch=20)
    proxy.freeze()
    decisions += await running.send(stream[500:1000], batch=20)
    await wait_until(lambda: running.engine.levels[1].state == DOWN)
    decisions += await running.send(stream[1000:1500], batch=20)
    await wait_until(lambda: running.engine.write_behind.n_waiting == 0)
    proxy.thaw()
    decisions += await running.send(stream[1500:], batch=20)
    await assert_stores_true(running, ["l2", "redis"])
    assert not any(d.degraded for d in decisions)
    assert {d.event_id: d.score for d in decisions} == running.truth().scores


async def test_level_that_was_down_at_the_start_gets_what_it_missed(
    start: Start, stream: list[Transaction], postgres_url: str, proxy_to: ProxyTo
) -> None:
    """Down while events came and at the next start too: when Postgres answers it gets both runs' changes, then it is read."""
    proxy = await proxy_to(unix_path(postgres_url))
    settings = (f"postgres.url={tcp_url(postgres_url, proxy.port)}", "postgres.deadline_ms=200")
    running = await start(*settings)
    await running.send(stream[:200])
    await wait_until(settled(running))
    await proxy.stop()
    await running.send(stream[200:400])
    await running.stop()
    running = await start(*settings)
    assert running.engine.levels[1].state == DOWN
    await running.send(stream[400:500])
    await proxy.start()
    n_profiles = await assert_stores_true(running, ["l2", "postgres"])
    print(f"{n_profiles} profiles after two runs without postgres")  # noqa: T201  # shown by -rP


async def test_level_of_a_later_journal_is_not_written(
    start: Start, stream: list[Transaction], redis_url: str, proxy_to: ProxyTo
) -> None:
    """A store met late that knows higher LSNs than this journal gives out is neither read nor written, and says why."""
    running = await start(f"redis.url={redis_url}", directory="old")
    await running.stop()
    running = await start(f"redis.url={redis_url}", directory="old")
    await running.send(stream[:100])
    await wait_until(settled(running))
    epoch = running.engine.journal.last_lsn >> 48
    await running.stop()
    proxy = await proxy_to(unix_path(redis_url))
    await proxy.stop()
    running = await start(f"redis.url={tcp_url(redis_url, proxy.port)}", directory="new")
    await running.send(stream[100:200])
    await proxy.start()
    level = running.engine.levels[1]
    await wait_until(lambda: "beyond this journal" in level.reason)
    assert level.state == DOWN
    with redis.Redis(unix_socket_path=unix_path(redis_url)) as client:
        position = int.from_bytes((client.get("weir:position") or b"")[:8], "little")
    assert position >> 48 == epoch


async def test_stop_during_a_write_keeps_what_did_not_arrive(start: Start, stream: list[Transaction]) -> None:
    """A graceful stop that interrupts a slow write leaves no profile behind the position that it stores."""
    running = await start("write_behind.interval_ms=1", "l2.flush_interval_ms=3600000")
    level = running.engine.levels[0]
    put = level.tier.put
    n_slow = 0

    async def put_slowly(profiles: Mapping[bytes, bytes], position: int) -> None:
        nonlocal n_slow
        n_slow += 1
        if n_slow == 1:
            await asyncio.sleep(30)
        await put(profiles, position)

    level.tier.put = put_slowly
    await running.send(stream[:300])
    await wait_until(lambda: n_slow == 1)
    await running.send(stream[300:400])
    truth = running.truth()
    await running.stop()
    assert n_slow > 1
    running = await start()
    await running.assert_true()
    found = await running.engine.levels[0].tier.fill(list(truth.profiles))
    assert found == list(truth.profiles.values())


async def test_profile_that_waited_and_came_back_is_never_read_old(start: Start) -> None:
    """Evicted dirty, taken back, changed, written, evicted clean: the next reader gets the changed bytes."""
    running = await start(SMALL_L1, "bloom.enabled=false", "write_behind.interval_ms=60000")
    engine = running.engine
    tier = MemoryTier("memory")
    engine.levels[:] = [Level(tier, is_complete=True)]
    write_behind = engine.write_behind
    write_behind.consumers[:] = [Consumer(engine.levels[0], 0, L1Keys(engine.plan, engine.l1))]
    consumer = write_behind.consumers[0]
    write_behind.n_written["memory"] = 0
    n = 0

    async def fill_up(card: str, n_rows: int) -> None:
        nonlocal n
        txs = []
        for _ in range(n_rows):
            n += 1
            name = card or f"x{n}"
            txs.append(Transaction(f"e{n}", 1_767_225_600_000 + n, 100, "EUR", name, f"m-{name}"))
        await running.send(txs)

    await fill_up("one", 3)
    await fill_up("", 100)
    assert write_behind.waiting(b"card:one") is not None
    engine.levels[0].state = CATCHING_UP
    write_behind.meet(consumer, 0)
    await fill_up("one", 2)
    assert write_behind.waiting(b"card:one") is None, "in L1 and waiting: one of them will be old"
    await write_behind.flush(consumer)
    assert consumer.level.state == ON
    await fill_up("", 100)
    assert engine.l1.peek(0, "one") is None
    assert write_behind.waiting(b"card:one") is None
    await fill_up("one", 1)
    await write_behind.flush(consumer)
    await running.assert_true()
    assert write_behind.n_waiting == 0


async def test_l2_failing_for_a_moment_reads_no_lagging_store(
    start: Start, stream: list[Transaction], redis_url: str, postgres_url: str
) -> None:
    """While L2 cannot be asked, a Redis that lags is not taken for the truth: unknown then, and whole afterwards."""
    running = await start(SMALL_L1, f"redis.url={redis_url}", f"postgres.url={postgres_url}")
    engine = running.engine
    decisions = await running.send(stream[:500], batch=20)
    await wait_until(settled(running))
    for level in engine.levels[1:]:
        hold_back(level)
    decisions += await running.send(stream[500:800], batch=20)
    await wait_until(lambda: engine.write_behind.consumers[0].position == engine.journal.last_lsn)
    lagging = {
        key for consumer in engine.write_behind.consumers[1:] for key in (*dict(consumer.dirty.items()), *consumer.in_flight)
    }
    assert any(lagging)
    engine.levels[0].fail(TierUnavailable("l2", "stalled"))
    engine.write_behind.consumers[0].probe_at = 1e12
    blind = await running.send(stream[800:1000], batch=20)
    truth = running.truth()
    wrong = [d.event_id for d in [*decisions, *blind] if not d.degraded and d.score != truth.scores[d.event_id]]
    assert not wrong
    n_degraded = sum(1 for d in blind if d.degraded)
    engine.write_behind.consumers[0].probe_at = 0.0
    for level in engine.levels[1:]:
        release(level)
    await assert_stores_true(running, ["l2", "redis", "postgres"])
    print(f"{len(lagging)} profiles lagged, {n_degraded} of {len(blind)} decisions degraded")  # noqa: T201  # shown by -rP


_held: dict[str, Any] = {}


def hold_back(level: Level) -> None:
    """Puts hang until `release`; fills answer."""
    gate, put = asyncio.Event(), level.tier.put

    async def wait(profiles: Mapping[bytes, bytes], position: int) -> None:
        await gate.wait()
        await put(profiles, position)

    _held[level.name] = (gate, put)
    setattr(level.tier, "put", wait)  # noqa: B010  # mypy: a method of a protocol


def release(level: Level) -> None:
    gate, put = _held.pop(level.name)
    gate.set()
    setattr(level.tier, "put", put)  # noqa: B010  # mypy: a method of a protocol


async def test_many_partial_profiles_do_not_keep_others_from_being_written(start: Start, stream: list[Transaction]) -> None:
    """More partial profiles than one write takes: whole ones are written all the same, and the level can come back."""
    running = await start("bloom.enabled=false", "write_behind.batch_max=5")
    engine = running.engine
    tier = MemoryTier("memory")
    tier.is_broken = True
    engine.levels[0].is_complete = False
    level = Level(tier, is_complete=True)
    engine.levels.append(level)
    consumer = Consumer(level, 0, L1Keys(engine.plan, engine.l1))
    engine.write_behind.consumers.append(consumer)
    engine.write_behind.n_written["memory"] = 0
    await running.send(stream[:60])
    assert len(engine.fetcher.partial) > 20
    tier.is_broken = False
    first = next(iter(engine.fetcher.partial))
    level.state = ON
    later = msgspec.structs.replace(stream[60], card_id="whole", merchant_id="whole", device_id=None, ip=None)
    await running.send([later])
    await wait_until(lambda: not engine.fetcher.partial)
    await engine.write_behind.flush(consumer)
    truth = await running.assert_true()
    assert tier.profiles == {**truth.profiles, **tier.profiles}
    assert tier.profiles[entity_key(running.plan.kinds[first[0]].name, first[1])]


async def test_idle_level_that_failed_once_is_on_again(start: Start, stream: list[Transaction]) -> None:
    """A level that failed a read and has nothing to write becomes readable again without any new event."""
    running = await start()
    await running.send(stream[:50])
    await wait_until(settled(running))
    running.engine.levels[0].fail(TierUnavailable("l2", "a blip"))
    await wait_until(lambda: running.engine.levels[0].state == ON)
    await running.assert_true()


async def test_consumer_flight_that_fails_stays_dirty_with_its_first_lsn(start: Start) -> None:
    """What was in flight is dirty again with the LSN that it was first changed by; the position stays below it."""
    engine = (await start()).engine
    tier: Tier = MemoryTier("memory")
    consumer = Consumer(Level(tier, is_complete=True), 0, L1Keys(engine.plan, engine.l1))
    for key, lsn in ((b"a", 10), (b"b", 11), (b"c", 12)):
        consumer.add(key, lsn)
    consumer.marked_lsn = 15
    assert consumer.take(2) == [b"a", b"b"]
    consumer.add(b"a", 15)
    assert consumer.position_after_flight() == 11
    assert consumer.holds(b"a")
    consumer.give_back([b"a", b"b"])
    assert list(consumer.dirty.items()) == [(b"c", 12), (b"a", 10), (b"b", 11)]
    assert consumer.position_after_flight() == 9
    assert consumer.take(3, but={b"c"}) == [b"a", b"b"]
    consumer.in_flight = {}
    assert consumer.position_after_flight() == 11
    consumer.in_flight = {b"x": 1}
    with pytest.raises(AssertionError):
        consumer.take(1)
