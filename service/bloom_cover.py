"""Filling the Bloom filters, in the background: until they hold every key below them they answer maybe."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import structlog

from service.decisions import MaybeEvents
from service.erasure import RESERVED_KEYS
from service.errors import TierUnavailable
from service.levels import ON
from service.stores import Stores
from service.tiers.bloom import MaybeSet
from service.write_behind import WriteBehind

log = structlog.get_logger(__name__)

RETRY_S = 1.0  # between two looks whether the stores can be listed


async def cover_profiles(bloom: MaybeSet, stores: Stores, write_behind: WriteBehind) -> None:
    """As soon as every entity is known: those of a store that can be listed, what it still lacks, and what is in RAM.

    That store is L2, and Postgres beside it where L2 is off or was not there from the first event on. A Redis cannot be
    listed: no cover where it is alone, and none where it began ahead of Postgres, for then it may have entities that Postgres
    has not heard of.
    """
    while bloom.is_on and not bloom.covered:
        sources = _sources(stores)
        if sources:
            try:
                # First what the stores lack, then what they have: an entity on its way from the one to the other is met.
                for source in (write_behind.known_keys(), *sources):
                    async with contextlib.aclosing(source) as chunks:  # an open iterator keeps the store open
                        async for chunk in chunks:
                            bloom.add_many(chunk)
                bloom.cover()
            except TierUnavailable as error:
                log.warning("bloom filter could not be filled", problem=error.detail)
        await asyncio.sleep(0 if bloom.covered else RETRY_S)


def _sources(stores: Stores) -> list[AsyncGenerator[list[bytes]]]:
    """Listings that together have every entity, but for those that their consumers know to be missing; none: not now."""
    levels = {level.name: level for level in stores.levels}
    if levels["l2"].is_complete and levels["l2"].state == ON:
        return [stores.l2.keys_chunks()]
    begun = {level.name: position for level, position in zip(stores.levels, stores.positions, strict=True)}
    if stores.postgres is None or levels["postgres"].state != ON or begun.get("redis", 0) > begun["postgres"]:
        return []
    return [stores.l2.keys_chunks(), stores.postgres.keys_chunks()]


async def cover_events(maybe: MaybeEvents | None, stores: Stores) -> None:
    """The event ids of all stored decisions."""
    if maybe is None:
        return
    try:
        async with contextlib.aclosing(stores.decisions.keys_chunks()) as chunks:
            async for chunk in chunks:
                maybe.add_many(key for key in chunk if not key.startswith(RESERVED_KEYS))
    except TierUnavailable as error:
        log.warning("event filter stays off until the next start", problem=error.detail)
        return
    maybe.cover()
