"""Which profiles changed after a position: from the journal, or, where it no longer reaches back, all of a complete level."""

from collections.abc import AsyncIterator

from features.plan import Plan
from service.decisions import decode_body
from service.fetch import entity_key
from service.journal import Journal
from service.levels import Level
from service.records import LABEL, TX, decode_label
from service.stepwise import stepwise


async def keys_that_changed(
    plan: Plan, journal: Journal, position: int, complete: Level | None, from_complete: bool = False
) -> AsyncIterator[tuple[bytes, int]]:
    """(key, LSN of a change after `position`), each key at least once. A whole level counts as changed at `position` + 1.

    `from_complete`: the journal is known to lack entries after `position`. It is read in any case: the complete level may be a
    little behind itself.
    """
    if (position < journal.trimmed_lsn or from_complete) and complete is not None:
        async for chunk in complete.tier.keys_chunks():  # type: ignore[attr-defined]  # complete levels can be listed
            for key in chunk:
                yield key, position + 1
    async for block in stepwise(journal.read(position + 1)):
        for entry in block.entries:
            body = entry.body if entry.kind == TX else decode_label(entry.body).body if entry.kind == LABEL else None
            if body is None:
                continue
            tx = decode_body(body)
            for kind in plan.kinds:
                entity = getattr(tx, kind.id_field)
                if entity is not None:
                    yield entity_key(kind.name, entity), entry.lsn
