"""What glibc is told about memory holds for buffers that come after, and the environment's word goes first."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")

# A freed buffer of 8 MiB makes glibc serve smaller ones from its heap; mapped ones are seen in mallinfo2's hblkhd.
PROGRAM = """
import ctypes
from service.allocator import keep_few_holes
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
print({told})
large = bytes(8 << 20)
del large
before = library.mallinfo2().hblkhd
kept = bytes(600_000)
print(library.mallinfo2().hblkhd > before)
"""  # noqa: E501


def _run(told: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM.format(told=told)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_large_buffer_is_mapped_after_a_larger_one_was_freed() -> None:
    """Left alone glibc takes it from the heap, where it leaves a hole."""
    assert _run("keep_few_holes()") == ["True", "True"]
    assert _run("None") == ["None", "False"]


def test_environment_has_the_first_word() -> None:
    """Whoever sets glibc's own variables is left alone."""
    assert _run("keep_few_holes()", MALLOC_ARENA_MAX="8") == ["False", "False"]
