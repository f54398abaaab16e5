"""What surrounds a score call: an empty call into Go, writing one row, and handing a batch to a thread of the core.

`python -m loadgen.bench.scorers.calls REPEATS` prints a Calls as JSON, for the cores that the process may use.
`submit`: from the call until the event loop (uvloop) has seen the eventfd, collected, and resumed the waiting coroutine.
`eventfd`: the same without the core, the loop's own share. Alternated, medians; profiles of 10,000 entities, begun before.
"""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable

import msgspec
import uvloop

from features.plan import compile_plan
from features.slab import Slab
from features.spec import load_spec
from gocore.binding import ADVANCE, RISK, Core, load_core
from loadgen.bench.scorers.result import Calls
from loadgen.bench.scorers.stream import Stream
from models.arena import Arena
from models.card import ARTIFACTS, read_model

N_ROWS, N_ENTITIES, N_SMALL_CALLS = 256, 10_000, 1_000
FLAGS = ADVANCE | RISK


def measure_calls(repeats: int) -> Calls:
    """`repeats` batches inline and submitted; small calls are timed a thousand at once."""
    plan, core = compile_plan(load_spec("cards")), load_core()
    stream = Stream(plan, N_ENTITIES, 50.0, 7)
    arena = Arena(plan, [Slab(kind, stream.per_kind) for kind in plan.kinds], 1_024)
    core.bind(core.load_plan(plan.to_bytes()), arena)
    model = core.load_model(read_model(ARTIFACTS / plan.spec_name), plan.n_features)
    for block in stream.each_once(0):
        core.score(model, arena, 0, block.fill(arena), FLAGS)
    slots, columns = tuple(block.slots[0].tolist()), tuple(block.columns[0].tolist())
    empty = core._lib.weir_abi_version  # a call that does nothing; nobody else has a use for it
    inline, submitted, eventfd = uvloop.run(_alternate(_Batches(core, model, arena, stream), repeats))
    return Calls(
        cores=len(os.sched_getaffinity(0)),
        empty_call_us=_small(empty),
        put_us=_small(lambda: arena.put(0, 1, slots, columns)),
        eventfd_us=eventfd,
        inline_us=inline,
        submit_us=submitted,
    )


def _small(call: Callable[[], object]) -> float:
    times = []
    for _ in range(9):
        start = time.perf_counter_ns()
        for _ in range(N_SMALL_CALLS):
            call()
        times.append((time.perf_counter_ns() - start) / N_SMALL_CALLS / 1_000)
    return round(statistics.median(times), 3)


class _Batches:
    """Batches of a stream, scored inline or on a thread of the core."""

    def __init__(self, core: Core, model: int, arena: Arena, stream: Stream) -> None:
        self.core, self.model, self.arena, self.stream = core, model, arena, stream
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.woken: asyncio.Future[None]

    def next(self) -> None:
        self.stream.draw(N_ROWS).fill(self.arena)

    def wake(self) -> None:
        os.eventfd_read(self.fd)
        self.woken.set_result(None)

    def inline(self) -> None:
        self.core.score(self.model, self.arena, 0, N_ROWS, FLAGS)

    def submit(self) -> None:
        self.core.submit(self.model, self.arena, 0, N_ROWS, FLAGS, self.fd)


async def _alternate(batches: _Batches, repeats: int) -> tuple[float, float, float]:
    loop = asyncio.get_running_loop()
    loop.add_reader(batches.fd, batches.wake)
    times: list[list[int]] = [[], [], []]
    try:
        for _ in range(repeats):
            batches.next()
            start = time.perf_counter_ns()
            batches.inline()
            times[0].append(time.perf_counter_ns() - start)
            batches.next()
            batches.woken = loop.create_future()
            start = time.perf_counter_ns()
            batches.submit()
            await batches.woken
            batches.core.collect(batches.arena)
            times[1].append(time.perf_counter_ns() - start)
            batches.woken = loop.create_future()
            start = time.perf_counter_ns()
            os.eventfd_write(batches.fd, 1)
            await batches.woken
            times[2].append(time.perf_counter_ns() - start)
    finally:
        loop.remove_reader(batches.fd)
        os.close(batches.fd)
    inline, submitted, eventfd = (round(statistics.median(of) / 1_000, 2) for of in times)
    return inline, submitted, eventfd


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measure_calls(int(sys.argv[1]))))
