"""Filling the Bloom filters at start, in the background: until they hold every key below them they answer maybe."""

import structlog

from service.engine import Engine
from service.errors import TierUnavailable
from service.keeper import DECISIONS_POSITION_KEY
from service.stores import Stores

log = structlog.get_logger(__name__)


async def cover_profiles(engine: Engine, stores: Stores) -> None:
    """L2's keys, and Postgres's too where L2 was not there from the first event on. A Redis alone can't be listed: no cover."""
    bloom = engine.bloom
    if bloom is None:
        return
    sources = [] if stores.l2 is None else [stores.l2.keys_chunks()]
    is_complete = bool(stores.levels) and stores.levels[0].is_complete and stores.l2 is not None
    if not is_complete and stores.levels:
        if stores.postgres is None:
            log.info("bloom filter stays off: no complete store can be listed")
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


async def cover_events(engine: Engine, stores: Stores) -> None:
    """The event ids of all stored decisions."""
    maybe = engine.decisions.maybe
    if maybe is None:
        return
    try:
        async for chunk in stores.decisions.keys_chunks():
            maybe.add_many(key for key in chunk if key != DECISIONS_POSITION_KEY)
    except TierUnavailable as error:
        log.warning("event filter stays off until the next start", problem=error.detail)
        return
    maybe.cover()
