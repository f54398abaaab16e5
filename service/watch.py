"""Looking at a sample of what is scored, beside scoring: drift, the log of vectors for the skew check, the challenger.

The pipeline hands over each batch that was journaled (`look`, 0.3 µs); every n-th row is copied. What was copied is worked off
by one task, a little per turn of the loop; the challenger's model and the file's writes run on another thread. Nothing here
changes a profile, an outcome or a reply; what does not fit is dropped and counted.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from features.advance_one import PARTIAL_FLAG
from features.plan import W_FIRST_LSN, W_VERSION
from models.drift import Drift
from service.challenger import Challenger
from service.vector_log import VectorLog

if TYPE_CHECKING:
    from service.batch import Batch

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 0.25  # between two rounds of working off
ROWS_MAX: Final = 16_384  # copied and not worked off, for each use: 2.6 MB with 40 features
STEP_ROWS: Final = 256  # worked off between two turns of the loop: 0.5 ms
LOG_INTERVAL_S: Final = 10.0

UNKNOWN_LSN: Final = -1  # in place of a profile's first LSN where the profile is not its entity's whole history


class Sample(msgspec.Struct, frozen=True):
    """Copied rows. lsns: int64 (rows,); vectors: float32 (rows, n_features); risks: float32 (rows,); first_lsns: int64 (rows,
    kinds), of each profile's first event, 0 = absent, or UNKNOWN_LSN."""

    lsns: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    risks: npt.NDArray[np.float32]
    first_lsns: npt.NDArray[np.int64]

    def parts(self) -> "Sequence[Sample]":
        """The same in steps."""
        n = len(self.lsns)
        return [
            Sample(self.lsns[s], self.vectors[s], self.risks[s], self.first_lsns[s])
            for s in (slice(at, at + STEP_ROWS) for at in range(0, n, STEP_ROWS))
        ]


class _Kept:
    """Rows that wait to be worked off."""

    def __init__(self) -> None:
        self.n_rows = 0
        self._samples: list[Sample] = []

    def add(self, sample: Sample) -> None:
        self.n_rows += len(sample.lsns)
        self._samples.append(sample)

    def take(self) -> Sample | None:
        """All of them, which are forgotten here."""
        samples, self._samples, self.n_rows = self._samples, [], 0
        if not samples:
            return None
        fields = ("lsns", "vectors", "risks", "first_lsns")
        return Sample(*(np.concatenate([getattr(sample, field) for sample in samples]) for field in fields))


class Stride:
    """Every n-th row of a stream that comes in batches; `share` 0 is none."""

    def __init__(self, share: float) -> None:
        self.step = round(1 / share) if share else 0
        self._next = 0

    def take(self, n_rows: int) -> range | None:
        """The rows of this batch that are due, or None."""
        at = self._next
        if at >= n_rows:
            self._next = at - n_rows
            return None
        if not self.step:
            return None
        rows = range(at, n_rows, self.step)
        self._next = rows[-1] + self.step - n_rows
        return rows


