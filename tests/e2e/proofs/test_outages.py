"""Redis and Postgres are killed, paused, slow under load: what is in L1 never waits for them, nothing is lost, all catch up."""

import asyncio
import itertools
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec
import pytest

from features.transaction import Transaction

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir, Truth, Weir
    from tests.e2e.proofs.conftest import Load, Stores

MakeLoad = Callable[..., "Load"]
TruthOf = Callable[..., "Truth"]
Outage = Callable[["Stores"], Awaitable[None]]

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.postgres]

ALL = bool(os.environ.get("KILLS"))  # `make proof`; else those that are not `more`
more = pytest.mark.skipif(not ALL, reason="only in make proof")
DEADLINE_MS = 1_000  # ms of one round trip to a store: nothing else here takes as long
POOL_MAX = 4
N_CLIENTS = 16  # more than POOL_MAX, so that a flood would be seen
LINGERING = 2  # processes beside them: connections that the service has cut and Postgres has not noticed yet, autovacuum
# No filter and no local store: every new entity is asked of Redis, then of Postgres.
SETTINGS = (
    f"redis.deadline_ms={DEADLINE_MS}", f"postgres.deadline_ms={DEADLINE_MS}", f"postgres.pool_max={POOL_MAX}",
    "write_behind.interval_ms=20", "l2.enabled=false", "bloom.enabled=false",
)  # fmt: skip
# Seen every few milliseconds: to catch up may take less, and then goes unseen.
TRANSITIONS = {("on", "down"), ("down", "catching_up"), ("catching_up", "on"), ("catching_up", "down"), ("down", "on")}
BREAKERS = {"on": "closed", "down": "open", "catching_up": "half_open", "off": "off"}


class Hot:
    """A client whose card, merchant, device and address are in L1: how long each of its requests took, by phase."""

    def __init__(self, weir: "Weir", model: Transaction) -> None:
        self._weir = weir
        self._model = model
        self.phase = "before"
        self.seconds: dict[str, list[float]] = {}
        self.degraded: list[str] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        async with self._weir.client() as session:
            for number in range(1_000_000):
                tx = msgspec.structs.replace(
                    self._model, event_id=f"hot-{number}", ts=self._model.ts + number, card_id="hot", merchant_id="hot",
                    device_id="hot", ip="192.0.2.1",
                )  # fmt: skip
                phase, started = self.phase, time.perf_counter()
                async with session.post("/v1/score", data=msgspec.json.encode(tx)) as response:
                    reply = await response.json()
                assert response.status == 200, reply
                if number:  # the first is asked of the stores
                    self.seconds.setdefault(phase, []).append(time.perf_counter() - started)
                    self.degraded += reply["degraded"]
                await asyncio.sleep(0.003)

    def __str__(self) -> str:
        return "L1 hits: " + ", ".join(
            f"{phase} {len(s)} x p99 {statistics.quantiles(s, n=100)[98] * 1000:.1f} max {max(s) * 1000:.0f} ms"
            for phase, s in self.seconds.items()
            if len(s) > 1
        )


class Watch:
    """What GET /v1/tiers says of the stores while it runs, and how many connections Postgres has from the service."""

    def __init__(self, weir: "Weir", stores: "Stores") -> None:
        self._weir = weir
        self._stores = stores
        self.states: dict[str, list[str]] = {"redis": [], "postgres": []}
        self.most_connections = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        await asyncio.gather(self._watch_tiers(), self._watch_connections())

    async def _watch_tiers(self) -> None:
        async with self._weir.client() as session:
            while True:
                async with session.get("/v1/tiers") as response:
                    tiers = (await response.json())["tiers"]
                for tier in tiers:
                    seen = self.states.get(tier["name"])
                    if seen is not None and seen[-1:] != [tier["state"]]:
                        seen.append(tier["state"])
                    if "breaker" in tier:
                        assert tier["breaker"] == BREAKERS[tier["state"]]
                await asyncio.sleep(0.002)

    async def _watch_connections(self) -> None:
        while True:
            self.most_connections = max(self.most_connections, self._stores.count_connections())
            await asyncio.sleep(0.05)


class Outages:
    """Ways in which a store can be away, each with its end."""

    def __init__(self, stores: "Stores") -> None:
        self._stores = stores

    async def begin(self, how: str, names: list[str]) -> None:
        for name in names:
            if how == "paused":
                self._stores.pause(name)
            else:
                self._stores.kill(name)

    async def end(self, how: str, names: list[str]) -> None:
        for name in names:
            await self._stores.resume(name, empty=how == "emptied")


async def load_through(
    weir: "Weir", load: "Load", hot: Hot, watch: Watch, settled: Any, begin: Callable[[], Awaitable[None]],
    end: Callable[[], Awaitable[None]], n_stores: int = 1,
) -> None:  # fmt: skip
    """Load before, during and after; watched until every store has everything."""
    tasks = [asyncio.ensure_future(work) for work in (load.run(), hot.run(), watch.run())]
    try:
        await asyncio.sleep(0.3)
        hot.phase = "during"
        await begin()
        await asyncio.sleep(n_stores * DEADLINE_MS / 1000 + 0.3)  # they are asked one after the other
        await end()
        hot.phase = "after"
        await tasks[0]
        await settled(weir)
    finally:
        for task in tasks[1:]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    assert not load.n_left, weir.log()
    for states in watch.states.values():
        assert states[-1] == "on"
        assert set(itertools.pairwise(states)) <= TRANSITIONS


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("emptied", ["redis"]),
        ("paused", ["redis"]),
        ("killed", ["postgres"]),
        ("paused", ["postgres"]),
        pytest.param("killed", ["redis"], marks=more),
        pytest.param("killed", ["redis", "postgres"], marks=more),
        pytest.param("paused", ["redis", "postgres"], marks=more),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
