"""The delay proxy as a process: what passes, what is delayed, held back or cut, and that it ends with its input."""

import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DELAY_S = 0.08


class Proxy:
    """A `python -m loadgen.delay_proxy` and a way to talk to it."""

    def __init__(self, to: str, *more: str) -> None:
        command = [sys.executable, "-m", "loadgen.delay_proxy", "--to", to, *more]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        return self.process.stdout.readline().strip()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def end(self) -> int:
        self.process.communicate(timeout=10)
        return self.process.returncode


@pytest.fixture
def echo() -> Iterator[str]:
    """Address of a server that sends back what it is sent."""
    with tempfile.TemporaryDirectory(prefix="weir-echo-") as directory, socket.socket(socket.AF_UNIX) as server:
        path = str(Path(directory) / "echo")
        server.bind(path)
        server.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(1 << 16):
                        connection.sendall(data)
                except OSError:
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"unix:{path}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def start() -> Iterator[Callable[..., Proxy]]:
    """`start(to, *options)`: a Proxy, ended afterwards."""
    proxies: list[Proxy] = []

    def begin(to: str, *more: str) -> Proxy:
        proxies.append(Proxy(to, *more))
        return proxies[-1]

    yield begin
    for proxy in proxies:
        assert proxy.end() == 0


def ask(connection: socket.socket, data: bytes = b"hello") -> float:
    """Seconds until `data` came back."""
    started = time.monotonic()
    connection.sendall(data)
    left = len(data)
    while left:
        received = connection.recv(left)
        assert received
        left -= len(received)
    return time.monotonic() - started


def test_passes_and_delays_each_direction(start: Callable[..., Proxy], echo: str) -> None:
    """Without a delay everything passes, also more than fits on the line; a delay counts once per direction that has it."""
    proxy = start(echo)
    with proxy.connect() as connection:
        connection.settimeout(20)
        threading.Thread(target=connection.sendall, args=(bytes(5 << 20),)).start()
        left = 5 << 20
        while left:
            left -= len(connection.recv(1 << 16))
        assert proxy.tell(f"delay {DELAY_S * 1000} 0") == "ok"
        assert ask(connection) >= DELAY_S
        assert proxy.tell(f"delay {DELAY_S * 1000}") == "ok"
        assert ask(connection) >= 2 * DELAY_S
        assert proxy.tell("delay soon") == "error: could not convert string to float: 'soon'"
        assert proxy.tell("faster").startswith("error: delay MS")


def test_delay_from_the_command_line(start: Callable[..., Proxy], echo: str) -> None:
    """The option counts from the first byte on."""
    with start(echo, "--delay-ms", str(DELAY_S * 1000), "--delay-back-ms", "0").connect() as connection:
        assert ask(connection) >= DELAY_S


def test_hole_holds_back_and_passes_later(start: Callable[..., Proxy], echo: str) -> None:
    """In a hole connections are accepted and nothing comes; afterwards everything does, in order."""
    proxy = start(echo)
    with proxy.connect() as old:
        ask(old)
        assert proxy.tell("hole") == "ok"
        with proxy.connect() as new:
            for connection in (old, new):
                connection.sendall(b"one")
                connection.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
                connection.settimeout(5)
            old.sendall(b"two")
            assert proxy.tell("pass") == "ok"
            assert old.recv(6, socket.MSG_WAITALL) == b"onetwo"
            assert new.recv(3, socket.MSG_WAITALL) == b"one"


def test_drop_cuts_and_refuses_until_pass(start: Callable[..., Proxy], echo: str) -> None:
    """Connections end at once, new ones too; afterwards new ones work."""
    proxy = start(echo)
    with proxy.connect() as connection:
        ask(connection)
        assert proxy.tell("drop") == "ok"
        with pytest.raises((ConnectionError, AssertionError)):
            ask(connection)
    with proxy.connect() as connection, pytest.raises((ConnectionError, AssertionError)):
        ask(connection)
    assert proxy.tell("pass") == "ok"
    with proxy.connect() as connection:
        ask(connection)


def test_nobody_behind_it_ends_the_connection(start: Callable[..., Proxy], tmp_path: Path) -> None:
    """A store that does not listen looks like one that hangs up; the proxy goes on."""
    proxy = start(f"unix:{tmp_path}/nothing")
    with proxy.connect() as connection, pytest.raises((ConnectionError, AssertionError)):
        ask(connection)
    assert proxy.tell("pass") == "ok"
