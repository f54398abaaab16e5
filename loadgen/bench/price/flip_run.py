"""What metrics and traces cost a single-event request: switched on and off in one running service, under one load.

See service/price_flip.py for why. Slices lie next to each other, on-off, off-on, on-off, ...: what drifts over seconds hits
both. The CPU is that of all threads of the service's process, by the kernel's clock of it, in ns.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from loadgen.bench.children import BenchError, Child, add_key, pinned
from loadgen.bench.closed_loop import ClosedLoop
from loadgen.bench.file_system import file_system
from loadgen.bench.payloads import Payloads
from loadgen.bench.price.flip_result import FlipOptions, FlipResult, Pair, make_prices
from loadgen.bench.sizing import FLAGGED_SETTING
from loadgen.bench.touch import touch_cards
from loadgen.sender import Target
from models.machine import machine

ON, OFF = signal.SIGUSR1, signal.SIGUSR2
WARM_S = 1.0  # of a load, before its first slice
TRACES_GUARD_S, TRACES_SLICE_S = 1.3, 2.0  # spans are sent once a second, by a thread: its work belongs to the slice before
ALL_TRACES = ("otel.traces_per_s_max=100000", "otel.queue_spans_max=1000000")


async def run_flips(options: FlipOptions, work_dir: Path | None, say: Callable[[str], None]) -> FlipResult:
    """One service after the other, each with one part that can be switched. Raises BenchError."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    pairs: list[Pair] = []
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir)))
        stack.enter_context(pinned(client_core))
        async with _collector() as endpoint:
            children = {}
            for flip in options.flips:
                say(f"starting the service whose {flip} can be flipped")
                children[flip] = await _start(flip, work, options, server_core, endpoint)
                stack.callback(children[flip][0].stop)
            for number in range(options.rounds):
                say(f"round {number + 1} of {options.rounds}")
                for flip, (child, target, payloads) in children.items():
                    for connections in options.connections:
                        pairs += await _measure(flip, child, target, payloads, connections, options)
        return FlipResult(
            kind="bench price --flip",
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            options=options,
            machine=machine(),
            file_system=file_system(work),
            server_core=server_core,
            client_core=client_core,
            prices=make_prices(pairs, options.traced_share),
            pairs=pairs,
            caveats=[
                "On both sides of a switch stands one call more than in the service, some 0.1 µs for each thing counted.",
                f"Of the probes of the event loop (50 a second) only the count is switched. {options.cards:,} cards, every"
                " event new, all profiles in L1, loopback, no TLS; all threads of the service share a core.",
                f"Traces: {options.traced_share:.0%} of requests, their spans sent to an endpoint beside the client that reads"
                " and forgets them. What they cost the others, by parting batches, is in their price.",
                "`nothing` is the control: a switch without a part. Its interval shows what this method cannot tell from 0.",
            ],
        )


@asynccontextmanager
async def _collector() -> AsyncIterator[str]:
    """An OTLP endpoint that reads spans and forgets them; yields its URL."""

    async def take(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response()

    runner = web.ServerRunner(web.Server(take))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    finally:
        await runner.cleanup()


async def _start(
    flip: str, work: Path, options: FlipOptions, core: int | None, endpoint: str
) -> tuple[Child, Target, Payloads]:
    data_dir = work / flip
    data_dir.mkdir()
    key = add_key(data_dir)
    settings = [FLAGGED_SETTING, *options.settings, f"scorer={options.scorer}", "server.port=0"]
    if flip == "traces":
        settings += [f"otel.endpoint={endpoint}", f"otel.share={options.traced_share}", *ALL_TRACES]
    sets = [part for setting in settings for part in ("--set", setting)]
    with pinned(core):
        argv = [sys.executable, "-m", "service.price_arm", "--flip", flip, "--data-dir", str(data_dir), *sets]
        child = await asyncio.to_thread(Child, flip, argv, work)
    target = Target.parse(child.url, key)
    payloads = Payloads(target, options.cards)
    await touch_cards(child, target, payloads, options.cards)
    child.pause()
    return child, target, payloads


async def _measure(
    flip: str, child: Child, target: Target, payloads: Payloads, connections: int, options: FlipOptions
) -> list[Pair]:
    """The pairs of one load."""
    guard_s, slice_s, n_pairs = options.guard_s, options.slice_s, options.pairs
    if flip == "traces":
        guard_s, slice_s = max(guard_s, TRACES_GUARD_S), max(slice_s, TRACES_SLICE_S)
        n_pairs = max(n_pairs // 2, 2)
    seconds = WARM_S + 2 * n_pairs * (guard_s + slice_s)
    child.resume()
    load = ClosedLoop(target, payloads.one, connections)
    running = asyncio.create_task(load.run(0.0, seconds + 1.0, child))
    try:
        await asyncio.sleep(WARM_S)
        pairs = []
        for number in range(n_pairs):
            spent: dict[bool, tuple[float, int]] = {}
            for is_on in (True, False) if number % 2 == 0 else (False, True):
                child.signal(ON if is_on else OFF)
                await asyncio.sleep(guard_s)
                cpu, n = child.cpu_s(), payloads.n_events
                await asyncio.sleep(slice_s)
                spent[is_on] = (child.cpu_s() - cpu) * 1e6, payloads.n_events - n
            if running.done():
                break
            (on, n_on), (off, n_off) = spent[True], spent[False]
            if not n_on or not n_off:
                raise BenchError(f"no request in a slice of {slice_s:g} s: a longer one, or a quieter machine")
            pairs.append(Pair(flip, connections, round(on / n_on, 4), round(off / n_off, 4), n_on + n_off, number % 2 == 0))
        sample = await running
    finally:
        running.cancel()
        if child.alive():
            child.signal(ON)
            child.pause()
    if sample.errors:
        raise BenchError(f"{sample.errors} errors with {flip}, the first: {sample.error_example}")
    return pairs
