"""weir-go as a real process: its scores are Python's, SIGKILL loses nothing, a stop drains, what cannot start is one line."""

import asyncio
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from features.transaction import Transaction
from models.card import ARTIFACTS

if TYPE_CHECKING:
    from tests.e2e.conftest import Client, MakeWeir, Truth, Weir

MakeClient = Callable[["Weir"], "Client"]
TruthOf = Callable[..., "Truth"]

pytestmark = pytest.mark.e2e

SMALL_L1 = "l1.bytes_max=65536"
SCORE_ERROR_MAX = 1e-6
SAME_IN_BOTH = ("event_id", "outcome", "model", "replayed", "degraded")


def assert_true(client: "Client", truth: "Truth") -> None:
    """Every acknowledged decision is in the journal, under its LSN, with the score that a fresh engine gives."""
    assert client.acknowledged.keys() <= truth.lsns.keys()
    for event_id, reply in client.acknowledged.items():
        assert truth.lsns[event_id] == reply["lsn"]
        assert truth.scores[event_id] == pytest.approx(reply["score"], rel=0, abs=SCORE_ERROR_MAX), event_id


async def send_all(weir: "Weir", client: "Client", stream: Sequence[Transaction]) -> None:
    """In batches and one by one, with labels between, small batches for the last half."""
    fifth = len(stream) // 5
    await client.send(stream[:fifth], 100)
    await client.send(stream[fifth : fifth + 100], 0)
    assert await client.label([tx.event_id for tx in stream[:fifth:2]]) == len(stream[:fifth:2])
    await client.send(stream[fifth + 100 : 2 * fifth], 256)
    assert await client.label([tx.event_id for tx in stream[:fifth:4]], "legit") == len(stream[:fifth:4])
    await client.send(stream[2 * fifth :], 37)


@pytest.mark.parametrize("spec", ["cards", "handbook"])
async def test_stream_and_labels_scored_as_python_does(
    make_weir: "MakeWeir", make_weir_go: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction],
    spec: str,
) -> None:  # fmt: skip
    """A stream with labels and profiles that leave L1 and come back: scores and outcomes are those of `weir serve`."""
    euros = [msgspec.structs.replace(tx, currency="EUR") for tx in stream]  # the Handbook knows no other
    python, go = make_weir(f"spec={spec}", name="python"), make_weir_go(f"spec={spec}", SMALL_L1, name="go")
    clients = [make_client(python), make_client(go)]
    for weir, client in zip((python, go), clients, strict=True):
        await weir.start()
        await send_all(weir, client, euros)
    truth = truth_of(go.directory, spec=spec)
    assert len(truth.lsns) == len(stream)
    assert len(truth.labels) == len(stream) // 10
    assert set(truth.labels.values()) == {"fraud", "legit"}
    assert_true(clients[1], truth)
    theirs, ours = (client.acknowledged for client in clients)
    for event_id, reply in ours.items():
        assert [reply[name] for name in SAME_IN_BOTH] == [theirs[event_id][name] for name in SAME_IN_BOTH]
        assert reply["score"] == pytest.approx(theirs[event_id]["score"], rel=0, abs=SCORE_ERROR_MAX)
    assert truth_of(python.directory, spec=spec).labels == truth.labels
    go.stop()


async def test_labels_change_the_fraud_windows(
    make_weir_go: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction]
) -> None:
    """The same transactions score differently after labels, by as much as the journal says."""
    scores: list[dict[str, float]] = []
    for name in ("with", "without"):
        weir = make_weir_go(name=name)
        await weir.start()
        client = make_client(weir)
        await client.send(stream[:1500], 100)
        if name == "with":
            await client.label([tx.event_id for tx in stream[:1000]])
        await client.send(stream[1500:], 100)
        assert_true(client, truth_of(weir.directory))
        scores.append({event_id: reply["score"] for event_id, reply in client.acknowledged.items()})
    labelled, plain = scores
    assert sum(labelled[tx.event_id] != plain[tx.event_id] for tx in stream[1500:]) > 100


async def kill_under_load(weir: "Weir", clients: list["Client"], parts: list[list[Transaction]], rng: random.Random) -> None:
    """SIGKILL at a random instant while every client sends what it has no answer to yet."""
    todo = [[tx for tx in part if tx.event_id not in c.acknowledged] for part, c in zip(parts, clients, strict=True)]
    load = asyncio.gather(*(client.send(part, 8) for client, part in zip(clients, todo, strict=True)))
    before = sum(len(client.acknowledged) for client in clients)
    goal = before + rng.uniform(0.1, 0.4) * sum(map(len, todo))
    while sum(len(client.acknowledged) for client in clients) < goal:  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(0.0005)
    assert not load.done()
    weir.kill()
    await load


