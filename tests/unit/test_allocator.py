"""What is freed goes back to the system."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, threading
from service.allocator import MMAP_BYTES, keep_little

assert keep_little()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

def use(size, n):
    blocks = [libc.malloc(size) for _ in range(n)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    most = resident()
    for block in reversed(blocks):
        libc.free(block)
    return most

use(8 * MMAP_BYTES, 1)  # by itself glibc would now keep blocks of up to this size
before = resident()
most = use(4 * MMAP_BYTES, 16)
print((most - before) >> 20, (resident() - before) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the bounds are those of glibc")
def test_large_blocks_go_back_when_they_are_freed() -> None:
    """64 MiB in blocks of 4 were resident, and nearly none of it is after they were freed."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used, kept = map(int, done.stdout.split())
    assert used >= 60
    assert kept <= 4
