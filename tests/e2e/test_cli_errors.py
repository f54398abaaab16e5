"""What goes wrong on the command line: one clear line on stderr that starts with `weir`, a non-zero exit, never a traceback.

Errors that need no second process run in this one, through the function that the `weir` script calls; the rest is real.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from service import __main__ as cli
from service.auth import Role, add_key

pytestmark = pytest.mark.e2e

WEIR = str(Path(sys.executable).with_name("weir"))
MODEL = Path(__file__).parents[2] / "models" / "artifacts" / "cards"
TARGET = ("--url", "http://127.0.0.1:1", "--key", "k")  # nothing listens on port 1

Run = Callable[..., tuple[int, str]]


class Serving:
    """A real `weir serve` as a child."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        command = [WEIR, "serve", "--data-dir", str(data_dir), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = ""
        line = self.process.stdout.readline()
        if line:
            self.port = line.split()[2].rpartition(":")[2]

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Exit code and stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err

    def score(self, key: str, event_id: str) -> int:
        """Score a small transaction; gives the HTTP status."""
        tx = {"event_id": event_id, "ts": time.time_ns() // 10**6, "amount": 1, "currency": "EUR"}
        body = json.dumps(tx | {"card_id": "c1", "merchant_id": "m1"})
        connection = http.client.HTTPConnection("127.0.0.1", int(self.port), timeout=20)
        connection.request("POST", "/v1/score", body, {"Authorization": f"Bearer {key}"})
        status = connection.getresponse().status
        connection.close()
        return status

    def n_scored(self) -> int:
        """Transactions that were scored so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as reply:
            found = re.findall(r"^weir_tx_total\{.*\} ([0-9.]+)$", reply.read().decode(), re.MULTILINE)
        return int(sum(map(float, found)))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Path, str]]:
    """A running service, its data directory and a key."""
    data_dir = tmp_path_factory.mktemp("cli") / "data"
    key = add_key(data_dir, Role.ADMIN, "admin")
    serving = Serving(data_dir, "--set", "time.clock=stream")
    yield serving, data_dir, key
    code, err = serving.stop()
    assert (code, "Traceback" in err) == (0, False)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Parquet file of 1,000 transactions."""
    file = tmp_path_factory.mktemp("stream") / "stream.parquet"
    assert cli.main(["generate", str(file), "--events", "1000", "--seed", "1"]) == 0
    return str(file)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command line that must fail; gives exit code and the one line on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "configure_logs", lambda: None)  # this process keeps its own

    def run(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        code = cli.main(arguments)
        return code, _one_line(capfd.readouterr().err)

    return run


def _one_line(err: str) -> str:
    assert err.startswith(("weir: ", "weir replay: ")), err
    assert (err.count("\n"), err[-1]) == (1, "\n"), err
    assert "Traceback" not in err
    assert "unexpected" not in err, err
    return err


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["serv"], 2, "Did you mean 'serve'"),
        (["serve", "--nope"], 2, "--nope"),
        (["replay", "x.parquet", "--url", "http://127.0.0.1:1"], 2, "'--key'"),
        (["keys", "add", "--role", "ingest"], 2, "'--name'"),
        (["train", "--spec", "cards"], 2, "'--data'"),
        (["serve", "--set", "l1.byts_max=3"], 2, "did you mean l1.bytes_max?"),
        (["serve", "--set", "port=1"], 2, "did you mean server.port?"),
        (["serve", "--set", "l1"], 2, "--set l1: write it as key=value"),
        (["serve", "--set", "l1.bytes_max=lots"], 2, "l1.bytes_max is 'lots'"),
        (["serve", "--set", "journal.sync=never"], 2, "group, interval, os"),
        (
            ["serve", "--set", "spec=nope", "--port", "0"],
            1,
            "spec 'nope' is neither a packaged spec (cards, handbook",
        ),
        (
            ["serve", "--set", 'onnx.providers=["NpuExecutionProvider"]', "--port", "0"],
            1,
            "no NpuExecutionProvider here; it has",
        ),
        (["serve", "--set", "model=nope", "--port", "0"], 1, "nope/card.json: No such file"),
        (["serve", "--host", "192.0.2.1", "--port", "0"], 1, "cannot listen on 192.0.2.1:0"),
        (["serve", "--data-dir", "/dev/null/data", "--port", "0"], 1, "data directory /dev/null/data cannot be used"),
        (["serve", "--config", "nope.toml"], 2, "config file nope.toml does not exist"),
        (["generate", "nope/out.parquet", "--events", "1000", "--seed", "1"], 2, "nope"),
        (["train", "--spec", "cards", "--data", "nope.parquet", "--out", "m"], 2, "nope.parquet: no such file"),
        (["replay", "nope.parquet", *TARGET], 2, "nope.parquet: no such file"),
        (["replay", "x.parquet", "--url", "ftp://x", "--key", "k"], 2, "ftp"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_wrong_usage_and_missing_files_are_one_line(run: Run, arguments: list[str], code: int, part: str) -> None:
    """The line names what is wrong and, where it can, the way out."""
    got, err = run(*arguments)
    assert (got, part in err) == (code, True), err


def test_broken_input_files_are_one_line(run: Run, tmp_path: Path, stream: str) -> None:
    """A file that is no Parquet, one with other columns, and one behind a wrong spec or time are told apart."""
    (tmp_path / "text.parquet").write_text("event_id,ts\n")
    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "wrong.parquet")
    assert "text.parquet: not a Parquet file" in run("replay", "text.parquet", *TARGET)[1]
    assert "wrong.parquet: lacks the columns amount, card_id" in run("replay", "wrong.parquet", *TARGET)[1]
    assert "no transactions in this range" in run("replay", stream, "--from", "2100-01-01", *TARGET)[1]
    assert "neither a date" in run("replay", stream, "--from", "soon", *TARGET)[1]
    assert "lacks the columns" in run("replay", stream, "--spec", "handbook", *TARGET)[1]


