"""The same limits for every server: cores by pinning always, CPU time and memory by cgroup v2 where this process may make one.

A server is started while this process itself stands inside (`entered`), so it and all that it starts inherit the limits from
their first instruction on. Linux only.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

PERIOD_US = 100_000
NEEDED = ("cpu", "memory")
SELF, SERVER = "weir-bench-self", "weir-bench-server"


class CgroupUnavailable(Exception):
    """There can be no group here; the message says why."""


class Limits:
    """Use as a context. `how` says in words what is enforced, and why no more than that."""

    def __init__(self, cores: Sequence[int], memory_bytes: int, mount: Path | None = None) -> None:
        self.cores = tuple(cores)
        self._memory_bytes = memory_bytes
        self._mount = mount
        self._group: _Group | None = None
        self.how = ""

    def __enter__(self) -> "Limits":
        names = ", ".join(map(str, self.cores))
        pinned = f"pinned to core{'s' if len(self.cores) > 1 else ''} {names}"
        try:
            self._group = _Group(self._mount or find_mount())
            self._group.open(len(self.cores), self._memory_bytes)
            memory = self._memory_bytes >> 20
            self.how = f"{pinned}; cgroup v2: cpu.max of {len(self.cores)} core(s), memory.max of {memory:,} MiB"
        except (OSError, CgroupUnavailable) as error:
            if self._group is not None:
                self._group.close()
                self._group = None
            self.how = f"{pinned}, no cgroup ({error}): memory is not limited"
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            self._group.close()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This process inside the limits: what it starts now stays there."""
        with on_cores(self.cores):
            if self._group is not None:
                self._group.enter()
            try:
                yield
            finally:
                if self._group is not None:
                    self._group.leave()


class _Group:
    """Below the group of this process: a leaf for itself, and one with the limits (inner groups may hold no processes)."""

    def __init__(self, mount: Path) -> None:
        own = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "0::/")
        self._base = mount / own[3:].lstrip("/")
        self._self, self._server = self._base / f"{SELF}-{os.getpid()}", self._base / f"{SERVER}-{os.getpid()}"
        self._is_enabled = False

    def open(self, n_cores: int, memory_bytes: int) -> None:
        """Raises OSError, CgroupUnavailable."""
        there = (self._base / "cgroup.controllers").read_text().split()
        lacking = [name for name in NEEDED if name not in there]
        if lacking:
            raise CgroupUnavailable(f"cgroup v2 has no controller {' and '.join(lacking)} here")
        self._self.mkdir(exist_ok=True)
        self.leave()
        (self._base / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in NEEDED))
        self._is_enabled = True
        self._server.mkdir(exist_ok=True)
        (self._server / "cpu.max").write_text(f"{n_cores * PERIOD_US} {PERIOD_US}")
        (self._server / "memory.max").write_text(str(memory_bytes))

    def enter(self) -> None:
        (self._server / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self) -> None:
        (self._self / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> None:
        """Everything as it was, as far as it can be: groups that still hold processes stay."""
        with contextlib.suppress(OSError):
            self._server.rmdir()
        with contextlib.suppress(OSError):
            if self._is_enabled:
                (self._base / "cgroup.subtree_control").write_text(" ".join(f"-{name}" for name in NEEDED))
        with contextlib.suppress(OSError):
            (self._base / "cgroup.procs").write_text(str(os.getpid()))
            self._self.rmdir()


def find_mount() -> Path:
    """Where cgroup v2 is mounted. Raises CgroupUnavailable."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2":
            return Path(fields[1])
    raise CgroupUnavailable("cgroup v2 is not mounted")


@contextlib.contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """This process on these cores; what it starts inherits them. None of them: as it was."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