async def test_store_away_under_load(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", stores_true: Any, settled: Any,
    long_stream: list[Transaction], rng: random.Random, how: str, names: list[str],
) -> None:  # fmt: skip
    """Away for longer than a deadline: L1 hits do not wait, new entities are whole in the end, Postgres is not flooded."""
    weir = make_weir(*SETTINGS, *stores.settings)
    await weir.start()
    load = make_load(weir, long_stream[:2000], rng, N_CLIENTS, pace_s=0.08)
    hot, watch, outages = Hot(weir, long_stream[0]), Watch(weir, stores), Outages(stores)
    await load_through(
        weir, load, hot, watch, settled, lambda: outages.begin(how, names), lambda: outages.end(how, names), len(names)
    )
    await load.run_out()
    assert max(map(max, hot.seconds.values())) < DEADLINE_MS / 1000, str(hot)
    assert not hot.degraded
    for name in names:
        assert "down" in watch.states[name]
    blind = [reply for reply in load.first.values() if reply["degraded"]]
    if "postgres" in names:  # Redis alone cannot say that an entity is new
        assert blind
    else:
        assert watch.most_connections <= POOL_MAX + LINGERING
        assert watch.states["postgres"] == ["on"], "Redis took Postgres with it"
        assert not blind
    await asyncio.to_thread(weir.stop)
    truth = truth_of(weir.directory)
    load.assert_kept(truth)
    counts = await stores_true(truth, stores, None)
    print(  # noqa: T201  # shown by -s
        f"{' and '.join(names)} {how}: {load}; {len(blind)} degraded; {len(truth.lsns)} journaled; {counts};"
        f" {hot}; {watch.states}; at most {watch.most_connections} connections to postgres"
    )


class DelayProxy:
    """A `python -m loadgen.delay_proxy` in front of a unix socket."""

    def __init__(self, target: str) -> None:
        command = [sys.executable, "-m", "loadgen.delay_proxy", "--to", f"unix:{target}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        assert self.process.stdout.readline() == "ok\n"


@pytest.fixture
def proxies(stores: "Stores") -> Iterator[dict[str, DelayProxy]]:
    """One in front of each store."""
    postgres = unquote(urlsplit(stores.postgres_url).query.removeprefix("host="))
    found = {
        "redis": DelayProxy(unquote(urlsplit(stores.redis_url).path)),
        "postgres": DelayProxy(f"{postgres}/.s.PGSQL.5432"),
    }
    yield found
    for proxy in found.values():
        proxy.process.communicate(timeout=10)


@pytest.mark.parametrize("name", ["redis", pytest.param("postgres", marks=more)])
@pytest.mark.parametrize("command", ["delay 50", pytest.param("delay 800", marks=more), pytest.param("drop", marks=more)])
async def test_store_slow_under_load(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", stores_true: Any, settled: Any,
    proxies: dict[str, DelayProxy], long_stream: list[Transaction], rng: random.Random, name: str, command: str,
) -> None:  # fmt: skip
    """A store that takes 100 ms, or longer than its deadline, or hangs up: L1 hits do not wait, and in the end all is there."""
    database = urlsplit(stores.postgres_url).path
    urls = (
        f"redis.url=redis://127.0.0.1:{proxies['redis'].port}",
        f"postgres.url=postgresql://weir@127.0.0.1:{proxies['postgres'].port}{database}?sslmode=disable",
    )
    weir = make_weir(*SETTINGS, *urls)
    await weir.start()
    load = make_load(weir, long_stream[:2000], rng, N_CLIENTS, pace_s=0.08)
    hot, watch = Hot(weir, long_stream[0]), Watch(weir, stores)

    async def begin() -> None:
        proxies[name].tell(command)

    async def end() -> None:
        proxies[name].tell("delay 0")
        proxies[name].tell("pass")

    await load_through(weir, load, hot, watch, settled, begin, end)
    await load.run_out()
    assert max(map(max, hot.seconds.values())) < DEADLINE_MS / 1000, str(hot)
    assert not hot.degraded
    assert name == "postgres" or watch.most_connections <= POOL_MAX + LINGERING
    is_away = command != "delay 50"
    assert ("down" in watch.states[name]) == is_away
    blind = [reply for reply in load.first.values() if reply["degraded"]]
    assert bool(blind) == (is_away and name == "postgres")
    await asyncio.to_thread(weir.stop)
    truth = truth_of(weir.directory)
    load.assert_kept(truth)
    counts = await stores_true(truth, stores, None)
    print(  # noqa: T201  # shown by -s
        f"{name} {command}: {load}; {len(blind)} degraded; {len(truth.lsns)} journaled; {counts}; {hot}; {watch.states}"
    )
