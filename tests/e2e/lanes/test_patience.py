"""Clients that are slow, gone, deaf or many, and a service that stops: neither lane waits for ever, or grows."""

import errno
import json
import signal
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.lanes.conftest import Connection, Lane, Lanes

pytestmark = pytest.mark.e2e

MakeLanes = Callable[..., "Lanes"]
TX = b'{"event_id":"slow-1","ts":1750000000000,"amount":1299,"currency":"EUR","card_id":"c1","merchant_id":"m1"}'
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {admin}\r\n"
SCORE = HEAD + b"Content-Length: %d\r\n\r\n" % len(TX) + TX
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
GROWTH_MAX = 96 << 20  # bytes: what a connection that does not read may cost, and what the allocator keeps
DEADLINE_S = 10.0


def batch(n_rows: int, name: str = "drain") -> bytes:
    """A batch of valid transactions."""
    rows = [json.loads(TX) | {"event_id": f"{name}-{n}", "card_id": f"c{n}"} for n in range(n_rows)]
    body = json.dumps(rows).encode()
    return HEAD.replace(b"score", b"score/batch") + b"Content-Length: %d\r\n\r\n" % len(body) + body


def connect(lane: "Lane", *pieces: bytes) -> "Connection":
    """A connection on which this was sent."""
    connection = lane.connect()
    connection.send([lane.fill_in(piece) for piece in pieces])
    return connection


def drip(connection: "Connection", data: bytes, seconds: float) -> float:
    """Send a byte every 50 ms until the peer has closed or `seconds` are over; returns how long that took."""
    start = time.monotonic()
    for byte in data:
        if time.monotonic() - start > seconds or connection.reply(0.05) is not None or connection.is_closed:
            break
        connection.send([bytes([byte])])
    return time.monotonic() - start


def seconds_until_closed(connection: "Connection", deadline_s: float) -> float:
    """Read until the end; fails if there is none in time."""
    start = time.monotonic()
    while connection.reply(max(start + deadline_s - time.monotonic(), 0)) is not None:
        pass
    assert connection.is_closed, f"still open after {deadline_s} s"
    return time.monotonic() - start


@pytest.mark.parametrize("first", [b"", SCORE, LIVEZ], ids=["fresh", "after a score", "after another route"])
def test_head_that_never_ends_is_given_up(keep_lanes: MakeLanes, first: bytes) -> None:
    """A client that sends a byte now and then loses its connection after server.head_deadline_ms."""

    def run(lane: "Lane") -> float:
        connection = connect(lane, first)
        if first:
            assert connection.reply() is not None
        taken = drip(connection, HEAD * 3, DEADLINE_S)
        connection.close()
        return taken

    lanes = keep_lanes("server.head_deadline_ms=600")
    assert all(0.4 < taken < 4 for taken in lanes.both(run))
    lanes.both(lambda lane: lane.assert_well())


@pytest.mark.parametrize("first", [b"", SCORE, LIVEZ], ids=["fresh", "after a score", "after another route"])
def test_idle_connection_is_closed(keep_lanes: MakeLanes, first: bytes) -> None:
    """A connection on which nothing comes is closed after server.idle_deadline_ms; one in use is not."""

    def run(lane: "Lane") -> float:
        busy = connect(lane)
        for _ in range(5):
            busy.send([LIVEZ])
            assert busy.reply() is not None
            time.sleep(0.2)
        idle = connect(lane, first)
        taken = seconds_until_closed(idle, DEADLINE_S)
        idle.close()
        busy.close()
        return taken

    lanes = keep_lanes("server.idle_deadline_ms=600")
    assert all(0.4 < taken < 4 for taken in lanes.both(run))


def test_body_that_drips_is_given_up_after_its_deadline(rough_lanes: "Lanes") -> None:
    """A byte every 50 ms does not move the deadline of a body: 408."""

    def run(lane: "Lane") -> list[int]:
        connection = connect(lane, HEAD + b"Content-Length: 500\r\n\r\n")
        statuses = []
        for byte in TX[:60]:
            connection.send([bytes([byte])])
            reply = connection.reply(0.05)
            if reply is not None or connection.is_closed:
                statuses.append(reply.status if reply else 0)
                break
        connection.close()
        return statuses

    assert rough_lanes.both(run) == ([408], [408])
    rough_lanes.both(lambda lane: lane.assert_well())


