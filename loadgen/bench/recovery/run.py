"""How long the service takes to recover a journal: written by a service that is killed, recovered by fresh ones in turns.

The writer keeps its stores back, so everything has to come from the journal. Each run starts on a copy of what the kill left,
and tells by /metrics how long recovery took and what CPU it needed; a checksum over profiles and decisions must be equal each
time. Seconds are of recovery alone: the start of the process, and checking the journal's tail, come on top (ready).
"""

import asyncio
import hashlib
import json
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from loadgen.bench.children import BenchError, Child, add_key, start_weir
from loadgen.bench.payloads import N_MERCHANTS, Payloads
from loadgen.bench.recovery.result import Arm, RecoveryOptions, RecoveryResult, Run
from loadgen.sender import Client, SendError, Target
from models.machine import machine
from models.scorers import NAMES, missing_scorer

KEPT_BACK = (  # of the writer: nothing but the journal is on disk when it is killed
    "l2.flush_interval_ms=3600000", "write_behind.interval_ms=60000", "journal.sync=os", "time.past_ms_max=315360000000",
)  # fmt: skip
DEADLINE_S = 120.0
SAMPLE = 50  # cards, merchants and events each, in the checksum
METRIC = re.compile(rb"^weir_recovery_(\w+) (\S+)$", re.MULTILINE)


