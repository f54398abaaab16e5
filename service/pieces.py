"""Pieces: byte strings as they were encoded, one behind the other, cut apart only where somebody wants one alone.

Records of decisions wait as such until somebody asks for one of them or the disk takes them all. Replies are lines: a stream
writes them as they are; requests of one transaction each take theirs.
"""

from collections.abc import Sequence
from typing import ClassVar, Self, overload


class Pieces(Sequence[bytes]):
    """data: the pieces, after each of them the bytes of `gap`. bounds: where each begins, and where the last one ends."""

    __slots__ = ("_bounds", "data")

    gap: ClassVar[bytes] = b""

    def __init__(self, data: bytes, bounds: Sequence[int]) -> None:
        self.data = data
        self._bounds = bounds

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> Self:
        """These."""
        gap = cls.gap
        bounds = [0]
        for piece in pieces:
            bounds.append(bounds[-1] + len(piece) + len(gap))
        return cls(b"".join([part for piece in pieces for part in (piece, gap)]), bounds)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, place: int) -> bytes: ...

    @overload
    def __getitem__(self, place: slice) -> Self: ...

    def __getitem__(self, place: int | slice) -> bytes | Self:
        bounds = self._bounds
        if isinstance(place, int):
            row = range(len(self))[place]
            return self.data[bounds[row] : bounds[row + 1] - len(self.gap)]
        start, stop, step = place.indices(len(self))
        if step != 1:
            raise ValueError("pieces are taken in their order")
        if stop - start == len(self):
            return self
        stop = max(start, stop)
        first = bounds[start]
        return type(self)(self.data[first : bounds[stop]], [bound - first for bound in bounds[start : stop + 1]])

    def as_list(self) -> list[bytes]:
        """Each alone."""
        bounds, ends = self._bounds, self._bounds[1:]
        if self.gap:
            ends = [end - len(self.gap) for end in ends]
        return list(map(self.data.__getitem__, map(slice, bounds, ends)))


class Replies(Pieces):
    """The JSON of many answers, a line feed after each."""

    __slots__ = ()

    gap = b"\n"

    @property
    def lines(self) -> bytes:
        """All of them as they are."""
        return self.data
