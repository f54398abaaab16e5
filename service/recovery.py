"""Recovery: the journal is fed to the engine again, in LSN order, from the lowest position on.

Each profile ignores what it already has (LSN guard), so it does not matter how much of a crash's last seconds had reached which
store: afterwards the bytes are those of a fresh engine fed the whole journal. It goes by chunks (service/replay.py): profiles
of all entities in a chunk are pinned, its decisions go to the column, its rows advance, and then they are marked and `Applied`
says so. Write-behind and the keeper work meanwhile, so memory is bounded, and a recovery that is killed goes on where their
positions stand. Cost with the go scorer: 4 µs an event on two cores, with onnx 25 (docs/results/recovery.md).
"""

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import structlog

from features.advance_one import label_one
from features.transaction import is_blank
from models.arena import Arena, Int64s
from models.scorer import Scorer
from service.applied import Applied
from service.decisions import decode_body
from service.engine import Engine
from service.errors import TierUnavailable
from service.journal import ERASURE, LABEL, LIST, TX, Entry
from service.levels import ON
from service.pieces import Pieces
from service.records import decode_erasure, decode_label, decode_list_change, journaled_entities
from service.recovery_progress import count_lsns
from service.replay import REFERENCE_ROWS, Chunk, ReferenceReplay, Replay
from service.replay_places import Places
from service.tiers.l2 import Column

log = structlog.get_logger(__name__)

CORE_ROWS = 4_096  # rows of a chunk of the core: 15 ms; as many slots of a kind may be pinned beside a queue of any size
RECORDS_PER_WRITE = 512  # decisions in one write to the column
ROOM_WAIT_S = 0.02  # between two looks whether write-behind has made room
ROOM_WAITS_MAX = 150  # looks without any progress, after which recovery goes on all the same


