"""The fast lane without room: what is refused has its place among what is scored, is told when to come back, and is counted."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.lanes.conftest import Connection, Lane, Lanes, Reply

pytestmark = pytest.mark.e2e

MakeLanes = Callable[..., "Lanes"]
NARROW = ("queue.events_max=4", "queue.batch_max=4")
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n%bContent-Length: %d\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def request(name: str, key: bytes = b"{ingest}", more: bytes = b"") -> bytes:
    fields = {"event_id": name, "ts": 1750000000000, "amount": 1299, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"}
    body = json.dumps(fields).encode()
    return HEAD % (key, more, len(body)) + body


def replies_of(connection: "Connection", n: int) -> "Iterator[Reply]":
    for _ in range(n):
        reply = connection.reply(20)
        assert reply is not None
        yield reply


def ask(lane: "Lane", sent: bytes) -> "Reply":
    connection = lane.connect()
    connection.send([lane.fill_in(sent)])
    (reply,) = replies_of(connection, 1)
    connection.close()
    return reply


def counts(lane: "Lane") -> Counter[str]:
    """The counts of the score route, and of what was refused."""
    text = ask(lane, METRICS).body.decode()
    pairs = re.findall(r"^(weir_(?:requests_total|refused_total|request_seconds_count|tx_total)\{[^}]*\}) (\d+)", text, re.M)
    return Counter({name: int(value) for name, value in pairs})


def assert_refused(reply: "Reply") -> None:
    assert reply.status == 429
    headers = dict(reply.headers)
    assert headers["retry-after"] == "1"
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(reply.body)
    assert problem["type"] == "urn:weir:problem:overloaded"
    assert "queue.events_max = 4" in problem["detail"]


def test_what_has_no_room_is_refused_in_its_place(keep_lanes: MakeLanes) -> None:
    """40 requests in one segment: the first ones are scored, the others refused, in order; then the connection goes on."""
    lane = keep_lanes(*NARROW).fast
    connection = lane.connect()
    before = counts(lane)
    connection.send([lane.fill_in(b"".join(request(f"seg-{n}") for n in range(40)))])
    statuses = []
    for number, reply in enumerate(replies_of(connection, 40)):
        statuses.append(reply.status)
        if reply.status == 200:
            assert json.loads(reply.body)["event_id"] == f"seg-{number}"
        else:
            assert_refused(reply)
    assert statuses[:4] == [200] * 4
    assert statuses.count(429) > 4
    connection.send([lane.fill_in(request("seg-after"))])
    (reply,) = replies_of(connection, 1)
    assert (reply.status, json.loads(reply.body)["event_id"]) == (200, "seg-after")
    connection.close()
    n_scored = statuses.count(200) + 1
    more = counts(lane) - before
    assert more['weir_refused_total{reason="overloaded"}'] == statuses.count(429)
    assert more['weir_requests_total{route="score",status="429"}'] == statuses.count(429)
    assert more['weir_requests_total{route="score",status="200"}'] == n_scored
    assert more['weir_request_seconds_count{route="score"}'] == 41
    assert sum(n for name, n in more.items() if name.startswith("weir_tx_total")) == n_scored


def test_refusals_keep_ids_keys_and_the_way_to_aiohttp(keep_lanes: MakeLanes) -> None:
    """Among those that are refused one has an id, one a wrong key, and behind them all is a request of another route."""
    lane = keep_lanes(*NARROW).fast
    many = [request(f"mix-{n}") for n in range(30)]
    many[20] = request("mix-20", more=b"X-Request-Id: mine\r\n")
    many[25] = request("mix-25", key=b"nobody")
    connection = lane.connect()
    connection.send([lane.fill_in(b"".join(many) + LIVEZ)])
    replies = list(replies_of(connection, 31))
    connection.close()
    assert [reply.status for reply in replies[:4]] == [200] * 4
    assert replies[20].status == 429
    assert dict(replies[20].headers)["x-request-id"] == "mine"
    assert json.loads(replies[20].body)["request_id"] == "mine"
    assert replies[25].status == 401
    assert replies[30].body == b'{"status":"live"}'
    for number, reply in enumerate(replies[:30]):
        if number not in (20, 25) and reply.status != 200:
            assert_refused(reply)
        elif reply.status == 200:
            assert json.loads(reply.body)["event_id"] == f"mix-{number}"


def test_keys_with_a_rate_pay_for_what_is_refused(keep_lanes: MakeLanes) -> None:
    """A key's pace counts each of the requests, and ends the row of those that are refused for lack of room."""
    lane = keep_lanes(*NARROW, "rate.ingest=8").fast
    connection = lane.connect()
    connection.send([lane.fill_in(b"".join(request(f"pace-{n}") for n in range(20)))])
    kinds = [json.loads(reply.body).get("type", "scored").rpartition(":")[2] for reply in replies_of(connection, 20)]
    connection.close()
    assert kinds[:4] == ["scored"] * 4
    assert kinds.count("rate-exceeded") >= 10
    assert kinds.count("overloaded") >= 1


@pytest.mark.parametrize("seed", [1, 2])
def test_none_is_lost_or_answered_twice(keep_lanes: MakeLanes, seed: int) -> None:
    """Eight eager clients with requests cut anywhere: each has one reply in its place, and what was scored is what was said."""
    lane = keep_lanes(*NARROW).fast
    before = counts(lane)

    def run(client: int) -> tuple[Counter[int], list[str]]:
        chance = random.Random(seed * 100 + client)
        names = [f"r{seed}-{client}-{n}" for n in range(300)]
        sent, connection, at = lane.fill_in(b"".join(map(request, names))), lane.connect(), 0
        while at < len(sent):
            n = chance.choice((7, 200, 1_500, 9_000))
            connection.send([sent[at : at + n]])
            at += n
        replies = list(replies_of(connection, len(names)))
        scored = [(name, reply) for name, reply in zip(names, replies, strict=True) if reply.status == 200]
        assert all(json.loads(reply.body)["event_id"] == name for name, reply in scored)
        for reply in replies:
            if reply.status != 200:
                assert_refused(reply)
        connection.send([LIVEZ])
        assert next(replies_of(connection, 1)).status == 200  # and nothing else came
        connection.close()
        return Counter(reply.status for reply in replies), [name for name, _ in scored]

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(run, range(8)))
    statuses = sum((counted for counted, _ in results), Counter[int]())
    assert statuses[200] + statuses[429] == 8 * 300
    assert statuses[429] > 100, f"seed {seed}"
    more = counts(lane) - before
    assert more['weir_refused_total{reason="overloaded"}'] == statuses[429]
    assert sum(n for name, n in more.items() if name.startswith("weir_tx_total")) == statuses[200]
    for _, scored in results:
        for name in scored[::20]:
            head = b"GET /v1/decisions/%b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ingest}\r\n\r\n" % name.encode()
            assert ask(lane, head).status == 200
