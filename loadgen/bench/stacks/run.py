"""`weir bench stacks`: every stack in turn under the same limits, interleaved in rounds, each answer checked.

Phases: one core for the server, closed loop with each number of rows per request; the same servers in an open loop; two cores
with each stack's best number of workers; the image workload. All servers of a phase are up; all but the measured one are
paused, with what is below them. The client and all stores have the other cores.
"""

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

from loadgen.bench.arms import start_stores
from loadgen.bench.children import BenchError
from loadgen.bench.load.job import LoadJob
from loadgen.bench.load.progress import Step
from loadgen.bench.load.requests import draw
from loadgen.bench.load.result import Run, find_knee
from loadgen.bench.load.run import run_load
from loadgen.bench.stacks.arms import Arm, Rig, missing_here, open_arm, workloads_of
from loadgen.bench.stacks.caveats import make_caveats
from loadgen.bench.stacks.images import WORKLOADS, write_images
from loadgen.bench.stacks.limits import Limits, on_cores
from loadgen.bench.stacks.result import (
    CARD,
    WEIR_ARMS,
    Cell,
    Process,
    StacksOptions,
    StacksResult,
    Sweep,
    make_cell,
)
from loadgen.bench.stacks.sizes import size_and_build
from loadgen.stacks.database import URL_SETTING
from loadgen.stacks.launch import StackSettings
from loadgen.stacks.manifest import load_stack
from loadgen.stacks.reference import Reference
from loadgen.stacks.seed import Population, seed_database
from loadgen.stacks.weights import export_models
from models.card import INPUT_NAME
from models.machine import machine
from models.onnx_session import open_session

KNEE_P99_US = 10_000  # a rate beyond which p99 passes 10 ms is past the knee
SWEEP_CONNECTIONS = 64
IMAGE_SECONDS_MIN, IMAGE_DEADLINE_S = 3.0, 15.0
MODELS = "models"

Say = Callable[[str], None]


def count_steps(options: StacksOptions, names: Sequence[str]) -> int:
    """How many steps a run has at most, for the progress bar."""
    n, rounds = len(names), options.rounds
    images = sum(word != CARD for name in names for word in workloads_of(name)) if options.images else 0
    one_core = n * (options.starts + rounds * len(options.rows) + len(options.sweep))
    return one_core + (n * (1 + rounds) if options.two_cores else 0) + images * rounds + n


async def run_stacks(
    options: StacksOptions, data: Path, command: str, work_dir: Path | None, step: Step, say: Say
) -> StacksResult:
    """Start, measure and stop everything. Raises BenchError."""
    started = time.perf_counter()
    names, skipped = _present(options, data, say)
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        work = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-bench-", dir=work_dir, ignore_cleanup_errors=True))
        )
        rig = await _rig(options, data, work, cores[1:] or cores, stack)
        takes_cards = [name for name in names if CARD in workloads_of(name)]
        bench = _Bench(options, rig, step, say, skipped)
        with on_cores(cores[1:]):
            await bench.one_core(takes_cards, cores[:1])
        n_two = min(2, len(cores))
        if options.two_cores and n_two == 2:
            with on_cores(cores[2:]):
                await bench.two_cores(takes_cards, cores[:2])
        if options.images:
            with on_cores(cores[1:]):
                await bench.images(names, cores[:1])
        return StacksResult(
            kind="bench stacks",
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            command=command,
            options=options,
            machine=machine(),
            limits=bench.limits,
            client_cores=cores[1:],
            cells=bench.cells,
            sweeps=bench.sweeps,
            processes=list(bench.processes.values()),
            skipped=skipped,
            took_s=round(time.perf_counter() - started, 1),
            caveats=make_caveats(options, bench.cells, skipped, cores),
        )


