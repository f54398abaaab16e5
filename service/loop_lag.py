"""How late the event loop wakes a timer: what every request would feel of work that held the loop."""

import asyncio
import time

from service.metrics import Histogram

INTERVAL_S = 0.02  # between two probes; each costs about 10 µs


async def watch_loop(lag: Histogram) -> None:
    """Sleep again and again, and count by how many seconds each sleep was too long. Runs until cancelled."""
    while True:
        due = time.perf_counter() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        lag.observe(max(time.perf_counter() - due, 0.0))
