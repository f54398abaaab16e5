"""One rival stack as a child process: started with its settings in the environment, ready when GET /healthz answers 200.

STACK_HOST, STACK_PORT       where it listens
STACK_KEY                    the API key that requests carry: `Authorization: Bearer KEY`
STACK_DATABASE_URL           Postgres with the tables of loadgen/stacks/seed.py
STACK_POOL                   its connections to Postgres, over all of its workers
STACK_MODEL, STACK_WEIGHTS   the card model: ONNX, and the same weights as safetensors
STACK_IMAGE_MODEL, STACK_IMAGE_WEIGHTS   the image model, likewise
STACK_WORKERS                processes or threads that work at the same time, as the stack sees fit
"""

import contextlib
import http.client
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from loadgen.bench.children import POLL_S, READY_DEADLINE_S, STDERR_TAIL, BenchError, Child
from loadgen.bench.stores import descendants, is_running
from loadgen.stacks.manifest import DATA, HERE, Stack, filled, missing
from loadgen.stacks.weights import ModelFiles

HOST = "127.0.0.1"
POOL = 8  # connections to Postgres, the same for all
ASK_TIMEOUT_S = 1.0  # s; a server that is starting may accept and not answer
END_S = 5.0  # s; workers end with their parent


class StackSettings(msgspec.Struct, frozen=True):
    """What every stack is told."""

    key: str
    database_url: str
    models: ModelFiles
    workers: int = 1
    pool: int = POOL

    def environment(self, port: int) -> dict[str, str]:
        """As environment variables."""
        return {
            "STACK_HOST": HOST,
            "STACK_PORT": str(port),
            "STACK_KEY": self.key,
            "STACK_DATABASE_URL": self.database_url,
            "STACK_POOL": str(self.pool),
            "STACK_MODEL": str(self.models.card),
            "STACK_WEIGHTS": str(self.models.card_weights),
            "STACK_IMAGE_MODEL": str(self.models.image),
            "STACK_IMAGE_WEIGHTS": str(self.models.image_weights),
            "STACK_WORKERS": str(self.workers),
        }


class StackChild(Child):
    """A stack that answers. Its workers are the processes below it: `stores` in the words of Child."""

    def __init__(self, name: str, argv: Sequence[str], logs: Path, environment: Mapping[str, str], port: int) -> None:
        """Start and wait until it is ready. Raises BenchError with the end of its stderr."""
        self._port = port
        super().__init__(name, argv, logs, environment)

    def _wait_ready(self, out: Path, err: Path) -> str:
        deadline = time.monotonic() + READY_DEADLINE_S
        while time.monotonic() < deadline:
            ended = self._process.poll()
            if ended is not None:
                tail = (out.read_text(errors="replace") + err.read_text(errors="replace"))[-STDERR_TAIL:].strip()
                raise BenchError(f"{self.name} ended with code {ended} before it was ready: {tail or 'no output'}")
            if _answers(self._port):
                return f"http://{HOST}:{self._port}"
            time.sleep(POLL_S)
        raise BenchError(f"{self.name} did not answer /healthz with 200 within {READY_DEADLINE_S:.0f} s")

    def pids(self) -> list[int]:
        """It and all processes below it."""
        return [self.pid, *descendants(self.pid)]

    def stop(self) -> float:
        """Ask it to stop, its workers are gone as well; seconds until it had ended."""
        workers = list(descendants(self.pid))
        seconds = super().stop()
        _end(workers)
        return seconds

    def kill(self) -> None:
        workers = list(descendants(self.pid))
        self._process.kill()
        self._process.wait()
        _end(workers, patience_s=0.0)


def start_stack(stack: Stack, settings: StackSettings, logs: Path, data: Path = DATA) -> StackChild:
    """Start a stack on any free port and wait until it is ready. Raises BenchError: missing, ended, or not ready in time."""
    if reason := missing(stack, data):
        raise BenchError(f"{stack.name}: {reason}")
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STACK_")}
    root = str(HERE.parents[1])  # where a stack in Python finds loadgen.stacks
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    argv = filled(stack, stack.run, data)
    try:
        return StackChild(stack.name, argv, logs, environment | settings.environment(port), port)
    except OSError as error:
        raise BenchError(f"{stack.name}: {argv[0]} cannot be started: {error}") from None


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server((HOST, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(pids: Sequence[int], patience_s: float = END_S) -> None:
    """Wait until these have ended; kill those that have not by then."""
    deadline = time.monotonic() + patience_s
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for pid in filter(is_running, pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
