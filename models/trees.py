"""An ensemble of decision trees as arrays: what boosting and a forest come to, whoever fitted them."""

import msgspec
import numpy as np
from numpy.typing import NDArray


class Trees(msgspec.Struct, frozen=True):
    """Nodes of all trees, one tree after the other, the root first; the answer is `base` plus the values of the leaves reached.

    feature: int64, -1 for a leaf. threshold: float32, x <= threshold goes `left`, else `right`: int64, counted within the tree.
    value: float32 of a leaf. starts: int64, the first node of each tree.
    """

    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float32]
    starts: NDArray[np.int64]
    base: float

    @property
    def n_parameters(self) -> int:
        """Learned numbers: a threshold per inner node, a value per leaf."""
        return len(self.feature)

    def values(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (n,), the trees walked down in numpy: the reference, not fast."""
        rows = np.arange(len(vectors))
        total = np.full(len(vectors), self.base)
        for start in self.starts.tolist():
            node = np.zeros(len(vectors), np.int64)
            while True:
                at = start + node
                inner = self.feature[at] >= 0
                if not inner.any():
                    break
                goes_left = vectors[rows, self.feature[at]] <= self.threshold[at]
                node = np.where(inner, np.where(goes_left, self.left[at], self.right[at]), node)
            total += self.value[at]
        return total.astype(np.float32)
