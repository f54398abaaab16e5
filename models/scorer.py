"""What a scoring engine does: advance profiles in their slabs by the events of an arena and give risk scores."""

from typing import Final, Protocol

from models.arena import Arena, Float32s

CPU: Final = ("CPUExecutionProvider",)  # execution providers of onnxruntime, where nobody asks for others


class ModelError(Exception):
    """A model that cannot be loaded or does not fit: the message names the file, what is wrong and the fix."""


class Scorer(Protocol):
    """An engine. Profiles change in place; a scorer that raises may leave them half advanced until `undo`."""

    name: str

    def score(self, arena: Arena, n_rows: int) -> int:
        """Advance every profile of the arena's first `n_rows` rows in row order; leave their vectors and risk in [0, 1] there.

        Returns the number of vectorised steps that it took, 0 for an engine that takes none.
        """

    def undo(self, arena: Arena, lsn: int) -> None:
        """Take back what the last `score` has changed, however far it came; nobody has changed those profiles since.

        Only if the first row of that had this LSN, and once: else there is nothing to take back.
        """

    def advance(self, arena: Arena, n_rows: int, first: int = 0) -> None:
        """Advance only, by `n_rows` rows from `first` on, for recovery: rows that a profile already has change nothing."""

    def infer(self, vectors: Float32s) -> Float32s:
        """The model alone: risk float32 (rows,) of vectors float32 (rows, n_features), C-contiguous. On any thread."""


class CoreScorer(Scorer, Protocol):
    """An engine that lives in the Go core, for calls that do more than scoring."""

    def handles(self, arena: Arena) -> tuple[int, int]:
        """The core's numbers for the model and for the arena."""


class AsideScorer(Protocol):
    """An engine with a thread of its own: `submit` returns at once, adds 1 to the eventfd when it is done; then `collect`."""

    def submit(self, arena: Arena, n_rows: int, event_fd: int) -> None:
        """Begin what Scorer.score does. Nobody touches the arena or its profiles until it is collected."""

    def collect(self, arena: Arena) -> None:
        """End it. Raises what `score` would have raised."""
