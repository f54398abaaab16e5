"""How often somebody may try to sign in: a few failures per address and minute, then a wait. A key has 256 random bits, so this
keeps noise out of the log, not guessers out of the house.
"""

import time
from collections import deque
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network
from math import ceil
from typing import Final

from service.errors import TooManyAttempts

WINDOW_S: Final = 60.0  # s in which failures count
ADDRESSES_MAX: Final = 1_024  # remembered; the one that failed longest ago is forgotten first


class Throttle:
    """Failures by address. An IPv6 client counts as its /64, a UNIX socket as one address."""

    def __init__(self, failures_max: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._failures_max = failures_max
        self._monotonic = monotonic
        self._failed_at: dict[str, deque[float]] = {}

    def check(self, address: str | None) -> None:
        """Raises TooManyAttempts while the address has to wait, whatever it would send."""
        times = self._failed_at.get(_group(address))
        if times is None:
            return
        now = self._monotonic()
        while times and now - times[0] >= WINDOW_S:
            times.popleft()
        if len(times) >= self._failures_max:
            wait_s = max(1, ceil(WINDOW_S - (now - times[0])))
            raise TooManyAttempts(f"{len(times)} failed attempts in {WINDOW_S:.0f} s; try again in {wait_s} s", wait_s)

    def failed(self, address: str | None) -> None:
        """Count an attempt that failed."""
        group = _group(address)
        times = self._failed_at.pop(group, None) or deque(maxlen=self._failures_max)
        times.append(self._monotonic())
        self._failed_at[group] = times  # last: the dict is in order of the latest failure
        if len(self._failed_at) > ADDRESSES_MAX:
            del self._failed_at[next(iter(self._failed_at))]


def _group(address: str | None) -> str:
    try:
        ip = ip_address((address or "").partition("%")[0])
    except ValueError:  # a UNIX socket
        return ""
    return str(ip_network((ip, 64), strict=False)) if isinstance(ip, IPv6Address) and not ip.ipv4_mapped else str(ip)
