"""`weir bench tiers`: the same stream through the service in one configuration after the other, each on a fresh state.

A run is a new data directory, a new Valkey and a new Postgres. Tiers are turned off with PUT /v1/tiers before the first event,
as an analyst does it. Each configuration has two kinds of runs: one that decides, over one connection, in batches, with a trace
of each event, so that it can be held against the reference row by row; and one or more that are measured, with single requests
over several connections and without traces. Measured rounds are interleaved.
"""

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from features.spec import load_spec
from loadgen.bench.arms import start_stores
from loadgen.bench.children import BenchError, Child, add_key, start_weir
from loadgen.bench.stores import missing_stores
from loadgen.bench.tiers.changes import compare
from loadgen.bench.tiers.configs import REMOTE, TIERS, Arm, parse_config, plan_arms
from loadgen.bench.tiers.line import stretched
from loadgen.bench.tiers.progress import Reporter
from loadgen.bench.tiers.result import ArmResult, Changes, Distance, Measured, TiersOptions, TiersResult
from loadgen.recorder import Latencies, Recorder, percentile_curve, summarise
from loadgen.replay import Options, Replay, ReplayStopped, read_tiers
from loadgen.result import TierUse, tier_use, tiers_between
from loadgen.sender import Client, SendError, Target
from loadgen.source import Stream
from models.dataset import Dataset
from models.machine import machine

DEADLINE_S = 60.0
BASE = ("time.clock=stream",)


class Sent(msgspec.Struct):
    """What one run left."""

    recorder: Recorder
    stream: Stream
    tiers: list[TierUse]
    cpu_s: float
    round_trip_ms: float | None


def arms_of(options: TiersOptions) -> list[Arm]:
    """What is compared. Raises BenchError."""
    arms = plan_arms([parse_config(text) for text in options.configs], options.delays_ms, options.scorer)
    if not options.stores:
        named = {tier for arm in arms for tier in arm.config.off if tier in REMOTE and arm.config.off != TIERS}
        if named or any(options.delays_ms):
            raise BenchError(f"there is no L3 to turn off or to delay: {missing_stores() or '--no-stores'}")
    return arms


async def run_tiers(
    options: TiersOptions, arms: Sequence[Arm], dataset: Dataset, work_dir: Path | None, report: Reporter
) -> TiersResult:
    """Raises BenchError."""
    spec = load_spec(options.spec)
    distances: dict[float, float | None] = {}
    decided: dict[Arm, Changes | None] = {}
    measured: dict[Arm, list[Sent]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir, ignore_cleanup_errors=True) as work:
        rig = _Rig(options, dataset, Path(work), report)
        reference = await rig.decide(arms[0])
        decided[arms[0]] = None
        for arm in arms[1:]:
            here = await rig.decide(arm)
            decided[arm] = compare(here.stream, spec, reference.recorder, here.recorder, options.examples_max)
        for number in range(options.rounds):
            for arm in arms if number % 2 == 0 else arms[::-1]:
                sent = await rig.measure(arm, number)
                measured[arm].append(sent)
                distances.setdefault(arm.delay_ms, sent.round_trip_ms)
    return TiersResult(
        kind="bench tiers",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        options=options,
        machine=machine(),
        n_events=dataset.n_rows,
        n_cards=len(set(dataset.card_ids)),
        distances=[Distance(delay, None if ms is None else round(ms, 3)) for delay, ms in sorted(distances.items())],
        arms=[_arm_result(arm, options.scorer, measured[arm], decided[arm], arm is arms[0]) for arm in arms],
        caveats=_caveats(options),
    )


class _Rig:
    """Starts what a run needs, sends the stream, takes everything down."""

    def __init__(self, options: TiersOptions, dataset: Dataset, work: Path, report: Reporter) -> None:
        self._options = options
        self._dataset = dataset
        self._work = work
        self._report = report
        self._has_stores = options.stores
        (work / "key").mkdir()
        self._key = add_key(work / "key")

    async def decide(self, arm: Arm) -> Sent:
        """The run whose decisions count."""
        sending = Options(mode="batch", clients=1, batch_rows=self._options.batch_rows, trace=True, deadline_s=DEADLINE_S)
        return await self._run(arm, sending, f"{arm.name}: decisions")

    async def measure(self, arm: Arm, number: int) -> Sent:
        """A run whose times count."""
        sending = Options(mode="http", clients=self._options.clients, deadline_s=DEADLINE_S)
        return await self._run(arm, sending, f"{arm.name}: latency, round {number + 1} of {self._options.rounds}")

    async def _run(self, arm: Arm, sending: Options, what: str) -> Sent:
        self._report.begin(what)
        with self._service(arm) as (child, round_trip_ms):
            target = Target.parse(child.url, self._key)
            await _turn_off(target, arm.config.off, self._has_stores)
            stream = Stream(self._dataset)
            recorder = Recorder(self._dataset.n_rows, sending.clients)
            try:
                before = await read_tiers(target, DEADLINE_S)
                cpu_s = child.cpu_s()
                replay = Replay(target, stream, sending, recorder)
                await replay.run(lambda: self._report.at(recorder.n_scored + recorder.n_failed))
                cpu_s = child.cpu_s() - cpu_s
                after = await read_tiers(target, DEADLINE_S)
            except ReplayStopped as error:
                raise BenchError(f"{what}: {error}") from error
            problem = replay.problem or next((error.example for error in recorder.errors()), None)
            if replay.problem or recorder.n_scored == 0:
                raise BenchError(f"{what}: {problem or 'nothing was scored'}")
        self._report.end(self._dataset.n_rows)
        tiers = [tier_use(tier) for tier in tiers_between(before, after) or []]
        return Sent(recorder, stream, tiers, cpu_s, round_trip_ms)

    @contextlib.contextmanager
    def _service(self, arm: Arm) -> "Iterator[tuple[Child, float | None]]":
        """A service on a state that nobody has used, and the round trip to its Redis."""
        state = Path(tempfile.mkdtemp(prefix="state-", dir=self._work))
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, state, ignore_errors=True)
            stores: tuple[str, ...] = ()
            if self._has_stores:
                lender = start_stores("tiers", state / "stores", state)
                stack.callback(lender.kill)
                stores = lender.stores.settings()
                if not stores:
                    raise BenchError("the embedded stores were not found")
            line = stack.enter_context(stretched(stores, arm.delay_ms))
            data_dir = state / "data"
            shutil.copytree(self._work / "key", data_dir)
            settings = (*BASE, *self._options.settings, *line.settings, f"spec={self._options.spec}")
            settings = (*settings, f"scorer={arm.config.scorer or self._options.scorer}")
            child = start_weir(data_dir, state, settings)
            stack.callback(child.kill)
            yield child, line.round_trip_ms


