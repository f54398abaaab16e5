"""All engines over the same events: in every round, each arm has its batches of one size in turn, right after one another.

Before its batches are timed, an arm gets events that bring its code, and where they are few its profiles, back into the
processor's caches. Garbage collection is off, which favours the arms with many Python objects.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.plan import Plan
from gocore.locate import missing_core
from loadgen.bench.children import BenchError
from loadgen.bench.scorers.arms import GoArm, ObjectsArm, OnnxArm, OrtArm, Owner, ReadyArm, SessionArm, Step
from loadgen.bench.scorers.result import Cell, Scene, ScorersOptions
from loadgen.bench.scorers.stream import CHUNK_ROWS, Block, Stream, ring_moves
from models.onnx_scorer import OnnxScorer

SEED = 7
ARMS = ("ort", "session.run", "go", "onnx", "objects")  # in the order of tables
HISTORY_ROWS = 20_000  # events before the first timed one; one per entity if that is more
HOT_ENTITIES_MAX = 40_000  # up to here every profile is touched before an arm's batches are timed: 36 MB of slabs
WARM_CHUNKS = 32  # of events before an arm's batches are timed, where profiles are too many: page tables and caches are hot
BATCHES_MIN = 12  # per round
TOLERANCE = 1e-6  # of a score, between engines

Float32s = npt.NDArray[np.float32]


class Sample(NamedTuple):
    """One arm, batch size and round: µs per transaction, and the sum of the scores."""

    features_us: float
    total_us: float
    cpu_us: float
    checksum: float


class Population:
    """A number of entities: their stream, and the arms with their profiles."""

    def __init__(self, plan: Plan, model_file: Path, entities: int, options: ScorersOptions, *, objects: bool) -> None:
        self._plan, self._options, self.entities = plan, options, entities
        self.stream = Stream(plan, entities, 0.0, SEED)
        per_kind, rows_max = self.stream.per_kind, max(options.rows)
        scorer = OnnxScorer(plan, model_file)
        self._onnx = OnnxArm(plan, scorer, per_kind, rows_max, options.huge_pages)
        self._go = None
        if missing_core() is None:
            self._go = GoArm(plan, model_file, per_kind, rows_max, options.huge_pages)
        self._objects = ObjectsArm(scorer, per_kind, rows_max) if objects else None
        self._ready = (OrtArm(model_file, rows_max, plan.n_features), SessionArm(scorer, rows_max))

    def measure(self, pace: str, events_per_s: float, say: Callable[[str], None]) -> tuple[Scene, list[Cell]]:
        """Let every entity have its events at this pace, then time every batch size in every round. Raises BenchError."""
        with _without_gc():
            return self._measure(pace, events_per_s, say)

    def _measure(self, pace: str, events_per_s: float, say: Callable[[str], None]) -> tuple[Scene, list[Cell]]:
        self.stream.step_us = 1e6 / events_per_s
        name = f"{self.entities:,} {pace}"
        say(f"{name}: profiles")
        owners: list[Owner] = [arm for arm in (self._onnx, self._go, self._objects) if arm is not None]
        for block in self.stream.each_once(min(HISTORY_ROWS, 4 * self.entities)):
            for arm in owners:
                arm.advance(block)
        samples: dict[tuple[int, str], list[Sample]] = {}
        moves: list[float] = []
        for number in range(self._options.rounds):
            say(f"{name}: round {number + 1} of {self._options.rounds}")
            for n in self._options.rows:
                for arm_name, sample in self._round(n, moves):
                    samples.setdefault((n, arm_name), []).append(sample)
        hours_between = self.stream.per_kind / events_per_s / 3_600
        scene = Scene(name, self.entities, round(events_per_s, 3), hours_between, round(statistics.mean(moves), 3))
        return scene, _cells(name, samples, self._options)

    def _round(self, n: int, moves: list[float]) -> Iterator[tuple[str, Sample]]:
        """Every arm over the same events: some to warm up, then batches in pairs, as the go arm times the features of one alone
        and the whole score of the next in one call each; the others' scores are those of every second batch as well."""
        n_rows = n * _batches(self._options, n)
        warm = list(self.stream.each_once(0)) if self.entities <= HOT_ENTITIES_MAX else []
        warm += [self.stream.draw(CHUNK_ROWS) for _ in range(WARM_CHUNKS if self.entities > HOT_ENTITIES_MAX else 1)]
        pairs = self.stream.draw(2 * n_rows)
        vectors = np.empty((n_rows, self._plan.n_features), dtype=np.float32)
        onnx, go, objects = self._onnx, self._go, self._objects
        _warm(onnx, warm, pairs)
        moves.append(ring_moves(self._plan, onnx.arena.slabs, pairs) / len(pairs.lsns))
        yield onnx.name, _time_pairs(onnx, (onnx.features, onnx.infer), vectors, n, is_reference=True)
        if go is not None:
            _warm(go, warm, pairs)
            yield go.name, _time_pairs(go, (go.score,), vectors, n)
        if objects is not None:
            _warm(objects, warm, pairs)
            yield objects.name, _time_pairs(objects, (objects.features, objects.infer), vectors, n)
        for ready in self._ready:
            ready.ready = vectors
            yield ready.name, _time_ready(ready, n)


