"""What the service answered with `?trace=1`, row by row: feature vectors, their Parquet file, and where profiles came from."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq


class Source(msgspec.Struct, gc=False):
    """Where a profile came from: a tier, or why there is none."""

    tier: str = ""


class Trace(msgspec.Struct, gc=False):
    """The part of a reply's trace that is kept; a value that is no number in JSON comes as null."""

    features: dict[str, float | None] = {}
    profiles: dict[str, Source] = {}


class Features:
    """Vectors of up to `n_rows` rows; the names are those of the first one. 4 bytes a value."""

    def __init__(self, n_rows: int) -> None:
        self.names: list[str] = []
        self._n_rows = n_rows
        self._vectors: npt.NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._known = np.zeros(n_rows, np.bool_)
        self._sources: list[tuple[str, ...]] = [()] * n_rows
        self.kinds: list[str] = []

    @property
    def n_known(self) -> int:
        """Rows that have a vector: those scored now, not the ones whose decision the service had stored."""
        return int(self._known.sum())

    def add(self, row: int, features: Mapping[str, float | None]) -> None:
        """Keep the vector of `row`; a value that is null or missing becomes NaN."""
        if not self.names:
            self.names = list(features)
            self._vectors = np.full((self._n_rows, len(self.names)), np.nan, np.float32)
        values = [features.get(name) for name in self.names]
        self._vectors[row] = [np.nan if value is None else value for value in values]
        self._known[row] = True

    def add_sources(self, row: int, profiles: Mapping[str, Source]) -> None:
        """Keep where the profiles of `row` came from."""
        if not self.kinds:
            self.kinds = list(profiles)
        self._sources[row] = tuple([sys.intern(source.tier) for source in profiles.values()])

    def vector(self, row: int) -> dict[str, float]:
        """The features of a row by name; NaN for one that was null, empty if the row was not traced."""
        return dict(zip(self.names, self._vectors[row].tolist(), strict=True)) if self._known[row] else {}

    def sources(self, row: int) -> dict[str, str]:
        """Kind of entity -> where the profile of `row` came from; empty if the row was not traced."""
        return dict(zip(self.kinds, self._sources[row], strict=False))

    def write(self, path: Path, event_ids: Sequence[str]) -> None:
        """event_id and one float32 column per feature, a row for each vector, in the order of the stream. Raises OSError."""
        rows = np.flatnonzero(self._known)
        columns = {"event_id": pa.array([event_ids[row] for row in rows.tolist()], pa.string())}
        for place, name in enumerate(self.names):
            columns[name] = pa.array(self._vectors[rows, place], pa.float32())
        pq.write_table(pa.table(columns), path, compression="zstd")
