"""The log of vectors: what the model was shown for a sample of transactions, for `weir doctor --skew` to recompute.

Two files take turns, `vectors.log` and `vectors.log.1`, each at most half of the bound. A file is a head (magic, widths, plan
hash, checksum) and records of one size: LSN, risk, the LSN of each profile's first event, the vector, checksum. No id of
anybody is in it. It is not fsynced: what a crash costs it costs only the check.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from features.plan import Plan

LOG_FILE: Final = "vectors.log"
_MAGIC: Final = b"WEIRVEC1"
_HEAD: Final = struct.Struct("<8sII32sI")  # magic, features, kinds, plan hash, crc32 of the rest

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


class VectorLogError(Exception):
    """A file that is no log of vectors of this plan."""


class LoggedVector(msgspec.Struct, frozen=True):
    """What was shown of the transaction `lsn`. first_lsns: per kind, 0 = absent, -1 = the profile was not whole."""

    lsn: int
    risk: float
    first_lsns: tuple[int, ...]
    vector: Float32s


class VectorLog:
    """Appends to the log of one data directory; begins anew where it finds another plan's. Raises OSError."""

    def __init__(self, directory: Path, plan: Plan, bytes_max: int) -> None:
        self.n_written = self.n_failed = 0
        self._path = directory / LOG_FILE
        self._head = _head(plan)
        self._dtype = _record(plan)
        self._half = max(bytes_max // 2, len(self._head) + self._dtype.itemsize)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._fd).st_size
        if os.pread(self._fd, len(self._head), 0) != self._head:
            os.ftruncate(self._fd, 0)
            self._write(self._head)
        else:  # half a record of a killed process
            os.ftruncate(self._fd, size - (size - len(self._head)) % self._dtype.itemsize)

    def append(self, lsns: Int64s, first_lsns: Int64s, risks: Float32s, vectors: Float32s) -> None:
        """Add rows; on a full disk they are counted and dropped. Waits for the disk: call it on another thread."""
        records = np.zeros(len(lsns), dtype=self._dtype)
        records["lsn"], records["risk"], records["first_lsns"], records["vector"] = lsns, risks, first_lsns, vectors
        size = self._dtype.itemsize
        raw = records.tobytes()
        checked = bytearray(raw)
        for at in range(0, len(raw), size):
            checked[at + size - 4 : at + size] = struct.pack("<I", zlib.crc32(raw[at : at + size - 4]))
        try:
            if os.fstat(self._fd).st_size + len(checked) > self._half:
                self._turn()
            n_fit = (self._half - len(self._head)) // size
            self._write(bytes(checked[-n_fit * size :]))
        except OSError:
            self.n_failed += len(lsns)
        else:
            self.n_written += len(lsns)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _turn(self) -> None:
        self._path.replace(self._path.with_name(f"{LOG_FILE}.1"))
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.close(self._fd)
        self._fd = fd
        self._write(self._head)

    def _write(self, data: bytes) -> None:
        """All of it or nothing: a record cut short would shift those behind it."""
        before = os.fstat(self._fd).st_size
        if os.write(self._fd, data) != len(data):
            os.ftruncate(self._fd, before)
            raise OSError(f"{self._path}: disk full")


def read_vectors(directory: Path, plan: Plan) -> tuple[list[LoggedVector], int]:
    """The vectors of both files by LSN, and how many records were damaged. Raises VectorLogError for another plan's file."""
    head, dtype = _head(plan), _record(plan)
    found: dict[int, LoggedVector] = {}
    n_damaged = 0
    for name in (f"{LOG_FILE}.1", LOG_FILE):
        path = directory / name
        data = path.read_bytes() if path.exists() else b""
        if not data:
            continue
        if not data.startswith(head):
            raise VectorLogError(f"{path}: no log of vectors of plan {plan.hash[:12]}; remove it, or give the spec it is of")
        for record in _records(data[len(head) :], dtype):
            if record is None:
                n_damaged += 1
            else:
                found[record.lsn] = record
    return [found[lsn] for lsn in sorted(found)], n_damaged


def _records(data: bytes, dtype: "np.dtype[np.void]") -> Iterator[LoggedVector | None]:
    size = dtype.itemsize
    for at in range(0, len(data) - size + 1, size):
        raw = data[at : at + size]
        if struct.unpack("<I", raw[-4:])[0] != zlib.crc32(raw[:-4]):
            yield None
            continue
        record = np.frombuffer(raw, dtype=dtype)[0]
        yield LoggedVector(
            int(record["lsn"]), float(record["risk"]), tuple(record["first_lsns"].tolist()), record["vector"].copy()
        )


def _head(plan: Plan) -> bytes:
    start = _HEAD.pack(_MAGIC, plan.n_features, len(plan.kinds), bytes.fromhex(plan.hash), 0)[:-4]
    return start + struct.pack("<I", zlib.crc32(start))


def _record(plan: Plan) -> "np.dtype[np.void]":
    fields = [
        ("lsn", "<i8"),
        ("first_lsns", "<i8", (len(plan.kinds),)),
        ("risk", "<f4"),
        ("vector", "<f4", (plan.n_features,)),
        ("crc", "<u4"),
    ]
    return np.dtype(fields)