async def run_recovery(options: RecoveryOptions, work_dir: Path | None, say: Callable[[str], None]) -> RecoveryResult:
    """Raises BenchError."""
    skipped = {name: reason for name in options.scorers if (reason := missing_scorer(name)) is not None}
    scorers = [name for name in options.scorers if name not in skipped]
    if not scorers:
        raise BenchError("; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    with tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir) as work:
        left = Path(work) / "left"
        left.mkdir()
        key = add_key(left)
        say(f"writing a journal of {options.events:,} events")
        await _write(left, Path(work), key, options)
        journal_mb = sum(file.stat().st_size for file in (left / "journal").glob("*.seg")) / 2**20
        runs: list[Run] = []
        for number in range(options.rounds):
            for name in scorers if number % 2 == 0 else scorers[::-1]:
                runs.append(await _recover(left, Path(work), key, name, options))
                say(f"round {number + 1}: {name} {runs[-1].seconds:.2f} s, {runs[-1].entries / runs[-1].seconds:,.0f} a second")
    if len({(run.checksum, run.entries) for run in runs}) > 1:
        raise BenchError("the runs do not agree: " + ", ".join(f"{r.scorer} {r.entries} {r.checksum}" for r in runs))
    return RecoveryResult(
        kind="bench recovery",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        options=options,
        machine=machine(),
        entries=runs[0].entries,
        journal_mb=round(journal_mb, 1),
        checksum=runs[0].checksum,
        arms=[_arm(name, [run for run in runs if run.scorer == name]) for name in scorers],
        runs=runs,
        skipped=skipped,
        caveats=[
            "The journal was just written, so it is read from memory; a cold one comes as fast as the disk gives it.",
            f"{options.batch_rows} events to a block and few entities to many events: with single events recovery takes a third"
            " longer, with a new card in every event it takes as long as RocksDB needs for their profiles.",
            "CPU is of the whole process, write-behind and RocksDB's flushes included; the profiles that are still dirty when"
            " recovery ends are written after it.",
        ],
    )


async def _write(data_dir: Path, logs: Path, key: str, options: RecoveryOptions) -> None:
    """A service that takes all events and labels and is then killed."""
    scorer = next(name for name in NAMES if missing_scorer(name) is None)
    child = start_weir(data_dir, logs, (*KEPT_BACK, f"scorer={scorer}", *options.settings), "weir-writer")
    try:
        target = Target.parse(child.url, key)
        client = Client(target, DEADLINE_S)
        payloads = Payloads(target, options.cards, batch_rows=options.batch_rows)
        try:
            while payloads.n_events < options.events:
                first = payloads.n_events
                await _call(client, child, payloads.batch())
                labelled = range(-(-first // options.label_every) * options.label_every, payloads.n_events, options.label_every)
                if labelled:
                    body = json.dumps([{"event_id": f"b-{n:012d}", "label": "fraud", "ts": 2 * 10**12} for n in labelled])
                    await _call(client, child, target.encode("POST", "/v1/labels", body.encode()))
        finally:
            client.close()
    finally:
        child.kill()


async def _recover(left: Path, work: Path, key: str, scorer: str, options: RecoveryOptions) -> Run:
    data_dir = work / "data"
    await asyncio.to_thread(shutil.copytree, left, data_dir)
    child = start_weir(data_dir, work, (*options.settings, f"scorer={scorer}"), f"weir-{scorer}")
    try:
        memory_mb, memory_max_mb = child.memory_mb()
        client = Client(Target.parse(child.url, key), DEADLINE_S)
        try:
            told = dict(METRIC.findall(await _get(client, child, key, "/metrics")))
            checksum = await _checksum(client, child, key, options)
        finally:
            client.close()
    finally:
        child.kill()
        await asyncio.to_thread(shutil.rmtree, data_dir)
    return Run(
        scorer=scorer,
        entries=round(float(told[b"entries"])),
        seconds=round(float(told[b"seconds"]), 4),
        cpu_s=round(float(told[b"cpu_seconds"]), 4),
        ready_s=round(child.ready_s, 3),
        memory_mb=round(memory_mb, 1),
        memory_max_mb=round(memory_max_mb, 1),
        checksum=checksum,
    )


async def _checksum(client: Client, child: Child, key: str, options: RecoveryOptions) -> str:
    """Of windows and LSN of some cards and merchants, and of some decisions; which tier holds a profile does not count."""
    digest = hashlib.sha256()
    paths = [f"/v1/entities/card/c{n:08d}" for n in _spread(options.cards)]
    paths += [f"/v1/entities/merchant/m{n:05d}" for n in _spread(N_MERCHANTS)]
    paths += [f"/v1/decisions/b-{n:012d}" for n in _spread(options.events)]
    for path in paths:
        shown: dict[str, Any] = json.loads(await _get(client, child, key, path, may_lack=True))
        for name in ("tiers", "unavailable"):
            shown.pop(name, None)
        digest.update(json.dumps(shown, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _spread(n: int) -> Iterable[int]:
    return range(0, n, max(n // SAMPLE, 1))


async def _get(client: Client, child: Child, key: str, path: str, *, may_lack: bool = False) -> bytes:
    return await _call(client, child, Target.parse(child.url, key).encode("GET", path), may_lack=may_lack)


async def _call(client: Client, child: Child, request: bytes, *, may_lack: bool = False) -> bytes:
    """The body of the reply. Raises BenchError for anything but 200, and 404 where that may be."""
    try:
        reply = await client.request(request)
    except SendError as error:
        raise BenchError(f"{child.name}: {error}") from error
    is_good = reply.status == 200 and b'"status":4' not in reply.body
    if not (is_good or (may_lack and reply.status == 404)):
        raise BenchError(f"{child.name} refused a request: {reply.status} {reply.body[:400]!r}")
    return reply.body


def _arm(scorer: str, runs: list[Run]) -> Arm:
    def median(of: Callable[[Run], float]) -> float:
        return round(statistics.median(map(of, runs)), 4)

    per_million = [1e6 * run.seconds / run.entries for run in runs]
    seconds = statistics.median(per_million)
    return Arm(
        scorer=scorer,
        seconds=round(seconds, 3),
        seconds_least=round(min(per_million), 3),
        seconds_most=round(max(per_million), 3),
        events_per_s=round(1e6 / seconds, 1),
        cpu_s=round(median(lambda run: 1e6 * run.cpu_s / run.entries), 3),
        ready_s=median(lambda run: run.ready_s),
        memory_mb=median(lambda run: run.memory_mb),
        memory_max_mb=median(lambda run: run.memory_max_mb),
    )
