"""How glibc's allocator keeps memory: set once at the start, so that what a service holds stays near what it uses.

Left alone, glibc has eight arenas a core, and takes the largest buffer that was ever freed (up to 32 MiB) as a hint to serve
the next ones from its heap. Catching up, erasures and model swaps need buffers of megabytes now and then; of each some stays as
holes: in a soak 33 of 101 MiB after four minutes of faults, and more with each. What was in use was flat at 65.

    25 faults, 128 s, two services side by side: 227 MiB resident, 24 of them holes; with this 207 and 5
"""

import ctypes
import os
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h
LARGE_BYTES: Final = 512 * 1024  # from here on a buffer is mapped, and given back when it is freed; a page fault for each 4 KiB
ARENAS_MAX: Final = 2
VARIABLES: Final = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_few_holes() -> bool:
    """Tell glibc; False where there is another C library, or where the environment has its own word on it (VARIABLES)."""
    if any(name in os.environ for name in VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    told = ((_ARENA_MAX, ARENAS_MAX), (_MMAP_THRESHOLD, LARGE_BYTES), (_TRIM_THRESHOLD, LARGE_BYTES))
    return all(library.mallopt(what, value) == 1 for what, value in told)
