"""A long recovery: the port answers and says how far it is, nothing else is served, and a kill in its middle costs no work."""

import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from features.transaction import Transaction
from gocore.locate import missing_core
from service.auth import Role, add_key
from service.decisions import StoredDecision, encode_body
from service.journal import LABEL, TX, Journal
from service.records import LabelRecord, encode_label, encode_outcome
from service.tiers.l2 import L2, RocksStore

if TYPE_CHECKING:
    from tests.e2e.conftest import MakeWeir, Truth, Weir

pytestmark = pytest.mark.e2e

SCORERS = ("onnx", "go")
N_EVENTS = {"onnx": 60_000, "go": 300_000}  # 1.5 s of recovery on one core
ENDS_S = 60.0
PROGRESS = re.compile(r"recovering: ([\d,]+) of about ([\d,]+) entries \((\d+) %\)")
BODY = {"event_id": "new", "ts": 1_790_000_000_000, "amount": 1, "currency": "EUR", "card_id": "c1", "merchant_id": "m1"}
REFUSED = [  # every route that needs a key
    ("POST", "/v1/score", BODY),
    ("POST", "/v1/score?commit=false", BODY),
    ("POST", "/v1/score/batch", [BODY]),
    ("POST", "/v1/labels", [{"event_id": "e-1", "label": "fraud", "ts": 1_790_000_000_000}]),
    ("GET", "/v1/decisions/e-1", None),
    ("GET", "/v1/entities/card/c1", None),
    ("DELETE", "/v1/entities/card/c1", None),
    ("GET", "/v1/lists/deny/card/c1", None),
    ("PUT", "/v1/lists/deny/card/c1", {"reason": "stolen"}),
    ("DELETE", "/v1/lists/deny/card/c1", None),
    ("GET", "/v1/tiers", None),
    ("PUT", "/v1/tiers/l2", {"enabled": False, "reason": "test"}),
    ("GET", "/v1/scorer", None),
    ("PUT", "/v1/scorer", {"scorer": "onnx", "reason": "test"}),
    ("GET", "/v1/audit", None),
]