class Watch:
    """One service's. `drift` is of the champion, None where its card has no population; `challenger` None without one."""

    def __init__(self, share: float, challenger_share: float, vector_log: VectorLog | None) -> None:
        self.drift: Drift | None = None
        self.n_dropped = {"sample": 0, "challenger": 0}
        self.challenger: Challenger | None = None
        self.vector_log = vector_log
        self._challenger_share = challenger_share
        self._sampled, self._challenging = Stride(share), Stride(challenger_share)
        self._samples, self._challenged = _Kept(), _Kept()
        self._task: asyncio.Task[None] | None = None
        self._n_changes = 0
        self._stopping = asyncio.Event()
        self._turn = asyncio.Lock()
        self._log_at = 0.0

    def look(self, batch: "Batch") -> None:
        """A batch that counts, while its vectors and profiles are still in their places."""
        rows = self._sampled.take(batch.n_rows)
        if rows is not None:
            self._keep("sample", self._samples, batch, rows, with_profiles=True)
        if self.challenger is not None:
            rows = self._challenging.take(batch.n_rows)
            if rows is not None:
                self._keep("challenger", self._challenged, batch, rows, with_profiles=False)

    @property
    def n_waiting(self) -> int:
        """Rows that are copied and not worked off."""
        return self._samples.n_rows + self._challenged.n_rows

    def forget(self) -> None:
        """Drop what is copied."""
        self._samples.take()
        self._challenged.take()

    def use(self, drift: Drift | None) -> None:
        """Another champion: what was copied before belongs to the last one."""
        self._n_changes += 1
        self.forget()
        self.drift = drift
        if self.challenger is not None:
            self.challenger.restart()

    def set_challenger(self, challenger: Challenger | None) -> None:
        """Another challenger, or none."""
        self._n_changes += 1
        self._challenged.take()
        self._challenging = Stride(self._challenger_share)
        self.challenger = challenger

    def start(self) -> None:
        """Begin to work off what is copied."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Work off what is left, and close the log of vectors."""
        self._stopping.set()  # not cancelled: what it has taken is nowhere else
        if self._task is not None:
            await self._task
        await self._work_off_safely()
        if self.vector_log is not None:
            self.vector_log.close()

    def _keep(self, use: str, kept: "_Kept", batch: "Batch", rows: range, with_profiles: bool) -> None:
        if kept.n_rows + len(rows) > ROWS_MAX:
            self.n_dropped[use] += len(rows)
            return
        arena, part = batch.arena, slice(rows.start, rows.stop, rows.step)
        first_lsns = _first_lsns(batch, rows) if with_profiles else np.zeros((len(rows), 0), dtype=np.int64)
        kept.add(Sample(arena.lsns[part].copy(), arena.vectors[part].copy(), arena.risk[part].copy(), first_lsns))

    async def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._stopping.wait()
            await self._work_off_safely()

    async def _work_off_safely(self) -> None:
        try:
            await self.work_off()
        except Exception as error:  # the top of a task; whatever it is, the next sample may do
            now = asyncio.get_running_loop().time()
            if now >= self._log_at:
                self._log_at = now + LOG_INTERVAL_S
                log.warning("a sample was not looked at", problem=str(error))

    async def work_off(self) -> None:
        """Look at everything that is copied now; whoever is at it already is waited for."""
        async with self._turn:
            await self._work_off()

    async def _work_off(self) -> None:
        drift, challenger, n_changes = self.drift, self.challenger, self._n_changes
        sample, asked = self._samples.take(), self._challenged.take()
        for part in sample.parts() if sample is not None else ():
            if drift is not None:
                drift.add(part.vectors, part.risks)
            await asyncio.sleep(0)
        for part in asked.parts() if asked is not None and challenger is not None else ():
            assert challenger is not None
            risks = await asyncio.to_thread(challenger.infer, part.vectors)
            if self._n_changes != n_changes:  # the rest is of models that are compared no more
                break
            challenger.compare(part.risks, risks)
        if self.vector_log is not None and sample is not None:
            await asyncio.to_thread(self.vector_log.append, sample.lsns, sample.first_lsns, sample.risks, sample.vectors)


def _first_lsns(batch: "Batch", rows: range) -> npt.NDArray[np.int64]:
    found = np.zeros((len(rows), len(batch.arena.slabs)), dtype=np.int64)
    for number, row in enumerate(rows):
        for kind, slab in enumerate(batch.arena.slabs):
            slot = int(batch.slots[row, kind])
            if slot < 0:
                continue
            at = slot * (slab.kind.size >> 3)
            is_whole = not (slab.flat_words[at + W_VERSION] & PARTIAL_FLAG or row in batch.degraded)
            found[number, kind] = slab.flat_words[at + W_FIRST_LSN] if is_whole else UNKNOWN_LSN
    return found
