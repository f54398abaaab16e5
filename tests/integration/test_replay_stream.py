"""`weir replay --mode stream` against a small server that answers line by line over a real socket, and misbehaves on demand."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from loadgen.recorder import Recorder
from loadgen.replay import Options, Replay
from loadgen.sender import Target
from loadgen.source import Stream, open_dataset

T0 = 1_750_000_000_000  # ms
N_ROWS = 600
N_CARDS = 20
LABEL_DELAY_MS = 2 * 3_600_000


class LineServer:
    """POST /v1/score/stream and /v1/labels; `log` has what came, in order: ("tx" | label, event_id, ts)."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, int]] = []
        self.seen: set[str] = set()
        self.hang_up_at: set[str] = set()  # before the reply to this event, once
        self.end_at: set[str] = set()  # end the reply properly in its place, once
        self.refuse: dict[str, int] = {}  # in place
        self.refuse_all: list[int] = []  # statuses of the next requests
        self.mute_from: int | None = None  # from this many lines on nothing is answered
        self.scramble = False
        self.connections_of_card: dict[str, set[int]] = {}
        self.url = ""

    async def stream(self, request: web.Request) -> web.StreamResponse:
        assert request.content_type == "application/x-ndjson"
        if self.refuse_all:
            status = self.refuse_all.pop()
            body = json.dumps({"title": "Refused", "status": status, "detail": "not now"}).encode()
            headers = {"Retry-After": "0.01"} if status == 429 else {}
            return web.Response(body=body, status=status, headers=headers)
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        assert request.transport is not None
        port = request.transport.get_extra_info("peername")[1]
        async for line in request.content:
            tx = json.loads(line)
            event_id = tx["event_id"]
            answer = json.dumps(self._decide(tx, port)).encode() + b"\n"
            if event_id in self.hang_up_at:
                self.hang_up_at.remove(event_id)
                request.transport.close()
                return response
            if event_id in self.end_at:
                self.end_at.remove(event_id)
                break
            if self.mute_from is None or len(self.log) < self.mute_from:
                await response.write(answer[:9])
                await response.write(answer[9:])
        await response.write_eof()
        return response

    def _decide(self, tx: dict[str, Any], port: int) -> dict[str, Any]:
        event_id = tx["event_id"]
        self.log.append(("tx", event_id, tx["ts"]))
        self.connections_of_card.setdefault(tx["card_id"], set()).add(port)
        if event_id in self.refuse:
            return {"event_id": event_id, "status": self.refuse[event_id], "title": "Refused", "detail": "on purpose"}
        replayed = event_id in self.seen
        self.seen.add(event_id)
        told = "t-0" if self.scramble else event_id
        return {"event_id": told, "score": 0.25, "outcome": "approve", "model": "m", "lsn": len(self.log), "replayed": replayed}

    async def labels(self, request: web.Request) -> web.Response:
        labels = await request.json()
        self.log += [(label["label"], label["event_id"], label["ts"]) for label in labels]
        return web.json_response({"labels": []})

    @property
    def events(self) -> list[str]:
        return [event for what, event, _ in self.log if what == "tx"]


@pytest.fixture
async def server() -> AsyncIterator[LineServer]:
    made = LineServer()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/score/stream", made.stream)
    app.router.add_post("/v1/labels", made.labels)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = np.arange(N_ROWS)
    ts = T0 + rows * 60_000
    table = pa.table(
        {
            "event_id": [f"t-{row}" for row in rows],
            "ts": ts,
            "amount": 100 + rows,
            "currency": ["EUR"] * N_ROWS,
            "card_id": [f"c{row * 7 % N_CARDS}" for row in rows],
            "merchant_id": [f"m{row % 9}" for row in rows],
            **{name: pa.nulls(N_ROWS, pa.string()) for name in ("device_id", "ip", "country", "channel")},
            "mcc": pa.nulls(N_ROWS, pa.int16()),
            "lat": pa.nulls(N_ROWS, pa.float64()),
            "lon": pa.nulls(N_ROWS, pa.float64()),
            "label": pa.array((rows % 25 == 0).astype(np.int8)),
            "label_ts": ts + LABEL_DELAY_MS,
        }
    )
    path = tmp_path_factory.mktemp("replay") / "stream.parquet"
    pq.write_table(table, path)
    return path


async def replayed(server: LineServer, parquet: Path, options: Options) -> tuple[Replay, Recorder]:
    stream = Stream(open_dataset(parquet, "cards"))
    recorder = Recorder(stream.dataset.n_rows, options.clients)
    replay = Replay(Target.parse(server.url, "key"), stream, options, recorder)
    async with asyncio.timeout(30):
        await replay.run(lambda: None)
    return replay, recorder