class Recovery:
    """Feeds the journal to an engine that takes no requests yet. Used once."""

    def __init__(self, engine: Engine, column: Column, position: int, decisions_position: int) -> None:
        """Profiles lack what is above `position`; decisions, labels and lists what is above `decisions_position`."""
        self._engine = engine
        self._plan, self._l1, self._touched = engine.plan, engine.l1, engine.pipeline.touched
        self._scorer: Scorer = engine.pipeline.scorer
        self._applied: Applied = engine.applied
        self._column = column
        self._position = position
        self._decisions_position = decisions_position
        self._is_core = self._scorer.name == "go"
        # One makes the next chunk, one advances the present one.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="recovery")
        self._is_clock_set = False
        self._places = [Places(kind.number, self._l1, self._touched) for kind in self._plan.kinds]
        self._l1.on_leave = lambda kind, slots: self._places[kind].forget_slots(slots)
        self._start = min(position, decisions_position)
        self._applied.begin(self._start)

    async def run(self) -> None:
        """Apply everything. Raises JournalCorrupt, and what the scorer raises."""
        engine, journal, progress = self._engine, self._engine.journal, self._engine.recovery
        start = self._start
        progress.begin(start + 1, count_lsns(journal.segments(), start + 1, journal.last_lsn))
        engine.reason = progress.text
        loop = asyncio.get_running_loop()
        is_done = False
        try:
            replay = self._replay(start)
            chunk = await loop.run_in_executor(self._threads, replay.next)
            while chunk is not None:
                following = loop.run_in_executor(self._threads, replay.next)
                try:
                    await self._apply(chunk)
                finally:
                    if not following.done():
                        await asyncio.wait([following])  # it works on memory that is ours
                progress.step(chunk.n_entries, chunk.last_lsn)
                engine.reason = progress.text
                chunk = following.result()
            is_done = True
        finally:
            progress.end(self._applied.lsn, is_done=is_done)
            self._l1.on_leave = None
            self._threads.shutdown(wait=True)
        self._applied.finish()
        if not self._is_clock_set:
            self._note_newest()

    def _replay(self, start: int) -> Replay:
        journal = self._engine.journal
        n_rows = CORE_ROWS if self._is_core else REFERENCE_ROWS
        arenas = [Arena(self._plan, self._l1.slabs, n_rows) for _ in range(2)]
        positions = self._position, self._decisions_position
        if not self._is_core:
            return ReferenceReplay(self._plan, arenas, journal.read(start + 1), *positions)
        # Imported when it is needed: who recovers with onnx loads no Go (models/scorers.py).
        splitter = self._scorer.splitter(arenas)  # type: ignore[attr-defined]  # it is the GoScorer
        core: Replay = importlib.import_module("service.replay_go").GoReplay(
            self._plan, splitter, arenas, journal.segments(), journal.read, *positions, journal.last_lsn
        )
        return core

    async def _apply(self, chunk: Chunk) -> None:
        """A chunk, and only then the word that it is applied."""
        await self._make_room()
        for places, new_ids in zip(self._places, chunk.new_ids, strict=True):
            places.learn(new_ids, anew=chunk.anew)
        with_profiles = chunk.last_lsn > self._position
        pinned = await self._pin(chunk) if with_profiles else []
        if pinned and self._is_core and not chunk.others:
            # Nobody else may see the profiles until they are advanced, so this thread awaits nothing meanwhile.
            advancing = self._threads.submit(self._scorer.advance, chunk.arena, chunk.n_rows)
            n_stored = self._store_now(chunk)
            advancing.result()
            await self._store(chunk, n_stored)
        else:
            await self._store(chunk, self._store_now(chunk))
            await self._advance_and_others(chunk, with_profiles)
        if pinned:
            self._mark(chunk, 0, chunk.n_rows)
        for kind, slots in enumerate(pinned):
            self._l1.unpin_many(kind, slots)
        self._l1.trim()
        if chunk.n_rows:
            self._engine.clock.note(int(chunk.arena.columns[: chunk.n_rows, 0].max()))
            self._is_clock_set = True
        self._applied.reach(chunk.last_lsn)

    async def _pin(self, chunk: Chunk) -> list[Int64s]:
        """The slots of the chunk's entities, by kind, found or fetched; in the arena they take the places of the numbers."""
        pinned = [places.pin(numbers) for places, numbers in zip(self._places, chunk.numbers, strict=True)]
        missing = [(kind, place) for kind, slots in enumerate(pinned) for place in np.flatnonzero(slots < 0).tolist()]
        if missing:
            nobody: list[str | None] = [None] * len(self._plan.kinds)
            names = [self._places[kind].names[chunk.numbers[kind][place]] for kind, place in missing]
            rows = [[*nobody[:kind], name, *nobody[kind + 1 :]] for (kind, _), name in zip(missing, names, strict=True)]
            fetched = (await self._engine.fetcher.pin_all(rows)).max(axis=1)
            for (kind, place), slot in zip(missing, fetched.tolist(), strict=True):
                pinned[kind][place] = slot
        for places, numbers, slots in zip(self._places, chunk.numbers, pinned, strict=True):
            places.put(numbers, slots)
        rows_of = chunk.arena.slots[: chunk.n_rows]
        for kind, places in enumerate(self._places):
            rows_of[:, kind] = places.slots_of(rows_of[:, kind])
        return pinned

    def _store_now(self, chunk: Chunk) -> int:
        """Decisions to the column until it asks to wait, or refuses them; how many it took."""
        records = iter(chunk.records.items())
        n_stored = 0
        while part := dict(islice(records, RECORDS_PER_WRITE)):
            try:
                if not self._column.put_now(part):
                    break
            except TierUnavailable:
                break
            n_stored += len(part)
        return n_stored

    async def _store(self, chunk: Chunk, n_stored: int) -> None:
        """Those after the first `n_stored`, waiting where the column asks for it. What it refuses is the keeper's, in RAM."""
        if n_stored == len(chunk.records):
            return
        records = dict(islice(chunk.records.items(), n_stored, None))
        try:
            await self._column.put_many(records)
        except TierUnavailable as error:
            log.warning("decisions wait in memory", decisions=len(records), problem=error.detail)
            event_id_lines = b"".join([b"%b\n" % event_id for event_id in records])
            first_lsn = int(chunk.arena.lsns[0])
            waiting = Pieces.of(list(records.values()))
            self._engine.decisions.add_batch(event_id_lines, waiting, first_lsn, chunk.last_lsn)

    def _mark(self, chunk: Chunk, first: int, end: int) -> None:
        """The entities that come first in the rows from `first` to `end` were changed by those."""
        for places, numbers, rows in zip(self._places, chunk.numbers, chunk.first_rows, strict=True):
            part = slice(*np.searchsorted(rows, (first, end)))
            places.mark(numbers[part], chunk.arena.lsns[rows[part]])

    async def _advance_and_others(self, chunk: Chunk, with_profiles: bool) -> None:
        """Rows, and the entries that stand between them, in their order.

        They are marked in this order too: a mark is the first LSN that write-behind lacks. What it has taken meanwhile is
        marked again at the chunk's end, for rows that came later.
        """
        n_done = 0
        for row, entry in [*chunk.others, (chunk.n_rows, None)]:
            if with_profiles and row > n_done:
                self._scorer.advance(chunk.arena, row - n_done, n_done)
                self._mark(chunk, n_done, row)
            n_done = row
            if entry is not None:
                await self._apply_other(entry)

    async def _apply_other(self, entry: Entry) -> None:
        if entry.kind == LABEL:
            await self._label(entry)
        elif entry.kind == LIST:
            change = decode_list_change(entry.body)
            self._engine.lists.apply(change, entry.lsn)
            await self._engine.list_store.put(change, self._engine.lists, self._engine.now_ms())
        elif entry.kind == ERASURE:
            self._erase(entry)

    def _erase(self, entry: Entry) -> None:
        """What was applied before it is forgotten. An entry with a blank id is of an erasure that was finished."""
        erasure = decode_erasure(entry.body)
        if not is_blank(erasure.id):
            self._engine.erasures.apply(erasure.kind, erasure.id, entry.lsn, to_profile=entry.lsn > self._position)

    async def _label(self, entry: Entry) -> None:
        record, decisions = decode_label(entry.body), self._engine.decisions
        if entry.lsn > self._decisions_position:
            stored = decisions.find(record.event_id)
            if stored is not None:
                self._engine.models.quality.label(stored, record.label, entry.lsn)
                decisions.label(record.event_id, stored, record.label, entry.lsn)
        if entry.lsn <= self._position or not record.delta:
            return
        tx = decode_body(record.body)
        known = journaled_entities(self._plan, tx)
        entities = [entity if kind.keeps_frauds else None for kind, entity in zip(self._plan.kinds, known, strict=True)]
        slots = await self._engine.fetcher.pin_all([entities])
        for kind, entity, slot in zip(self._plan.kinds, entities, slots[0].tolist(), strict=True):
            if entity is not None:
                label_one(self._l1.slabs[kind.number], slot, tx.ts, record.delta, entry.lsn)
                if self._l1.slabs[kind.number].words[slot, 0]:
                    self._touched.mark(kind.number, entity, entry.lsn)
        self._l1.unpin_rows(slots)

    async def _make_room(self) -> None:
        """Wait for write-behind where more waits in RAM than it should, as long as that helps."""
        write_behind = self._engine.write_behind
        least, n_waits = write_behind.n_waiting, 0
        while write_behind.fullness and n_waits < ROOM_WAITS_MAX and _takes_any(self._engine):
            await asyncio.sleep(ROOM_WAIT_S)
            n_waits = 0 if write_behind.n_waiting < least else n_waits + 1
            least = min(least, write_behind.n_waiting)

    def _note_newest(self) -> None:
        """The stream clock goes on where it stopped, about: at the last entries, if no transaction had to be applied again."""
        journal = self._engine.journal
        for block in journal.read(journal.last_lsn):
            for entry in block.entries:
                if entry.kind == TX:
                    self._engine.clock.note(decode_body(entry.body).ts)
                elif entry.kind == LABEL:
                    self._engine.clock.note(decode_body(decode_label(entry.body).body).ts)


def _takes_any(engine: Engine) -> bool:
    """Whether any level is written to."""
    return any(c.is_live and c.level.state == ON for c in engine.write_behind.consumers)
