"""Durability of the journal: one fsync at a time, on a thread of its own, shared by everybody who waits (group commit).

After a failed fsync nothing is promised: the kernel may have dropped the pages that it could not write, and would take the
next fsync for a success. Such a failure stays until a restart, but for one: where the disk was full (file systems that allocate
late, or far away, find out only then) it is tried again once a second. What is not durable is read back, verified, written once
more in its place and synced; only then the journal goes on (docs/adr/0014-full-disks.md).
"""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import structlog

from service.journal_format import JournalError, JournalWriteError, encode_mark
from service.journal_segments import Segment, sync_file, write_again
from service.metrics import LATENCY_BOUNDS, Histogram

log = structlog.get_logger(__name__)

DURABLE_MARK = "durable"
HEAL_INTERVAL_S = 1.0


class Unsynced(msgspec.Struct):
    """What an fsync has to reach: `retired_fds` (closed after it) and `fd`, which hold the entries up to `last_lsn`."""

    retired_fds: list[int]
    fd: int
    is_directory_dirty: bool
    last_lsn: int


class Syncer:
    """`hand_over` gives what is unsynced, `segments` all that there are; `on_healed` is told that files were written anew."""

    def __init__(
        self, directory: Path, durable_lsn: int, hand_over: Callable[[], Unsynced], segments: Callable[[], list[Segment]],
        on_healed: Callable[[], None],
    ) -> None:  # fmt: skip
        self.durable_lsn = durable_lsn
        self.failure: JournalWriteError | None = None
        self.seconds = Histogram(LATENCY_BOUNDS)  # of fsyncs that succeeded
        self.loop: asyncio.AbstractEventLoop | None = None
        self._directory = directory
        self._hand_over = hand_over
        self._segments = segments
        self._on_healed = on_healed
        self._mark_fd = os.open(directory / DURABLE_MARK, os.O_WRONLY)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal-sync")
        self._running: asyncio.Future[float] | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._healing: asyncio.Task[None] | None = None
        self._is_due = False  # somebody asked while one was running

    async def sync_to(self, lsn: int) -> None:
        """Returns once everything up to `lsn` is durable; the wait may be cancelled. Raises JournalWriteError."""
        if lsn <= self.durable_lsn:
            return
        if self.failure is not None:
            raise self.failure_again()
        self.loop = asyncio.get_running_loop()
        done = self.loop.create_future()
        self._waiting.append((lsn, done))
        self.begin()
        await done

    def begin(self) -> None:
        """Have an fsync run, now or after the one that runs; nothing happens before there is a loop."""
        if self._running is not None:
            self._is_due = True
            return
        if self.loop is None or self.failure is not None:
            return
        self._is_due = False
        unsynced = self._hand_over()
        running = self.loop.run_in_executor(self._worker, self._sync_files, unsynced)
        self._running = running
        running.add_done_callback(lambda running: self._end(running, unsynced.last_lsn))

    def fail(self, failure: JournalWriteError) -> None:
        """From now on nothing is promised; everybody who waits hears of it."""
        self.failure = failure
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            if not done.done():
                done.set_exception(self.failure_again())
        if self.loop is not None and failure.is_disk_full and self._healing is None:
            self._healing = self.loop.create_task(self._heal_when_there_is_room())

    def failure_again(self) -> JournalWriteError:
        """A copy to raise: a traceback belongs to one of them."""
        assert self.failure is not None
        again = JournalWriteError(str(self.failure))
        again.errno, again.strerror = self.failure.errno, self.failure.strerror
        return again

    async def finish(self) -> None:
        """Sync the mark as well, unless something failed before. Raises OSError."""
        if self.failure is None and self._mark_fd >= 0:
            await asyncio.get_running_loop().run_in_executor(self._worker, os.fsync, self._mark_fd)

    async def wait(self) -> None:
        """Until no fsync runs; healing is given up."""
        if self._healing is not None:
            self._healing.cancel()
            await asyncio.gather(self._healing, return_exceptions=True)
        while self._running is not None:
            await asyncio.wait([self._running])

    def close(self) -> None:
        """Close the mark as it is; repeating it is harmless."""
        self._worker.shutdown(wait=True)
        if self._mark_fd >= 0:
            os.close(self._mark_fd)
        self._mark_fd = -1

    def _sync_files(self, unsynced: Unsynced) -> float:
        """On the worker thread. Returns the seconds that it took."""
        start = time.perf_counter()
        try:
            for fd in unsynced.retired_fds:
                os.fsync(fd)
        finally:
            for fd in unsynced.retired_fds:
                os.close(fd)
        os.fsync(unsynced.fd)
        if unsynced.is_directory_dirty:
            sync_file(self._directory)
        self._write_mark(unsynced.last_lsn)
        return time.perf_counter() - start

    def _write_mark(self, lsn: int) -> None:
        # Not fsynced itself: after a power failure an older, lower number only makes the next start less strict.
        os.pwrite(self._mark_fd, encode_mark(lsn), 0)

    def _end(self, running: asyncio.Future[float], lsn: int) -> None:
        self._running = None
        if running.cancelled():
            return
        error = running.exception()
        if error is not None:
            cause = error if isinstance(error, OSError) else None
            failure = JournalWriteError("fsync of the journal failed, what it covered may be lost", cause)
            if not failure.is_disk_full:
                failure.args = (f"{failure}; restart the service",)
            self.fail(failure)
            return
        self.durable_lsn = lsn
        self.seconds.observe(running.result())
        waiting, self._waiting = self._waiting, []
        for waiting_lsn, done in waiting:
            if waiting_lsn > lsn:
                self._waiting.append((waiting_lsn, done))
            elif not done.done():
                done.set_result(None)
        if self._waiting or self._is_due:
            self.begin()

    async def _heal_when_there_is_room(self) -> None:
        assert self.loop is not None
        while self.failure is not None and self.failure.is_disk_full:
            await asyncio.sleep(HEAL_INTERVAL_S)
            try:
                lsn = await self.loop.run_in_executor(self._worker, self._heal, self._segments())
            except JournalWriteError as failure:
                self.failure = failure
            else:
                self._on_healed()
                self.durable_lsn, self.failure = lsn, None
                log.warning("the disk of the journal has room again", lsn=lsn)
        if self.failure is not None:
            log.critical("the journal cannot go on", problem=str(self.failure))
        self._healing = None

    def _heal(self, segments: list[Segment]) -> int:
        """On the worker thread. Nothing is appended meanwhile: `failure` is set. Raises JournalWriteError."""
        try:
            lsn = write_again(segments, self.durable_lsn)
            self._write_mark(lsn)
        except OSError as error:
            raise JournalWriteError("the journal could not be written again", error) from error
        except JournalError as error:
            raise JournalWriteError(f"entries were lost when the disk was full: {error}") from error
        return lsn