def _batches(options: ScorersOptions, n: int) -> int:
    return max(BATCHES_MIN, min(options.batches_max, options.batch_rows_min // n))


def _warm(arm: Owner, warm: Sequence[Block], pairs: Block) -> None:
    for block in warm:
        arm.advance(block)
    arm.stretch = pairs


def _time_pairs(arm: Owner, steps: Sequence[Step], vectors: Float32s, n: int, *, is_reference: bool = False) -> Sample:
    """`vectors` (rows, features) are the second batches': the reference writes them, others are compared. Raises BenchError."""
    alone, whole, difference = _Times(), _Times(), 0.0
    for at in range(0, len(vectors), n):
        arm.load(2 * at, n)
        alone.run((arm.features,), n)
        arm.load(2 * at + n, n)
        whole.run(steps, n)
        whole.checksum += float(arm.risk[:n].sum(dtype=np.float64))
        expected = vectors[at : at + n]
        if is_reference:
            expected[:] = arm.vectors[:n]
        else:
            difference = max(difference, float((abs(arm.vectors[:n] - expected) / (1 + abs(expected))).max()))
    if difference > TOLERANCE:
        raise BenchError(f"{arm.name}: vectors differ from onnx's by up to {difference:.2g} of 1 + their value")
    sample = whole.sample(n)
    return sample if len(steps) > 1 else sample._replace(features_us=alone.sample(n).total_us)


def _time_ready(arm: ReadyArm, n: int) -> Sample:
    times = _Times()
    for at in range(0, len(arm.ready), n):
        arm.load(at, n)
        times.run((arm.infer,), n)
        times.checksum += float(arm.risk[:n].sum(dtype=np.float64))
    return times.sample(n)._replace(features_us=0.0)


class _Times:
    """Times of batches of one size."""

    def __init__(self) -> None:
        self.first_ns: list[int] = []
        self.total_ns: list[int] = []
        self.cpu_ns: list[int] = []
        self.checksum = 0.0

    def run(self, steps: Sequence[Step], n: int) -> None:
        """Time one or two steps."""
        first, second = steps[0], steps[-1]
        wall, cpu = time.perf_counter_ns, time.process_time_ns
        if first is second:
            cpu_start, start = cpu(), wall()
            first(n)
            middle = end = wall()
        else:
            cpu_start, start = cpu(), wall()
            first(n)
            middle = wall()
            second(n)
            end = wall()
        self.cpu_ns.append(cpu() - cpu_start)
        self.first_ns.append(middle - start)
        self.total_ns.append(end - start)

    def sample(self, n: int) -> Sample:
        """Medians of the batches, per row."""
        per_tx = 1_000 * n
        cpu = max(statistics.median(self.cpu_ns) - clock_ns()[1], 0.0)
        first, total = statistics.median(self.first_ns), statistics.median(self.total_ns)
        return Sample(first / per_tx, total / per_tx, cpu / per_tx, self.checksum)


@contextmanager
def _without_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def clock_ns() -> tuple[float, float]:
    """What the two clocks themselves add to a measurement: wall, CPU."""
    wall, cpu = time.perf_counter_ns, time.process_time_ns
    walls, cpus = [], []
    for _ in range(101):
        cpu_start = cpu()
        start = wall()
        walls.append(wall() - start)
        cpus.append(cpu() - cpu_start)
    return statistics.median(walls), statistics.median(cpus)


def _cells(scene: str, samples: dict[tuple[int, str], list[Sample]], options: ScorersOptions) -> list[Cell]:
    cells = []
    for (n, arm), of_cell in samples.items():
        reference = samples[n, "onnx"]
        n_rows = n * _batches(options, n)
        for sample, expected in zip(of_cell, reference, strict=True):
            if abs(sample.checksum - expected.checksum) > TOLERANCE * n_rows:
                raise BenchError(f"{arm} gives other scores than onnx: sums {sample.checksum} and {expected.checksum}")
        features, total = (statistics.median(getattr(s, field) for s in of_cell) for field in ("features_us", "total_us"))
        # Paired by round: a slow minute of the machine hits both sides of a ratio.
        ratios = [s.total_us / r.total_us for s, r in zip(of_cell, samples[n, "session.run"], strict=True)]
        cells.append(
            Cell(
                scene=scene,
                n=n,
                arm=arm,
                features_us=round(features, 4),
                inference_us=round(total - features, 4),
                total_us=round(total, 4),
                cpu_us=round(statistics.median(s.cpu_us for s in of_cell), 4),
                totals=[round(s.total_us, 4) for s in of_cell],
                of_session_run=round(statistics.median(ratios), 3),
                checksum=round(sum(s.checksum for s in of_cell), 5),
            )
        )
    return sorted(cells, key=lambda cell: (cell.n, ARMS.index(cell.arm)))
