"""`weir config`: every problem is told, every value has its origin, no secret is shown."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from service import __main__ as cli
from service.setting_sources import hide_passwords, line_of, masked, shown
from service.settings import CATALOGUE

Weir = Callable[..., tuple[int, str, str]]
BAD = """spec = "cards"
[l1]
bytes_max = 5
enbled = true
[queue]
batch_max = 10
events_max = 5
"""


@pytest.fixture
def weir(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Weir:
    """Run a command line in an empty directory; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_check_tells_every_problem(weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown keys, wrong types, bounds and pairs that do not fit are all told, each with its place, and the exit code is 2."""
    Path("weir.toml").write_text(BAD)
    monkeypatch.setenv("WEIR_L1__X", "1")
    monkeypatch.setenv("WEIR_SCORRER", "go")
    code, out, err = weir("config", "check", "--config", "weir.toml", "--set", "server.port=x", "--set", "lone")
    assert code == 2
    assert out == "note: WEIR_SCORRER is no setting and ignored; did you mean WEIR_SCORER?\n"
    starts = [
        "weir: weir.toml:4: there is no setting l1.enbled; did you mean l1.enabled?",
        "weir: WEIR_L1__X: there is no setting l1.x",
        "weir: --set lone: write it as key=value",
        "weir: weir.toml:3: l1.bytes_max is 5: expected int >= 65536; allowed: whole number, 65,536 to ",
        "weir: command line: server.port is 'x': expected int, got str",
        "weir: weir.toml:6: queue.batch_max is 10: expected at most queue.events_max, 5",
    ]
    lines = err.splitlines()
    assert len(lines) == len(starts), err
    for start in starts:
        assert any(line.startswith(start) for line in lines), (start, err)


def test_serve_tells_the_first_problem_and_where_the_others_are(weir: Weir) -> None:
    """A start that is refused stays one line."""
    code, _, err = weir("serve", "--set", "server.port=x", "--set", "l1.x=1")
    assert code == 2
    assert err == (
        "weir: command line: there is no setting l1.x; did you mean l1.bytes_max?"
        " (and 1 more: weir config check tells them all)\n"
    )


def test_check_of_right_settings_says_so(weir: Weir) -> None:
    """What is right is told with how many were given, exit code 0."""
    n_settings = len(CATALOGUE.types)
    expected = f"the settings are right: {n_settings}, of which 1 given\n"
    assert weir("config", "check", "--set", "server.port=0") == (0, expected, "")


def test_show_names_every_origin(weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default, file and line, variable, command line, or made from another setting."""
    Path("weir.toml").write_text("# l1.bytes_max = 1\n[l1]\n\nbytes_max = 1_000_000\n[queue]\nevents_max = 7\n")
    monkeypatch.setenv("WEIR_BLOOM__FPP", "0.1")
    code, out, err = weir("config", "show", "--json", "--config", "weir.toml", "--set", "journal.sync=os")
    assert (code, err) == (0, "")
    found = {entry["key"]: entry for entry in json.loads(out)}
    assert list(found) == list(CATALOGUE.types)
    origins = {key: entry["origin"] for key, entry in found.items() if entry["origin"] != "default"}
    assert origins == {
        "l1.bytes_max": "weir.toml:4",
        "queue.events_max": "weir.toml:6",
        "queue.batch_max": "from other settings",
        "bloom.fpp": "WEIR_BLOOM__FPP",
        "journal.sync": "command line",
    }
    assert found["l1.bytes_max"] == {"key": "l1.bytes_max", "value": 1_000_000, "origin": "weir.toml:4", "default": 256 << 20}
    monkeypatch.delenv("WEIR_BLOOM__FPP")
    code, out, _ = weir("config", "show", "--changed", "--set", "journal.sync=os")
    assert [line.split() for line in out.splitlines()][1:] == [["journal.sync", "os", "command", "line"]]


def test_show_and_refusals_mask_passwords(weir: Weir) -> None:
    """A password shows neither in the table nor in JSON nor in a message that refuses its URL."""
    urls = [
        "--set",
        "redis.url=rediss://u:hun@ter2@h:1/0",
        "--set",
        "postgres.url=postgresql://h/d?user=a&password=hunter2&x=1",
    ]
    for arguments in (["config", "show", *urls], ["config", "show", "--json", *urls]):
        code, out, _ = weir(*arguments)
        assert code == 0
        assert "ter2" not in out
        assert "rediss://u:***@h:1/0" in out
        assert "postgresql://h/d?user=a&password=***&x=1" in out
    for url in ("http://u:hun@ter2@h", "http://h/?password=hunter2", "hunter2"):
        _, _, err = weir("config", "check", "--set", f"redis.url={url}")
        assert ("ter2" in err) == (url == "hunter2"), err  # what is no URL has no password to be told apart


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("redis://:pw@h", "redis://:***@h"),
        ("redis://u@h:1", "redis://u@h:1"),
        ("redis://h:1/0", "redis://h:1/0"),
        ("postgresql:///d?host=/s&PASSWORD=a%20b", "postgresql:///d?host=/s&PASSWORD=***"),
        ("two redis://a:b@c and redis://d:e@f", "two redis://a:***@c and redis://d:***@f"),
    ],
)
def test_passwords_of_urls_are_hidden(text: str, hidden: str) -> None:
    """User, host and the rest stay."""
    assert hide_passwords(text) == hidden


def test_settings_named_like_secrets_are_masked() -> None:
    """Whatever stands in them; nothing stays nothing."""
    assert masked("x.api_token", "abc") == "***"
    assert shown("x.password", "abc") == "***"
    assert masked("x.secret", None) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[a]\nb = 1", 2),
        ("a.b = 1", 1),
        ("a = { c = 1, b = 2 }", 1),
        ("# b = 1\n[x]\nb = 1\n[a]\n'b' = 1", 5),
        ('x = """\n[a]\nb = 1\n"""\n[a]\nb = 2', 6),
        ('[a]\nb = """\n1\n"""', 2),
        ("[a]\nbb = 1", 0),
    ],
)
def test_line_of_key_is_found_however_it_is_written(text: str, line: int) -> None:
    """Tables, dotted keys, inline tables and text over many lines; comments and text that look alike do not count."""
    assert line_of(text, "a.b") == line


def test_reference_is_written(weir: Weir) -> None:
    """To a file, or to stdout."""
    assert weir("config", "reference", "--out", "docs/settings.md") == (0, "", "")
    _, out, _ = weir("config", "reference")
    assert Path("docs/settings.md").read_text() == out
    assert all(f"| `{key}` |" in out for key in CATALOGUE.types)
