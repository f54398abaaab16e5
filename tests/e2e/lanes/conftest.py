"""Two services that differ in `server.fast_lane` alone, fed the same bytes; and the comparison of what they answer.

A case is what is sent: bytes, or several pieces of them (a number is a pause in seconds). Both services start from equal
directories and get the same cases in the same order, so replies, LSNs and scores have to be equal to the byte. After the
replies a `GET /livez` on the same connection tells whether it is still open, and one on a fresh connection that the
service is well. Keys are written `{admin}`, `{analyst}`, `{ingest}`. Tests are plain functions: the two lanes run in threads.
"""

import contextlib
import json
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import pytest

from service.auth import Role, add_key

REPLY_S: Final = 20.0  # for a reply that has to come
SILENCE_S: Final = 0.25  # for one that need not; waited twice
PIECE_S: Final = 0.002  # between two pieces, so that the service reads them one by one
BODY_DEADLINE_MS: Final = 500  # server.request_deadline_ms: cases with half a body wait for it
PROBE: Final = b"GET /livez HTTP/1.1\r\nHost: probe\r\n\r\n"
LIVE: Final = b'{"status":"live"}'
FOREVER_MS: Final = 315_360_000_000  # bodies have fixed times, in the past
UNSTEADY: Final = frozenset({"date", "server"})  # headers that may differ
_MEASURED = re.compile(rb'"us":\{[^}]*\}')  # by a trace

Sent = bytes | Sequence[bytes | float]
End = Literal["open", "closed", "silent", "any"]


