"""A slab: one contiguous buffer of equal-sized profiles, seen as bytes, as 8-byte words and as 4-byte halves.

Memory comes zeroed from the system and is committed page by page when it is first touched, so a large slab costs nothing
before it is used. Pages are small unless huge ones are asked for: with those, batches of new entities waited 5 to 25 ms
for zeroing, against 2 (docs/results/first.md); finding a profile among a million costs less (docs/results/scorers.md). An
all-zero slot is an empty one. The views share the buffer; nothing is ever copied between them.
"""

import contextlib
import mmap
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.plan import KindPlan


class Slab:
    """Profiles of one kind. `late_dropped[r]`, int64, counts the events that ring r no longer had a tile for."""

    def __init__(self, kind: KindPlan, capacity: int, huge_pages: bool = False) -> None:
        self.kind = kind
        self.capacity = capacity
        # Private: a forked child must not write into its parent's profiles. There is no mapping of no bytes.
        memory = mmap.mmap(-1, max(capacity, 1) * kind.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
            with contextlib.suppress(OSError):  # a kernel without huge pages refuses both
                memory.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
        self.rows: npt.NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8).reshape(-1, kind.size)
        self.words: npt.NDArray[np.int64] = self.rows.view("<i8")
        self.halves: npt.NDArray[np.uint32] = self.rows.view("<u4")
        flat = memoryview(self.rows.reshape(-1))  # type: ignore[arg-type]  # numpy stubs hide the buffer protocol before 3.12
        self.flat_bytes = flat
        self.flat_words = flat.cast("q")
        self.flat_halves = flat.cast("I")
        self.late_dropped: npt.NDArray[np.int64] = np.zeros(len(kind.rings), dtype=np.int64)
        self._header = struct.Struct(f"<{kind.header_words}q")

    def get(self, slot: int) -> bytes:
        """A copy of the profile in `slot`."""
        size = self.kind.size
        return bytes(self.flat_bytes[slot * size : (slot + 1) * size])

    def get_many(self, slots: npt.NDArray[np.int64]) -> list[bytes]:
        """Copies of the profiles in `slots`: a quarter of what `get` costs for each."""
        size = self.kind.size
        copied = self.rows[slots].tobytes()
        return [copied[at : at + size] for at in range(0, len(copied), size)]

    def put(self, slot: int, profile: bytes) -> None:
        """Copy `profile` into `slot`; its length is the kind's size (profile.check)."""
        size = self.kind.size
        assert len(profile) == size
        self.flat_bytes[slot * size : (slot + 1) * size] = profile

    def put_many(self, slots: npt.NDArray[np.int64], profiles: Sequence[bytes]) -> None:
        """`put` for many distinct slots."""
        self.rows[slots] = np.frombuffer(b"".join(profiles), dtype=np.uint8).reshape(-1, self.kind.size)

    def header(self, slot: int) -> list[int]:
        """A copy of the header's words of the profile in `slot`."""
        return list(self._header.unpack_from(self.flat_bytes, slot * self.kind.size))

    def put_header(self, slot: int, header: list[int]) -> None:
        """Write back what `header` gave."""
        self._header.pack_into(self.flat_bytes, slot * self.kind.size, *header)

    def clear(self, slot: int | npt.NDArray[np.int64]) -> None:
        """Make `slot`, one or many, empty."""
        self.rows[slot] = 0
