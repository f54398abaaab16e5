"""`weir replay` against a small server that speaks the contract over real sockets."""

import asyncio
import json
import os
import signal
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from aiohttp import web
from typer.testing import CliRunner

from loadgen.commands import register
from loadgen.recorder import Recorder
from loadgen.replay import Options, Replay, ReplayStopped, read_tiers
from loadgen.sender import Client, ConnectionLost, DeadlinePassed, Target
from loadgen.source import Stream, open_dataset

T0 = 1_750_000_000_000  # ms
HOUR_MS = 3_600_000
KEY = "weir_test"
N_ROWS = 600


class FakeWeir:
    """Answers like the service, keeps what it was sent in order of arrival, and misbehaves on demand."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, int]] = []  # (what, event_id, ts); ts of a label is when it became known
        self.connection_of_card: dict[str, set[int]] = {}
        self.refuse_once: dict[str, int] = {}  # event_id -> status, for the first time it comes
        self.refuse: dict[str, int] = {}
        self.refuse_all: int | None = None
        self.hang_up_once: set[str] = set()
        self.delay_s = 0.0
        self.chunked = False
        self.lsn = 0
        self.lookups = 0
        self.url = ""
        self.seen: set[str] = set()
        self.busy = asyncio.Event()  # five transactions have come

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/score", self.score)
        app.router.add_post("/v1/score/batch", self.batch)
        app.router.add_post("/v1/labels", self.labels)
        app.router.add_get("/v1/tiers", self.tiers)
        return app

    def decide(self, tx: dict[str, Any], connection: int) -> dict[str, Any]:
        event_id = tx["event_id"]
        if event_id in self.refuse:
            return problem(self.refuse[event_id], "refused on purpose", "amount")
        self.lsn += 1
        if self.lsn == 5:
            self.busy.set()
        self.lookups += 1
        replayed = event_id in self.seen
        self.seen.add(event_id)
        self.log.append(("tx", event_id, tx["ts"]))
        self.connection_of_card.setdefault(tx["card_id"], set()).add(connection)
        return {
            "event_id": event_id,
            "score": (zlib.crc32(event_id.encode()) % 1000) / 1000,
            "outcome": "review" if event_id.endswith("7") else "approve",
            "model": "fake-1",
            "scorer": "onnx",
            "lsn": self.lsn,
            "replayed": replayed,
            "degraded": ["redis"] if event_id.endswith("99") else [],
        }

    async def score(self, request: web.Request) -> web.StreamResponse:
        tx = await request.json()
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return reply(problem(401, "no such key"), 401)
        await asyncio.sleep(self.delay_s)
        event_id = tx["event_id"]
        if self.refuse_all:
            return reply(problem(self.refuse_all, "ts is older than the longest ring", "ts"), self.refuse_all)
        if event_id in self.hang_up_once:
            self.hang_up_once.remove(event_id)
            self.decide(tx, connection_of(request))
            assert request.transport is not None
            request.transport.close()
        if event_id in self.refuse_once:
            status = self.refuse_once.pop(event_id)
            return web.json_response(problem(status, "later"), status=status, headers={"Retry-After": "0.01"})
        answer = self.decide(tx, connection_of(request))
        if "score" not in answer:
            return reply(answer, answer["status"])
        if self.chunked:
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            body = json.dumps(answer).encode()
            await response.write(body[:20])
            await response.write(body[20:])
            await response.write_eof()
            return response
        return reply(answer)

    async def batch(self, request: web.Request) -> web.Response:
        connection = connection_of(request)
        return reply([self.decide(tx, connection) for tx in await request.json()])

    async def labels(self, request: web.Request) -> web.Response:
        labels = await request.json()
        assert len(labels) <= 1000
        self.log.extend((label["label"], label["event_id"], label["ts"]) for label in labels)
        return reply({"accepted": len(labels)})

    async def tiers(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return reply(problem(401, "no such key"), 401)
        tier = {"name": "l1", "enabled": True, "state": "on", "lookups": self.lookups, "hits": self.lookups // 2}
        return reply({"tiers": [tier, {"name": "redis", "note": "fields may be missing"}]})


def problem(status: int, detail: str, field: str | None = None) -> dict[str, Any]:
    return {"type": "urn:x", "title": "Refused", "status": status, "detail": detail, "field": field}


def reply(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), status=status, content_type="application/json")


def connection_of(request: web.Request) -> int:
    assert request.transport is not None
    return int(request.transport.get_extra_info("peername")[1])


@pytest.fixture
async def weir() -> AsyncIterator[FakeWeir]:
    server = FakeWeir()
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
def weir_in_thread() -> Iterator[FakeWeir]:
    """The same server on a thread of its own, for tests of the command, which runs its own loop."""
    server, started, stop = FakeWeir(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(5)
    yield server
    loop.call_soon_threadsafe(stop.set)
    thread.join(5)
    loop.close()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 transactions, one a minute, of 20 cards; every 25th is fraud; labels are known two hours later."""
    rows = np.arange(N_ROWS)
    ts = T0 + rows * 60_000
    table = pa.table(
        {
            "event_id": [f"t-{row}" for row in rows],
            "ts": ts,
            "amount": 100 + rows,
            "currency": ["EUR"] * N_ROWS,
            "card_id": [f"c{row * 7 % 20}" for row in rows],
            "merchant_id": [f"m{row % 9}" for row in rows],
            **{name: pa.nulls(N_ROWS, pa.string()) for name in ("device_id", "ip", "country", "channel")},
            "mcc": pa.nulls(N_ROWS, pa.int16()),
            "lat": pa.nulls(N_ROWS, pa.float64()),
            "lon": pa.nulls(N_ROWS, pa.float64()),
            "label": pa.array((rows % 25 == 0).astype(np.int8)),
            "label_ts": ts + 2 * HOUR_MS,
        }
    )
    path = tmp_path_factory.mktemp("replay") / "stream.parquet"
    pq.write_table(table, path)
    return path


