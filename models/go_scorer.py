"""The go scorer: one call into the Go core advances profiles, builds vectors and runs the model, over the arena's memory.

The core uses the libonnxruntime that the onnxruntime wheel ships, so onnxruntime itself need not be imported here.
"""

from collections.abc import Sequence
from pathlib import Path

from features.plan import Plan
from gocore.binding import ADVANCE, RISK, UNDO, load_core
from gocore.errors import BadArgument, BadModel
from gocore.replay import IDS_MAX, Splitter
from models.arena import Arena, Float32s
from models.scorer import ModelError

HOT = ADVANCE | RISK | UNDO


class GoScorer:
    """Scores with the ONNX model in `model_file`. Raises ModelError if it is not one or has another shape, GoCoreError."""

    name = "go"

    def __init__(self, plan: Plan, model_file: Path) -> None:
        self._core = load_core()
        self._plan = self._core.load_plan(plan.to_bytes())
        self._core.release_with(self, "weir_plan_close", self._plan)
        try:
            self._model = self._core.load_model(model_file.read_bytes(), plan.n_features)
        except OSError as error:
            raise ModelError(f"{model_file}: {error.strerror}") from None
        except (BadModel, BadArgument) as error:  # an empty file is no argument either
            raise ModelError(f"{model_file}: cannot be used: {error}") from None
        self._core.release_with(self, "weir_model_close", self._model)

    def score(self, arena: Arena, n_rows: int) -> int:
        """See Scorer. Raises GoCoreError."""
        core = self._core
        status = core.call_score(*self.handles(arena), 0, n_rows, HOT)
        if status:
            core.check(status)
        return 0

    def handles(self, arena: Arena) -> tuple[int, int]:
        """See CoreScorer. Raises GoCoreError."""
        return self._model, arena.handle or self._core.bind(self._plan, arena)

    def submit(self, arena: Arena, n_rows: int, event_fd: int) -> None:
        """See AsideScorer. Raises GoCoreError."""
        if not arena.handle:
            self._core.bind(self._plan, arena)
        self._core.submit(self._model, arena, 0, n_rows, HOT, event_fd)

    def collect(self, arena: Arena) -> None:
        """See AsideScorer. Raises GoCoreError."""
        self._core.collect(arena)

    def undo(self, arena: Arena, lsn: int) -> None:
        """See Scorer. Raises GoCoreError."""
        if arena.handle:
            self._core.undo(arena, lsn)

    def advance(self, arena: Arena, n_rows: int, first: int = 0) -> None:
        """See Scorer. Raises GoCoreError."""
        if not arena.handle:
            self._core.bind(self._plan, arena)
        self._core.score(0, arena, first, n_rows, ADVANCE)

    def infer(self, vectors: Float32s) -> Float32s:
        """See Scorer. Raises GoCoreError."""
        (risk,) = self._core.infer(self._model, [vectors], vectors.shape[0] * 4)
        return risk

    def splitter(self, arenas: Sequence[Arena], ids_max: int = IDS_MAX) -> Splitter:
        """What takes blocks of the journal apart into these arenas, all of one size; `ids_max` ids of a kind get numbers."""
        for arena in arenas:
            if not arena.handle:
                self._core.bind(self._plan, arena)
        return Splitter(self._core, self._plan, arenas[0].rows_max, len(arenas[0].slabs), ids_max)
