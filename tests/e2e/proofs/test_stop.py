"""SIGTERM under load: what was acknowledged is kept, the rest was never begun, and the process ends well, whatever hangs."""

import asyncio
import os
import random
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest

from features.transaction import Transaction

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir, Truth, Weir
    from tests.e2e.proofs.conftest import Load, Stores

MakeLoad = Callable[..., "Load"]
TruthOf = Callable[..., "Truth"]

pytestmark = [pytest.mark.e2e, pytest.mark.redis, pytest.mark.postgres]

SETTINGS = (
    "redis.deadline_ms=1000", "postgres.deadline_ms=1000", "write_behind.interval_ms=20", "l1.bytes_max=300000",
    "server.request_deadline_ms=60000",
)  # fmt: skip
more = pytest.mark.skipif(not os.environ.get("KILLS"), reason="only in make proof")


def send_half(weir: "Weir", tx: Transaction) -> socket.socket:
    """A request whose body stops in the middle."""
    host, _, port = weir.url.removeprefix("http://").rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    body = msgspec.json.encode(tx)
    head = f"POST /v1/score HTTP/1.1\r\nHost: weir\r\nAuthorization: Bearer {weir.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body[: len(body) // 2])
    return connection


@pytest.mark.parametrize("hanging", ["redis", pytest.param("", marks=more), pytest.param("postgres", marks=more)])
async def test_terminated_under_load_keeps_what_it_acknowledged(
    make_weir: "MakeWeir", make_load: MakeLoad, truth_of: TruthOf, stores: "Stores", stores_true: Any,
    long_stream: list[Transaction], rng: random.Random, hanging: str,
) -> None:  # fmt: skip
    """Exit code 0 though told thrice, with a body that never ends and a store that does not answer; the next start is whole."""
    weir = make_weir(*SETTINGS, *stores.settings)
    await weir.start()
    load = make_load(weir, long_stream[1:1501], rng)
    with send_half(weir, long_stream[0]):
        running = asyncio.ensure_future(load.run())
        await load.reach(rng.randrange(200, 700), running)
        if hanging:
            stores.pause(hanging)
        code = await asyncio.to_thread(weir.kill, signal.SIGTERM, times=3)
        await running
    assert code == 0, weir.log()
    assert "Traceback" not in weir.log()
    with pytest.raises(aiohttp.ClientConnectionError):
        async with weir.client() as session, session.get("/livez"):
            pass
    assert load.n_left
    truth = truth_of(weir.directory)
    load.assert_kept(truth)
    begun = load.refused & truth.lsns.keys() - load.first.keys()
    assert not begun, "a 503 for something that was accepted"
    assert long_stream[0].event_id not in truth.lsns
    n_acknowledged, n_journaled, n_left = len(load.first), len(truth.lsns), load.n_left
    if hanging:
        await stores.resume(hanging)
    else:
        await stores_true(truth, stores, weir.directory)  # nothing is left for the next start
    await weir.start()
    await load.run_out()
    await asyncio.to_thread(weir.stop)
    truth = truth_of(weir.directory)
    load.assert_kept(truth)
    counts = await stores_true(truth, stores, weir.directory)
    print(  # noqa: T201  # shown by -s
        f"stopped while {hanging or 'nothing'} hangs: {n_acknowledged} acknowledged and {n_journaled} journaled then,"
        f" {n_left} left, {len(load.refused)} refused with 503; {load}; {counts}"
    )
