"""The command line: every expected failure is one clear line on stderr and a non-zero exit code, never a traceback."""

import importlib.metadata
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from service import __main__ as cli
from service.audit import Audit
from service.auth import KEY_FILE, KeyRing, Role
from service.errors import StartError, Unauthorized
from service.settings import Settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WEIR_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def weir(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line; gives exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


Weir = Callable[..., tuple[int, str, str]]


def _assert_one_line(err: str, *parts: str) -> None:
    assert err.startswith("weir: ")
    assert err.count("\n") == 1, err
    assert all(part in err for part in parts), err


def test_version_prints_version(weir: Weir) -> None:
    """--version prints the version of the package."""
    assert weir("--version") == (0, f"weir {importlib.metadata.version('weir')}\n", "")


def test_no_command_shows_help(weir: Weir) -> None:
    """Called alone, weir lists its commands."""
    code, out, err = weir()
    assert code == 2
    assert all(command in out + err for command in ("serve", "keys", "doctor", "bench"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nonsense"], "nonsense"),
        (["serve", "--nonsense"], "--nonsense"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--port", "65536"], "server.port is 65536"),
        (["serve", "--scorer", "rust"], "auto, go, onnx"),
        (["serve", "--config", "no.toml"], "no.toml does not exist"),
        (["serve", "--set", "l1.byte_max=1"], "did you mean l1.bytes_max?"),
        (["serve", "--set", "l1"], "key=value"),
        (["keys", "add", "--name", "a"], "--role"),
        (["keys", "add", "--role", "root", "--name", "a"], "ingest, analyst, admin"),
        (["keys", "add", "--role", "ingest", "--name", "a b"], "'a b'"),
        (["keys", "add", "--role", "ingest", "--name", "a", "--days", "0"], "--days"),
        (["keys", "revoke"], "--name"),
        (["keys", "revoke", "--name", "a"], "there are no keys"),
        (["bench", "nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(weir: Weir, arguments: list[str], part: str) -> None:
    """Wrong options, values and names are told in one line."""
    code, out, err = weir(*arguments)
    assert (code, out) == (2, "")
    _assert_one_line(err, part)


def test_keys_add_prints_key_alone(weir: Weir, tmp_path: Path) -> None:
    """stdout holds the key and nothing else, so that a script can take it; the key works."""
    code, out, err = weir("keys", "add", "--role", "analyst", "--name", "me", "--data-dir", str(tmp_path / "data"))
    assert (code, err) == (0, "")
    assert KeyRing(tmp_path / "data" / KEY_FILE).role_of(f"Bearer {out.strip()}") is Role.ANALYST
    assert out.count("\n") == 1


def test_keys_are_listed_and_revoked_and_audited(weir: Weir) -> None:
    """The list shows names, roles and times, never a key; revoking takes one away; the audit has who did what."""
    assert weir("keys", "list", "--data-dir", "d")[:2] == (0, "name  role  events/s  created  expires\n")
    _, key, _ = weir("keys", "add", "--role", "analyst", "--name", "ana", "--days", "30", "--data-dir", "d")
    weir("keys", "add", "--role", "ingest", "--name", "pos", "--rate", "250", "--data-dir", "d")
    code, out, err = weir("keys", "list", "--data-dir", "d")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert [row[:3] for row in rows[1:]] == [["ana", "analyst", "role's"], ["pos", "ingest", "250"]]
    assert (rows[1][-1], rows[2][-1]) == ("UTC", "never")
    assert key.strip() not in out
    assert weir("keys", "revoke", "--name", "ana", "--data-dir", "d") == (0, "ana (analyst) is revoked\n", "")
    with pytest.raises(Unauthorized):
        KeyRing(Path("d") / KEY_FILE).role_of(f"Bearer {key.strip()}")
    code, out, err = weir("keys", "revoke", "--name", "ana", "--data-dir", "d")
    assert (code, out) == (2, "")
    _assert_one_line(err, "there is no key called 'ana'")
    audit = Audit(Path("d"))
    entries = audit.newest(10)
    audit.close()
    assert [(e["action"], e["name"]) for e in entries] == [("key revoked", "ana"), ("key added", "pos"), ("key added", "ana")]
    assert all(e["who"].endswith("at the command line") for e in entries)


def test_keys_add_twice_is_refused(weir: Weir) -> None:
    """The name of a key is taken once."""
    assert weir("keys", "add", "--role", "ingest", "--name", "a", "--data-dir", "d")[0] == 0
    code, out, err = weir("keys", "add", "--role", "ingest", "--name", "a", "--data-dir", "d")
    assert (code, out) == (2, "")
    _assert_one_line(err, "'a' exists already")


def test_keys_add_where_nothing_can_be_written(weir: Weir, tmp_path: Path) -> None:
    """A data directory that is a file is named."""
    (tmp_path / "file").write_text("")
    code, _, err = weir("keys", "add", "--role", "ingest", "--name", "a", "--data-dir", str(tmp_path / "file"))
    assert code == 2
    _assert_one_line(err, "file")


def _serve_with(monkeypatch: pytest.MonkeyPatch, outcome: Exception | None = None) -> list[tuple[Settings, bool]]:
    calls: list[tuple[Settings, bool]] = []

    def run(settings: Settings, *, accept_loss: bool = False) -> None:
        calls.append((settings, accept_loss))
        if outcome is not None:
            raise outcome

    monkeypatch.setattr("service.app.run", run)
    monkeypatch.setattr(cli, "configure_logs", lambda: None)
    return calls


def test_serve_merges_file_environment_and_flags(weir: Weir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every option of serve reaches the settings; a flag wins over --set, which wins over the environment."""
    calls = _serve_with(monkeypatch)
    monkeypatch.setenv("WEIR_QUEUE__EVENTS_MAX", "1000")
    config = tmp_path / "weir.toml"
    config.write_text('[server]\nhost = "0.0.0.0"\nport = 1\n')
    flags = ["--embedded", "--data-dir", "dd", "--port", "3", "--scorer", "onnx", "--accept-loss"]
    assert weir("serve", "--config", str(config), "--set", "server.port=2", *flags)[0] == 0
    ((settings, accept_loss),) = calls
    assert (settings.server.host, settings.server.port, settings.queue.events_max) == ("0.0.0.0", 3, 1000)
    assert (settings.embedded, settings.data_dir, settings.scorer) == (True, Path("dd"), "onnx")
    assert accept_loss


@pytest.mark.parametrize(
    ("outcome", "code", "part"),
    [
        (StartError("port 8080 is in use"), 1, "port 8080 is in use"),
        (PermissionError(13, "Permission denied", "/data"), 1, "Permission denied: /data"),
        (KeyError("x"), 1, "unexpected KeyError"),
        (StartError("two\nlines"), 1, "two lines"),
    ],
)
def test_serve_failure_is_one_line(
    weir: Weir, monkeypatch: pytest.MonkeyPatch, outcome: Exception, code: int, part: str
) -> None:
    """Whatever stops the start is one line; even a bug shows no traceback."""
    _serve_with(monkeypatch, outcome)
    got, _, err = weir("serve")
    assert got == code
    _assert_one_line(err, part)


def test_traceback_on_request(weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """WEIR_TRACEBACK=1 shows where it happened."""
    _serve_with(monkeypatch, KeyError("x"))
    monkeypatch.setenv("WEIR_TRACEBACK", "1")
    assert "Traceback" in weir("serve")[2]


class EntryDouble:
    """An entry point whose module is, or is not, there."""

    def __init__(self, name: str, missing: str | None = None) -> None:
        self.name = name
        self.missing = missing
        self.is_loaded = False

    def load(self) -> Callable[[typer.Typer], None]:
        self.is_loaded = True
        if self.missing is not None:
            raise ModuleNotFoundError(f"No module named {self.missing!r}", name=self.missing)

        def register(app: typer.Typer) -> None:
            @app.command(self.name)
            def command(text: str) -> None:
                typer.echo(text)

            @app.command(f"{self.name}-more")
            def more() -> None: ...

        return register


def _entries(monkeypatch: pytest.MonkeyPatch, **groups: list[EntryDouble]) -> None:
    def entry_points(*, group: str) -> Any:
        return groups.get(group.removeprefix("weir."), [])

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


def test_plugin_command_loads_only_itself(weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that is called is loaded, the others are not: their imports may take seconds."""
    called, other = EntryDouble("echo"), EntryDouble("train", "sklearn")
    _entries(monkeypatch, commands=[other, called])
    assert weir("echo", "hello") == (0, "hello\n", "")
    assert not other.is_loaded


def test_own_command_loads_no_plugin(weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """serve, keys and doctor start without anybody else's imports."""
    plugin = EntryDouble("echo")
    _entries(monkeypatch, commands=[plugin])
    weir("keys", "add", "--role", "ingest", "--name", "a", "--data-dir", "d")
    assert not plugin.is_loaded


def test_bench_commands_come_from_their_group(weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """`weir bench X` is an entry of weir.bench."""
    _entries(monkeypatch, bench=[EntryDouble("ladder")])
    assert weir("bench", "ladder", "hello") == (0, "hello\n", "")


@pytest.mark.parametrize("options", [[], ["--epochs", "3"], ["a", "b"]])
def test_plugin_without_its_extra_says_which(weir: Weir, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    """A command whose library is missing names the extra that brings it, whatever its options."""
    _entries(monkeypatch, commands=[EntryDouble("train", "sklearn.neural_network")])
    code, out, err = weir("train", *options)
    assert (code, out) == (1, "")
    _assert_one_line(err, "sklearn", "pip install 'weir[train]'")


def test_help_lists_plugins_even_without_their_extra(weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra does not hide a command, and does not break the help."""
    _entries(monkeypatch, commands=[EntryDouble("train", "sklearn"), EntryDouble("echo")])
    code, out, _ = weir("--help")
    assert code == 0
    assert "train" in out
    assert "echo" in out


def test_doctor_names_what_is_wrong(weir: Weir) -> None:
    """A port that is in use fails the check; the report says so and the exit code is 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, out, err = weir("doctor", "--set", f"server.port={taken.getsockname()[1]}")
    assert code == 1
    assert "onnxruntime" in out
    _assert_one_line(err, "port")


def test_doctor_leaves_nothing_behind(weir: Weir, tmp_path: Path) -> None:
    """Looking changes nothing: the data directory is not made."""
    weir("doctor", "--data-dir", str(tmp_path / "new"), "--set", "server.port=0")
    assert not (tmp_path / "new").exists()
    assert stat.S_ISDIR(tmp_path.stat().st_mode)