async def run_replay(weir: FakeWeir, parquet: Path, options: Options) -> tuple[Replay, Recorder]:
    stream = Stream(open_dataset(parquet, "cards"))
    recorder = Recorder(stream.dataset.n_rows, options.clients)
    replay = Replay(Target.parse(weir.url, KEY), stream, options, recorder)
    await replay.run(lambda: None)
    return replay, recorder


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(clients=7),
        Options(mode="batch", batch_rows=64),
        Options(mode="batch", batch_rows=7, clients=3),
        Options(rate=5000, clients=8),
        Options(mode="batch", batch_rows=16, rate=20_000, clients=2),
    ],
    ids=["http", "http-7", "batch", "batch-3", "rate", "rate-batch"],
)
async def test_replay_any_way_of_sending_scores_each_row_once_in_card_order(
    weir: FakeWeir, parquet: Path, options: Options
) -> None:
    """Every transaction is sent once, a card's in their order and over one connection, and its score is recorded."""
    _, recorder = await run_replay(weir, parquet, options)
    assert (recorder.n_scored, recorder.n_failed) == (N_ROWS, 0)
    assert sorted(event for _, event, _ in weir.log) == sorted(f"t-{row}" for row in range(N_ROWS))
    places = {event: place for place, (_, event, _) in enumerate(weir.log)}
    for card in range(20):
        of_card = [places[f"t-{row}"] for row in range(N_ROWS) if row * 7 % 20 == card]
        assert of_card == sorted(of_card)
    assert {len(connections) for connections in weir.connection_of_card.values()} == {1}
    assert recorder.score[5] == pytest.approx((zlib.crc32(b"t-5") % 1000) / 1000)
    assert recorder.degraded_counts() == {"redis": 6}
    assert recorder.outcome_counts() == {"approve": 540, "review": 60}


@pytest.mark.parametrize(
    "options",
    [
        Options(labels=True),
        Options(labels=True, clients=5),
        Options(labels=True, mode="batch", batch_rows=50),
        Options(labels=True, mode="batch", batch_rows=50, clients=3),
    ],
    ids=["http", "http-5", "batch", "batch-3"],
)
async def test_replay_labels_stand_between_their_transaction_and_later_ones(
    weir: FakeWeir, parquet: Path, options: Options
) -> None:
    """A fraud label comes after all transactions before the time it becomes known and before all others."""
    _, recorder = await run_replay(weir, parquet, options)
    n_known = N_ROWS - 120  # the labels of the last two hours are never known
    assert recorder.n_labels == len([what for what, _, _ in weir.log if what != "tx"])
    assert n_known - 25 < recorder.n_labels <= n_known
    newest = 0
    labelled = set()
    for what, event, ts in weir.log:
        if what == "tx":
            newest = max(newest, ts)
        elif what == "fraud":
            assert newest < ts
            labelled.add(event)
        else:
            assert ts < newest + 25 * 60_000
            assert event in {tx for kind, tx, _ in weir.log if kind == "tx"}
    for place, (what, _, ts) in enumerate(weir.log):
        if what == "fraud":
            assert all(later >= ts for kind, _, later in weir.log[place:] if kind == "tx")
    assert labelled == {f"t-{row}" for row in range(0, n_known, 25)}


