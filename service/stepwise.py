"""Walk a blocking iterator on the event loop without holding it: every few milliseconds everybody else has a turn."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

T = TypeVar("T")
STEP_S = 0.002  # s of work between two turns of the loop


async def stepwise(items: Iterator[T]) -> AsyncIterator[T]:
    """The items of `items`, in order; it is advanced on the loop's thread."""
    since = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - since > STEP_S:
            await asyncio.sleep(0)
            since = time.perf_counter()
