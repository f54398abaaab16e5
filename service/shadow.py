"""Shadow reads: a sampled share of what L1 and the levels answered is read from the tier below as well, and compared.

Off the hot path: ten times a second a task takes its sample of the transactions scored since the last time, whose profiles L1
has just given, and of what the levels were asked and found (Level.on_found), and reads all of it from the next level that is
on, in one round trip. What is compared is LSN and bytes:

    same        the same LSN and bytes, or an older copy of a profile that has moved on since it was read
    behind      an older copy, or none, and write-behind knows: it is on its way; counted by how many entries it is behind
    absent      none, in a level that need not have it
    mismatch    the same LSN, other bytes
    lost        older or none, and nothing is on its way
    ahead       newer than what the tier above gave, though that has not moved on

The last three must never be; each is logged, with a digest in the place of the id. With a share of 0 there is no task. A level
that fails a shadow read is down, as by any other.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence

import msgspec
import structlog

from features.plan import Plan
from features.profile import is_partial, is_tombstone, lsn_of
from service.audit import digest
from service.decisions import Decisions, decode_body, is_erased
from service.errors import TierUnavailable
from service.fetch import entity_key, split_key
from service.journal import Journal
from service.levels import ON, Level
from service.metrics import BEHIND_BOUNDS, L1_BOUNDS, Histogram
from service.tiers.l1 import L1
from service.write_behind import WriteBehind

log = structlog.get_logger(__name__)

INTERVAL_S = 0.1  # between two samples
SAMPLES_MAX = 64  # of each interval and tier: bounds what a flood of hits costs
L1_NAME = "l1"
RESULTS = ("same", "behind", "absent", "mismatch", "lost", "ahead")
WRONG = ("mismatch", "lost", "ahead")


class Sample(msgspec.Struct, frozen=True, gc=False):
    """A profile as the tier above gave it."""

    key: bytes
    profile: bytes


class Tally:
    """What came of the shadow reads of one tier."""

    def __init__(self) -> None:
        self.results: Counter[str] = Counter(dict.fromkeys(RESULTS, 0))
        self.behind = Histogram(BEHIND_BOUNDS)

    def describe(self) -> dict[str, object]:
        """What GET /v1/tiers shows. `behind_entries`: how many journal entries those were behind that were."""
        return {"reads": self.results.total(), **self.results, "behind_entries": self.behind.describe()}


class Shadow:
    """`tallies`: by the name of the tier that was read in the shadow of the one above."""

    def __init__(
        self, plan: Plan, share: float, l1: L1, levels: Sequence[Level], decisions: Decisions, write_behind: WriteBehind,
        journal: Journal, rng: random.Random,
    ) -> None:  # fmt: skip
        self.share = share
        self.l1_seconds = Histogram(L1_BOUNDS)  # of the look-ups that were sampled
        self.tallies = {level.name: Tally() for level in levels}
        self._plan = plan
        self._l1 = l1
        self._levels = levels
        self._decisions = decisions
        self._write_behind = write_behind
        self._journal = journal
        self._rng = rng
        self._hits_seen = l1.n_hits
        self._seen_lsn = journal.last_lsn
        self._owed = 0.0  # samples of L1, fractions included
        self._found: dict[str, list[Sample]] = {level.name: [] for level in levels}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sample; nothing happens if the share is 0."""
        if self.share > 0:
            for level in self._levels:
                level.on_found = self._note
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Sample no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _note(self, level: Level, keys: Sequence[bytes], found: Sequence[bytes | None]) -> None:
        """A level has answered: keep a sample of what it found."""
        kept, random = self._found[level.name], self._rng.random
        for key, profile in zip(keys, found, strict=True):
            if profile is not None and random() < self.share and len(kept) < SAMPLES_MAX:
                kept.append(Sample(key, profile))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.turn()
            except Exception:  # a task's top loop: shadows never disturb
                log.exception("shadow read failed")

    async def turn(self) -> None:
        """Compare what was sampled since the last turn."""
        await self._compare(L1_NAME, 0, self._sample_l1())
        for number, level in enumerate(self._levels):
            samples, self._found[level.name] = self._found[level.name], []
            await self._compare(level.name, number + 1, samples)

    def _sample_l1(self) -> list[Sample]:
        """Profiles of transactions that L1 has just answered for: as many as its hits ask for."""
        hits, seen_lsn = self._l1.n_hits, self._seen_lsn
        self._owed = min(self._owed + (hits - self._hits_seen) * self.share, SAMPLES_MAX)
        self._hits_seen, self._seen_lsn = hits, self._journal.last_lsn
        n = int(self._owed)
        self._owed -= n
        samples: dict[bytes, Sample] = {}
        for body in self._decisions.sample(seen_lsn, n, self._rng) if n else ():
            tx = decode_body(body)
            present = [(kind, entity) for kind in self._plan.kinds if (entity := getattr(tx, kind.id_field)) is not None]
            kind, entity = self._rng.choice(present)
            if is_erased(entity):
                continue
            started = time.perf_counter()
            slot = self._l1.slot_of(kind.number, entity)
            self.l1_seconds.observe(time.perf_counter() - started)
            profile = self._l1.copy(kind.number, slot) if slot >= 0 else None
            if profile is not None:
                key = entity_key(kind.name, entity)
                samples[key] = Sample(key, profile)
        return list(samples.values())

    async def _compare(self, above: str, first: int, samples: Sequence[Sample]) -> None:
        """Read the samples from the next level that is on, from number `first`, and judge each."""
        samples = [s for s in samples if not (is_partial(s.profile) or is_tombstone(s.profile))]
        below = next((level for level in self._levels[first:] if level.state == ON), None)
        if below is None or not samples:
            return
        keys = [sample.key for sample in samples]
        lacking = self._write_behind.lacked_by(below, keys)  # before the read: what arrives meanwhile is no loss
        try:
            copies = await below.tier.fill(keys)
        except TierUnavailable as error:
            below.fail(error)
            return
        if below.state != ON:  # it was lost and met again meanwhile
            return
        tally = self.tallies[below.name]
        for sample, copy in zip(samples, copies, strict=True):
            result = self._judge(below, sample, copy, sample.key in lacking)
            if result == "ahead" and await self._has_moved_on(above, sample, copy):
                result = "same"
            tally.results[result] += 1
            if result == "behind":
                tally.behind.observe(self._entries_behind(sample, copy))
            if result in WRONG:
                self._complain(above, below, sample, copy, result)

    def _judge(self, below: Level, sample: Sample, copy: bytes | None, is_on_its_way: bool) -> str:
        if copy is None:
            return "behind" if is_on_its_way else "lost" if below.is_complete else "absent"
        there, here = lsn_of(copy), lsn_of(sample.profile)
        if there == here:
            return "same" if copy == sample.profile else "mismatch"
        if there > here:
            return "ahead"
        return "behind" if is_on_its_way else "lost"

    async def _has_moved_on(self, above: str, sample: Sample, copy: bytes | None) -> bool:
        """Whether the tier above holds by now, or is about to get, what the one below has."""
        assert copy is not None
        kind, entity = split_key(self._plan, sample.key)
        in_ram = self._l1.peek(kind, entity) or self._write_behind.waiting(sample.key)
        if in_ram is not None or above == L1_NAME:  # not in L1 any more: it was written down, and left
            return in_ram is None or lsn_of(in_ram) >= lsn_of(copy)
        level = next(level for level in self._levels if level.name == above)
        if level.state != ON or self._write_behind.lacked_by(level, [sample.key]):
            return True
        with contextlib.suppress(TierUnavailable):
            (again,) = await level.tier.fill([sample.key])
            return again is None or lsn_of(again) >= lsn_of(copy)
        return True

    def _entries_behind(self, sample: Sample, copy: bytes | None) -> int:
        after = self._journal.n_entries_after
        return after(0 if copy is None else lsn_of(copy)) - after(lsn_of(sample.profile))

    def _complain(self, above: str, below: Level, sample: Sample, copy: bytes | None, result: str) -> None:
        kind, _, entity = sample.key.decode().partition(":")
        log.error(
            "shadow read differs", result=result, above=above, below=below.name, kind=kind, id_digest=digest(kind, entity),
            lsn_above=lsn_of(sample.profile), lsn_below=None if copy is None else lsn_of(copy),
        )  # fmt: skip
