"""The whole benchmark: children for what needs a process of its own, then every scene on one pinned core, then the goals."""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from features.plan import Plan, compile_plan
from features.spec import load_spec
from gocore.locate import missing_core
from loadgen.bench.children import STDERR_TAIL, BenchError, pinned
from loadgen.bench.scorers.measure import Population, clock_ns
from loadgen.bench.scorers.memory import MODEL, ONE_EVENT, RINGS_FULL
from loadgen.bench.scorers.result import Calls, Cell, EntityMemory, ProcessMemory, Scene, ScorersOptions, ScorersResult, Target
from models.machine import machine

CHILD_DEADLINE_S = 300.0
SLAB_BYTES, OBJECTS_BYTES = 2_000, 7_000  # per entity, rounded up: two engines' slabs; objects after a few events
PROFILE_BYTES_MAX = 1_536

Say = Callable[[str], None]
T = TypeVar("T")


def run_scorers(options: ScorersOptions, say: Say) -> ScorersResult:
    """Measure everything. Raises BenchError."""
    plan = compile_plan(load_spec("cards"))
    core = max(os.sched_getaffinity(0))
    with pinned(core):
        calls = _calls(options, say)
    if len(os.sched_getaffinity(0)) > 1:
        calls += _calls(options, say)
    entity_memory, process_memory = _entity_memory(options, say), _process_memory(say)
    scenes: list[Scene] = []
    cells: list[Cell] = []
    left_out = []
    # Before the libraries load: their threads inherit the core, and the Go runtime counts the cores that it may use.
    with pinned(core):
        for entities in options.entities:
            objects = _fits(entities, options)
            if not objects:
                left_out.append(entities)
            population = Population(plan, MODEL, entities, options, objects=objects)
            slow_events_per_s = population.stream.per_kind / (options.slow_hours * 3_600)
            for pace, events_per_s in (("fast", options.events_per_s), ("slow", slow_events_per_s)):
                scene, of_scene = population.measure(pace, events_per_s, say)
                scenes.append(scene)
                cells += of_scene
            del population
            gc.collect()
        clock_us = clock_ns()[0] / 1_000
    return ScorersResult(
        kind="bench scorers",
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        options=options,
        machine=machine(),
        core=core,
        clock_us=clock_us,
        profile_bytes={kind.name: kind.size for kind in plan.kinds},
        scenes=scenes,
        cells=cells,
        calls=calls,
        entity_memory=entity_memory,
        process_memory=process_memory,
        targets=_targets(plan, cells),
        caveats=_caveats(calls, left_out),
    )


def _calls(options: ScorersOptions, say: Say) -> list[Calls]:
    if missing_core() is not None:
        return []
    say(f"calls on {len(os.sched_getaffinity(0))} core(s)")
    return [_child(Calls, "calls", str(options.call_batches))]


def _entity_memory(options: ScorersOptions, say: Say) -> list[EntityMemory]:
    say("memory of profiles")
    histories = [(ONE_EVENT, options.memory_entities), (RINGS_FULL, options.full_entities)]
    return [
        _child(EntityMemory, "memory", "entities", holder, history, str(n))
        for history, n in histories
        if n
        for holder in ("slab", "objects")
    ]


def _process_memory(say: Say) -> list[ProcessMemory]:
    say("memory of processes")
    names = ("none", "go", "onnx", "go+onnx") if missing_core() is None else ("none", "onnx")
    return [_child(ProcessMemory, "memory", "process", name) for name in names]


def _child(kind: type[T], module: str, *arguments: str) -> T:
    argv = [sys.executable, "-m", f"loadgen.bench.scorers.{module}", *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=CHILD_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{module} {' '.join(arguments)}: not done within {CHILD_DEADLINE_S:.0f} s") from None
    if done.returncode != 0:
        raise BenchError(f"{module} {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()[-STDERR_TAIL:]}")
    return msgspec.json.decode(done.stdout, type=kind)


def _fits(entities: int, options: ScorersOptions) -> bool:
    """Whether objects are measured with so many entities. Raises BenchError if even the slabs do not fit into memory."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    if entities * SLAB_BYTES > available:
        raise BenchError(f"{entities:,} entities need {entities * SLAB_BYTES >> 20:,} MiB, {available >> 20:,} are available")
    return entities <= options.objects_entities_max and entities * (SLAB_BYTES + OBJECTS_BYTES) <= available


def _targets(plan: Plan, cells: Sequence[Cell]) -> list[Target]:
    by_key = {(cell.scene, cell.n, cell.arm): cell for cell in cells}
    lone = by_key.get(("10,000 fast", 1, "go"))
    share = lone.of_session_run if lone else None
    targets = [_target("go, one transaction, over session.run", 1.0, share, "go with features, session.run on a ready vector")]
    for scene, limit in (("10,000 fast", 0.4), ("1,000,000 fast", 1.0)):
        go, ort = by_key.get((scene, 256, "go")), by_key.get((scene, 256, "ort"))
        note = "per transaction, 256 at once"
        if go and ort:
            note += f"; the whole of go less ort's inference: {go.total_us - ort.total_us:.2f}"
        name = f"go, µs of features and advance, {scene.split()[0]} entities"
        targets.append(_target(name, limit, go.features_us if go else None, note))
    largest = max(plan.kinds, key=lambda kind: kind.size)
    targets.append(_target(f"bytes of the largest profile ({largest.name})", PROFILE_BYTES_MAX, largest.size))
    return targets


def _target(name: str, limit: float, value: float | None, note: str = "") -> Target:
    return Target(name, limit, value, None if value is None else value <= limit, note)


def _caveats(calls: Sequence[Calls], left_out: Sequence[int]) -> list[str]:
    put = f" ({calls[0].put_us:.2f} µs a row)" if calls else ""
    caveats = [
        "Decoding, looking up ids, writing rows into the arena" + put + ", decisions, journal and replies are in no time here.",
        "Entities are drawn uniformly and every event has all four; skewed draws find more in the caches. No event is late, no"
        " profile has labels. Event time is made up: batches follow each other at once, whatever the pace.",
        "One core: the go scorer's features are timed in batches of their own, its inference is the difference of two medians.",
        "Other programs on the machine push profiles out of the shared cache; the least round is nearest to a quiet machine.",
        "The objects do less than the engines: no late events, no LSN guard, no labels, no garbage collection while they are"
        " timed. Their tiles are in deques, whose blocks of 64 places weigh most in their memory.",
        "Scores of random events mean nothing; their sums prove that every engine did the work. Vectors were compared, too.",
        "Resident memory counts file pages of libraries that other processes may share.",
        "submit is for two cores: the event loop goes on meanwhile. On one core only its cost is seen.",
    ]
    if missing_core() is not None:
        caveats.append(f"There was no go scorer: {missing_core()}.")
    if left_out:
        caveats.append(
            "Objects were left out, for their memory or by --objects-max: " + ", ".join(f"{n:,}" for n in left_out) + "."
        )
    return caveats