def test_broken_spec_file_is_one_line(run: Run, tmp_path: Path) -> None:
    """A spec that is no TOML, or whose keys are wrong, is named with its place."""
    (tmp_path / "text.toml").write_text("hello\n")
    (tmp_path / "keys.toml").write_text('name = "x"\nnonsense = 1\n')
    assert "text.toml" in run("serve", "--set", "spec=text.toml", "--port", "0")[1]
    code, err = run("serve", "--set", "spec=keys.toml", "--port", "0")
    assert (code, "keys.toml" in err) == (1, True), err


def test_model_that_cannot_be_used_is_one_line(run: Run, tmp_path: Path) -> None:
    """A flipped byte, a cut card, a file that is no model and a model of another spec are refused by name."""

    def serve(name: str, *options: str) -> str:
        code, err = run("serve", "--port", "0", "--data-dir", "data", "--set", f"model={name}", *options)
        assert code == 1
        return err

    for name in ("flipped", "cut", "garbage"):
        shutil.copytree(MODEL, tmp_path / name)
    model = bytearray((MODEL / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (tmp_path / "flipped/model.onnx").write_bytes(model)
    assert "flipped/model.onnx: sha256" in serve("flipped")
    (tmp_path / "cut/card.json").write_bytes((MODEL / "card.json").read_bytes()[:100])
    assert "cut/card.json: not a model card" in serve("cut")
    card = json.loads((MODEL / "card.json").read_bytes()) | {"sha256": hashlib.sha256(b"garbage").hexdigest()}
    (tmp_path / "garbage/card.json").write_text(json.dumps(card))
    (tmp_path / "garbage/model.onnx").write_bytes(b"garbage")
    assert "garbage/model.onnx: " in serve("garbage")
    assert "was trained for spec 'cards'" in serve(str(MODEL), "--set", "spec=handbook")
    assert not (tmp_path / "data").exists(), "a start that was refused leaves nothing behind"


def test_replay_without_server_or_key_is_one_line(run: Run, stream: str, service: tuple[Serving, Path, str]) -> None:
    """A server that is not there and a key that it does not know stop the replay before the first transaction."""
    code, err = run("replay", stream, *TARGET)
    assert (code, "cannot reach 127.0.0.1:1" in err) == (2, True), err
    code, err = run("replay", stream, "--url", f"http://127.0.0.1:{service[0].port}", "--key", "wrong")
    assert (code, "key" in err, "401" in err) == (2, True, True), err


def test_what_is_in_use_is_one_line(run: Run, tmp_path: Path, service: tuple[Serving, Path, str]) -> None:
    """A port and a data directory have one owner; who is refused leaves both as they were."""
    serving, data_dir, _ = service
    code, err = run("serve", "--data-dir", str(tmp_path / "other"), "--port", serving.port)
    assert (code, f"cannot listen on 127.0.0.1:{serving.port}" in err, "--port" in err) == (1, True, True), err
    code, err = run("serve", "--data-dir", str(data_dir), "--port", "0")
    assert (code, f"data directory {data_dir} is used by another process" in err) == (1, True), err
    connection = http.client.HTTPConnection("127.0.0.1", int(serving.port), timeout=20)
    connection.request("GET", "/readyz")
    assert connection.getresponse().status == 200
    connection.close()


def test_two_starts_on_one_port_at_once_one_is_refused(tmp_path: Path) -> None:
    """Both may bind before either listens; then the second one to listen says so with the port."""
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(socket.socket())
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        port = str(bound.getsockname()[1])
        starts = []
        for name in ("a", "b"):
            command = [WEIR, "serve", "--data-dir", str(tmp_path / name), "--port", port]
            start = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            starts.append(stack.enter_context(start))
            stack.callback(start.kill)
        deadline = time.monotonic() + 20
        while not any(start.poll() is not None for start in starts) and time.monotonic() < deadline:
            time.sleep(0.02)
        (loser,) = [start for start in starts if start.poll() is not None]
        (winner,) = [start for start in starts if start is not loser]
        assert loser.returncode == 1
        assert loser.stderr is not None
        assert f"cannot listen on 127.0.0.1:{port}" in _one_line(loser.stderr.read())
        assert winner.stdout is not None
        assert winner.stdout.readline().startswith("weir ready")
        winner.terminate()
        assert winner.wait(20) == 0


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a service that was killed after ten transactions."""
    data_dir = tmp_path_factory.mktemp("stopped") / "data"
    key = add_key(data_dir, Role.ADMIN, "admin")
    serving = Serving(data_dir)
    assert [serving.score(key, f"t-{n}") for n in range(10)] == [200] * 10
    time.sleep(0.3)  # past journal.interval_ms: what is not known to be durable may be cut, and then there is no damage
    serving.stop(signal.SIGKILL)
    return data_dir


def _flip_journal(data_dir: Path) -> None:
    (segment,) = (data_dir / "journal").glob("*.seg")
    content = bytearray(segment.read_bytes())
    content[len(content) // 3] ^= 0xFF
    segment.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "journal": (_flip_journal, "LSN"),
    "store": (lambda data_dir: (data_dir / "l2/CURRENT").write_bytes(b"garbage"), "cannot open the store in"),
    "plan": (lambda data_dir: (data_dir / "plan.json").write_bytes(b'{"spec": "\xff"}'), "plan.json: not readable"),
    "spec": (
        lambda data_dir: (data_dir / "plan.json").write_text('{"spec": "other", "plan_hash": "00"}'),
        "belongs to spec 'other' (plan 00)",
    ),
    "keys": (lambda data_dir: (data_dir / "keys.json").write_bytes(b"{"), "keys.json is damaged"),
}


def test_damaged_data_directory_is_one_line(stopped: Path, tmp_path: Path) -> None:
    """A flipped byte in the journal, a store without its tables, another spec's plan and broken files refuse the start."""
    starts = {}  # real processes: one that starts in spite of the damage must not take this one along
    for name, (damage, _) in DAMAGES.items():
        data_dir = shutil.copytree(stopped, tmp_path / name)
        damage(data_dir)
        command = [WEIR, "serve", "--data-dir", str(data_dir), "--port", "0"]
        starts[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for name, start in starts.items():
        if start.stdout is not None and start.stdout.readline():
            start.kill()
        err = start.communicate(timeout=20)[1]
        assert start.returncode in (1, 2), f"{name}: {err}"
        assert str(tmp_path / name) in _one_line(err) or name == "journal"
        assert DAMAGES[name][1] in err


def test_undamaged_copy_starts(stopped: Path, tmp_path: Path) -> None:
    """The directory that the damage is done to starts as it is: the refusals come from the damage alone."""
    data_dir = shutil.copytree(stopped, tmp_path / "data")
    serving = Serving(data_dir)
    key = add_key(data_dir, Role.INGEST, "second")
    assert serving.score(key, "after") == 200
    assert serving.stop(signal.SIGTERM)[0] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_data_directory_is_one_line(run: Run, tmp_path: Path) -> None:
    """A directory that cannot be written is named."""
    (tmp_path / "data").mkdir(mode=0o500)
    code, err = run("serve", "--data-dir", str(tmp_path / "data"), "--port", "0")
    assert (code, "Permission denied" in err) == (1, True), err


def test_interrupted_replay_ends_quickly_with_what_it_has(stream: str, service: tuple[Serving, Path, str]) -> None:
    """Ctrl-C ends a replay long before its schedule does, with exit code 130, its summary and no traceback."""
    serving, _, key = service
    n_before = serving.n_scored()
    command = [WEIR, "replay", stream, "--url", f"http://127.0.0.1:{serving.port}", "--key", key, "--rate", "1"]
    replay = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while serving.n_scored() < n_before + 2:
        assert replay.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    replay.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = replay.communicate(timeout=20)
    assert time.monotonic() - started < 15
    assert (replay.returncode, "Traceback" in out + err) == (130, False), err
    assert "of 1,000 transactions" in out