def test_body_that_drips_in_time_is_scored(rough_lanes: "Lanes") -> None:
    """Slow, but within the deadline."""
    pieces: list[bytes | float] = [HEAD + b"Content-Length: %d\r\n\r\n" % len(TX)]
    for start in range(0, len(TX), 40):
        pieces += [0.04, TX[start : start + 40]]
    rough_lanes.check(pieces, [200], "open")


def test_pause_between_requests_is_no_slow_body(rough_lanes: "Lanes") -> None:
    """The deadline of a body does not run while there is no request."""
    rough_lanes.check([SCORE, 0.5, SCORE, 0.5, LIVEZ, 0.5, SCORE], [200, 200, 200, 200], "open")


@pytest.mark.parametrize("request_", [SCORE, LIVEZ, SCORE * 3, LIVEZ + SCORE], ids=["score", "livez", "three", "both"])
def test_reply_comes_after_half_close(rough_lanes: "Lanes", request_: bytes) -> None:
    """A client that has said all it has to say still gets its replies, then the end. aiohttp alone may end at once."""
    n_requests = request_.count(b"HTTP/1.1")

    def run(lane: "Lane") -> int:
        connection = connect(lane, request_)
        connection.socket.shutdown(socket.SHUT_WR)
        n_replies = 0
        while connection.reply(DEADLINE_S) is not None:
            n_replies += 1
        assert connection.is_closed
        connection.close()
        return n_replies

    assert rough_lanes.both(run) == (n_requests, n_requests)


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD[:30], HEAD + b"Content-Length: 500\r\n\r\n" + TX, HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"],
    ids=["nothing", "half a head", "half a body", "half a chunk"],
)
def test_half_a_request_and_half_close_is_given_up(rough_lanes: "Lanes", sent: bytes) -> None:
    """What can never be complete is not scored: an error or nothing, then the end, no later than the body's deadline."""

    def run(lane: "Lane") -> list[int]:
        connection = connect(lane, sent)
        connection.socket.shutdown(socket.SHUT_WR)
        reply = connection.reply(3)
        statuses = [reply.status] if reply else []
        connection.close()
        assert reply is not None or connection.is_closed
        return statuses

    for statuses in rough_lanes.both(run):
        assert statuses in ([], [400], [408])
    rough_lanes.both(lambda lane: lane.assert_well())


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD[:30], HEAD, HEAD + b"Content-Length: 500\r\n\r\n" + TX, SCORE, SCORE * 50, LIVEZ * 50, batch(2_000, "reset")],
    ids=["nothing", "half a head", "head", "half a body", "score", "50 scores", "50 other", "batch"],
)
@pytest.mark.parametrize("is_reset", [True, False], ids=["reset", "closed"])
def test_client_that_hangs_up_harms_nobody(rough_lanes: "Lanes", is_reset: bool, sent: bytes) -> None:
    """Whatever was sent before it: the service goes on, and logs no error of its own (the fixture looks)."""

    def run(lane: "Lane") -> None:
        connection = connect(lane, sent)
        if is_reset:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        lane.assert_well()

    rough_lanes.both(run)


def test_silent_connections_keep_nobody_out(rough_lanes: "Lanes") -> None:
    """300 clients that connect and say nothing, 300 with half a head."""

    def run(lane: "Lane") -> None:
        quiet = [connect(lane, *pieces) for pieces in ([], [HEAD[:40]]) for _ in range(300)]
        connection = connect(lane, SCORE)
        reply = connection.reply()
        assert reply is not None
        assert reply.status == 200
        for each in (*quiet, connection):
            each.close()

    rough_lanes.both(run)


