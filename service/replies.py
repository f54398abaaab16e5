"""Replies: the JSON of many answers as it was encoded, line behind line, cut apart only where somebody wants one alone.

A stream writes the lines as they are; requests of one transaction each take theirs.
"""

from collections.abc import Sequence
from typing import overload


class Replies(Sequence[bytes]):
    """lines: a reply per row, a line feed after each. bounds: where each begins, and where the last one ends."""

    __slots__ = ("_bounds", "lines")

    def __init__(self, lines: bytes, bounds: Sequence[int]) -> None:
        self.lines = lines
        self._bounds = bounds

    @classmethod
    def of(cls, replies: Sequence[bytes]) -> "Replies":
        """These, none of which holds a line feed."""
        bounds = [0]
        for reply in replies:
            bounds.append(bounds[-1] + len(reply) + 1)
        return cls(b"".join([line for reply in replies for line in (reply, b"\n")]), bounds)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, place: int) -> bytes: ...

    @overload
    def __getitem__(self, place: slice) -> "Replies": ...

    def __getitem__(self, place: int | slice) -> "bytes | Replies":
        bounds = self._bounds
        if isinstance(place, int):
            row = range(len(self))[place]
            return self.lines[bounds[row] : bounds[row + 1] - 1]
        start, stop, step = place.indices(len(self))
        if step != 1:
            raise ValueError("replies are taken in their order")
        if stop - start == len(self):
            return self
        stop = max(start, stop)
        first = bounds[start]
        return Replies(self.lines[first : bounds[stop]], [bound - first for bound in bounds[start : stop + 1]])

    def as_list(self) -> list[bytes]:
        """Each alone."""
        bounds = self._bounds
        return list(map(self.lines.__getitem__, map(slice, bounds, [bound - 1 for bound in bounds[1:]])))
