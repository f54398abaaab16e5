"""Every command that the documentation shows is run; what cannot be run here says why."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main

from gocore.locate import SERVER
from loadgen.bench.stores import missing_stores
from service.__main__ import build_app

if TYPE_CHECKING:
    from tests.docs.conftest import Page, Ran

pytestmark = [pytest.mark.e2e]

ROOT = Path(__file__).parents[2]
PROGRAMS = r"weir|curl|make|docker|pip|python3?|pytest|\.venv/bin/\S+|gocore/build/\S+|git clone|apt-get"
COMMAND = re.compile(rf"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:{PROGRAMS}) ")
READY_S = 60.0
BENCHMARKS = ("docs/benchmarks.md",)  # their commands are tests of their own, at a small size: make test-bench


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """URL and KEY of a running `weir serve`, the packaged model, no L3."""
    directory = tmp_path_factory.mktemp("served")
    weir = [sys.executable, "-m", "service"]
    command = [*weir, "serve", "--data-dir", str(directory / "data"), "--port", "0"]
    with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
    try:
        deadline = time.monotonic() + READY_S
        while "weir ready" not in (text := (directory / "out").read_text()):
            assert process.poll() is None, (directory / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        add = [*weir, "keys", "add", "--role", "admin", "--name", "me", "--data-dir", str(directory / "data")]
        key = subprocess.run(add, capture_output=True, text=True, check=True).stdout.strip()
        yield {"URL": text.partition("url=")[2].split()[0], "KEY": key, "DATA": str(directory / "data")}
    finally:
        process.terminate()
        process.wait(60)


def names() -> list[str]:
    """Pages with something to run, found when tests are collected."""
    found = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for folder in ("guides", "reference", "explanation"):
        found += (ROOT / "docs" / folder).glob("*.md")
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


@pytest.mark.parametrize("name", names())
def test_page_commands_run(
    name: str, pages: "dict[str, Page]", run_page: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """All commands of a page succeed, one after the other, and replies have the keys that the page shows."""
    page = pages[name]
    for block in page.blocks:
        if block.is_code and block.mark:
            print(f"{name}:{block.line}: {block.mark}: {block.reason}")  # noqa: T201  # pytest shows it with -rP
    if not any(block.is_run(run_page.whole) for block in page.blocks):
        pytest.skip("nothing to run on this page")
    for tool in ("bash", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if "time" in page.needs and not run_page.whole:
        pytest.skip("takes several seconds; make docs-test runs it")
    if any("--embedded" in block.text for block in page.blocks if block.is_run(run_page.whole)) and missing_stores():
        pytest.skip(str(missing_stores()))
    if "go" in page.needs and not SERVER.is_file():
        pytest.skip(f"{SERVER.name} is not built; make go builds it (it needs Go and a C compiler)")
    environment: dict[str, str] = {}
    if "service" in page.needs:
        environment |= request.getfixturevalue("service")
    if "stores" in page.needs:
        environment |= {name.upper(): request.getfixturevalue(name) for name in ("redis_url", "postgres_url")}
    ran: Ran = run_page(page, tmp_path, environment)
    assert ran.code == 0, f"{name}:{ran.line} ended with code {ran.code}: {ran.output.get(ran.line)}\n{ran.errors[-3000:]}"
    assert_replies_have_shown_keys(page, ran, run_page)


def assert_replies_have_shown_keys(page: "Page", ran: "Ran", run_page: Any) -> None:
    """A block marked `reply` has the same keys as the last line that the block before it printed."""
    before = 0
    for block in page.blocks:
        if block.mark == "reply":
            shown = run_page.keys_of(json.loads(block.text))
            got = run_page.keys_of(last_reply(ran.output[before]))
            assert got == shown, f"{page.name}:{block.line} shows {shown}, the service gave {ran.output[before]}"
        if block.is_run(run_page.whole):
            before = block.line


def last_reply(printed: str) -> Any:
    """The last JSON value of what a block printed: curl puts no line breaks between replies."""
    decoder, at, value = json.JSONDecoder(), 0, None
    while at < len(printed.rstrip()):
        value, at = decoder.raw_decode(printed, at)
        at += len(printed[at:]) - len(printed[at:].lstrip())
    return value


def test_commands_are_blocks_that_can_be_run(pages: "dict[str, Page]") -> None:
    """No command hides in a block that is not run, unless a mark says why; marks have reasons."""
    hidden = []
    for page in pages.values():
        for block in page.blocks:
            assert block.mark == "" or block.mark == "reply" or len(block.reason) > 10, f"{page.name}:{block.line}: why?"
            if page.name not in BENCHMARKS and not block.is_code and block.mark != "not run":
                lines = block.text.splitlines()
                hidden += [f"{page.name}:{block.line + n}" for n, line in enumerate(lines) if COMMAND.match(line.strip())]
        hidden += indented_commands(page.name) if page.name not in BENCHMARKS else []
    assert hidden == [], "fence these as sh, or mark them"


def test_commands_that_are_not_run_are_spelt_right(pages: "dict[str, Page]") -> None:
    """Benchmarks take minutes and have their own tests; every command and option that the pages name for them exists."""
    lines = [(name, line) for name in BENCHMARKS for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines()]
    for page in pages.values():
        for block in page.blocks:
            if block.mark in ("not run", "slow"):
                lines += [(page.name, line) for line in block.text.replace("\\\n", " ").splitlines()]
    commands = [(name, shlex.split(line, comments=True)) for name, line in lines if line.strip().startswith("weir ")]
    assert len(commands) > 10
    wrong = [f"{name}: {' '.join(words)}: {problem}" for name, words in commands if (problem := problem_of(words))]
    assert wrong == []


def problem_of(words: list[str]) -> str:
    """What `weir` would not understand of these words; values are not looked at."""
    command: Any = typer.main.get_command(build_app(words[1:]))
    rest = [word for word in words[1:] if word != "&" and not word.startswith(">")]
    while rest and hasattr(command, "commands"):
        if rest[0] not in command.commands:
            return f"there is no {rest[0]}"
        command = command.commands[rest.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    return f"there is no {', '.join(unknown)}" if unknown else ""


def test_a_misspelt_command_is_noticed() -> None:
    """Both a command and an option that do not exist."""
    assert problem_of(["weir", "bench", "htpp"]) == "there is no htpp"
    assert problem_of(["weir", "bench", "http", "--conections", "3"]) == "there is no --conections"
    assert problem_of(["weir", "bench", "http", "--connections", "3"]) == ""


def indented_commands(name: str) -> list[str]:
    """Lines of commands in blocks that are made by indenting: nobody would run them."""
    found, in_fence = [], False
    for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
        in_fence ^= line.strip().startswith("```")
        if not in_fence and line.startswith("    ") and COMMAND.match(line.strip()):
            found.append(f"{name}:{number}")
    return found


def test_links_of_readme_and_changelog_lead_somewhere() -> None:
    """What mkdocs checks for its own pages, for those outside: files and anchors."""
    broken = []
    for name in ("README.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text()):
            if not (ROOT / target).exists():
                broken.append(f"{name}: {target}")
    assert broken == []


def test_a_failing_command_is_noticed(page_of: Any, run_page: Any, tmp_path: Path) -> None:
    """The second of three blocks fails: the page ends there, and its background jobs with it, their children too."""
    text = (
        "```sh\n(sh -c 'echo $$ > pid; exec sleep 60'; true) &\nuntil test -s pid; do :; done\n```\n\ntext\n\n"
        "```sh\necho seen\nfalse\n```\n\n```sh\ntouch after\n```\n"
    )
    ran: Ran = run_page(page_of(text), tmp_path / "run", {})
    assert (ran.code, ran.line, ran.output[9].strip()) == (1, 9, "seen")
    assert not (tmp_path / "run" / "after").exists()
    process, deadline = Path("/proc") / (tmp_path / "run" / "pid").read_text().strip(), time.monotonic() + READY_S
    while process.exists():  # until init has waited for it
        assert time.monotonic() < deadline


def test_marks_keep_blocks_from_running(page_of: Any, run_page: Any, tmp_path: Path) -> None:
    """`not run` never runs, `slow` only when the whole page is asked for, and another port is used than is written."""
    text = (
        "<!-- not run: it would end the world -->\n```sh\nfalse\n```\n<!-- slow: half a minute of nothing -->\n"
        "```sh\ntouch slow\n```\n```sh\necho http://x:8080 --port 8080 80801 > ports\n```\n"
    )
    ran: Ran = run_page(page_of(text), tmp_path / "run", {}, False)
    assert ran.code == 0
    assert not (tmp_path / "run" / "slow").exists()
    url, _, port, other = (tmp_path / "run" / "ports").read_text().split()
    assert url == f"http://x:{port}" != "http://x:8080"
    assert other == "80801"
    ran = run_page(page_of(text), tmp_path / "whole", {}, True)
    assert (tmp_path / "whole" / "slow").exists()
