"""How many connections, and how fast a key: the same answer in both lanes, and one count for both."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from service.auth import Role, add_key, revoke_key

if TYPE_CHECKING:
    from tests.e2e.lanes.conftest import Connection, Lane, Lanes, Reply

pytestmark = pytest.mark.e2e

MakeLanes = Callable[..., "Lanes"]
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ingest}\r\n"
KEY = b"{ingest}"
FEW = ("server.connections_max=5", "server.reply_deadline_ms=1000")
BOUNDED = ("server.batch_body_bytes_max=100000", "server.bodies_bytes_max=150000", "server.request_deadline_ms=20000")


def tx(name: str) -> bytes:
    fields = {"event_id": name, "ts": 1750000000000, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"}
    return json.dumps(fields).encode()


def score(name: str, path: bytes = b"/v1/score", key: bytes = KEY) -> bytes:
    body = b"[%b]" % b",".join(tx(f"{name}-{n}") for n in range(40)) if path.endswith(b"batch") else tx(name)
    head = HEAD.replace(b"/v1/score", path).replace(KEY, key)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def connect(lane: "Lane", *pieces: bytes) -> "Connection":
    connection = lane.connect()
    connection.send([lane.fill_in(piece) for piece in pieces])
    return connection


def reply_to(lane: "Lane", request: bytes) -> "Reply":
    connection = connect(lane, request)
    reply = connection.reply()
    connection.close()
    assert reply is not None
    return reply


def eventually_well(lane: "Lane") -> None:
    """The service notices a moment later that connections were closed."""
    deadline = time.monotonic() + 10
    while reply_to(lane, LIVEZ).status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (FEW, "server.connections_max = 5"),
        (("server.connections_per_address_max=5",), "server.connections_per_address_max"),
    ],
    ids=["in all", "of one address"],
)
def test_one_connection_too_many_is_told_and_closed(keep_lanes: MakeLanes, settings: tuple[str, ...], named: str) -> None:
    """Five are served, whichever lane they are in; a sixth gets a 503 with Retry-After; one that ends makes room."""
    lanes = keep_lanes(*settings)

    def run(lane: "Lane") -> "tuple[Reply, bool]":
        held = [connect(lane, *pieces) for pieces in ([LIVEZ], [score("a")], [LIVEZ, score("b"), LIVEZ], [], [HEAD[:20]])]
        for number, n_replies in enumerate((1, 1, 3, 0, 0)):
            for _ in range(n_replies):
                reply = held[number].reply()
                assert reply is not None
                assert reply.status == 200
        refused = None
        for _ in range(20):  # refusing holds nothing back
            late = connect(lane, LIVEZ)
            refused = late.reply()
            assert refused is not None
            assert late.reply(1) is None
            is_closed = late.is_closed
            late.close()
        held[1].send([LIVEZ])
        reply = held[1].reply()
        assert reply is not None, "who is in stays in"
        assert reply.status == 200
        for each in held:
            each.close()
        eventually_well(lane)
        assert refused is not None
        return refused, is_closed

    (fast, fast_closed), (plain, plain_closed) = lanes.both(run)
    assert fast == plain
    assert fast_closed
    assert plain_closed
    assert fast.status == 503
    assert named in json.loads(fast.body)["detail"]
    assert {"retry-after", "connection"} <= {name for name, _ in fast.headers}
    for metrics in lanes.both(lambda lane: reply_to(lane, LIVEZ.replace(b"livez", b"metrics")).body):
        assert b'weir_refused_total{reason="too-many-connections"} 2' in metrics  # twenty, and while it emptied


def test_key_beyond_its_rate_is_told_when_to_come_back(keep_lanes: MakeLanes) -> None:
    """The count of a key is one for both lanes, all calls and all connections; other keys are not touched; it comes back."""
    lanes = keep_lanes("rate.ingest=8")

    def run(lane: "Lane") -> "list[Reply]":
        statuses: list[int] = []
        refused: list[Reply] = []
        while not refused:
            for path in (b"/v1/score", b"/v1/score?trace=1"):
                reply = reply_to(lane, score(f"e{len(statuses)}", path))
                statuses.append(reply.status)
                if reply.status != 200:
                    refused.append(reply)
            assert len(statuses) < 400
        assert len(statuses) > 8
        assert reply_to(lane, score("other", key=b"{admin}")).status == 200
        time.sleep(int(dict(refused[0].headers)["retry-after"]))
        assert reply_to(lane, score("again")).status == 200
        return refused

    for replies in lanes.both(run):
        reply = replies[0]
        assert reply.status == 429
        problem = json.loads(reply.body)
        assert (problem["type"], problem["field"]) == ("urn:weir:problem:rate-exceeded", "Authorization")
        assert "8 events a second" in problem["detail"]


def test_batch_is_let_in_whole_and_paid_for_afterwards(keep_lanes: MakeLanes) -> None:
    """40 rows at 8 a second: all answered, then nothing for seconds."""

    def run(lane: "Lane") -> list[int]:
        batch, late = reply_to(lane, score("b", b"/v1/score/batch")), reply_to(lane, score("late"))
        assert len(json.loads(batch.body)) == 40
        return [batch.status, late.status]

    assert keep_lanes("rate.ingest=8").both(run) == ([200, 429], [200, 429])


def test_stream_is_slowed_down_and_ends_with_its_key(keep_lanes: MakeLanes) -> None:
    """A stream ahead of its rate is not read meanwhile and loses nothing; when its key is revoked it ends, and says why."""
    lanes = keep_lanes(*BOUNDED)

    def run(lane: "Lane") -> tuple[float, list[dict[str, object]]]:
        data_dir = lane.log.parent / "data"
        key = add_key(data_dir, Role.INGEST, "slow", rate=40.0)
        head = HEAD.replace(b"/v1/score", b"/v1/score/stream").replace(KEY, key.encode())
        connection = lane.connect()
        connection.send([head + b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"])
        start = time.monotonic()
        rows: list[dict[str, object]] = []

        def send(*names: str) -> None:
            lines = b"".join(tx(name) + b"\n" for name in names)
            connection.send([b"%x\r\n%b\r\n" % (len(lines), lines)])
            while sum("event_id" in row for row in rows) < sum(sent):
                assert connection._receive(time.monotonic() + 20)
                lines_in = connection.buffer.split(b"\r\n")
                rows[:] = [json.loads(line) for part in lines_in for line in part.splitlines() if line[:1] == b"{"]

        sent = [100]
        send(*(f"s{n}" for n in range(100)))
        sent.append(1)
        send("last")
        elapsed = time.monotonic() - start
        revoke_key(data_dir, "slow")
        time.sleep(0.5)
        line = tx("never") + b"\n"
        connection.send([b"%x\r\n%b\r\n" % (len(line), line)])
        while b"unauthorized" not in connection.buffer:
            assert connection._receive(time.monotonic() + 20), connection.buffer[-500:]
        connection.close()
        return elapsed, rows

    for elapsed, rows in lanes.both(run):
        assert len(rows) == 101
        assert all(row.get("outcome") for row in rows)
        assert elapsed > 1.4  # 100 rows are 2.5 s of its rate, of which one second at once
    lanes.both(lambda lane: lane.assert_well())


def test_bodies_without_a_key_cost_no_memory(keep_lanes: MakeLanes) -> None:
    """120 strangers announce a megabyte each and send most of it: none of it is kept, whatever the lane."""
    n_strangers, n_bytes = 120, 900_000

    def run(lane: "Lane") -> int:
        before = lane.rss_bytes()
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer nobody\r\nContent-Length: 1000000\r\n\r\n"
        held = []
        for _ in range(n_strangers):
            connection = lane.connect()
            connection.socket.settimeout(0.5)
            with contextlib.suppress(TimeoutError):  # it is not read from any more
                connection.send([head + b" " * n_bytes])
            held.append(connection)
        grown = lane.rss_bytes() - before
        assert all(b" 401 " in connection.buffer or connection._receive(time.monotonic() + 5) for connection in held)
        for connection in held:
            connection.close()
        return grown

    for grown in keep_lanes(*BOUNDED).both(run):
        assert grown < n_strangers * n_bytes / 3, f"{grown >> 20} MiB"


def test_batches_together_are_bounded(keep_lanes: MakeLanes) -> None:
    """While one large batch is being sent there is no room for a second one: 429 before it is read; afterwards there is."""
    lanes = keep_lanes(
        "server.batch_body_bytes_max=100000", "server.bodies_bytes_max=150000", "server.request_deadline_ms=20000"
    )

    def run(lane: "Lane") -> list[int]:
        body = b"[" + b",".join([tx("one"), tx("two")]) + b"]" + b" " * 80_000
        head = HEAD.replace(b"/v1/score", b"/v1/score/batch") + b"Content-Length: %d\r\n\r\n" % len(body)
        first = connect(lane, head + body[:1000])
        reply_to(lane, LIVEZ)  # by then it has been read
        second = reply_to(lane, head + body)
        small = reply_to(lane, score("small", b"/v1/score/batch"))
        first.send([body[1000:]])
        third = first.reply()
        assert third is not None
        first.close()
        assert b"server.bodies_bytes_max = 150000" in second.body
        return [second.status, small.status, third.status, reply_to(lane, head + body).status]

    assert lanes.both(run) == ([429, 200, 200, 200], [429, 200, 200, 200])


def test_client_that_never_reads_is_reset(keep_lanes: MakeLanes) -> None:
    """A reply that lies unread holds its connection for server.reply_deadline_ms and no longer: there is room again."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this system has no TCP_USER_TIMEOUT")
    lanes = keep_lanes(*FEW)
    rows = b"[" + b",".join([b"{}"] * 9_000) + b"]"  # 27 kB, and a reply of 2 MB
    head = HEAD.replace(b"/v1/score", b"/v1/score/batch") + b"Content-Length: %d\r\n\r\n" % len(rows)

    def run(lane: "Lane") -> int:
        eventually_well(lane)
        others = [connect(lane, LIVEZ) for _ in range(4)]
        assert all(other.reply() is not None for other in others)
        deaf = lane.connect(receive_bytes=4096)
        deaf.send([lane.fill_in(head) + rows])
        deadline, n_refused = time.monotonic() + 30, 0
        while reply_to(lane, LIVEZ).status == 503:
            n_refused += 1
            assert time.monotonic() < deadline, "it is held for ever"
            time.sleep(0.1)
        for each in (deaf, *others):
            each.close()
        return n_refused

    assert all(n_refused > 0 for n_refused in lanes.both(run))
