"""One suite over every tier below L1."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from service.errors import TierUnavailable
from service.tiers.base import LSN_OFFSET, Sized, Tier, lsn_of
from service.tiers.l2 import L2, RocksStore
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

MakeProfile = Callable[..., bytes]
DEADLINE_MS = 250


class Case:
    """How one kind of tier is opened, made durable and closed."""

    async def open(self) -> Tier:
        raise NotImplementedError

    async def flush(self) -> None:
        """Wait until puts are durable; L3 stores are when `put` returns."""

    async def close(self) -> None:
        raise NotImplementedError


class L2Case(Case):
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def open(self) -> Tier:
        self._store = RocksStore(self._directory)
        self._tier = L2(self._store)
        return self._tier

    async def flush(self) -> None:
        await self._tier.flush()

    async def close(self) -> None:
        self._store.close()


class RedisCase(Case):
    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self) -> Tier:
        self._tier = RedisTier(self._url, deadline_ms=DEADLINE_MS, put_deadline_ms=4 * DEADLINE_MS)
        await self._tier.read_position()
        return self._tier

    async def close(self) -> None:
        await self._tier.close()


class PostgresCase(Case):
    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self) -> Tier:
        self._pool = PostgresPool(self._url)
        tier = PostgresTier(self._pool, deadline_ms=DEADLINE_MS, put_deadline_ms=4 * DEADLINE_MS)
        await tier.read_position()
        return tier

    async def close(self) -> None:
        await self._pool.close()


@pytest.fixture(
    params=["l2", pytest.param("redis", marks=pytest.mark.redis), pytest.param("postgres", marks=pytest.mark.postgres)]
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    match request.param:
        case "l2":
            return L2Case(tmp_path / "l2")
        case "redis":
            return RedisCase(request.getfixturevalue("redis_url"))
        case _:
            return PostgresCase(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def tier(case: Case) -> AsyncIterator[Tier]:
    opened = await case.open()
    yield opened
    await case.close()


def test_lsn_offset_is_that_of_features_profile(make_profile: MakeProfile) -> None:
    """Tiers find the LSN where features.profile writes it."""
    profile = pytest.importorskip("features.profile")
    assert profile.LSN_OFFSET == LSN_OFFSET
    assert lsn_of(make_profile((7 << 48) | 9)) == (7 << 48) | 9


async def test_tier_size_grows_with_what_is_put(tier: Tier, make_profile: MakeProfile) -> None:
    """Bytes are there and grow; keys too, where the store counts them at once (Postgres: with the next analyze)."""
    assert isinstance(tier, Sized)
    before = await tier.size()
    await tier.put({b"card:%d" % i: make_profile(i + 1, fill=b"%d" % i) for i in range(500)}, 0)
    after = await tier.size()
    assert after.bytes > before.bytes
    assert after.keys - before.keys in ((0, 500) if tier.name == "postgres" else (500, 501)), "Redis counts the position too"


@pytest.mark.parametrize("n_keys", [1, 64, 1000])
async def test_tier_fill_after_put_returns_what_was_put(tier: Tier, make_profile: MakeProfile, n_keys: int) -> None:
    """Every profile comes back byte for byte, in the order asked."""
    profiles = {b"card:%d" % i: make_profile(i + 1, fill=b"%d" % i) for i in range(n_keys)}
    await tier.put(profiles, 0)
    keys = list(reversed(profiles))
    assert await tier.fill(keys) == [profiles[key] for key in keys]


async def test_tier_fill_of_missing_and_repeated_keys_keeps_order(tier: Tier, make_profile: MakeProfile) -> None:
    """A missing key gives None in its place, a repeated one its profile each time."""
    a, b = make_profile(1, fill=b"a"), make_profile(2, fill=b"b")
    await tier.put({b"card:a": a, b"card:b": b}, 0)
    keys = [b"card:b", b"card:none", b"card:a", b"card:b", b"card:none", b"card:b"]
    assert await tier.fill(keys) == [b, None, a, b, None, b]
    assert await tier.fill([b"card:none"]) == [None]


async def test_tier_fill_without_keys_returns_nothing(tier: Tier) -> None:
    """No keys, no answers, no error; a put without profiles is allowed too."""
    assert await tier.fill([]) == []
    await tier.put({}, 0)
    assert await tier.read_position() == 0


async def test_tier_binary_keys_and_values_are_kept(tier: Tier, make_profile: MakeProfile) -> None:
    """Zero bytes, high bytes, quotes, spaces and newlines pass unchanged, and 8 KiB too."""
    everything = bytes(range(256))
    profiles = {
        b"ip:\x00\xff' \"\r\n": make_profile(1, 600, everything),
        b"device:" + everything: make_profile(2, 8192, everything),
        "merchant:é€😀".encode(): make_profile(3, 24),
    }
    await tier.put(profiles, 0)
    assert await tier.fill(list(profiles)) == list(profiles.values())


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (1, 2),
        ((1 << 48) | 5, (1 << 48) | 6),  # equal as doubles in their high parts; the step a double still sees
        ((32767 << 48) | 5, (32767 << 48) | 6),  # equal as doubles
        ((1 << 48) | 0xFFFFFFFF, (1 << 48) | 0x100000000),  # the low half wraps
        ((1 << 48) | 0xFFFFFFFFFF, 2 << 48),  # the epoch wins
        (255, 256),  # little-endian bytes compare the other way round
        ((1 << 48) | 0x7FFFFFFF, (1 << 48) | 0x80000000),  # the sign bit of a half
    ],
)
async def test_tier_put_of_lower_lsn_is_ignored(tier: Tier, make_profile: MakeProfile, low: int, high: int) -> None:
    """Only a strictly higher LSN replaces a profile, also above 2^53 where doubles cannot tell LSNs apart."""
    old, new = make_profile(low, fill=b"old"), make_profile(high, fill=b"new")
    await tier.put({b"card:a": old}, 0)
    await tier.put({b"card:a": new}, 0)
    assert await tier.fill([b"card:a"]) == [new]
    await tier.put({b"card:a": old, b"card:b": old}, 0)
    await tier.put({b"card:a": make_profile(high, fill=b"same")}, 0)
    assert await tier.fill([b"card:a", b"card:b"]) == [new, old]


async def test_tier_concurrent_puts_end_at_highest_lsn(tier: Tier, make_profile: MakeProfile) -> None:
    """Puts of the same keys that overlap in time end with the highest LSN of each, whatever their order."""
    keys = [b"card:%d" % i for i in range(150)]
    lsns = [5, 3, 9, 1, 7]
    await asyncio.gather(*(tier.put(dict.fromkeys(keys, make_profile(lsn)), 0) for lsn in lsns))
    assert {lsn_of(found or b"") for found in await tier.fill(keys)} == {9}


async def test_tier_position_survives_reopen_and_never_goes_back(case: Case, make_profile: MakeProfile) -> None:
    """The position comes back after a reopen with the data; a lower one is ignored, 0 leaves it."""
    position = (32767 << 48) | ((1 << 48) - 1)
    tier = await case.open()
    assert await tier.read_position() == 0
    await tier.put({b"card:%d" % i: make_profile(7) for i in range(600)}, position)
    await tier.put({b"card:a": make_profile(8)}, position - 1)
    await tier.put({b"card:b": make_profile(9)}, 0)
    await case.flush()
    await case.close()
    tier = await case.open()
    assert await tier.read_position() == position
    assert await tier.fill([b"card:a", b"card:599"]) == [make_profile(8), make_profile(7)]
    await case.close()


@pytest.fixture(params=["redis", "postgres"])
def remote(request: pytest.FixtureRequest, proxy_to: Callable[[str], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """`await remote()`: (tier, proxy, close) of a server behind a proxy."""
    url = urlsplit(request.getfixturevalue(f"{request.param}_url"))

    async def open_redis() -> tuple[Tier, Any, Callable[[], Awaitable[None]]]:
        proxy = await proxy_to(unquote(url.path))
        tier = RedisTier(f"redis://127.0.0.1:{proxy.port}", DEADLINE_MS, DEADLINE_MS, concurrency_max=2)
        await tier.read_position()
        return tier, proxy, tier.close

    async def open_postgres() -> tuple[Tier, Any, Callable[[], Awaitable[None]]]:
        proxy = await proxy_to(unquote(url.query.removeprefix("host=")) + "/.s.PGSQL.5432")
        pool = PostgresPool(f"postgresql://weir@127.0.0.1:{proxy.port}{url.path}", size_max=2)
        tier = PostgresTier(pool, DEADLINE_MS, DEADLINE_MS)
        await tier.read_position()
        return tier, proxy, pool.close

    return open_redis if request.param == "redis" else open_postgres


@pytest.mark.redis
@pytest.mark.postgres
async def test_tier_server_is_silent_raises_within_deadline(
    remote: Callable[[], Awaitable[Any]], make_profile: MakeProfile
) -> None:
    """A server that stops answering costs every caller its deadline and no more, also those that queue for a place."""
    tier, proxy, close = await remote()
    await tier.put({b"card:a": make_profile(1), b"card:b": make_profile(2)}, 5)
    proxy.freeze()
    start = time.monotonic()
    calls = [tier.fill([b"card:a"]) for _ in range(6)] + [tier.put({b"card:a": make_profile(9)}, 9)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - start < 2 * DEADLINE_MS / 1000
    assert all(isinstance(result, TierUnavailable) and result.tier == tier.name for result in results), results
    proxy.thaw()
    await asyncio.sleep(0.05)
    assert await tier.read_position() in (5, 9)  # the put may have reached the server after all
    for _ in range(4):  # no answer of an abandoned call is taken for that of a later one
        assert await tier.fill([b"card:b"]) == [make_profile(2)]
    await close()


@pytest.mark.redis
@pytest.mark.postgres
async def test_tier_server_is_gone_raises_and_comes_back(
    remote: Callable[[], Awaitable[Any]], make_profile: MakeProfile
) -> None:
    """A refused connection raises at once; when the server is back, the tier works again by itself."""
    tier, proxy, close = await remote()
    await tier.put({b"card:a": make_profile(1)}, 5)
    await proxy.stop()
    start = time.monotonic()
    for call in (tier.fill([b"card:a"]), tier.put({b"card:a": make_profile(2)}, 6), tier.read_position()):
        with pytest.raises(TierUnavailable):
            await call
    assert time.monotonic() - start < 2 * DEADLINE_MS / 1000
    await proxy.start()
    assert await tier.read_position() == 5
    assert await tier.fill([b"card:a"]) == [make_profile(1)]
    await close()


async def test_tier_nothing_listens_raises_tier_unavailable(unused_tcp_port: int) -> None:
    """A first connection that is refused raises TierUnavailable too, never the client's own error."""
    redis = RedisTier(f"redis://127.0.0.1:{unused_tcp_port}", DEADLINE_MS)
    with pytest.raises(TierUnavailable):
        await redis.read_position()
    await redis.close()
    pool = PostgresPool(f"postgresql://weir@127.0.0.1:{unused_tcp_port}/weir")
    postgres = PostgresTier(pool, DEADLINE_MS)
    for call in (postgres.read_position(), postgres.fill([b"card:a"])):
        with pytest.raises(TierUnavailable):
            await call
    await pool.close()