@pytest.mark.parametrize("sync", ["interval", "group", "os"])
async def test_kill_under_load_loses_nothing_and_counts_nothing_twice(
    make_weir_go: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, by_client: list[list[Transaction]],
    rng: random.Random, sync: str,
) -> None:  # fmt: skip
    """Killed under load and while it starts: what was acknowledged is journaled once, and replayed with its LSN and score."""
    weir = make_weir_go(f"journal.sync={sync}", SMALL_L1, "l2.flush_interval_ms=50")
    clients = [make_client(weir) for _ in by_client]
    for _ in range(3):
        await weir.start()
        done = list(clients[0].acknowledged)[-20:]
        await clients[0].label(done)
        await kill_under_load(weir, clients, by_client, rng)
        truth = truth_of(weir.directory)
        assert set(done) <= truth.labels.keys()
        starting = asyncio.ensure_future(weir.start())
        await asyncio.sleep(rng.uniform(0.005, 0.15))
        starting.cancel()
        weir.kill()
    await weir.start()
    acknowledged = [dict(client.acknowledged) for client in clients]
    await asyncio.gather(*(client.send(part, 64) for client, part in zip(clients, by_client, strict=True)))
    truth = truth_of(weir.directory)
    assert truth.lsns.keys() == {tx.event_id for part in by_client for tx in part}
    for client, before in zip(clients, acknowledged, strict=True):
        assert client.n_replayed >= len(before) > 0
        again = {event_id: client.acknowledged[event_id] for event_id in before}
        assert again == {event_id: reply | {"replayed": True} for event_id, reply in before.items()}
        assert_true(client, truth)
    weir.stop()


async def test_another_body_after_a_kill_is_refused(
    make_weir_go: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction]
) -> None:
    """After a kill an event_id still names the transaction that it named: another body gets 409 and counts nothing."""
    weir = make_weir_go()
    await weir.start()
    await make_client(weir).send(stream[:100], 50)
    weir.kill()
    await weir.start()
    for tx in stream[:20]:
        reply = weir.call("POST", "/v1/score", msgspec.json.encode(msgspec.structs.replace(tx, amount=tx.amount + 1)))
        assert (reply.status, reply.json["field"]) == (409, "event_id")
    assert len(truth_of(weir.directory).lsns) == 100


async def test_stop_under_load_drains(
    make_weir_go: "MakeWeir", make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction]
) -> None:
    """SIGTERM under load: exit code 0, what was answered is kept, and the next start has nothing to replay."""
    weir = make_weir_go("write_behind.interval_ms=5")
    await weir.start()
    client = make_client(weir)
    load = asyncio.ensure_future(client.send(stream, 8))
    while len(client.acknowledged) < 500:  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(0.001)
    load.cancel()  # with a request under way
    await asyncio.to_thread(weir.stop)
    await asyncio.gather(load, return_exceptions=True)
    assert_true(client, truth_of(weir.directory))
    await weir.start()
    assert b"\nweir_l1_profiles 0\n" in weir.call("GET", "/metrics").body, "a replay would have filled L1"
    again = make_client(weir)
    await again.send(stream, 100)
    assert again.n_replayed >= len(client.acknowledged)
    assert_true(again, truth_of(weir.directory))


