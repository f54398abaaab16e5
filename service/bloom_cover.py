"""Filling the Bloom filters, in the background: until they hold every key below them they answer maybe."""

from collections.abc import AsyncIterator

import structlog

from service.decisions import MaybeEvents
from service.erasure import RESERVED_KEYS
from service.errors import TierUnavailable
from service.levels import ON
from service.stores import Stores
from service.tiers.bloom import MaybeSet

log = structlog.get_logger(__name__)


async def cover_profiles(bloom: MaybeSet, stores: Stores) -> None:
    """L2's keys, and Postgres's too where L2 is off or was not there from the first event on.

    A Redis cannot be listed: no cover where it is alone, and none where it began ahead of Postgres, for then it may have
    entities that Postgres has not heard of.
    """
    if not bloom.is_on:
        return
    levels = {level.name: level for level in stores.levels}
    begun = {level.name: position for level, position in zip(stores.levels, stores.positions, strict=True)}
    sources: list[AsyncIterator[list[bytes]]] = [stores.l2.keys_chunks()]
    if not levels["l2"].is_complete or levels["l2"].state != ON:
        if stores.postgres is None or levels["postgres"].state != ON or begun.get("redis", 0) > begun["postgres"]:
            log.info("bloom filter stays without effect: no store can be listed that has every entity")
            return
        sources.append(stores.postgres.keys_chunks())
    try:
        for source in sources:
            async for chunk in source:
                bloom.add_many(chunk)
    except TierUnavailable as error:
        log.warning("bloom filter stays off until the next start", problem=error.detail)
        return
    bloom.cover()


async def cover_events(maybe: MaybeEvents | None, stores: Stores) -> None:
    """The event ids of all stored decisions."""
    if maybe is None:
        return
    try:
        async for chunk in stores.decisions.keys_chunks():
            maybe.add_many(key for key in chunk if not key.startswith(RESERVED_KEYS))
    except TierUnavailable as error:
        log.warning("event filter stays off until the next start", problem=error.detail)
        return
    maybe.cover()
