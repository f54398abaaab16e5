"""What a scoring engine does: advance profiles in their slabs by a batch of events and give risk scores."""

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from features.slab import Slab

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


class Batch(msgspec.Struct):
    """Events in the order in which they are scored.

    slots: int64 (rows, kinds), -1 = absent; columns: int64 (rows, len(COLUMNS)), as features.columns; lsns: int64 (rows,).
    """

    slots: Int64s
    columns: Int64s
    lsns: Int64s


class Scored(msgspec.Struct):
    """risk: float32 (rows,) in [0, 1]; vectors: float32 (rows, n_features); waves: vectorised steps that it took."""

    risk: Float32s
    vectors: Float32s
    waves: int


class ModelError(Exception):
    """A model that cannot be loaded or does not fit: the message names the file, what is wrong and the fix."""


class Scorer(Protocol):
    """An engine. Profiles change in place; a scorer that raises may leave them half advanced (the pipeline restores them)."""

    name: str

    def score(self, slabs: Sequence[Slab], batch: Batch) -> Scored:
        """Advance every profile of the batch in row order and score each row."""

    def advance(self, slabs: Sequence[Slab], batch: Batch) -> None:
        """Advance only, for recovery: rows that a profile already has change nothing."""