class Serving:
    """`weir serve` over a data directory that it has to recover, on a port that is known before it is ready."""

    def __init__(self, weir: "Weir", scorer: str, stderr: int | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.key = add_key(weir.directory, Role.ADMIN, f"test-{time.monotonic_ns()}")
        self.log = weir.directory.with_name(f"{weir.directory.name}-{time.monotonic_ns()}.err")
        self.out = self.log.with_suffix(".out")
        with self.log.open("wb") as log, self.out.open("wb") as out:
            command = [*weir.command, "--set", f"server.port={self.port}", "--set", f"scorer={scorer}"]
            self.process = subprocess.Popen(command, stdout=out, stderr=log if stderr is None else stderr)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON. Raises OSError before the port is open."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            headers = {"Authorization": f"Bearer {self.key}"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            content = reply.read()
            return reply.status, json.loads(content) if path != "/metrics" and content else content
        finally:
            connection.close()

    def progress(self) -> Iterator[tuple[int, int]]:
        """(entries done, entries in all) as /readyz tells it, until the service is ready."""
        deadline = time.monotonic() + ENDS_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                status, reply = self.call("GET", "/readyz")
            except OSError:
                time.sleep(0.002)
                continue
            if status == 200:
                return
            found = PROGRESS.fullmatch(reply["detail"])
            if found is not None:
                yield int(found[1].replace(",", "")), int(found[2].replace(",", ""))
        raise AssertionError(self.log.read_text()[-3000:])

    def logged(self, event: str) -> dict[str, Any]:
        """The first record of that name in its log."""
        records = [json.loads(line) for line in self.log.read_text().splitlines()]
        return next(record for record in records if record["event"] == event)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    """`serve(weir, scorer)`: a Serving, killed at the end."""
    started: list[Serving] = []

    def begin(*arguments: Any, **more: Any) -> Serving:
        started.append(Serving(*arguments, **more))
        return started[-1]

    yield begin
    for serving in started:
        if serving.process.poll() is None:
            serving.end(signal.SIGKILL)


def write_journal(directory: Path, stream: Sequence[Transaction], n_events: int) -> None:
    """What a service that was killed before any flush leaves: `stream` over and over, with new event ids, and labels."""
    journal = Journal.open(directory / "journal", sync="os", segment_bytes=4 << 20)
    outcome = encode_outcome(StoredDecision(0, b"", 0.5, "approve", "cards", "go", (), ()))
    span = stream[-1].ts - stream[0].ts + 1
    block: list[tuple[int, bytes, bytes]] = []
    for number in range(n_events):
        turn, place = divmod(number, len(stream))
        tx = msgspec.structs.replace(stream[place], event_id=f"e-{number}", ts=stream[place].ts + turn * span)
        block.append((TX, encode_body(tx), outcome))
        if len(block) == 100:
            lsn = journal.append(block)
            label = LabelRecord(tx.event_id, "fraud", tx.ts + 1, 1, encode_body(tx), lsn + 99)
            block = []
            if number % 1_000 == 999:
                journal.append([(LABEL, encode_label(label), b"")])
    journal.abandon()


def require(scorer: str) -> None:
    reason = missing_core() if scorer == "go" else None
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("scorer", SCORERS)
def test_port_answers_while_recovering_and_serves_nothing_else(
    make_weir: "MakeWeir", serve: Callable[..., Serving], stream: list[Transaction], scorer: str
) -> None:
    """/livez 200, /metrics, /readyz 503 with growing numbers; every other route 503, and in the end nothing was changed."""
    require(scorer)
    weir = make_weir()
    write_journal(weir.directory, stream, N_EVENTS[scorer])
    n_total = N_EVENTS[scorer] * 1_001 // 1_000
    serving = serve(weir, scorer)
    seen: list[tuple[int, int]] = []
    replies: list[tuple[int, Any]] = []
    share = b""
    for done, total in serving.progress():
        seen.append((done, total))
        assert serving.call("GET", "/livez")[0] == 200
        if replies:
            continue
        replies = [serving.call(*route) for route in REFUSED]
        share, text = serving.call("GET", "/metrics")[1], serving.out.read_text()
        assert serving.call("GET", "/readyz")[0] == 503, "the recovery was over before it could be looked at"
        assert "weir ready" not in text
    for route, (status, reply) in zip(REFUSED, replies, strict=True):
        assert (status, reply["type"]) == (503, "urn:weir:problem:not-ready"), (route, reply)
        assert PROGRESS.fullmatch(reply["detail"]), reply
    assert b"weir_recovery_share 0." in share
    assert b"weir_ready 0.0" in share
    assert {total for _, total in seen} == {n_total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert any(0 < done < total for done, total in seen)
    deadline = time.monotonic() + ENDS_S
    while "weir ready" not in serving.out.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    metrics = serving.call("GET", "/metrics")[1]
    assert b"weir_recovery_entries %.1f\n" % n_total in metrics
    assert b"weir_recovery_share 1.0\n" in metrics
    assert serving.call("GET", "/v1/decisions/new")[0] == 404
    assert serving.call("GET", "/v1/decisions/e-1")[1]["label"] is None
    assert serving.call("GET", "/v1/decisions/e-999")[1]["label"] == "fraud"
    assert serving.call("GET", "/v1/lists/deny/card/c1")[0] == 404
    assert serving.call("GET", "/v1/scorer")[1]["scorer"] == scorer
    assert serving.call("GET", "/v1/audit")[1]["entries"] == []
    assert all(tier["enabled"] for tier in serving.call("GET", "/v1/tiers")[1]["tiers"])
    assert serving.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("scorer", SCORERS)
async def test_recovery_that_ends_early_goes_on_where_it_was(
    make_weir: "MakeWeir", serve: Callable[..., Serving], stream: list[Transaction],
    truth_of: Callable[[Path], "Truth"], scorer: str,
) -> None:  # fmt: skip
    """SIGKILL in the middle, then SIGTERM (exit code 0), then to the end: each begins later, the bytes are a fresh engine's."""
    require(scorer)
    weir = make_weir("l2.flush_interval_ms=20", "write_behind.interval_ms=5")
    n_events = N_EVENTS[scorer] // 2  # all of them are compared in the end, by an engine that takes long for each
    write_journal(weir.directory, stream, n_events)
    began = []
    for number, share in ((signal.SIGKILL, 0.5), (signal.SIGTERM, 0.3)):
        serving = serve(weir, scorer)
        for done, total in serving.progress():
            if done > share * total:
                break
        else:
            pytest.fail("the recovery was over before it could be ended")
        assert serving.end(number) == (0 if number == signal.SIGTERM else -number)
        began.append(serving.logged("recovery begins")["from_lsn"])
    serving = serve(weir, scorer)
    for _ in serving.progress():
        pass
    began.append(serving.logged("recovery begins")["from_lsn"])
    n_last = serving.logged("recovered")["entries"]
    assert began == sorted(set(began)), began
    assert n_last < 0.8 * n_events
    assert serving.end(signal.SIGTERM) == 0
    truth = truth_of(weir.directory)
    store = RocksStore(weir.directory / "l2")
    try:
        await truth.assert_in_store(L2(store))
        for start in range(0, n_events, 1_000):
            event_ids = [f"e-{number}" for number in range(start, start + 1_000)]
            packed = await store.get_many("decisions", [event_id.encode() for event_id in event_ids])
            for event_id, value in zip(event_ids, packed, strict=True):
                assert value is not None, event_id
                stored = msgspec.msgpack.decode(value, type=StoredDecision)
                made = truth.decisions[event_id]
                assert (stored.lsn, stored.body, stored.score) == (made.lsn, made.body, made.score)
                assert stored.label == truth.labels.get(event_id)
    finally:
        store.close()
    print(f"began at {[lsn & 0xFFFF_FFFF_FFFF for lsn in began]}, {n_last} entries at the last start")  # noqa: T201  # shown by -rP


def test_recovery_shows_a_bar_on_a_terminal(
    make_weir: "MakeWeir", serve: Callable[..., Serving], stream: list[Transaction]
) -> None:
    """On a terminal there is a bar with the share and the number of entries."""
    weir = make_weir()
    write_journal(weir.directory, stream, 30_000)
    ours, theirs = pty.openpty()
    serving = serve(weir, "onnx", stderr=theirs)
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + ENDS_S
    while b"100 %" not in shown and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 65_536)
    assert b"100 % 30,030 entries" in shown, shown[-2000:]
    assert shown.count(b" entries") > 2
    assert serving.end(signal.SIGTERM) == 0
    os.close(ours)
