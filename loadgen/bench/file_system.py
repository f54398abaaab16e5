"""Which file system a benchmark writes to, and what an fsync costs there: on tmpfs it is free, and so durability seems."""

import os
import statistics
import time
from pathlib import Path

import msgspec

IN_MEMORY = ("tmpfs", "ramfs")
PROBE_WRITES = 100
PROBE_BYTES = 4_096


class SyncProbe(msgspec.Struct):
    """µs of an fsync after an append of PROBE_BYTES."""

    p50_us: float
    max_us: float


def file_system(path: Path) -> str:
    """The type of the file system that holds `path` ("ext4"), "unknown" where /proc does not tell."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    best, found = -1, "unknown"
    target = path.resolve()
    for line in lines:
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].encode().decode("unicode_escape"))  # a space is written \040
        # The last of two mounts on one point hides the one before.
        if target.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), right.split()[0]
    return found


def is_memory(path: Path) -> bool:
    """True if nothing there ever reaches a disk."""
    return file_system(path) in IN_MEMORY


def probe_sync(directory: Path) -> SyncProbe:
    """What an fsync costs in `directory`, alone and right now."""
    file = directory / "probe"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    times = []
    try:
        for _ in range(PROBE_WRITES):
            os.write(fd, os.urandom(PROBE_BYTES))
            start = time.perf_counter()
            os.fsync(fd)
            times.append((time.perf_counter() - start) * 1e6)
    finally:
        os.close(fd)
        file.unlink()
    return SyncProbe(round(statistics.median(times), 1), round(max(times), 1))
