"""Partial profiles: begun while a level could not be asked, made whole as soon as the levels answer again.

The stored profile is advanced by every journal entry that it lacks, so the outcome has the very bytes that it would have had
without the outage (a merge of the two would not: a label may take back a fraud that only the stored part counts, an event may
be late only for the stored part). The journal reaches back far enough, because the first change of a partial profile holds
back the position of every level. Cost: one pass over the journal since that change, for all partial profiles together.
"""

import asyncio

import msgspec
import structlog

from features.advance_one import ERASED_FLAG, advance_one, label_one
from features.columns import encode
from features.plan import W_LSN, Plan
from features.profile import is_tombstone, tombstone
from features.slab import Slab
from service.decisions import decode_body
from service.fetch import UNKNOWN, Fetcher, Found, entity_key
from service.journal import Entry, Journal
from service.records import ERASURE, LABEL, TX, decode_label, entities_of_entry
from service.stepwise import stepwise
from service.tiers.l1 import L1
from service.write_behind import WriteBehind

log = structlog.get_logger(__name__)

KEYS_MAX = 4_096  # profiles that one pass makes whole: 10 MB of copies


class Rebuild(msgspec.Struct):
    """Copies of stored profiles, by entity, on their way to the journal's end."""

    slabs: list[Slab]
    index: list[dict[str, int]]


class Partials:
    """One task. Write-behind tells what the levels lack, and takes what is not in L1."""

    def __init__(
        self, plan: Plan, l1: L1, fetcher: Fetcher, journal: Journal, interval_ms: int, write_behind: WriteBehind
    ) -> None:
        self.n_completed = 0
        self._plan = plan
        self._l1 = l1
        self._fetcher = fetcher
        self._journal = journal
        self._interval_s = interval_ms / 1000
        self._write_behind = write_behind
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """What is partial now will be so again after the next start: its entries are in the journal."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                if self._fetcher.partial:
                    await self.complete()
            except Exception:  # a task's top loop: the next round tries again
                log.exception("partial profiles could not be completed")

    async def complete(self) -> None:
        """Make every partial profile whole for which the levels answer."""
        everything = list(self._fetcher.partial)
        for start in range(0, len(everything), KEYS_MAX):
            await self._complete(everything[start : start + KEYS_MAX])

    async def _complete(self, entities: list[tuple[int, str]]) -> None:
        keys = {entity_key(self._plan.kinds[kind].name, entity): (kind, entity) for kind, entity in entities}
        # Before the levels are asked: what is written to them in between is then applied twice, and ignored once.
        next_lsn = self._journal.next_lsn
        consumers = self._write_behind.completable()
        unwritten = {key: [c.first_unwritten(key) or next_lsn for c in consumers] for key in keys}
        first_lsns = {key: min(lsns, default=next_lsn) for key, lsns in unwritten.items()}
        stored: dict[bytes, Found] = {}
        async for key, found in self._fetcher.read_levels(list(keys), [consumer.level for consumer in consumers]):
            if found.source != UNKNOWN:
                stored[key] = found
        if not stored:
            return
        rebuild = self._begin({keys[key]: found.profile for key, found in stored.items()})
        await self._apply_journal(rebuild, min(first_lsns[key] for key in stored))
        self._l1.settle()
        # From here on nothing is awaited: the copies are the truth of this moment.
        for key in stored:
            self._replace(rebuild, *keys[key], first_lsns[key])
        self.n_completed += len(stored)
        log.info("partial profiles completed", profiles=len(stored), left=len(self._fetcher.partial))

    def _begin(self, stored: dict[tuple[int, str], bytes | None]) -> Rebuild:
        index: list[dict[str, int]] = [{} for _ in self._plan.kinds]
        for kind, entity in stored:
            index[kind][entity] = len(index[kind])
        rebuild = Rebuild([Slab(k, len(i)) for k, i in zip(self._plan.kinds, index, strict=True)], index)
        for (kind, entity), profile in stored.items():
            if profile is not None:
                rebuild.slabs[kind].put(index[kind][entity], profile)
        return rebuild

    async def _apply_journal(self, rebuild: Rebuild, from_lsn: int) -> None:
        """Every entry from `from_lsn` to the journal's last one, those too that are appended meanwhile."""
        while from_lsn <= self._journal.last_lsn:
            last_lsn = self._journal.last_lsn
            async for block in stepwise(self._journal.read(from_lsn)):
                for entry in block.entries:
                    self._apply(rebuild, entry)
            from_lsn = last_lsn + 1

    def _apply(self, rebuild: Rebuild, entry: Entry) -> None:
        """The profile's LSN guard leaves out what it already has."""
        if entry.kind == ERASURE:
            for number, entity in entities_of_entry(self._plan, entry):
                slot = rebuild.index[number].get(entity, -1)
                if slot >= 0 and rebuild.slabs[number].words[slot, W_LSN] < entry.lsn:
                    rebuild.slabs[number].put(slot, tombstone(self._plan.kinds[number], entry.lsn))
            return
        delta = 0
        if entry.kind == TX:
            tx = decode_body(entry.body)
        elif entry.kind == LABEL:
            record = decode_label(entry.body)
            tx, delta = decode_body(record.body), record.delta
            if not delta:
                return
        else:
            return
        for kind, slab, index in zip(self._plan.kinds, rebuild.slabs, rebuild.index, strict=True):
            slot = index.get(getattr(tx, kind.id_field), -1)
            if slot < 0 or not _is_open(slab, slot, entry.lsn):
                continue
            if not delta:
                advance_one(slab, slot, encode(tx, self._plan.currencies), entry.lsn)
            elif kind.keeps_frauds:
                label_one(slab, slot, tx.ts, delta, entry.lsn)

    def _replace(self, rebuild: Rebuild, kind: int, entity: str, first_lsn: int) -> None:
        if self._fetcher.partial.pop((kind, entity), None) is None:
            return  # erased meanwhile
        profile = rebuild.slabs[kind].get(rebuild.index[kind][entity])
        slot = self._l1.slot_of(kind, entity)
        if slot >= 0 and not is_tombstone(profile):
            self._l1.slabs[kind].put(slot, profile)
        elif profile[0]:
            # Even if it is what was stored: a level that was thought to lack it is given it, and is not asked about again.
            self._write_behind.keep(kind, entity, profile, first_lsn)
        else:
            self._write_behind.drop(kind, entity)


def _is_open(slab: Slab, slot: int, lsn: int) -> bool:
    """True if the entry may change the profile: always, but for one that was erased later. Begins anew after an erasure."""
    if slab.flat_words[slot * (slab.kind.size >> 3)] & ERASED_FLAG:
        if lsn <= slab.words[slot, W_LSN]:
            return False
        slab.clear(slot)
    return True