def _present(options: StacksOptions, data: Path, say: Say) -> tuple[list[str], dict[str, str]]:
    reasons = {name: missing_here(name, data) for name in options.stacks}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in skipped.items():
        say(f"{name} is left out: {reason}")
    names = [name for name in reasons if name not in skipped]
    if not names:
        raise BenchError("no stack is left to measure: " + "; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    return names, skipped


async def _rig(options: StacksOptions, data: Path, work: Path, other_cores: Sequence[int], stack: ExitStack) -> Rig:
    """The models, the rivals' database, the right answers."""
    models = export_models(data / MODELS)
    population = Population.make(options.cards)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-pg-")))  # a socket's path must be short
    with on_cores(other_cores):
        lender = start_stores("database of the stacks", folder / "data", folder)
    stack.callback(lender.kill)
    lender.stores.pin(other_cores[0] if len(other_cores) == 1 else None)
    url = next(text.removeprefix(URL_SETTING) for text in lender.stores.settings() if text.startswith(URL_SETTING))
    try:
        await seed_database(url, population)
    except OSError as error:
        raise BenchError(f"the database of the stacks: {error}") from None
    job = LoadJob(
        "127.0.0.1", 0, "", connections=options.users, warm_s=options.warm_s, seconds=options.measure_s,
        deadline_s=options.deadline_s, cards=options.cards, merchants=len(population.merchants), zipf=options.zipf,
    )  # fmt: skip
    cards, merchants, _ = draw(job)
    (risks,) = open_session(models.card).run(None, {INPUT_NAME: population.vectors(cards, merchants)})
    (work / "arms").mkdir()
    np.save(work / "expected.npy", risks)
    if options.images:
        write_images(work / "images", Reference(population, models))
    return Rig(
        settings=StackSettings(secrets.token_urlsafe(24), url, models),
        database=lender,
        work=work / "arms",
        data=data,
        expected=work / "expected.npy",
        images=work / "images",
        other_cores=other_cores,
        job=job,
    )


class _Bench:
    """The phases, and what they have found."""

    def __init__(self, options: StacksOptions, rig: Rig, step: Step, say: Say, skipped: dict[str, str]) -> None:
        self._options, self._rig, self._step, self._say = options, rig, step, say
        self._skipped = skipped
        self.limits: dict[str, str] = {}
        self.cells: list[Cell] = []
        self.sweeps: list[Sweep] = []
        self.processes: dict[str, Process] = {}

    async def one_core(self, names: Sequence[str], cores: Sequence[int]) -> None:
        """Closed loop with each number of rows, then the open loop's sweep."""
        options = self._options
        with Limits(cores, options.memory_bytes) as limits, ExitStack() as stack:
            self.limits["1"] = limits.how
            self._say(f"one core: {limits.how}")
            arms = await self._open(names, limits, stack, starts=options.starts)
            for rows in options.rows:
                runs = await self._rounds(arms, CARD, rows)
                self.cells += [make_cell(name, CARD, 1, arms[name].workers, of_arm) for name, of_arm in runs.items()]
            for name, arm in arms.items():
                if options.sweep:
                    self.sweeps.append(await self._sweep(arm))
                mine = [cell for cell in self.cells if cell.arm == name]
                self.processes[name].pss_mb = max((cell.pss_mb for cell in mine), default=0.0)

    async def two_cores(self, names: Sequence[str], cores: Sequence[int]) -> None:
        """Closed loop, one event per request, with each stack's best number of workers."""
        with Limits(cores, self._options.memory_bytes) as limits, ExitStack() as stack:
            self.limits["2"] = limits.how
            self._say(f"two cores: {limits.how}")
            arms = await self._open(names, limits, stack, best=True)
            runs = await self._rounds(arms, CARD, 1)
            self.cells += [make_cell(name, CARD, 2, arms[name].workers, of_arm) for name, of_arm in runs.items()]

    async def images(self, names: Sequence[str], cores: Sequence[int]) -> None:
        """MobileNetV2, one image per request, in each of the forms that a stack takes."""
        takes = [name for name in names if set(WORKLOADS) & set(workloads_of(name))]
        # Some take a second per image as JSON, with ten users in front of them.
        longer = max(self._options.measure_s, IMAGE_SECONDS_MIN)
        self._rig.job = msgspec.structs.replace(self._rig.job, seconds=longer, deadline_s=IMAGE_DEADLINE_S)
        with Limits(cores, self._options.memory_bytes) as limits, ExitStack() as stack:
            arms = await self._open(takes, limits, stack, images=True)
            for workload in WORKLOADS:
                those = {name: arm for name, arm in arms.items() if workload in arm.workloads}
                runs = await self._rounds(those, workload, 1)
                self.cells += [make_cell(name, workload, 1, arms[name].workers, of_arm) for name, of_arm in runs.items()]
            for name in (name for name in arms if CARD not in arms[name].workloads):
                self.processes[name].pss_mb = max(cell.pss_mb for cell in self.cells if cell.arm == name)

    async def _open(
        self,
        names: Sequence[str],
        limits: Limits,
        stack: ExitStack,
        *,
        starts: int = 1,
        best: bool = False,
        images: bool = False,
    ) -> dict[str, Arm]:
        """Each of them `starts` times; the last ones stay. One that does not start is left out with its reason."""
        arms: dict[str, Arm] = {}
        for name in names:
            seconds = []
            for number in range(starts):
                self._step(f"{name}: start {number + 1} of {starts}")
                workers = load_stack(name).workers_best if best and name not in WEIR_ARMS else 1
                try:
                    arm = await open_arm(name, self._rig, limits, workers, images=images)
                except BenchError as error:
                    self._say(f"{name} is left out: {error}")
                    self._skipped[f"{name}, {'images' if images else f'{len(limits.cores)} core(s)'}"] = str(error)
                    break
                seconds.append(arm.first_answer_s)
                if number + 1 < starts:
                    arm.stop()
                else:
                    stack.callback(arm.stop)
                    arms[name] = arm
            if name in arms and name not in self.processes:
                self.processes[name] = self._process(name, seconds)
        return arms

    def _process(self, name: str, seconds: list[float]) -> Process:
        size_mb, build_s, build_cpu_s = size_and_build(name, self._rig.data)
        title, language, best = WEIR_ARMS.get(name, ""), "Go" if name == "weir-go" else "Python + Go", 1
        if name not in WEIR_ARMS:
            stack = load_stack(name)
            title, language, best = stack.title, stack.language, stack.workers_best
        return Process(
            name, title, language, seconds, None if size_mb is None else round(size_mb, 1), build_s, build_cpu_s, 0.0, best
        )

    async def _rounds(self, arms: dict[str, Arm], workload: str, rows: int) -> dict[str, list[Run]]:
        """Interleaved: each arm once per round; who begins changes, so that nobody always follows the same one."""
        runs: dict[str, list[Run]] = {name: [] for name in arms}
        names, rounds = list(arms), self._options.rounds
        for number in range(rounds):
            first = number % max(1, len(names))
            for name in names[first:] + names[:first]:
                self._step(f"{name}: {workload}, {rows} per request, round {number + 1} of {rounds}")
                runs[name].append(await self._measure(arms[name], arms[name].job(self._rig, workload, rows)))
        return {name: of_arm for name, of_arm in runs.items() if of_arm}

    async def _sweep(self, arm: Arm) -> Sweep:
        """The open loop, at shares of the rate that the closed loop has reached."""
        cell = next(cell for cell in self.cells if cell.arm == arm.name and cell.rows == min(self._options.rows))
        runs = []
        for share in self._options.sweep:
            rate = max(1.0, round(share * cell.requests_per_s))
            self._step(f"{arm.name}: open loop, {rate:,.0f}/s")
            job = msgspec.structs.replace(
                arm.job(self._rig, CARD, cell.rows), rate=rate, connections=SWEEP_CONNECTIONS, arrivals="poisson"
            )
            runs.append(await self._measure(arm, job))
        return Sweep(arm.name, find_knee(runs, KNEE_P99_US), runs)

    async def _measure(self, arm: Arm, job: LoadJob) -> Run:
        """One run while only this arm is awake. Raises BenchError if it has died."""
        arm.child.resume()
        try:
            run = await run_load("closed" if job.rate is None else "open", job, arm.watched)
        finally:
            if arm.child.alive():
                arm.child.pause()
        if not arm.child.alive():
            raise BenchError(f"{arm.name} has ended while it was measured")
        await asyncio.sleep(0)
        return run
