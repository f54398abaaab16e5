"""What the redis tier promises beyond the suite of all tiers: it notices another store, and knows whether it evicts."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio

from service.errors import TierUnavailable
from service.tiers.redis import SLICE_KEYS, RedisTier

pytestmark = pytest.mark.redis
MakeProfile = Callable[..., bytes]


async def test_redis_emptied_store_is_noticed_by_fill_and_put(redis_url: str, make_profile: MakeProfile) -> None:
    """After FLUSHALL neither a miss nor a write is believed until the position was read again."""
    tier = RedisTier(redis_url)
    await tier.put({b"card:a": make_profile(1)}, 1)
    await tier.put({b"card:a": make_profile(2)}, 2)
    client: Any = redis.asyncio.Redis.from_url(redis_url)
    await client.flushall()
    with pytest.raises(TierUnavailable, match="went back to put 0, 2 were"):
        await tier.fill([b"card:a"])
    with pytest.raises(TierUnavailable, match="went back to put 0, 2 were"):
        await tier.put({b"card:a": make_profile(3)}, 3)
    assert await client.dbsize() == 0
    assert await tier.read_position() == 0
    assert await tier.fill([b"card:a"]) == [None]
    await tier.put({b"card:a": make_profile(3)}, 3)
    assert await tier.fill([b"card:a"]) == [make_profile(3)]
    await client.aclose()
    await tier.close()


async def test_redis_store_that_lost_its_last_put_is_noticed(redis_url: str, make_profile: MakeProfile) -> None:
    """A store that comes back as of one put ago is refused although it has a position and the profile."""
    tier = RedisTier(redis_url)
    client: Any = redis.asyncio.Redis.from_url(redis_url)
    await tier.put({b"card:a": make_profile(1)}, 1)
    before = {str(key, "utf-8"): await client.get(key) for key in await client.keys()}
    await tier.put({b"card:a": make_profile(2)}, 0)
    await client.mset(before)
    with pytest.raises(TierUnavailable, match="went back"):
        await tier.fill([b"card:a"])
    assert await tier.read_position() == 1
    assert await tier.fill([b"card:a"]) == [make_profile(1)]
    await client.aclose()
    await tier.close()


async def test_redis_put_counts_beyond_32_bits(redis_url: str, make_profile: MakeProfile) -> None:
    """The number of puts carries from its low into its high half."""
    client: Any = redis.asyncio.Redis.from_url(redis_url)
    await client.set("weir:position", struct.pack("<QQ", 7 << 48, (1 << 32) - 1))
    tier = RedisTier(redis_url)
    assert await tier.read_position() == 7 << 48
    await tier.put({b"card:a": make_profile(1)}, 0)
    assert struct.unpack("<QQ", await client.get("weir:position")) == (7 << 48, 1 << 32)
    assert await tier.fill([b"card:a"]) == [make_profile(1)]
    await client.aclose()
    await tier.close()


async def test_redis_position_is_stored_only_with_the_last_slice(redis_url: str, make_profile: MakeProfile) -> None:
    """When a later part of a put fails, its first part may be stored but the position is not."""
    tier = RedisTier(redis_url)
    await tier.put({b"card:bad": make_profile(1)}, 0)
    profiles = {b"card:%03d" % i: make_profile(1) for i in range(SLICE_KEYS)} | {b"card:bad": b"too short"}
    with pytest.raises(TierUnavailable):
        await tier.put(profiles, 9)
    assert await tier.read_position() == 0
    assert await tier.fill([b"card:000"]) == [make_profile(1)]
    await tier.close()


async def test_redis_namespaces_do_not_meet(redis_url: str, make_profile: MakeProfile) -> None:
    """Two namespaces on one server have their own profiles and positions."""
    a, b = RedisTier(redis_url, namespace="a"), RedisTier(redis_url, namespace="b")
    await a.put({b"card:x": make_profile(1)}, 4)
    assert await b.fill([b"card:x"]) == [None]
    assert (await a.read_position(), await b.read_position()) == (4, 0)
    await a.close()
    await b.close()


@pytest.mark.parametrize(("policy", "evicts"), [("noeviction", False), ("allkeys-lru", True), ("volatile-ttl", True)])
async def test_redis_evicts_says_what_the_policy_is(redis_url: str, policy: str, evicts: bool) -> None:
    """Every policy but noeviction means that a miss proves nothing."""
    client: Any = redis.asyncio.Redis.from_url(redis_url)
    await client.config_set("maxmemory-policy", policy)
    tier = RedisTier(redis_url)
    assert await tier.evicts() is evicts
    await client.aclose()
    await tier.close()


async def test_redis_without_config_command_counts_as_evicting(redis_url: str) -> None:
    """A server that does not tell its policy is taken for one that evicts."""
    client: Any = redis.asyncio.Redis.from_url(redis_url)
    await client.acl_setuser("limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-config"])
    tier = RedisTier(redis_url.replace("unix://", "unix://limited:x@"))
    assert await tier.evicts() is True
    await client.acl_deluser("limited")
    await client.aclose()
    await tier.close()


async def test_redis_ping_and_incarnation_of_a_running_server(redis_url: str) -> None:
    """The server answers, and it is the same one twice."""
    tier = RedisTier(redis_url)
    await tier.ping()
    assert await tier.incarnation() == await tier.incarnation() != ""
    await tier.close()
