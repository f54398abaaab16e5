"""A level: a tier below L1 with its state and what was counted of its look-ups."""

import time
from collections.abc import Callable, Collection, Sequence

from service.errors import TierUnavailable
from service.metrics import LATENCY_BOUNDS, Histogram
from service.tiers.base import NearTier, Tier

ON, DOWN, CATCHING_UP, OFF = "on", "down", "catching_up", "off"
BREAKERS = {ON: "closed", DOWN: "open", CATCHING_UP: "half_open", OFF: "off"}


class Level:
    """States: on; down (a call failed: neither read nor written until a probe answers); catching_up (written, not read); off.

    This is the level's circuit breaker (ADR 0015): closed while it is on, open while it is down, half-open while it catches up.

    `is_complete`: a miss here proves that no tier below holds the profile either. `keeps`: what was put stays. A Redis that
    evicts is neither. `lacks(keys)`: those of which the level may hold an old copy, or none, so its answer counts for nothing.
    `is_local`: it lives in this process, so what was put is there as long as we are, though its durable position says less.
    """

    def __init__(self, tier: Tier, is_complete: bool, keeps: bool = True, is_local: bool = False) -> None:
        self.tier = tier
        self.name = tier.name
        self.is_complete = is_complete
        self.keeps = keeps
        self.is_local = is_local
        self._near = tier if isinstance(tier, NearTier) else None
        self.lacks: Callable[[Sequence[bytes]], Collection[bytes]] = _lacks_nothing
        self.state = ON
        self.reason = ""
        self.n_lookups = self.n_hits = self.n_unavailable = 0
        self.read_seconds = Histogram(LATENCY_BOUNDS)
        # Told what was asked and found; None costs nothing.
        self.on_found: Callable[[Level, Sequence[bytes], Sequence[bytes | None]], None] | None = None
        self.n_failures = 0

    async def fill(self, keys: Sequence[bytes], even_old: bool = False) -> list[bytes | None]:
        """The tier's profiles for `keys`. Raises TierUnavailable at once unless the level is on, or, `even_old`, catches up."""
        self.n_lookups += len(keys)
        if self.state != ON and not (even_old and self.state == CATCHING_UP):
            self.n_unavailable += len(keys)
            raise TierUnavailable(self.name, self.state)
        start = time.perf_counter()
        try:
            found = await self.tier.fill(keys)
        except TierUnavailable as error:
            self.n_unavailable += len(keys)
            self.fail(error)
            raise
        self._note(start, keys, found, even_old=even_old)
        return found

    def fill_now(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The same for the first of the keys, with no await: as many as a tier in this process reads at once, often all."""
        if self._near is None or self.state != ON:
            return []
        start = time.perf_counter()
        try:
            found = self._near.fill_now(keys)
        except TierUnavailable as error:
            self.fail(error)
            return []
        if found:
            self.n_lookups += len(found)
            self._note(start, keys[: len(found)], found)
        return found

    def _note(self, start: float, keys: Sequence[bytes], found: Sequence[bytes | None], *, even_old: bool = False) -> None:
        self.read_seconds.observe(time.perf_counter() - start)
        self.n_hits += sum(1 for profile in found if profile is not None)
        if self.on_found is not None and not even_old:
            self.on_found(self, keys, found)

    def fail(self, error: TierUnavailable) -> None:
        """A call failed: leave the tier alone until write-behind has reached it again."""
        self.n_failures += self.state in (ON, CATCHING_UP)
        if self.state != OFF:
            self.state, self.reason = DOWN, error.detail

    def describe(self) -> dict[str, object]:
        """What GET /v1/tiers shows of it."""
        return {
            "name": self.name,
            "enabled": self.state != OFF,
            "state": self.state,
            "breaker": BREAKERS[self.state],
            "reason": self.reason,
            "complete": self.is_complete,
            "lookups": self.n_lookups,
            "hits": self.n_hits,
            "misses": self.n_lookups - self.n_hits - self.n_unavailable,
            "unavailable": self.n_unavailable,
            "failures": self.n_failures,
            "hit_ratio": hit_ratio(self.n_hits, self.n_lookups - self.n_unavailable),
            "read_seconds": round(self.read_seconds.total, 6),
            "latency_s": self.read_seconds.describe(),
        }


def hit_ratio(n_hits: int, n_lookups: int) -> float | None:
    """None before the first look-up."""
    return round(n_hits / n_lookups, 6) if n_lookups > 0 else None


def _lacks_nothing(keys: Sequence[bytes]) -> Collection[bytes]:
    return ()
