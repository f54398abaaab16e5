"""The engines under test, all behind one shape: load a batch where the engine finds it, run it in one or two timed steps.

Each arm that advances has its own profiles and gets every event of the stream, so all arms must give the same scores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from features.advance import advance
from features.plan import Plan
from features.slab import Slab
from features.vector import VectorBuilder
from gocore.binding import ADVANCE, VECTORS, load_core
from loadgen.bench.scorers.objects import ObjectEngine
from loadgen.bench.scorers.ort import RawSession
from loadgen.bench.scorers.stream import CHUNK_ROWS, Block
from models.arena import Arena
from models.go_scorer import GoScorer
from models.onnx_scorer import OnnxScorer

Float32s = npt.NDArray[np.float32]
Step = Callable[[int], object]  # works on the n rows that were loaded


class ReadyArm(Protocol):
    """An engine that scores `ready` vectors. `risk`: scores of the latest batch."""

    name: str
    risk: Float32s
    ready: Float32s

    def load(self, at: int, n: int) -> None:
        """Put rows [at, at + n) where the engine reads them."""

    def infer(self, n: int) -> None:
        """Score them."""


class Owner(Protocol):
    """An engine with profiles of its own, and a stretch of events. `vectors`, `risk`: of the latest batch."""

    name: str
    risk: Float32s
    vectors: Float32s
    stretch: Block

    def load(self, at: int, n: int) -> None:
        """Put rows [at, at + n) of the stretch where the engine reads them."""

    def advance(self, block: Block) -> None:
        """Advance by events that nobody times, at most CHUNK_ROWS."""

    def features(self, n: int) -> None:
        """Advance, and build the vectors."""


class OnnxArm:
    """The onnx scorer in its two halves: what its `score` does."""

    name = "onnx"

    def __init__(self, plan: Plan, scorer: OnnxScorer, per_kind: int, rows_max: int, huge_pages: bool) -> None:
        self.arena = _arena(plan, per_kind, rows_max, huge_pages)
        self.vectors, self.risk = self.arena.vectors, self.arena.risk
        self.stretch: Block
        self._plan, self._scorer, self._builder = plan, scorer, VectorBuilder(plan)

    def load(self, at: int, n: int) -> None:
        self.stretch.part(at, n).fill(self.arena)

    def advance(self, block: Block) -> None:
        self._scorer.advance(self.arena, block.fill(self.arena))

    def features(self, n: int) -> None:
        arena = self.arena
        raw, _ = advance(self._plan, arena.slabs, arena.slots[:n], arena.columns[:n], arena.lsns[:n])
        self._built = self._builder.build(raw)
        arena.vectors[:n] = self._built

    def infer(self, n: int) -> None:
        self.risk[:n] = self._scorer.infer(self._built)


class GoArm:
    """The go scorer: `score` does everything in one call, `features` stops before the model."""

    name = "go"

    def __init__(self, plan: Plan, model_file: Path, per_kind: int, rows_max: int, huge_pages: bool) -> None:
        self.arena = _arena(plan, per_kind, rows_max, huge_pages)
        self.vectors, self.risk = self.arena.vectors, self.arena.risk
        self.stretch: Block
        self._core, self._scorer = load_core(), GoScorer(plan, model_file)

    def load(self, at: int, n: int) -> None:
        self.stretch.part(at, n).fill(self.arena)

    def advance(self, block: Block) -> None:
        self._scorer.advance(self.arena, block.fill(self.arena))  # binds the arena too

    def features(self, n: int) -> None:
        self._core.score(0, self.arena, 0, n, ADVANCE | VECTORS)

    def score(self, n: int) -> None:
        self._scorer.score(self.arena, n)


class ObjectsArm:
    """Profiles as Python objects, features in plain Python; the model in onnxruntime's Python session."""

    name = "objects"

    def __init__(self, scorer: OnnxScorer, per_kind: int, rows_max: int) -> None:
        self.risk: Float32s = np.zeros(rows_max, dtype=np.float32)
        self.vectors: Float32s
        self.stretch: Block
        self._scorer, self._engine = scorer, ObjectEngine(per_kind)

    def load(self, at: int, n: int) -> None:
        self._events = self.stretch.part(at, n).events()

    def advance(self, block: Block) -> None:
        for numbers, event in block.events():
            self._engine.vector(numbers, event)

    def features(self, n: int) -> None:
        vector = self._engine.vector
        self.vectors = np.array([vector(numbers, event) for numbers, event in self._events], dtype=np.float32)

    def infer(self, n: int) -> None:
        self.risk[:n] = self._scorer.infer(self.vectors)


class SessionArm:
    """onnxruntime's Python session on ready vectors."""

    name = "session.run"

    def __init__(self, scorer: OnnxScorer, rows_max: int) -> None:
        self.risk: Float32s = np.zeros(rows_max, dtype=np.float32)
        self.ready: Float32s
        self._scorer = scorer

    def load(self, at: int, n: int) -> None:
        self._batch = self.ready[at : at + n]

    def infer(self, n: int) -> None:
        self.risk[:n] = self._scorer.infer(self._batch)


class OrtArm:
    """The C API on ready vectors that lie where its input is bound."""

    name = "ort"

    def __init__(self, model_file: Path, rows_max: int, n_features: int) -> None:
        self._session = RawSession(model_file, rows_max, n_features)
        self.risk = self._session.risk
        self.ready: Float32s

    def load(self, at: int, n: int) -> None:
        self._session.vectors[:n] = self.ready[at : at + n]

    def infer(self, n: int) -> None:
        self._session.run(n)


def _arena(plan: Plan, per_kind: int, rows_max: int, huge_pages: bool) -> Arena:
    return Arena(plan, [Slab(kind, per_kind, huge_pages) for kind in plan.kinds], max(rows_max, CHUNK_ROWS))