async def test_replay_open_loop_posts_labels_of_answered_rows(weir: FakeWeir, parquet: Path) -> None:
    """At a rate, labels are sent too, each after its own transaction."""
    _, recorder = await run_replay(weir, parquet, Options(labels=True, rate=2000, clients=4))
    assert recorder.n_labels > 400
    places = {(what, event): place for place, (what, event, _) in enumerate(weir.log)}
    for (what, event), place in places.items():
        if what != "tx":
            assert places["tx", event] < place


async def test_replay_overloaded_server_is_asked_again(weir: FakeWeir, parquet: Path) -> None:
    """A 429 with Retry-After is retried and ends scored, not failed."""
    weir.refuse_once = {"t-3": 429, "t-50": 429}
    _, recorder = await run_replay(weir, parquet, Options())
    assert (recorder.n_scored, recorder.n_retries) == (N_ROWS, 2)
    assert [event for _, event, _ in weir.log] == [f"t-{row}" for row in range(N_ROWS)]


async def test_replay_lost_connection_reconnects_and_sends_again(weir: FakeWeir, parquet: Path) -> None:
    """A connection closed before the reply is made again; the repeat is answered as replayed."""
    weir.hang_up_once = {"t-10"}
    replay, recorder = await run_replay(weir, parquet, Options())
    assert recorder.n_scored == N_ROWS
    assert recorder.n_retries >= 1
    assert replay.connects >= 2
    assert recorder.replayed.tolist().count(True) == 1
    assert bool(recorder.replayed[10])


@pytest.mark.parametrize("mode", ["http", "batch"])
async def test_replay_refused_rows_are_counted_with_first_example(weir: FakeWeir, parquet: Path, mode: Any) -> None:
    """A refused row, by status or in its place in a batch, is an error by status; the others are scored."""
    weir.refuse = {"t-8": 422, "t-9": 422, "t-100": 409}
    _, recorder = await run_replay(weir, parquet, Options(mode=mode))
    assert (recorder.n_scored, recorder.n_failed) == (N_ROWS - 3, 3)
    assert [(e.kind, e.count) for e in recorder.errors()] == [("422", 2), ("409", 1)]
    assert recorder.errors()[0].example == "amount: refused on purpose (event t-8)"


async def test_replay_chunked_replies_are_understood(weir: FakeWeir, parquet: Path) -> None:
    """A reply in chunks is put together like one with a Content-Length."""
    weir.chunked = True
    _, recorder = await run_replay(weir, parquet, Options(clients=2))
    assert recorder.n_scored == N_ROWS


async def test_replay_all_refused_stops_early_and_says_why(weir: FakeWeir, parquet: Path) -> None:
    """When nothing is scored, the run gives up after the first 1,000 rows; with fewer rows it ends by itself."""
    weir.refuse_all = 403
    replay, recorder = await run_replay(weir, parquet, Options())
    assert replay.problem is not None
    assert "refused the key (403)" in replay.problem
    assert recorder.n_failed == 1


async def test_open_loop_latency_counts_from_the_schedule(weir: FakeWeir, parquet: Path) -> None:
    """A server slower than the schedule is charged for the wait of the requests behind the slow one."""
    weir.delay_s = 0.002
    _, recorder = await run_replay(weir, parquet, Options(rate=1000, clients=1))
    # 600 requests of at least 2 ms, due every 1 ms: the last one waits at least half a second.
    assert recorder.latency_us[-1] > 500_000
    assert max(recorder.lags[0].values_us) > 500_000


async def test_client_no_reply_raises_deadline_passed(weir: FakeWeir) -> None:
    """A reply that does not come within the deadline raises, and the next request uses a new connection."""
    weir.delay_s = 0.5
    client = Client(Target.parse(weir.url, KEY), 0.05)
    target = Target.parse(weir.url, KEY)
    with pytest.raises(DeadlinePassed):
        await client.request(target.encode("POST", "/v1/score", b'{"event_id":"t-1"}'))
    assert (await client.request(target.encode("GET", "/v1/tiers"))).status == 200
    assert client.connects == 2
    client.close()


