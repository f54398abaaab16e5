"""The onnx scorer: features in numpy, the model in onnxruntime in this process.

The session has one thread (models/onnx_session.py); its output is asked for by name.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from features.advance import advance
from features.plan import Plan
from features.vector import VectorBuilder
from models.arena import Arena, Float32s, Int64s
from models.images import Images
from models.onnx_session import open_session
from models.scorer import CPU, ModelError

INPUT, OUTPUT = "features", "risk"


class OnnxScorer:
    """Scores batches with the ONNX model in `model_file`, run by `providers`. Raises ModelError if it is none of the plan."""

    name = "onnx"

    def __init__(self, plan: Plan, model_file: Path, providers: Sequence[str] = CPU) -> None:
        self._plan = plan
        self._builder = VectorBuilder(plan)
        self._session = open_session(model_file, providers=providers)
        self._outputs = [OUTPUT]
        self._images: tuple[int, Images] | None = None  # of the last batch, and its first LSN
        self._check(model_file)

    def score(self, arena: Arena, n_rows: int) -> int:
        """See Scorer. Raises what numpy or onnxruntime raise."""
        self._images = (int(arena.lsns[0]), Images(arena.slabs, arena.slots[:n_rows]))
        raw, waves = self._advance(arena, n_rows)
        vectors = self._builder.build(raw)
        arena.vectors[:n_rows] = vectors
        arena.risk[:n_rows] = self.infer(vectors)
        return waves

    def undo(self, arena: Arena, lsn: int) -> None:
        """See Scorer."""
        if self._images is not None and self._images[0] == lsn:
            self._images[1].restore()
            self._images = None

    def advance(self, arena: Arena, n_rows: int, first: int = 0) -> None:
        """See Scorer."""
        self._advance(arena, n_rows, first)

    def _advance(self, arena: Arena, n_rows: int, first: int = 0) -> tuple[Int64s, int]:
        rows = slice(first, first + n_rows)
        return advance(self._plan, arena.slabs, arena.slots[rows], arena.columns[rows], arena.lsns[rows])

    def infer(self, vectors: Float32s) -> Float32s:
        """See Scorer."""
        risk: Float32s = self._session.run(self._outputs, {INPUT: vectors})[0]
        return risk

    def _check(self, model_file: Path) -> None:
        """One run on zeros proves names, width, type and range, and pays the first call's cost before the first request."""
        try:
            risk = self.infer(np.zeros((2, self._plan.n_features), dtype=np.float32))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"{model_file}: does not take {self._plan.n_features} features: {error}") from None
        if risk.shape != (2,) or risk.dtype != np.float32 or not (np.isfinite(risk).all() and (abs(risk - 0.5) <= 0.5).all()):
            raise ModelError(f"{model_file}: output {OUTPUT!r} must be float32 (rows,) within [0, 1]")
