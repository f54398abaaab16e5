"""CPU and memory of a group of processes: a server with all its workers, or the stores beside it. Linux only (/proc).

Memory is PSS: a page that n processes share counts 1/n in each, so a sum over processes counts every page once.
"""

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

from loadgen.bench.stores import descendants


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    return [pid, *descendants(pid)]


def cpu_s(pids: Iterable[int]) -> float:
    """CPU of all their threads so far, user and system; processes that have ended are left out."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            # Linux's clock of another process (clock_getcpuclockid, which Python lacks): ns; /proc counts in steps of 10 ms.
            total += time.clock_gettime(~pid << 3 | 2)
    return total


def pss_mb(pids: Iterable[int]) -> float:
    """MiB: proportional set size, summed. Processes that have ended, or may not be looked at, count nothing."""
    total_kb = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
                if line.startswith("Pss:"):
                    total_kb += int(line.split()[1])
                    break
    return total_kb / 1024