async def _turn_off(target: Target, tiers: Sequence[str], has_stores: bool) -> None:
    """As an analyst does. Raises BenchError."""
    client = Client(target, DEADLINE_S)
    body = msgspec.json.encode({"enabled": False, "reason": "weir bench tiers"})
    try:
        for tier in tiers:
            if not has_stores and tier in REMOTE:
                continue
            reply = await client.request(target.encode("PUT", f"/v1/tiers/{tier}", body))
            if reply.status != 200:
                raise BenchError(f"turning {tier} off: {reply.status} {reply.body[:200]!r}")
    except SendError as error:
        raise BenchError(f"turning {tier} off: {error}") from error
    finally:
        client.close()


def _arm_result(arm: Arm, scorer: str, sent: Sequence[Sent], changes: Changes | None, is_reference: bool) -> ArmResult:
    rounds = [_measured(each) for each in sent]
    latencies = Latencies.merged([latency for each in sent for latency in each.recorder.requests])
    return ArmResult(
        name=arm.name,
        off=list(arm.config.off),
        scorer=arm.config.scorer or scorer,
        delay_ms=arm.delay_ms,
        is_reference=is_reference,
        measured=_median(rounds),
        rounds=rounds,
        tiers=sent[-1].tiers,
        curve=percentile_curve(latencies),
        changes=changes,
    )


def _measured(sent: Sent) -> Measured:
    recorder = sent.recorder
    summary = summarise(Latencies.merged(recorder.requests))
    active_s = recorder.active_s()
    return Measured(
        p50_us=summary.p50,
        p90_us=summary.p90,
        p99_us=summary.p99,
        p99_9_us=summary.p99_9,
        max_us=summary.max,
        mean_us=summary.mean,
        requests_per_s=round(recorder.n_scored / active_s, 1) if active_s > 0 else 0.0,
        cpu_us_per_request=round(1e6 * sent.cpu_s / recorder.n_scored, 2),
        failed=recorder.n_failed,
    )


def _median(rounds: Sequence[Measured]) -> Measured:
    """Each figure's own median; failures add up."""

    def median(of: Callable[[Measured], float]) -> float:
        return statistics.median(map(of, rounds))

    return Measured(
        p50_us=round(median(lambda m: m.p50_us)),
        p90_us=round(median(lambda m: m.p90_us)),
        p99_us=round(median(lambda m: m.p99_us)),
        p99_9_us=round(median(lambda m: m.p99_9_us)),
        max_us=round(median(lambda m: m.max_us)),
        mean_us=round(median(lambda m: m.mean_us), 1),
        requests_per_s=round(median(lambda m: m.requests_per_s), 1),
        cpu_us_per_request=round(median(lambda m: m.cpu_us_per_request), 2),
        failed=sum(m.failed for m in rounds),
    )


def _caveats(options: TiersOptions) -> list[str]:
    found = [
        "Service, stores, proxies and load generator share one machine: what one of them takes, the others lack.",
        "Every run starts cold, with an empty state, and its first requests are in the figures.",
        f"Latencies are of single requests over {options.clients} connections in a closed loop; decisions are of another run,"
        f" over one connection in batches of {options.batch_rows}, so that every configuration has the same order.",
        "CPU is of the service's process, its background work in that time included; that of the stores is not.",
        "What a tier was asked is profiles, not round trips: all misses of one turn share a trip.",
    ]
    if len(options.delays_ms) > 1 or options.delays_ms[0]:
        found.append("A delay is half on the way there and half on the way back; a proxy's own 0.1 to 0.3 ms come on top.")
    if not options.stores:
        found.append("There was no L3: neither a Redis nor a Postgres.")
    return found