async def test_client_server_without_http_raises_connection_lost() -> None:
    """A server that speaks something else ends the request with a clear error."""

    async def gibberish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"220 smtp.example ready\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(gibberish, "127.0.0.1", 0)
    target = Target.parse(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", KEY)
    client = Client(target, 5)
    with pytest.raises(ConnectionLost, match="not HTTP"):
        await client.request(target.encode("GET", "/"))
    client.close()
    server.close()
    await server.wait_closed()


async def test_read_tiers_tolerates_missing_fields(weir: FakeWeir) -> None:
    """A tier that leaves fields out counts as 0; an unknown key is an error that names the cure."""
    tiers = await read_tiers(Target.parse(weir.url, KEY), 5)
    assert tiers is not None
    assert [(tier.name, tier.hits) for tier in tiers] == [("l1", 0), ("redis", 0)]
    with pytest.raises(ReplayStopped, match="weir keys add"):
        await read_tiers(Target.parse(weir.url, "wrong"), 5)


# The command


def command() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return app


def invoke(*arguments: str | Path, key: str = KEY) -> Any:
    return CliRunner().invoke(command(), ["replay", *map(str, arguments)], env={"WEIR_KEY": key, "COLUMNS": "200"})


def test_command_writes_scores_json_and_page(weir_in_thread: FakeWeir, parquet: Path, tmp_path: Path) -> None:
    """One run prints a summary and writes the three files, which agree with each other."""
    scores, result_path, page = tmp_path / "s.parquet", tmp_path / "r.json", tmp_path / "r.html"
    out = invoke(
        parquet, "--url", weir_in_thread.url, "--mode", "batch", "--labels", "--from", "2025-06-15T15:10:00",
        "--limit", "500", "--scores", scores, "--json", result_path, "--report", page,
    )  # fmt: skip
    assert out.exit_code == 0, out.output
    assert "500 of 500 transactions" in out.output
    assert "AUC" in out.output
    result = json.loads(result_path.read_bytes())
    assert result["rows"] == {"total": 500, "scored": 500, "replayed": 0, "failed": 0, "not_sent": 0}
    assert result["tiers"][0]["hit_ratio"] == 0.5
    assert result["quality"]["n_frauds"] == 20
    table = pq.read_table(scores)
    names = "event_id ts card_id score outcome lsn label replayed latency_us degraded"
    assert table.column_names == names.split()
    assert table.num_rows == 500
    assert str(table.schema.field("score").type) == "float"
    text = page.read_text(encoding="utf-8")
    assert "<h1>Weir replay</h1>" in text
    assert "http://www" not in text.split("</style>")[0]
    assert text.count("<figure>") == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--url", "http://127.0.0.1:1"], "cannot reach 127.0.0.1:1"),
        (["--url", "ftp://x"], "plain http only"),
        (["--url", "http://127.0.0.1:1", "--mode", "stream"], "cannot reach 127.0.0.1:1"),
        (["--url", "http://127.0.0.1:1", "--rate", "0"], "not above 0"),
        (["--url", "http://127.0.0.1:1", "--from", "yesterday"], "--from yesterday"),
        (["--url", "http://127.0.0.1:1", "--spec", "nosuch"], "nosuch"),
        (["--url", "http://127.0.0.1:1", "--scores", "/nosuch/s.parquet"], "does not exist"),
    ],
)
def test_command_that_cannot_start_says_so_in_one_line(parquet: Path, arguments: list[str], expected: str) -> None:
    """What keeps a replay from starting is one line on stderr and exit code 2, never a traceback."""
    out = invoke(parquet, *arguments)
    assert out.exit_code == 2
    assert out.stderr.startswith("weir: ")
    assert out.stderr.count("\n") == 1
    assert expected in out.stderr


def test_command_missing_file_says_so_in_one_line(tmp_path: Path) -> None:
    """A file that is not there is named."""
    out = invoke(tmp_path / "none.parquet", "--url", "http://127.0.0.1:1")
    assert out.exit_code == 2
    assert "none.parquet" in out.stderr


def test_command_wrong_key_exits_2(weir_in_thread: FakeWeir, parquet: Path) -> None:
    """A key that the server does not know ends the command before anything is sent."""
    out = invoke(parquet, "--url", weir_in_thread.url, key="wrong")
    assert out.exit_code == 2
    assert "does not accept this key" in out.stderr
    assert weir_in_thread.log == []


def test_command_failed_rows_exit_1(weir_in_thread: FakeWeir, parquet: Path) -> None:
    """A run with refused rows finishes, shows the first example and exits 1."""
    weir_in_thread.refuse = {"t-8": 422}
    out = invoke(parquet, "--url", weir_in_thread.url, "--clients", "4")
    assert out.exit_code == 1
    assert "422 × 1: amount: refused on purpose (event t-8)" in out.output


async def test_command_interrupted_prints_what_was_done_and_exits_130(weir: FakeWeir, parquet: Path) -> None:
    """Ctrl-C lets the requests under way finish, prints the figures so far and exits 130."""
    weir.delay_s = 0.02
    code = "import typer, loadgen.commands as c; a = typer.Typer(); a.callback()(lambda: None); c.register(a); a()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "replay", str(parquet), "--url", weir.url,
        env={**os.environ, "WEIR_KEY": KEY}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(10):
        await weir.busy.wait()
        process.send_signal(signal.SIGINT)
        stdout, stderr = await process.communicate()
    assert process.returncode == 130, stderr
    assert b"interrupted" in stdout
    assert f"{len(weir.log)} of 600 transactions".encode() in stdout
