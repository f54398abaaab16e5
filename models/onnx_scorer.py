"""The onnx scorer: features in numpy, the model in onnxruntime in this process.

One intra-op thread and no spinning: the service owns its cores, and a 43,521-parameter model has nothing to share out.
Output is asked for by name. Telemetry is off before the library loads (models/__init__.py).
"""

from pathlib import Path

import numpy as np
import onnxruntime

from features.advance import advance
from features.plan import Plan
from features.vector import VectorBuilder
from models.arena import Arena, Float32s, Int64s
from models.scorer import ModelError

INPUT, OUTPUT = "features", "risk"


class OnnxScorer:
    """Scores batches with the ONNX model in `model_file`. Raises ModelError if it is not one or has another shape."""

    name = "onnx"

    def __init__(self, plan: Plan, model_file: Path) -> None:
        self._plan = plan
        self._builder = VectorBuilder(plan)
        self._session = _open(model_file)
        self._outputs = [OUTPUT]
        self._check(model_file)

    def score(self, arena: Arena, n_rows: int) -> int:
        """See Scorer. Raises what numpy or onnxruntime raise."""
        raw, waves = self._advance(arena, n_rows)
        vectors = self._builder.build(raw)
        arena.vectors[:n_rows] = vectors
        arena.risk[:n_rows] = self.infer(vectors)
        return waves

    def advance(self, arena: Arena, n_rows: int, first: int = 0) -> None:
        """See Scorer."""
        self._advance(arena, n_rows, first)

    def _advance(self, arena: Arena, n_rows: int, first: int = 0) -> tuple[Int64s, int]:
        rows = slice(first, first + n_rows)
        return advance(self._plan, arena.slabs, arena.slots[rows], arena.columns[rows], arena.lsns[rows])

    def infer(self, vectors: Float32s) -> Float32s:
        """Risk of each vector: float32 (rows, n_features) -> float32 (rows,)."""
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


def _open(model_file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    onnxruntime.disable_telemetry_events()
    try:
        return onnxruntime.InferenceSession(str(model_file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ModelError(f"{model_file}: is not a model that onnxruntime {onnxruntime.__version__} reads: {error}") from None
