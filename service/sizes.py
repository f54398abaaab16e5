"""How much each level holds, asked only when somebody looks, and at most every few seconds."""

import asyncio
import time
from collections.abc import Callable, Sequence

from service.errors import TierUnavailable
from service.levels import ON, Level
from service.tiers.base import Size, Sized

AGE_MAX_S = 5.0  # of what is shown


class Sizes:
    """`of` tells what `refresh` has found; None for a level that is not on, or does not say."""

    def __init__(self, levels: Sequence[Level], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._levels = levels
        self._monotonic = monotonic
        self._found: dict[str, Size] = {}
        self._next_at = 0.0
        self._turn = asyncio.Lock()

    def of(self, level: Level) -> Size | None:
        """What the level held when it was asked last."""
        return self._found.get(level.name)

    async def refresh(self) -> None:
        """Ask all levels that are on, at the same time, unless they were asked a moment ago."""
        async with self._turn:
            if self._monotonic() < self._next_at:
                return
            found = await asyncio.gather(*map(_ask, self._levels))
            self._found = {level.name: size for level, size in zip(self._levels, found, strict=True) if size is not None}
            self._next_at = self._monotonic() + AGE_MAX_S


async def _ask(level: Level) -> Size | None:
    if level.state != ON or not isinstance(level.tier, Sized):
        return None
    try:
        return await level.tier.size()
    except TierUnavailable as error:  # as after any call: it is met again before it is trusted
        level.fail(error)
        return None
