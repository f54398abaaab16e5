"""Turning tiers off and on while the service runs; what was last asked for outlives a restart.

A tier that is off is neither read nor written. Before that it hands down what only it has; after it was turned on again it
catches up as after an outage, and is read once it has everything (write_behind). L1 starts empty, the Bloom filter is filled
anew.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

import msgspec
import structlog

from service.durable_file import replace_file
from service.errors import NotFound, StartError
from service.settings import Settings
from service.tiers.bloom import MaybeSet
from service.tiers.l1 import L1
from service.write_behind import WriteBehind

log = structlog.get_logger(__name__)

TOGGLES_FILE = "toggles.json"
EVICTIONS_PER_TURN = 100  # profiles that leave L1 between two turns of the loop: 1 ms where they are dirty

_decode = msgspec.json.Decoder(dict[str, bool]).decode


def read_enabled(settings: Settings) -> dict[str, bool]:
    """Which tiers are on: as was last asked for, else as the settings say. Raises StartError."""
    path = settings.data_dir / TOGGLES_FILE
    enabled = {name: getattr(settings, name).enabled for name in ("l1", "bloom", "l2", "redis", "postgres")}
    try:
        toggled = _decode(path.read_bytes()) if path.exists() else {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StartError(f"{path}: not readable: {error}; remove it to go back to the settings") from None
    return enabled | {name: is_on for name, is_on in toggled.items() if name in enabled}


class TierSwitch:
    """`enabled`: tier -> whether it is on. `cover_bloom` fills the filter, until it covers everything."""

    def __init__(
        self, directory: Path, enabled: Mapping[str, bool], l1: L1, l1_bytes_max: int, bloom: MaybeSet,
        write_behind: WriteBehind, cover_bloom: Callable[[], Coroutine[None, None, None]],
    ) -> None:  # fmt: skip
        self._path = directory / TOGGLES_FILE
        self._enabled = dict(enabled)
        self._l1 = l1
        self._l1_bytes_max = l1_bytes_max
        self._bloom = bloom
        self._write_behind = write_behind
        self._cover_bloom = cover_bloom
        self._turn = asyncio.Lock()
        self._filling: asyncio.Task[None] | None = None

    def names(self) -> list[str]:
        """The tiers of this installation, in read order."""
        return ["l1", "bloom", *(consumer.level.name for consumer in self._write_behind.consumers)]

    async def use(self, name: str, is_on: bool, note: Callable[[], None] = lambda: None) -> bool:
        """Turn a tier on or off, durably. False if it was so already. Raises NotFound, OSError.

        `note` tells of the change before it happens, on another thread; if it fails nothing changes.
        """
        if name not in self.names():
            raise NotFound(f"there is no tier {name[:40]!r} here; there are {', '.join(self.names())}", "name")
        async with self._turn:
            if self._enabled[name] == is_on:
                return False
            await asyncio.to_thread(note)
            enabled = self._enabled | {name: is_on}
            await asyncio.to_thread(replace_file, self._path, msgspec.json.encode(enabled))
            self._enabled = enabled
            await self._apply(name, is_on)
            log.info("tier switched", tier=name, enabled=is_on)
            return True

    async def close(self) -> None:
        """Stop filling the filter."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)

    async def _apply(self, name: str, is_on: bool) -> None:
        if name == "l1":
            await self._size_l1(self._l1_bytes_max if is_on else 0)
        elif name == "bloom":
            await self.close()
            self._bloom.clear()
            self._bloom.is_on = is_on
            if is_on:
                self._filling = asyncio.get_running_loop().create_task(self._cover_bloom())
        else:
            consumer = next(c for c in self._write_behind.consumers if c.level.name == name)
            if is_on:
                self._write_behind.turn_on(consumer)
            else:
                await self._write_behind.turn_off(consumer)

    async def _size_l1(self, bytes_max: int) -> None:
        """L1's new bound; what is above it goes down a little at a time, the dirty ones by way of write-behind."""
        if not bytes_max:
            for consumer in self._write_behind.consumers:
                await self._write_behind.flush(consumer)
        n_left = EVICTIONS_PER_TURN
        while n_left == EVICTIONS_PER_TURN:
            n_left = self._l1.shrink(bytes_max, EVICTIONS_PER_TURN)
            await asyncio.sleep(0)
        self._l1.bytes_max = bytes_max
        self._l1.trim()
