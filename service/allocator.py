"""How the C library keeps what was freed: little of it, since other programs on the machine may want that memory.

glibc gives each thread a heap of its own, and raises by itself the size from which a block is the system's own, up to 32 MiB:
what many batches freed then stayed with the process. Measured: docs/adr/0048-little-is-kept-when-freed.md.
"""

import ctypes

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8

ARENAS_MAX = 2  # heaps that all threads share: the event loop's, and one for those of RocksDB and the Go core
MMAP_BYTES = 1 << 20  # from here on a block is the system's own, and goes back to it as soon as it is freed
TRIM_BYTES = 4 << 20  # free at a heap's end before it is given back


def keep_little() -> bool:
    """Set the bounds for this process, before its threads start; False where the C library is another one."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    bounds = ((M_ARENA_MAX, ARENAS_MAX), (M_MMAP_THRESHOLD, MMAP_BYTES), (M_TRIM_THRESHOLD, TRIM_BYTES))
    taken = [mallopt(option, value) for option, value in bounds]
    return all(taken)