async def test_unfinished_request_does_not_hold_up_the_stop(make_weir_go: "MakeWeir") -> None:
    """An idle connection and a body that never ends are cut: the stop takes a few seconds and exits with 0."""
    weir = make_weir_go()
    await weir.start()
    address = "127.0.0.1", int(weir.url.rpartition(":")[2])
    with socket.create_connection(address), socket.create_connection(address) as half:
        half.sendall(f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {weir.key}\r\n".encode())
        half.sendall(b"Content-Length: 9\r\n\r\n")
        started = time.monotonic()
        await asyncio.to_thread(weir.stop)
    assert time.monotonic() - started < 6


async def test_python_and_go_take_turns_on_one_data_directory(
    make_weir: "MakeWeir", weir_go: tuple[str, ...], make_client: MakeClient, truth_of: TruthOf, stream: list[Transaction]
) -> None:
    """Each goes on from the journal that the other left, after a stop and after a kill; nothing is counted twice."""
    weir = make_weir(SMALL_L1)
    programs, clients = [weir.program, weir_go], []
    for turn in range(4):
        weir.program = programs[turn % 2]
        await weir.start()
        client = make_client(weir)
        clients.append(client)
        await client.send(stream[: 600 * (turn + 1)], 60)
        assert client.n_replayed == 600 * turn
        await client.label([tx.event_id for tx in stream[600 * turn : 600 * turn + 50]])
        if turn in (0, 3):
            weir.stop()
        else:
            weir.kill()
    truth = truth_of(weir.directory)
    assert len(truth.lsns) == 2400
    for client in clients:
        assert_true(client, truth)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, weir_go: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """The data directory and the port of a weir-go that runs."""
    directory = tmp_path_factory.mktemp("served") / "data"
    with subprocess.Popen(
        [*weir_go, "--data-dir", str(directory), "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield directory, process.stdout.readline().strip().rpartition(":")[2]
        process.terminate()
    assert process.returncode == 0


def refused(command: Sequence[str]) -> tuple[int, str]:
    """Exit code and the only line that a start that must fail prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == ""
    assert (done.stderr.count("\n"), done.stderr[-1:]) == (1, "\n"), done.stderr
    return done.returncode, done.stderr.removesuffix("\n")


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--nope"], 2, "flag provided but not defined: -nope"),
        (["serve"], 2, '"serve" is not a flag'),
        (["--set", "l1.byts_max=3"], 2, "l1.byts_max"),
        (["--set", "l1.bytes_max=lots"], 2, 'l1.bytes_max is "lots"'),
        (["--set", "l1"], 2, "write it as key=value"),
        (["--sync", "never"], 2, "group, interval, os"),
        (["--port", "99999"], 2, "server.port"),
        (["--port"], 2, "-port"),
        (["--host", "203.0.113.1"], 1, "cannot listen"),
        (["--spec", "nope"], 1, "nope.plan"),
        (["--plan", "{tmp}/nowhere"], 1, "give --plan"),
        (["--plan", "{tmp}/garbage"], 1, "plan"),
        (["--plan", "{tmp}"], 1, "give --plan"),
        (["--model", "{tmp}/nowhere"], 1, "card.json"),
        (["--model", "{artifacts}/handbook"], 1, "handbook"),
        (["--onnxruntime", "{tmp}/nowhere"], 1, "give --onnxruntime"),
        (["--onnxruntime", "{tmp}/garbage"], 1, "give --onnxruntime"),
        (["--redis-url", "nonsense"], 2, "redis"),
        (["--postgres-url", "nonsense"], 2, "postgres"),
        (["--data-dir", "{tmp}/garbage"], 1, "garbage"),
        (["--data-dir", "{data}"], 1, "is used by another process; stop it or give --data-dir"),
        (["--port", "{port}"], 1, "address already in use"),
    ],
)
def test_what_cannot_start_is_one_line(
    served: tuple[Path, str], weir_go: tuple[str, ...], tmp_path: Path, options: list[str], code: int, part: str
) -> None:
    """One line that starts with the program's name and says what to change; 2 for what was typed wrong, else 1."""
    (tmp_path / "garbage").write_bytes(b"garbage")
    places = {"tmp": tmp_path, "artifacts": ARTIFACTS, "data": served[0], "port": served[1]}
    given = [option.format(**places) for option in options]
    found, line = refused([*weir_go, "--data-dir", str(tmp_path / "data"), "--port", "0", *given])
    assert line.startswith("weir-go: ")
    assert (found, part in line) == (code, True), line


def test_python_does_not_start_where_weir_go_runs(served: tuple[Path, str]) -> None:
    """The lock of a data directory is the same for both."""
    command = [sys.executable, "-m", "service", "serve", "--data-dir", str(served[0]), "--port", "0"]
    code, line = refused(command)
    assert (code, "is used by another process" in line) == (1, True), line


async def test_damaged_data_directory_is_refused(
    make_weir_go: "MakeWeir", make_client: MakeClient, stream: list[Transaction], tmp_path: Path
) -> None:
    """A flipped byte in the journal, a missing segment, a lost store, another spec's plan and broken files refuse the start."""
    weir = make_weir_go("l2.flush_interval_ms=20")
    await weir.start()
    await make_client(weir).send(stream[:300], 50)
    await asyncio.sleep(0.3)  # past journal.interval_ms and a flush
    weir.kill()
    copies = {
        name: shutil.copytree(weir.directory, tmp_path / name) for name in ("journal", "segment", "plan", "spec", "keys", "l2")
    }
    (segment,) = (copies["journal"] / "journal").glob("*.seg")
    content = bytearray(segment.read_bytes())
    content[len(content) // 3] ^= 0xFF
    segment.write_bytes(content)
    for path in (copies["segment"] / "journal").glob("*.seg"):
        path.unlink()
    (copies["plan"] / "plan.json").write_bytes(b'{"spec": "\xff"')
    (copies["spec"] / "plan.json").write_text('{"spec": "other", "plan_hash": "00"}')
    (copies["keys"] / "keys.json").write_bytes(b"{")
    for path in (copies["l2"] / "l2-go").glob("MANIFEST*"):
        path.write_bytes(b"garbage")
    parts = {
        "journal": "LSN",
        "segment": "LSN",
        "plan": "plan.json",
        "spec": 'belongs to spec "other"',
        "keys": "keys.json",
        "l2": "l2",
    }
    for name, copy in copies.items():
        weir.directory = copy
        code, line = refused(weir.command)
        assert (code, parts[name] in line) == (2 if name == "keys" else 1, True), f"{name}: {line}"
        assert line.startswith("weir-go: ")
