"""weir-go on a real Valkey and Postgres: after kills and outages both hold the journal's bytes, the ledger each decision."""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from features.transaction import Transaction
from service.tiers.postgres import PostgresPool, PostgresTier
from service.tiers.redis import RedisTier

if TYPE_CHECKING:
    from tests.e2e.conftest import Client, MakeWeir, Truth, Weir

MakeClient = Callable[["Weir"], "Client"]
TruthOf = Callable[..., "Truth"]
ProxyTo = Callable[[str], Awaitable[Any]]

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.postgres]

SETTLED_S = 15.0
GAUGES = re.compile(
    r"^weir_((?:tier_state|write_behind_dirty)\{.*(?:redis|postgres).*\}|profiles_partial|ledger_lag) (\S+)$", re.MULTILINE
)
SETTLED = {
    **{f'tier_state{{tier="{store}"}}': "1" for store in ("redis", "postgres")},
    **{f'write_behind_dirty{{consumer="{store}"}}': "0" for store in ("redis", "postgres")},
    "profiles_partial": "0",
    "ledger_lag": "0",
}
QUICK = (
    "l1.bytes_max=65536", "redis.deadline_ms=1000", "postgres.deadline_ms=1000", "write_behind.interval_ms=20",
    "l2.flush_interval_ms=50",
)  # fmt: skip


async def assert_stores_true(truth: "Truth", redis_url: str, postgres_url: str) -> None:
    """Redis and Postgres hold the journal's bytes, the ledger each event once."""
    pool, redis = PostgresPool(postgres_url), RedisTier(redis_url)
    try:
        await truth.assert_in_store(redis)
        await truth.assert_in_store(PostgresTier(pool, 1000))
    finally:
        await redis.close()
        await pool.close()
    await truth.assert_in_ledger(postgres_url)


def assert_true(client: "Client", truth: "Truth") -> None:
    """Every acknowledged decision is in the journal; its score is the journal's, unless something could not be asked."""
    for event_id, reply in client.acknowledged.items():
        assert truth.lsns[event_id] == reply["lsn"]
        if not reply["degraded"]:
            assert truth.scores[event_id] == pytest.approx(reply["score"], rel=0, abs=1e-6), event_id


@pytest.mark.parametrize("l2", ["true", "false"])
async def test_kill_under_load_both_stores_end_with_the_journal_s_bytes(
    make_weir_go: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, by_client: list[list[Transaction]],
    rng: random.Random, redis_url: str, postgres_url: str, l2: str,
) -> None:  # fmt: skip
    """Four clients and labels, killed twice, with and without a local store: no profile, no ledger row is missing or wrong."""
    weir = make_weir_go(*QUICK, f"redis.url={redis_url}", f"postgres.url={postgres_url}", f"l2.enabled={l2}")
    clients = [make_client(weir) for _ in by_client]
    for life in range(3):
        await weir.start()
        load = asyncio.gather(*(client.send(part, 16) for client, part in zip(clients, by_client, strict=True)))
        goal = len(clients[0].acknowledged) + rng.uniform(20, 200)
        while life < 2 and len(clients[0].acknowledged) < goal:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.001)
        await clients[0].label(list(clients[0].acknowledged)[-50:])
        if life < 2:
            weir.kill()
        await load
    weir.stop()
    truth = truth_of(weir.directory)
    assert len(truth.labels) > 50
    assert len(truth.lsns) == sum(map(len, by_client))
    for client in clients:
        assert not any(reply["degraded"] for reply in client.acknowledged.values())
        assert_true(client, truth)
    await assert_stores_true(truth, redis_url, postgres_url)


async def proxied(redis_url: str, postgres_url: str, proxy_to: ProxyTo) -> tuple[list[Any], list[str]]:
    """Proxies in front of both stores, and the settings that go through them."""
    redis, postgres = urlsplit(redis_url), urlsplit(postgres_url)
    proxies = [
        await proxy_to(unquote(redis.path)),
        await proxy_to(unquote(postgres.query.removeprefix("host=")) + "/.s.PGSQL.5432"),
    ]
    return proxies, [
        f"redis.url=redis://127.0.0.1:{proxies[0].port}",
        f"postgres.url=postgresql://weir@127.0.0.1:{proxies[1].port}{postgres.path}",
    ]


async def part_with(proxies: list[Any], failure: str) -> None:
    for proxy in proxies:
        if failure == "stopped":
            await proxy.stop()
        else:
            proxy.freeze()