class Reply(msgspec.Struct, frozen=True):
    """One reply, without what may differ. `headers`: lower case, sorted."""

    version: str
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def __str__(self) -> str:
        shown = self.body if len(self.body) <= 600 else self.body[:600] + b"..."
        lines = [f"{self.version} {self.status} {self.reason}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\n".join(f"    {line}" for line in [*lines, shown.decode("utf-8", "backslashreplace")])


class Outcome(msgspec.Struct, frozen=True):
    """All replies on one connection, in order, and what became of the connection."""

    replies: tuple[Reply, ...]
    end: str

    @property
    def statuses(self) -> list[int]:
        return [reply.status for reply in self.replies]

    def closing(self) -> list[tuple[object, ...]]:
        """The replies without what they say about the connection."""
        said = ("connection", "close")
        return [(r.status, r.reason, [pair for pair in r.headers if pair != said], r.body) for r in self.replies]

    def __str__(self) -> str:
        return "\n".join([*(str(reply) for reply in self.replies), f"    connection: {self.end}"])


class Connection:
    """One connection of a test: sends pieces, reads whole replies. `buffer`: what was received and not taken yet."""

    def __init__(self, port: int, receive_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_bytes:  # before connect: it bounds the window
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(REPLY_S)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._readable = select.poll()  # not select: there may be a thousand of us
        self._readable.register(self.socket, select.POLLIN)
        self.buffer = b""
        self.is_closed = False

    def send(self, sent: Sequence[bytes | float]) -> None:
        """Every piece for itself. What a closed connection does not take is lost, as it would be for any client."""
        with contextlib.suppress(ConnectionError):
            for piece in sent:
                if isinstance(piece, float):
                    time.sleep(piece)
                    continue
                self.socket.sendall(piece)
                if len(sent) > 1:
                    time.sleep(PIECE_S)

    def reply(self, deadline_s: float = REPLY_S, has_body: bool = True) -> Reply | None:
        """The next reply, interim ones (1xx) too; None if there is none in time, or ever. `has_body`: False after HEAD."""
        end_at = time.monotonic() + deadline_s
        while (taken := self._take(has_body)) is None:
            if not self._receive(end_at):
                return None
        return taken

    def close(self) -> None:
        self.socket.close()

    def _receive(self, end_at: float) -> bool:
        """Whether more came before `end_at` (monotonic s)."""
        if self.is_closed:
            return False
        if not self._readable.poll(max(end_at - time.monotonic(), 0) * 1000):
            return False
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        self.is_closed = not data
        self.buffer += data
        return bool(data)

    def _take(self, has_body: bool) -> Reply | None:
        """Take a whole reply from the front of the buffer. Fails the test on what is no reply."""
        head, blank, rest = self.buffer.partition(b"\r\n\r\n")
        if not blank:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"(HTTP/[0-9.]+) ([1-5][0-9][0-9]) ([ -~]+)", first)
        assert found, f"no status line: {self.buffer[:200]!r}"
        headers = tuple(sorted((name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)))
        status, framing = int(found[2]), dict(headers)
        if not has_body or status < 200 or status in (204, 304):
            length = 0
        elif "transfer-encoding" in framing:
            return self._take_chunked(found, headers, rest)
        else:
            length = int(framing["content-length"])
        if len(rest) < length:
            return None
        self.buffer = rest[length:]
        return _reply(found, headers, rest[:length])

    def _take_chunked(self, found: re.Match[str], headers: tuple[tuple[str, str], ...], rest: bytes) -> Reply | None:
        body = b""
        while True:
            size, line_end, rest = rest.partition(b"\r\n")
            if not line_end or len(rest) < int(size, 16) + 2:
                return None
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
            if size == b"0":
                self.buffer = rest
                return _reply(found, headers, body)


def _reply(found: re.Match[str], headers: tuple[tuple[str, str], ...], body: bytes) -> Reply:
    steady = tuple((name, value) for name, value in headers if name not in UNSTEADY)
    body_steady = body
    if b"\xa2us" in body and dict(headers)["content-type"] == "application/msgpack":
        body_steady = msgspec.json.encode(msgspec.msgpack.decode(body))
    body_steady = _MEASURED.sub(b'"us":{}', body_steady)
    if body_steady != body:  # digits vary, and the length with them
        steady = tuple((name, value) for name, value in steady if name != "content-length")
    return Reply(found[1], int(found[2]), found[3], steady, body_steady)


class Lane:
    """A real `weir serve`. `directory` holds its data and its log."""

    def __init__(self, directory: Path, is_fast: bool, keys: Mapping[str, str], *settings: str) -> None:
        self.keys = {b"{%s}" % role.encode(): key.encode() for role, key in keys.items()}
        self.log = directory / "log"
        overrides = ["time.clock=stream", f"time.past_ms_max={FOREVER_MS}", f"server.request_deadline_ms={BODY_DEADLINE_MS}"]
        overrides.append(f"server.fast_lane={str(is_fast).lower()}")
        sets = [part for override in [*overrides, *settings] for part in ("--set", override)]
        command = [sys.executable, "-m", "service", "serve", "--data-dir", str(directory / "data"), "--port", "0", *sets]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        ready = self.process.stdout.readline().decode()
        found = re.match(r"weir ready url=http://127\.0\.0\.1:(\d+) ", ready)
        assert found, self.log.read_text()
        self.port = int(found[1])

    def connect(self, receive_bytes: int = 0) -> Connection:
        """A fresh connection; `receive_bytes`: how much of what it does not read fits in its socket."""
        return Connection(self.port, receive_bytes)

    def fill_in(self, piece: bytes) -> bytes:
        """`piece` with the keys in the place of their names."""
        for name, key in self.keys.items():
            piece = piece.replace(name, key)
        return piece

    def run(self, sent: Sequence[bytes | float], n_replies: int, no_body: Sequence[int] = ()) -> Outcome:
        """Send, read `n_replies` (interim ones are extra), find out whether the connection is open. `no_body`: after HEAD."""
        connection = self.connect()
        try:
            connection.send([piece if isinstance(piece, float) else self.fill_in(piece) for piece in sent])
            replies: list[Reply] = []
            n_final = 0
            while n_final < n_replies:
                reply = connection.reply(has_body=n_final not in no_body)
                if reply is None:
                    return Outcome(tuple(replies), "closed" if connection.is_closed else "silent")
                replies.append(reply)
                n_final += reply.status >= 200
            connection.send([PROBE])
            is_sure = False
            while True:
                reply = connection.reply(SILENCE_S)
                if reply is None and not connection.is_closed and not is_sure:
                    self.assert_well()  # silent, or slow to answer anybody?
                    is_sure = True
                elif reply is None:
                    return Outcome(tuple(replies), "closed" if connection.is_closed else "silent")
                elif reply.body == LIVE:
                    return Outcome(tuple(replies), "open")
                else:  # more than was expected
                    replies.append(reply)
        finally:
            connection.close()

    def assert_well(self) -> None:
        """A fresh connection is answered."""
        connection = self.connect()
        connection.send([PROBE])
        reply = connection.reply()
        connection.close()
        assert reply is not None, self.log.read_text()[-2000:]
        assert reply.status == 200

    def rss_bytes(self) -> int:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096

    def stop(self) -> None:
        """SIGTERM; it has to end cleanly."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log.read_text()[-2000:]

    def end(self) -> None:
        """For the fixture: whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


class Lanes:
    """Both, and the comparison."""

    def __init__(self, fast: Lane, plain: Lane) -> None:
        self.fast = fast
        self.plain = plain
        self._threads = ThreadPoolExecutor(2)

    def both(self, action: Callable[[Lane], Any]) -> tuple[Any, Any]:
        """`action(lane)` on both at the same time; what it returned for the fast one and the plain one."""
        fast, plain = self._threads.map(action, (self.fast, self.plain))
        return fast, plain

    def compare(self, pieces: Sequence[bytes | float], n_replies: int) -> Outcome:
        """Send the same to both, wait for so many replies; fails unless they agree. Returns the outcome."""
        no_body = [0] if isinstance(pieces[0], bytes) and pieces[0].startswith(b"HEAD ") else []
        fast, plain = self.both(lambda lane: lane.run(pieces, n_replies, no_body))
        assert isinstance(fast, Outcome)
        assert isinstance(plain, Outcome)
        # aiohttp waits some seconds for a body that it will not read; to close at once is as good.
        agree = fast == plain or (plain.end == "silent" and fast.end == "closed" and fast.closing() == plain.closing())
        shown = f"sent:\n{_shown(pieces)}\nfast lane:\n{fast}\nplain lane:\n{plain}"
        assert agree, f"the lanes differ in {', '.join(_differences(fast, plain))}\n{shown}"
        for reply in plain.replies:
            assert reply.status != 500, shown
            assert reply.status < 400 or _is_problem(reply), f"an error that is no problem\n{shown}"
        return plain

    def check(self, sent: Sent, statuses: Sequence[int] | None, end: End = "any", n_replies: int | None = None) -> Outcome:
        """Run one case on both lanes: they must agree, with each other and with `statuses` (None: any) and `end`.

        `n_replies`: how many to wait for, if not one for each status that is not interim.
        """
        if n_replies is None:
            n_replies = 1 if statuses is None else sum(status >= 200 for status in statuses)
        outcome = self.compare([sent] if isinstance(sent, bytes) else list(sent), n_replies)
        assert statuses is None or outcome.statuses == list(statuses), f"expected {list(statuses)}, got\n{outcome}"
        assert end in ("any", outcome.end), f"expected the connection to be {end}, got\n{outcome}"
        self.both(Lane.assert_well)
        return outcome


def _differences(fast: Outcome, plain: Outcome) -> Iterator[str]:
    """Where two outcomes are not equal, for a reader; of bodies the first byte."""
    if len(fast.replies) != len(plain.replies):
        yield f"the number of replies: {len(fast.replies)} and {len(plain.replies)}"
    for number, (one, other) in enumerate(zip(fast.replies, plain.replies, strict=False), 1):
        for name in ("version", "status", "reason"):
            if getattr(one, name) != getattr(other, name):
                yield f"reply {number}: {name}"
        for pair in sorted(set(one.headers) ^ set(other.headers)):
            yield f"reply {number}: header {pair[0]!r}"
        if one.body != other.body:
            pairs = enumerate(zip(one.body, other.body, strict=False))
            at = next((place for place, (a, b) in pairs if a != b), min(len(one.body), len(other.body)))
            near = slice(max(at - 40, 0), at + 40)
            yield f"reply {number}: byte {at} of the body: {one.body[near]!r} and {other.body[near]!r}"
    if fast.end != plain.end:
        yield f"the connection: {fast.end} and {plain.end}"


def _is_problem(reply: Reply) -> bool:
    """aiohttp itself answers targets without a path, such as `*`: no route is asked."""
    return dict(reply.headers)["content-type"] == "application/problem+json" or reply.body == b"404: Not Found"


def _shown(pieces: Sequence[bytes | float]) -> str:
    text = [f"    {piece if isinstance(piece, float) else piece[:600]!r}" for piece in pieces[:6]]
    return "\n".join([*text, f"    ... and {len(pieces) - 6} pieces"] if len(pieces) > 6 else text)


@contextlib.contextmanager
def _running(directory: Path, *settings: str) -> Iterator[Lanes]:
    keys = {role.word: add_key(directory / "fast" / "data", role, role.word) for role in Role}
    shutil.copytree(directory / "fast", directory / "plain")
    opened: list[Lane] = []
    try:
        for name in ("fast", "plain"):
            opened.append(Lane(directory / name, name == "fast", keys, *settings))
        yield Lanes(*opened)
    finally:
        for lane in opened:
            lane.end()


def _stop_and_look(lanes: Lanes) -> None:
    """Both stop cleanly and have logged nothing unexpected."""
    lanes.both(Lane.stop)
    for lane in (lanes.fast, lanes.plain):
        entries = [json.loads(line) for line in lane.log.read_text().splitlines()]  # JSON alone, no traceback
        # aiohttp reads on to the end of a body that was refused, and complains if that is no gzip.
        known = ("RequestPayloadError", "RequestPayloadError from ContentEncodingError from error")
        unexpected = [e for e in entries if e["level"] not in ("info", "warning") and e.get("error") not in known]
        assert unexpected == []


@pytest.fixture(scope="package")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lanes]:
    """Both lanes, for every case of the corpus."""
    with _running(tmp_path_factory.mktemp("lanes")) as both:
        yield both
        _stop_and_look(both)


@pytest.fixture(scope="module")
def rough_lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lanes]:
    """Two more, for clients that go at the wrong moment: what was scored then may differ, and LSNs with it."""
    with _running(tmp_path_factory.mktemp("rough-lanes")) as both:
        yield both
        _stop_and_look(both)


@pytest.fixture
def make_lanes(tmp_path: Path) -> Iterator[Callable[..., Lanes]]:
    """`make_lanes("server.x=1")`: two more, with settings of their own, for a test that stops them or needs other limits."""
    with contextlib.ExitStack() as stack:

        def make(*settings: str) -> Lanes:
            return stack.enter_context(_running(tmp_path, *settings))

        yield make


@pytest.fixture(scope="module")
def keep_lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Lanes]]:
    """As make_lanes, but the same settings give the same two, to the end of the module."""
    kept: dict[tuple[str, ...], Lanes] = {}
    with contextlib.ExitStack() as stack:

        def keep(*settings: str) -> Lanes:
            if settings not in kept:
                kept[settings] = stack.enter_context(_running(tmp_path_factory.mktemp("kept"), *settings))
            return kept[settings]

        yield keep
        for both in kept.values():
            _stop_and_look(both)
