"""Pre-images: copies of the profiles that a batch is about to change, so that a batch that fails leaves no trace."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.slab import Slab


class Images:
    """Copies of the slots of a batch. slots: int64 (rows, kinds), -1 = absent."""

    def __init__(self, slabs: Sequence[Slab], slots: npt.NDArray[np.int64]) -> None:
        self._saved = []
        for slab, column in zip(slabs, slots.T, strict=True):
            used = column[column >= 0]
            self._saved.append((slab, used, slab.words[used], slab.late_dropped.copy()))

    def restore(self) -> None:
        """Put every profile back as it was."""
        for slab, slots, words, late_dropped in self._saved:
            slab.words[slots] = words
            slab.late_dropped[:] = late_dropped
