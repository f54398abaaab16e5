"""Does a toggle block scoring? One service under a steady load, in turn left alone and toggled, over and over.

Each toggle turns a tier off and on again, or changes the engine and changes it back; a tier stays off for a moment only, so
that what is seen is the toggle and not what it costs to be without the tier (`weir bench tiers` tells that). The load is an
open loop: a request that the service keeps waiting is charged from the time at which it was due.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from loadgen.bench.children import BenchError, add_key, start_weir
from loadgen.bench.stores import missing_stores
from loadgen.bench.toggles.result import Toggled, TogglesOptions, TogglesResult
from loadgen.recorder import Latencies, LatencySummary, Recorder, summarise
from loadgen.replay import Options, Replay, ReplayStopped
from loadgen.sender import Client, SendError, Target
from loadgen.source import Stream, open_dataset
from models.dataset import Dataset
from models.generator import EVENTS_MIN, generate
from models.machine import machine
from models.scorers import NAMES, missing_scorer

DEADLINE_S = 30.0
OFF_S = 0.02  # a tier stays off
AFTER_S = 0.2  # after a switch in which a request that is due counts to it
SPREAD = 0.8  # of a window: the toggles lie in it, so that the next quiet window begins with everything on
LEFT_OUT = 0.25  # of a quiet window: what a tier still catches up belongs to neither
WARM_S = 2.0


async def run_toggles(options: TogglesOptions, work_dir: Path | None, say: Callable[[str], None]) -> TogglesResult:
    """Raises BenchError."""
    has_stores = missing_stores() is None
    with tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir, ignore_cleanup_errors=True) as work:
        data_dir = Path(work) / "data"
        key = add_key(data_dir)
        dataset = _dataset(options, Path(work))
        stores = ("embedded=true",) if has_stores else ()
        child = start_weir(data_dir, Path(work), (*options.settings, *stores, "time.clock=stream"))
        try:
            target = Target.parse(child.url, key)
            switches = await _switches(target, has_stores)
            stream, recorder = Stream(dataset), Recorder(dataset.n_rows, options.clients)
            sending = Options(mode="http", clients=options.clients, rate=options.rate, deadline_s=DEADLINE_S)
            replay = Replay(target, stream, sending, recorder)
            toggler = asyncio.create_task(_toggle(target, options, switches, recorder, say))
            try:
                await replay.run(lambda: None)
            except ReplayStopped as error:
                raise BenchError(str(error)) from error
            finally:
                toggler.cancel()
                told = (await asyncio.gather(toggler, return_exceptions=True))[0]
            if isinstance(told, BaseException):
                raise BenchError(f"toggling ended early: {told!r}")
            if replay.problem:
                raise BenchError(replay.problem)
        finally:
            child.kill()
    return _result(options, recorder, told, has_stores)


def _dataset(options: TogglesOptions, work: Path) -> Dataset:
    n_rows = int(options.rate * (WARM_S + 2 * options.windows * options.seconds))
    file = work / "stream.parquet"
    pq.write_table(generate(max(n_rows, EVENTS_MIN), seed=1), file)
    return open_dataset(file, "cards", limit=n_rows)


async def _switches(target: Target, has_stores: bool) -> list[tuple[str, list[tuple[str, bytes]]]]:
    """What is toggled, each with its requests: there and back."""
    client = Client(target, DEADLINE_S)
    try:
        scorer = msgspec.json.decode((await client.request(target.encode("GET", "/v1/scorer"))).body)["scorer"]
    finally:
        client.close()
    tiers = ["l1", "bloom", "l2", *(("redis", "postgres") if has_stores else ())]
    found = [(tier, [(f"/v1/tiers/{tier}", _body(enabled=is_on)) for is_on in (False, True)]) for tier in tiers]
    other = next((name for name in NAMES if name != scorer and missing_scorer(name) is None), None)
    if other is not None:
        found.append(("scorer", [("/v1/scorer", _body(scorer=name)) for name in (other, scorer)]))
    return found


def _body(**what: object) -> bytes:
    return msgspec.json.encode(what | {"reason": "weir bench toggles"})


async def _toggle(
    target: Target, options: TogglesOptions, switches: list[tuple[str, list[tuple[str, bytes]]]], recorder: Recorder,
    say: Callable[[str], None],
) -> dict[str, list[tuple[float, float]]]:  # fmt: skip
    """Switch in every second window; when each PUT began and how long it took, s, by what was switched. Raises BenchError."""
    client = Client(target, DEADLINE_S)
    took: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in switches}
    per_window = options.toggles / options.windows / 2  # there and back are two
    gap_s = options.seconds * SPREAD / per_window
    n = 0
    try:
        while recorder.active_s() == 0.0:  # noqa: ASYNC110  # the replay connects and encodes first
            await asyncio.sleep(0.01)
        for window in range(options.windows):
            starts_at = WARM_S + (2 * window + 1) * options.seconds
            say(f"window {window + 1} of {options.windows}")
            while n < round((window + 1) * per_window):
                due = starts_at + (n - round(window * per_window)) * gap_s
                await asyncio.sleep(max(due - recorder.active_s(), 0.0))
                name, there_and_back = switches[n % len(switches)]
                for path, body in there_and_back:
                    began_s, started = recorder.active_s(), time.perf_counter()
                    reply = await client.request(target.encode("PUT", path, body))
                    took[name].append((began_s, time.perf_counter() - started))
                    if reply.status != 200:
                        raise BenchError(f"{path}: {reply.status} {reply.body[:200]!r}")
                    await asyncio.sleep(OFF_S)
                n += 1
    except SendError as error:
        raise BenchError(f"toggling: {error}") from error
    finally:
        client.close()
    return took


def _result(
    options: TogglesOptions, recorder: Recorder, took: dict[str, list[tuple[float, float]]], has_stores: bool
) -> TogglesResult:
    due_s = np.arange(recorder.n_rows) / options.rate - WARM_S
    window = np.floor(due_s / options.seconds).astype(np.int64)
    place = due_s / options.seconds - window
    is_scored = recorder.latency_us >= 0
    is_toggling = is_scored & (window >= 0) & (window % 2 == 1)
    is_quiet = is_scored & (window >= 0) & (window % 2 == 0) & (place >= LEFT_OUT)
    quiet, toggling = recorder.latency_us[is_quiet], recorder.latency_us[is_toggling]
    pairs = []
    for number in range(options.windows):
        parts = (
            recorder.latency_us[is_quiet & (window == 2 * number)],
            recorder.latency_us[is_toggling & (window == 2 * number + 1)],
        )
        pairs.append((_p99(parts[0]), _p99(parts[1])))
    summaries = _summary(quiet), _summary(toggling)
    return TogglesResult(
        kind="bench toggles",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        options=options,
        machine=machine(),
        quiet=summaries[0],
        toggling=summaries[1],
        p99_ratio=round(summaries[1].p99 / max(summaries[0].p99, 1), 3),
        pairs=pairs,
        degraded=sum(recorder.degraded_counts().values()),
        failed=recorder.n_failed,
        toggled=[_toggled(name, puts, recorder, options.rate) for name, puts in took.items() if puts],
        caveats=[
            "Service, stores and load generator share one machine.",
            "A tier is off for 20 ms and the time that its PUT takes: what it costs to be without it is another question.",
            *([] if has_stores else ["There was no L3: no Valkey and Postgres are installed."]),
        ],
    )


def _toggled(name: str, puts: Sequence[tuple[float, float]], recorder: Recorder, rate: float) -> Toggled:
    ms = [seconds * 1e3 for _, seconds in puts]
    rows: set[int] = set()
    for began_s, seconds in puts:
        rows.update(range(int(began_s * rate), min(int((began_s + seconds + AFTER_S) * rate) + 1, recorder.n_rows)))
    latencies = recorder.latency_us[sorted(rows)]
    most = int(latencies.max(initial=0))
    return Toggled(name, len(ms), round(statistics.median(ms), 2), round(max(ms), 2), _p99(latencies), most)


def _p99(latencies_us: npt.NDArray[np.int64]) -> int:
    return int(np.percentile(latencies_us, 99)) if len(latencies_us) else 0


def _summary(latencies_us: npt.NDArray[np.int64]) -> LatencySummary:
    latencies = Latencies()
    latencies.values_us.extend(latencies_us.tolist())
    return summarise(latencies.histogram())