async def reunite(proxies: list[Any], failure: str) -> None:
    for proxy in proxies:
        proxy.thaw()
        if failure == "stopped":
            await proxy.start()


async def settled(weir: "Weir") -> None:
    """Wait until both stores answer and have everything, and no profile is partial: a while, because gauges lag a little."""
    deadline, n_good = time.monotonic() + SETTLED_S, 0
    while n_good < 5:
        text = (await asyncio.to_thread(weir.call, "GET", "/metrics")).body.decode()
        found = dict(GAUGES.findall(text))
        n_good = n_good + 1 if found == SETTLED else 0
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("failure", ["stopped", "paused"])
async def test_stores_lost_under_load_are_named_and_nothing_is_lost(
    make_weir_go: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction],
    redis_url: str, postgres_url: str, proxy_to: ProxyTo, failure: str,
) -> None:  # fmt: skip
    """Without a local store, the remote ones away for a third of the stream: degraded names them, at the end both are whole."""
    proxies, urls = await proxied(redis_url, postgres_url, proxy_to)
    weir = make_weir_go(*QUICK, *urls, "l2.enabled=false", "redis.deadline_ms=100", "postgres.deadline_ms=100")
    await weir.start()
    client = make_client(weir)
    await client.send(stream[:800], 50)
    assert not any(reply["degraded"] for reply in client.acknowledged.values())
    await settled(weir)  # from here on profiles that left L1 are nowhere but in the stores
    await part_with(proxies, failure)
    blind = make_client(weir)
    await blind.send(stream[800:1600], 50)
    assert await blind.label([tx.event_id for tx in stream[700:900]]) == 200
    named = [set(reply["degraded"]) for reply in blind.acknowledged.values() if reply["degraded"]]
    assert named
    assert set().union(*named) == {"redis", "postgres"}
    assert all(reply["outcome"] != "approve" for reply in blind.acknowledged.values() if reply["degraded"])
    await reunite(proxies, failure)
    after = make_client(weir)
    await after.send(stream[1600:2400], 50)
    await settled(weir)
    last = make_client(weir)
    await last.send(stream[2400:], 50)
    assert not any(reply["degraded"] for reply in last.acknowledged.values())
    await asyncio.to_thread(weir.stop)
    truth = truth_of(weir.directory)
    assert len(truth.lsns) == len(stream)
    for one in (client, blind, after, last):
        assert_true(one, truth)
    await assert_stores_true(truth, redis_url, postgres_url)


async def test_killed_while_the_stores_are_away_starts_without_them(
    make_weir_go: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction],
    redis_url: str, postgres_url: str, proxy_to: ProxyTo,
) -> None:  # fmt: skip
    """Killed during an outage, started in it: scores go on from the local store, and both stores get what they missed."""
    proxies, urls = await proxied(redis_url, postgres_url, proxy_to)
    weir = make_weir_go(*QUICK, *urls)
    client = make_client(weir)
    await weir.start()
    await client.send(stream[:500], 50)
    await part_with(proxies, "stopped")
    await client.send(stream[500:1000], 50)
    weir.kill()
    await weir.start()
    await client.send(stream[:1500], 50)
    assert client.n_replayed == 1000
    await reunite(proxies, "stopped")
    await client.send(stream[1500:2000], 50)
    await settled(weir)
    await asyncio.to_thread(weir.stop)
    truth = truth_of(weir.directory)
    assert len(truth.lsns) == 2000
    assert not any(reply["degraded"] for reply in client.acknowledged.values()), "L2 is complete"
    assert_true(client, truth)
    await assert_stores_true(truth, redis_url, postgres_url)


async def test_new_data_directory_goes_on_from_the_stores(
    make_weir: "MakeWeir", make_weir_go: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction],
    redis_url: str, postgres_url: str,
) -> None:  # fmt: skip
    """weir-go reads the profiles that `weir serve` left in the stores, and `weir serve` those of weir-go."""
    settings = *QUICK, f"redis.url={redis_url}", f"postgres.url={postgres_url}"
    weirs = [make(*settings, name=str(n)) for n, make in enumerate((make_weir, make_weir_go, make_weir))]
    for n, weir in enumerate(weirs):
        await weir.start()
        client = make_client(weir)
        await client.send(stream[n * 700 : (n + 1) * 700], 50)
        assert len(client.acknowledged) == 700
        assert not any(reply["degraded"] for reply in client.acknowledged.values())
        weir.stop()
        truth = truth_of(*(w.directory for w in weirs[: n + 1]))
        assert_true(client, truth)
        await assert_stores_true(truth, redis_url, postgres_url)
