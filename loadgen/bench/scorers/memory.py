"""What engines and profiles take of memory, each in a process of its own that imports nothing else: onnxruntime only with onnx.

`python -m loadgen.bench.scorers.memory process SCORERS` prints a ProcessMemory after one score each, as JSON;
`... entities HOLDER HISTORY N` an EntityMemory.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from features.advance import advance
from features.plan import Plan, compile_plan
from features.slab import Slab
from features.spec import load_spec
from features.vector import VectorBuilder
from loadgen.bench.scorers.objects import ObjectEngine
from loadgen.bench.scorers.result import EntityMemory, ProcessMemory
from loadgen.bench.scorers.stream import CHUNK_ROWS, Stream
from models.arena import Arena
from models.card import ARTIFACTS, MODEL_FILE
from models.scorers import open_scorer

ONE_EVENT, RINGS_FULL = "one event", "rings full"  # histories
MODEL = ARTIFACTS / "cards" / MODEL_FILE
MINUTE_US, HOUR_US = 60_000_000.0, 3_600_000_000.0


def main(arguments: Sequence[str]) -> None:
    """Measure what the arguments say."""
    plan = compile_plan(load_spec("cards"))
    what, *rest = arguments
    if what == "process":
        result: object = process(plan, rest[0])
    else:
        result = entities(plan, rest[0], rest[1], int(rest[2]))
    sys.stdout.buffer.write(msgspec.json.encode(result))


def process(plan: Plan, scorers: str) -> ProcessMemory:
    """`scorers`: names joined by "+", or "none"; each scores one event."""
    batch = Stream(plan, 400, 50.0, 7).draw(1)
    arena = Arena(plan, [Slab(kind, 100) for kind in plan.kinds], 1_024)
    opened = [open_scorer(name, plan, MODEL) for name in scorers.split("+") if name != "none"]
    for lsn, scorer in enumerate(opened, 1):
        scorer.score(arena, batch._replace(lsns=np.array([lsn])).fill(arena))
    memory = resident()
    return ProcessMemory(scorers, round(memory["VmRSS"] / 2**20, 1), round(memory["RssAnon"] / 2**20, 1))


def entities(plan: Plan, holder: str, history: str, n: int) -> EntityMemory:
    """Bytes that `n` entities take after one event each, or after as many as fill their rings."""
    # The code and numpy's temporaries are there before the count begins; slabs go back to the system, freed objects would not.
    _build(plan, holder, history, 4 * CHUNK_ROWS if holder == "slab" else 400)
    before = resident()["VmRSS"]
    kept = _build(plan, holder, history, n)
    bytes_per_entity = round((resident()["VmRSS"] - before) / n)
    del kept
    return EntityMemory(holder, history, n, bytes_per_entity)


def _build(plan: Plan, holder: str, history: str, n: int) -> object:
    stream = Stream(plan, n, 50.0, 7)
    slabs = [Slab(kind, stream.per_kind) for kind in plan.kinds] if holder == "slab" else []
    engine = ObjectEngine(0 if slabs else stream.per_kind)
    builder = VectorBuilder(plan)
    for step_us in _steps(history):
        stream.step_us = step_us / stream.per_kind  # one pass over all entities takes this long
        for block in stream.each_once(0):
            if slabs:
                builder.build(advance(plan, slabs, block.slots, block.columns, block.lsns)[0])
            else:
                for numbers, event in block.events():
                    engine.vector(numbers, event)
    return slabs, engine


def _steps(history: str) -> list[float]:
    """How long each pass takes: one, or 38 days in tiles of a day, then ever finer, so that no tile stays empty."""
    if history == ONE_EVENT:
        return [MINUTE_US]
    return [24 * HOUR_US] * 31 + [12 * HOUR_US] * 12 + [2 * HOUR_US] * 11 + [5 * MINUTE_US] * 12


def resident() -> dict[str, int]:
    """Bytes of this process by /proc's names."""
    lines = (line.partition(":") for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {name: int(value.split()[0]) * 1024 for name, _, value in lines if name in ("VmRSS", "RssAnon")}


if __name__ == "__main__":
    main(sys.argv[1:])