@pytest.mark.parametrize(
    "options",
    [
        Options(mode="stream"),
        Options(mode="stream", batch_rows=7, clients=3),
        Options(mode="stream", batch_rows=N_ROWS * 2),
        Options(mode="stream", rate=5_000, clients=2),
    ],
    ids=["one", "three", "one write", "rate"],
)
async def test_stream_any_way_of_sending_scores_each_row_once_in_card_order(
    server: LineServer, parquet: Path, options: Options
) -> None:
    """Every transaction is sent once, a card's in their order and through one stream, and its score is recorded."""
    replay, recorder = await replayed(server, parquet, options)
    assert (recorder.n_scored, recorder.n_failed, recorder.n_retries) == (N_ROWS, 0, 0)
    assert sorted(server.events) == sorted(f"t-{row}" for row in range(N_ROWS))
    if options.clients == 1:
        assert server.events == [f"t-{row}" for row in range(N_ROWS)]
    assert {len(ports) for ports in server.connections_of_card.values()} == {1}
    assert replay.connects == options.clients
    assert sum(len(latencies.values_us) for latencies in recorder.requests) == N_ROWS
    assert (recorder.latency_us >= 0).all()
    assert bool(recorder.lags[0].values_us) is (options.rate is not None)


@pytest.mark.parametrize("clients", [1, 3])
async def test_stream_labels_stand_between_their_transaction_and_later_ones(
    server: LineServer, parquet: Path, clients: int
) -> None:
    """What is under way is answered before a fraud label is posted, and what comes at or after its time follows it."""
    _, recorder = await replayed(server, parquet, Options(mode="stream", labels=True, clients=clients))
    assert recorder.n_scored == N_ROWS
    frauds = [(place, event, ts) for place, (what, event, ts) in enumerate(server.log) if what == "fraud"]
    assert {event for _, event, _ in frauds} == {f"t-{row}" for row in range(0, N_ROWS - 120, 25)}
    for place, event, known_at in frauds:
        before = {tx for what, tx, _ in server.log[:place] if what == "tx"}
        assert event in before
        assert all(ts < known_at for what, _, ts in server.log[:place] if what == "tx")
        assert all(ts >= known_at for what, _, ts in server.log[place:] if what == "tx")


@pytest.mark.parametrize("how", ["hang_up_at", "end_at"])
async def test_stream_that_breaks_off_goes_on_with_what_had_no_reply(server: LineServer, parquet: Path, how: str) -> None:
    """A lost or an ended stream is begun anew; what was scored without a reply comes back as replayed; nothing is lost."""
    getattr(server, how).update({"t-10", "t-300"})
    replay, recorder = await replayed(server, parquet, Options(mode="stream", batch_rows=50))
    assert (recorder.n_scored, recorder.n_failed, recorder.n_retries) == (N_ROWS, 0, 2)
    assert replay.connects == 3
    assert bool(recorder.replayed[10])
    assert bool(recorder.replayed[300])
    assert not bool(recorder.replayed[9])


async def test_stream_rows_refused_in_place_are_counted_with_first_example(server: LineServer, parquet: Path) -> None:
    """A refused line is an error by its status; the stream goes on."""
    server.refuse = {"t-8": 422, "t-9": 422, "t-100": 409}
    _, recorder = await replayed(server, parquet, Options(mode="stream"))
    assert (recorder.n_scored, recorder.n_failed) == (N_ROWS - 3, 3)
    assert [(e.kind, e.count) for e in recorder.errors()] == [("422", 2), ("409", 1)]
    assert recorder.errors()[0].example == "on purpose (event t-8)"


async def test_stream_refused_as_a_whole_is_asked_again_or_given_up(server: LineServer, parquet: Path) -> None:
    """429 with Retry-After is tried again; a key that is refused stops the run with its reason."""
    server.refuse_all = [429, 429]
    _, recorder = await replayed(server, parquet, Options(mode="stream"))
    assert (recorder.n_scored, recorder.n_retries) == (N_ROWS, 2)
    server.refuse_all = [403]
    replay, recorder = await replayed(server, parquet, Options(mode="stream", batch_rows=16))
    assert recorder.n_scored == 0
    assert replay.problem is not None
    assert "refused the key (403)" in replay.problem


async def test_stream_without_replies_ends_at_the_deadline(server: LineServer, parquet: Path) -> None:
    """Rows that nobody answers fail as such, after the deadline, and the run ends."""
    server.mute_from = 100
    _, recorder = await replayed(server, parquet, Options(mode="stream", deadline_s=0.2))
    assert 0 < recorder.n_scored < 100
    assert recorder.n_scored + recorder.n_failed == N_ROWS
    assert [error.kind for error in recorder.errors()] == ["deadline passed"]


async def test_stream_reply_to_another_event_is_an_error(server: LineServer, parquet: Path) -> None:
    """A reply is never taken for that of another row."""
    server.scramble = True
    _, recorder = await replayed(server, parquet, Options(mode="stream"))
    assert recorder.n_scored == 1
    assert recorder.errors()[0].kind == "wrong event"
    assert recorder.errors()[0].count == N_ROWS - 1
