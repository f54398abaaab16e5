"""The line to the stores: the service reaches its Redis and its Postgres through proxies that delay every answer.

A proxy is a process (loadgen.delay_proxy), so that a delay is one on the network and no sleep in anybody's code. Without a
delay there is none of them.
"""

import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from loadgen.bench.children import BenchError

POSTGRES_SOCKET = ".s.PGSQL.5432"
PINGS = 101
STOP_DEADLINE_S = 10.0


class Line:
    """`settings`: where the service finds its stores. `round_trip_ms`: of a PING, median; None without a Redis."""

    def __init__(self, settings: Sequence[str], round_trip_ms: float | None) -> None:
        self.settings = tuple(settings)
        self.round_trip_ms = round_trip_ms


@contextlib.contextmanager
def stretched(settings: Sequence[str], delay_ms: float) -> Iterator[Line]:
    """The stores of `settings` (redis.url and postgres.url over UNIX sockets), `delay_ms` of round trip farther away."""
    if not settings:
        yield Line((), None)
        return
    redis, postgres = (
        Path(unquote(setting.rpartition("unix://" if "unix://" in setting else "host=")[2])) for setting in settings
    )
    if not delay_ms:
        yield Line(settings, ping_ms(redis))
        return
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weir-line-")))
        near_redis, near_postgres = directory / "redis.sock", directory / POSTGRES_SOCKET
        for listen, to in ((near_redis, redis), (near_postgres, postgres / POSTGRES_SOCKET)):
            stack.callback(_stop, _start(listen, to, delay_ms / 2))
        urls = (f"redis.url=unix://{near_redis}", f"postgres.url=postgresql://weir@/postgres?host={directory}")
        yield Line(urls, ping_ms(near_redis))


def ping_ms(path: Path) -> float:
    """What a PING takes, ms, the median of many. Raises BenchError."""
    times = []
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(STOP_DEADLINE_S)
            connection.connect(str(path))
            for _ in range(PINGS):
                started = time.perf_counter()
                connection.sendall(b"PING\r\n")
                if not connection.recv(64):
                    raise BenchError("Redis closed the connection of a PING")
                times.append(time.perf_counter() - started)
    except OSError as error:
        raise BenchError(f"Redis does not answer at {path}: {error}") from None
    return statistics.median(times) * 1e3


def _start(listen: Path, to: Path, delay_ms: float) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-m", "loadgen.delay_proxy", "--listen", f"unix:{listen}", "--to", f"unix:{to}"]
    process = subprocess.Popen([*argv, "--delay-ms", str(delay_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if not process.stdout.readline().startswith(b"listening "):
        _stop(process)
        raise BenchError(f"the delay proxy in front of {to} did not start")
    return process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """The end of its input ends it."""
    try:
        process.communicate(timeout=STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
