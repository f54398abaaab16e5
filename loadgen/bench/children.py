"""Servers under test as child processes: started on a core, asked for their CPU and memory, paused, always stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loadgen.bench.stores import Stores, is_running

READY_DEADLINE_S = 120.0  # s; a full data directory replays its journal first
STOP_DEADLINE_S = 60.0  # s; a graceful stop flushes what is dirty
STORES_END_S = 5.0  # s; an embedded server ends when its owner is gone
POLL_S = 0.002  # s between looks at the child's output: the error of the time to ready
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STDERR_TAIL = 1_500  # characters of a failed child's stderr that are shown


class BenchError(Exception):
    """The benchmark cannot run or go on; the message is for the user."""


class Child:
    """A server process. `url` is where it listens, `ready_s` the time from its start to its ready line."""

    def __init__(self, name: str, argv: Sequence[str], logs: Path, environment: Mapping[str, str] | None = None) -> None:
        """Start and wait for the ready line on stdout. Raises BenchError with the end of its stderr.

        `environment` stands in place of this process's own.
        """
        self.name = name
        out, err = logs / f"{name}.out", logs / f"{name}.err"
        started = time.perf_counter()
        # Files, not pipes: a service that logs a lot must never block on a reader that is busy measuring.
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self._process = subprocess.Popen(argv, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, env=environment)
        self.pid = self._process.pid
        self._paused = False
        self.stores = Stores(self.pid)  # none, unless it was started with --embedded
        self.lender: Child | None = None  # whose stores it uses instead; stopped with it
        try:
            self.url = self._wait_ready(out, err)
        except BaseException:
            self.kill()
            raise
        self.ready_s = time.perf_counter() - started

    def _wait_ready(self, out: Path, err: Path) -> str:
        deadline = time.monotonic() + READY_DEADLINE_S
        while time.monotonic() < deadline:
            ended = self._process.poll()
            for line in out.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
                if "ready url=" in line and line.endswith("\n"):
                    return line.partition("url=")[2].split()[0]
            if ended is not None:
                tail = err.read_text(encoding="utf-8", errors="replace")[-STDERR_TAIL:].strip()
                raise BenchError(f"{self.name} ended with code {ended} before it was ready: {tail or 'no output'}")
            time.sleep(POLL_S)
        raise BenchError(f"{self.name} was not ready within {READY_DEADLINE_S:.0f} s")

    def cpu_s(self) -> float:
        """CPU of all its threads so far, ended ones too, user and system."""
        # Linux's clock of another process (clock_getcpuclockid, which Python lacks): ns, where /proc counts in steps of 10 ms.
        return time.clock_gettime(~self.pid << 3 | 2)

    def threads_cpu_s(self) -> dict[str, float]:
        """CPU of its main thread ("main") and of the others by name, those that are alive, in steps of 10 ms."""
        found: dict[str, float] = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                head, _, tail = (task / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")
                fields = tail.split()  # the name before it may hold spaces
                name = "main" if task.name == str(self.pid) else head.partition("(")[2]
                found[name] = found.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS_PER_S
        return found

    def memory_mb(self) -> tuple[float, float]:
        """MiB resident now, and the most so far."""
        values = {}
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            name, _, rest = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                values[name] = int(rest.split()[0]) / 1024
        return values["VmRSS"], values["VmHWM"]

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def alive(self) -> bool:
        return self._process.poll() is None

    def pause(self) -> None:
        """Neither it nor its stores run until `resume`: background work must not run in another's measurement."""
        if not self._paused:
            os.kill(self.pid, signal.SIGSTOP)  # first, so that what its stores answer now is there when it goes on
            self.stores.pause()
            self._paused = True

    def resume(self) -> None:
        if self._paused:
            self.stores.resume()
            os.kill(self.pid, signal.SIGCONT)
            self._paused = False

    def stop(self) -> float:
        """Ask it to stop; seconds until it had ended. Killed at the deadline."""
        started = time.perf_counter()
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        seconds = time.perf_counter() - started
        if self.lender is not None:
            self.stores.resume()
            self.lender.signal(signal.SIGCONT)
            self.lender.stop()
        return seconds

    def lend(self, lender: "Child | None") -> None:
        """From now on its stores are those of `lender`, a child that does nothing else and ends with it."""
        if lender is not None:
            self.lender, self.stores = lender, lender.stores

    def kill(self) -> None:
        """Its stores end with it: wait for them too, or they would still write into a directory that is being removed."""
        stores = self.stores.pids() if self.alive() else []
        if self.alive():
            self.stores.resume()  # a stopped one would not end
        self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + STORES_END_S
        while any(map(is_running, stores)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if self.lender is not None:
            self.lender.kill()


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """This process on one core. A child started inside inherits it from its first instruction on."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def script(module: str) -> list[str]:
    """The command line of a server module of this package."""
    return [sys.executable, "-m", f"loadgen.bench.{module}"]


def start_weir(data_dir: Path, logs: Path, settings: Sequence[str] = (), name: str = "weir") -> Child:
    """`weir serve` on any free port over `data_dir`, without L3 unless the settings say `embedded=true`."""
    options = [part for setting in settings for part in ("--set", setting)]
    argv = [sys.executable, "-m", "service", "serve", "--data-dir", str(data_dir), "--port", "0", *options]
    return Child(name, argv, logs)


def add_key(data_dir: Path) -> str:
    """A new admin key of this data directory. Raises BenchError."""
    argv = [sys.executable, "-m", "service", "keys", "add", "--role", "admin", "--name", "bench"]
    done = subprocess.run(
        [*argv, "--data-dir", str(data_dir)], capture_output=True, text=True, timeout=READY_DEADLINE_S, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"weir keys add failed: {done.stderr.strip()[-STDERR_TAIL:] or done.returncode}")
    return done.stdout.strip()