def test_client_that_does_not_read_is_not_read_from(rough_lanes: "Lanes") -> None:
    """Requests whose replies nobody takes are left in the socket: memory stays bounded."""
    rows = b"[" + b",".join([b"{}"] * 1_000) + b"]"  # a request of 3 kB, a reply of 200
    request = HEAD.replace(b"score", b"score/batch") + b"Content-Length: %d\r\n\r\n" % len(rows) + rows

    def run(lane: "Lane") -> tuple[int, int]:
        filled = lane.fill_in(request)
        before = lane.rss_bytes()
        connection = lane.connect(receive_bytes=4096)
        connection.socket.settimeout(1.0)
        n_sent, grown = 0, 0
        try:
            while n_sent < 3_000:  # 600 MB of replies, if they were all written
                connection.socket.sendall(filled)
                n_sent += 1
                grown = max(grown, lane.rss_bytes() - before)
        except TimeoutError:
            pass
        time.sleep(0.5)
        grown = max(grown, lane.rss_bytes() - before)
        lane.assert_well()
        connection.close()
        return n_sent, grown

    for n_sent, grown in rough_lanes.both(run):
        assert n_sent < 3_000, "nothing held the client back"
        assert grown < GROWTH_MAX, f"{grown >> 20} MiB for one client after {n_sent} requests"


def test_client_that_reads_late_gets_every_reply(rough_lanes: "Lanes") -> None:
    """Back-pressure loses nothing: 300 requests are written by one thread, read by another much later."""
    n_requests = 300

    def run(lane: "Lane") -> list[int]:
        connection = lane.connect(receive_bytes=4096)
        filled = lane.fill_in(batch(20, "late"))
        with ThreadPoolExecutor(1) as thread:
            sending = thread.submit(connection.send, [filled * n_requests])
            time.sleep(0.5)
            statuses = []
            for _ in range(n_requests):
                reply = connection.reply()
                statuses.append(0 if reply is None else reply.status)
            sending.result()
        connection.close()
        return statuses

    assert rough_lanes.both(run) == ([200] * n_requests, [200] * n_requests)


def test_stop_answers_what_is_under_way_and_closes_the_rest(make_lanes: MakeLanes) -> None:
    """At SIGTERM a batch that is being scored gets its whole reply; idle connections end; new ones are refused; exit code 0."""

    def run(lane: "Lane") -> None:
        idle = [connect(lane), connect(lane, SCORE), connect(lane, LIVEZ)]
        assert [each.reply() is not None for each in idle[1:]] == [True, True]
        busy = [connect(lane, batch(1_500, f"stop-{n}")) for n in range(3)]
        for _ in range(5):
            lane.assert_well()  # by then all of it has been read
        lane.process.send_signal(signal.SIGTERM)
        replies = [each.reply(DEADLINE_S) for each in busy]
        assert [reply.status if reply else 0 for reply in replies] == [200, 200, 200]
        assert all(reply is not None and len(json.loads(reply.body)) == 1_500 for reply in replies)
        for each in (*idle, *busy):
            seconds_until_closed(each, DEADLINE_S)
            each.close()
        assert lane.process.wait(30) == 0
        with socket.socket() as late:
            assert late.connect_ex(("127.0.0.1", lane.port)) == errno.ECONNREFUSED

    make_lanes().both(run)


def test_stop_does_not_wait_for_a_client_that_does_not_read(make_lanes: MakeLanes) -> None:
    """A reply that nobody takes, and half a request, do not hold up the end."""

    def run(lane: "Lane") -> float:
        deaf = lane.connect(receive_bytes=4096)
        deaf.send([lane.fill_in(batch(3_000, "deaf"))])
        half = connect(lane, HEAD + b"Content-Length: 500\r\n\r\n" + TX)
        time.sleep(0.3)
        start = time.monotonic()
        lane.process.send_signal(signal.SIGTERM)
        assert lane.process.wait(30) == 0
        deaf.close()
        half.close()
        return time.monotonic() - start

    assert all(taken < 15 for taken in make_lanes("server.request_deadline_ms=60000").both(run))
