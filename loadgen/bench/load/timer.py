"""A timer of microseconds for an event loop: Linux's timerfd, watched like a socket (uvloop's own timers tick in ms).

Python has it from 3.13 on; until then libc is called. Times are those of `time.perf_counter`: CLOCK_MONOTONIC.
"""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable

CLOCK_MONOTONIC = 1
FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
ABSOLUTE = 1  # TFD_TIMER_ABSTIME


class _Itimerspec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Timer:
    """Calls `fire` once for each `at`, from the running loop. Raises OSError where the system has no timerfd."""

    def __init__(self, fire: Callable[[], None]) -> None:
        self._fire = fire
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._set = libc.timerfd_settime
            self._fd: int = libc.timerfd_create(CLOCK_MONOTONIC, FLAGS)
        except AttributeError:
            raise OSError("the system has no timerfd") from None
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._value = _Itimerspec(0, 0, 0, 0)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)

    def at(self, when_s: float) -> None:
        """Fire at `when_s`, or at once if that has passed; an earlier appointment is forgotten."""
        whole = int(when_s)
        self._value.value_s = whole
        self._value.value_ns = max(1, int((when_s - whole) * 1e9))  # 0 would disarm it
        if self._set(self._fd, ABSOLUTE, ctypes.byref(self._value), None) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        self._fire()
