"""What a level missed: from the journal, or, where that no longer reaches back, all that a complete level has."""

from collections.abc import AsyncIterator

from features.plan import Plan
from service.consumer import Portion
from service.fetch import entity_key
from service.journal import Journal
from service.levels import Level
from service.records import entities_of_entry
from service.stepwise import stepwise


async def missed_portions(
    plan: Plan, journal: Journal, position: int, complete: Level | None, keys_max: int
) -> AsyncIterator[Portion]:
    """(keys with the LSN of a change, LSN up to which they are complete), about `keys_max` at a time.

    Ends in the turn of the loop in which it has seen the journal's end. `complete` is given where the journal lacks entries
    after `position`: then all that it has counts as changed at `position` + 1, and the journal is read too, for `complete` may
    be a little behind itself. Raises TierUnavailable (the complete level), JournalCorrupt.
    """
    if complete is not None:
        async for chunk in complete.tier.keys_chunks():  # type: ignore[attr-defined]  # complete levels can be listed
            yield dict.fromkeys(chunk, position + 1), position
    marked_lsn = position
    keys: dict[bytes, int] = {}
    while True:
        while marked_lsn < journal.last_lsn:
            async for block in stepwise(journal.read(marked_lsn + 1)):
                for entry in block.entries:
                    for kind, entity in entities_of_entry(plan, entry):
                        keys.setdefault(entity_key(plan.kinds[kind].name, entity), entry.lsn)
                marked_lsn = block.last_lsn
                if len(keys) >= keys_max:
                    yield keys, marked_lsn
                    keys = {}
        if not keys:
            return
        yield keys, marked_lsn
        keys = {}
