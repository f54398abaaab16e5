"""The processes of a soak: the service over its lives, watched each second, and the two stores that can be paused and killed.

Each store belongs to a `weir serve --embedded` of its own that is asked nothing, sleeps, and has no L3 itself: the one way to
real servers that needs nothing installed. Linux only (/proc).
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from loadgen.bench.children import READY_DEADLINE_S, STOP_DEADLINE_S, BenchError, start_weir

NOBODY = ("redis.url=unix:///nobody", "postgres.url=postgresql://nobody@127.0.0.1:1/nobody")
POLL_S = 0.01
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One look at the process: seconds of the run, MiB resident, open files, threads."""

    at_s: float
    rss_mib: float
    files: int
    threads: int


class Life(msgspec.Struct):
    """A process of the service from start to end, and how it ended: "SIGTERM" or "SIGKILL"."""

    began_s: float
    ready_s: float
    pid: int
    samples: list[Sample]
    ended_s: float = 0.0
    ending: str = ""
    stop_s: float = 0.0
    code: int | None = None


class Store:
    """A Valkey ("redis") or a Postgres ("postgres") that can be paused, killed and started again with its data."""

    def __init__(self, name: str, directory: Path, logs: Path) -> None:
        """Raises BenchError."""
        self.name = name
        self._directory, self._logs = directory, logs
        directory.mkdir(parents=True)
        self._start()
        settings = dict(setting.split("=", 1) for setting in self._owner.stores.settings())
        if f"{name}.url" not in settings:
            raise BenchError(f"no {name} was started; see {logs}")
        self.url = settings[f"{name}.url"]

    def pids(self) -> list[int]:
        """The server's processes, its sleeping owner not among them."""
        return self._owner.stores.pids()

    @property
    def setting(self) -> str:
        return f"{self.name}.url={self.url}"

    def pause(self) -> None:
        """SIGSTOP: connections stay, nobody answers."""
        self._owner.stores.pause()

    def resume(self) -> None:
        self._owner.stores.resume()

    def kill(self) -> None:
        """SIGKILL to every process of it."""
        for pid in self._owner.stores.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._owner.kill()

    def restart(self) -> None:
        """After `kill`. Raises BenchError."""
        self._start()

    def end(self) -> None:
        self._owner.kill()

    def _start(self) -> None:
        self._owner = start_weir(
            self._directory, self._logs, ("embedded=true", "scorer=onnx", *NOBODY), f"owner-of-{self.name}"
        )
        self._owner.signal(signal.SIGSTOP)


class Service:
    """One data directory and port, and the processes that serve it, one after the other."""

    def __init__(self, data_dir: Path, logs: Path, settings: Sequence[str], clock_s: Callable[[], float]) -> None:
        self.data_dir = data_dir
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lives: list[Life] = []
        self._logs, self._settings, self._clock_s = logs, [*settings, f"server.port={self.port}"], clock_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Blocks until it is ready. Raises BenchError."""
        began_s, began = self._clock_s(), time.perf_counter()
        sets = [part for setting in self._settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "service", "serve", "--data-dir", str(self.data_dir), *sets]
        out, err = self._log("out"), self._log("err")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self._process = subprocess.Popen(command, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL)
        while "weir ready " not in out.read_text(encoding="utf-8", errors="replace"):
            if self._process.poll() is not None or time.perf_counter() - began > READY_DEADLINE_S:
                raise BenchError(f"the service did not become ready: {err.read_text(errors='replace')[-1500:]}")
            time.sleep(POLL_S)
        self.lives.append(Life(began_s, time.perf_counter() - began, self._process.pid, []))

    def stop(self, number: signal.Signals) -> int:
        """Send the signal and wait for the end; the exit code. Blocks. Raises BenchError if it does not end."""
        assert self._process is not None
        life, began = self.lives[-1], time.perf_counter()
        self._process.send_signal(number)
        try:
            life.code = self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise BenchError(f"the service did not end within {STOP_DEADLINE_S:.0f} s of a {number.name}") from None
        life.ended_s, life.ending, life.stop_s = self._clock_s(), number.name, time.perf_counter() - began
        self._process = None
        return life.code

    def end(self) -> None:
        """Whatever state it is in."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def sample(self) -> None:
        """Look at the process, if there is one that is ready."""
        if self._process is None or not self.lives or self.lives[-1].pid != self._process.pid:
            return
        proc = Path(f"/proc/{self._process.pid}")
        with contextlib.suppress(OSError):  # it has just ended
            pages = int((proc / "statm").read_text().split()[1])
            files, threads = len(os.listdir(proc / "fd")), len(os.listdir(proc / "task"))
            self.lives[-1].samples.append(Sample(self._clock_s(), pages * PAGE_MIB, files, threads))

    def pids(self) -> list[int]:
        """The process, if it is ready."""
        return [self._process.pid] if self._process is not None and self.is_running() else []

    def errors_logged(self) -> list[str]:
        """Lines of level error of all lives' logs."""
        found = []
        for path in sorted(self._logs.glob("service-*.err")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [line for line in lines if '"level":"error"' in line or '"level": "error"' in line]
        return found

    def _log(self, kind: str) -> Path:
        return self._logs / f"service-{len(self.lives) + 1:03d}.{kind}"


class RunDelay:
    """How long processes were ready to run and got no core, by the kernel's count: their main threads, since the last look.

    A service that does not run cannot keep deadlines, and nothing of it is to blame. Always 0 where the kernel does not count.
    """

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._at = time.monotonic()

    def share(self, pids: Iterable[int]) -> float:
        """Of the time since the last call, of the process that waited most."""
        waited: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(OSError, IndexError, ValueError):
                waited[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
        now = time.monotonic()
        elapsed_ns = max(now - self._at, 1e-3) * 1e9
        most = max((ns - self._seen[pid] for pid, ns in waited.items() if pid in self._seen), default=0)
        self._seen, self._at = waited, now
        return most / elapsed_ns


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
