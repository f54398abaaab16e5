"""Pages of the documentation taken apart, and run: every block of commands, in order, in one shell and a fresh folder.

    ```sh      run by the test            ```python  run by the project's Python, in the page's place
    <!-- not run: REASON -->              before a block that cannot be run here; the reason is printed
    <!-- slow: REASON -->                 before a block that only `make docs-test` runs
    <!-- reply -->                        before a block that shows what the commands above it print: the same JSON keys
    <!-- needs: service -->               anywhere: URL and KEY are those of a running service
    <!-- needs: stores -->                anywhere: REDIS_URL and POSTGRES_URL are those of running servers
    <!-- needs: go -->                    anywhere: the page is skipped where weir-go is not built
    <!-- needs: time -->                  anywhere: the page is run by `make docs-test` only

Ports 8080 to 8099 in commands are replaced by free ones, so that pages run beside a service and beside each other.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*([\w+-]*)\s*$")
MARK = re.compile(r"<!--\s*(not run|slow|reply|needs)(?::\s*(.*?))?\s*-->")
PORT = re.compile(r"(?<=[:= ])80[89]\d\b")
PAGE_DEADLINE_S = 240.0
IS_WHOLE = bool(os.environ.get("DOCS_WHOLE"))  # make docs-test


class Block(msgspec.Struct, frozen=True):
    """A fenced block: its language, text, first line in the page, and the mark before it with its reason."""

    language: str
    text: str
    line: int
    mark: str = ""
    reason: str = ""

    @property
    def is_code(self) -> bool:
        return self.language in ("sh", "python")

    def is_run(self, whole: bool) -> bool:
        return self.is_code and (not self.mark or (self.mark == "slow" and whole))


class Page(msgspec.Struct, frozen=True):
    """A page: its path from the root, blocks, and what it needs (service, stores)."""

    name: str
    blocks: list[Block]
    needs: frozenset[str]


def read_page(path: Path) -> Page:
    """Raises ValueError for a fence that is not closed."""
    blocks: list[Block] = []
    needs: set[str] = set()
    mark = reason = ""
    lines = path.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if opened := FENCE.match(line):
            indent, fence, language = opened.groups()
            first, body = number + 1, []
            while number < len(lines) and lines[number].strip() != fence:
                body.append(lines[number].removeprefix(indent))
                number += 1
            if number == len(lines):
                raise ValueError(f"{path}:{first - 1}: the block is not closed")
            number += 1
            blocks.append(Block(language, "\n".join(body) + "\n", first, mark, reason))
            mark = reason = ""
        elif found := MARK.fullmatch(line.strip()):
            if found[1] == "needs":
                needs.update((found[2] or "").split())
            else:
                mark, reason = found[1], found[2] or ""
        elif line.strip():
            mark = reason = ""
    return Page(path.relative_to(ROOT).as_posix(), blocks, frozenset(needs))


class Ran(msgspec.Struct, frozen=True):
    """What became of a page: the exit code, where it ended (a line of the page), output of each block by line, all errors."""

    code: int
    line: int
    output: dict[int, str]
    errors: str


def run_blocks(page: Page, folder: Path, environment: Mapping[str, str], whole: bool = IS_WHOLE) -> Ran:
    """Run the page's blocks in `folder` in one bash; whatever it left in the background is ended."""
    ports: dict[str, str] = {}
    out = folder / ".page"
    out.mkdir(parents=True)
    # Jobs of the page get a SIGTERM in the end, as a reader's Ctrl-C would give them.
    parts = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"]
    for block in page.blocks:
        if block.is_run(whole):
            text = PORT.sub(lambda found: ports.setdefault(found.group(), _free_port()), block.text)
            if block.language == "python":
                text = f"python - <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n"
            parts.append(f"echo {block.line} > {out}/at; exec > {out}/{block.line}.out\n{text}")
    for name in (".venv", "gocore"):
        (folder / name).symlink_to(ROOT / name)
    script = folder / ".page" / "script.sh"
    script.write_text("\n".join(parts), encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (out / "errors").open("wb") as errors:
        process = subprocess.Popen(
            ["bash", str(script)], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            env=os.environ | {"PATH": path, "COLUMNS": "120"} | dict(environment), start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(PAGE_DEADLINE_S)
        except subprocess.TimeoutExpired:
            code = -1
        with contextlib.suppress(ProcessLookupError):  # what the shell could not end, in its process group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    output = {int(file.stem): file.read_text(errors="replace") for file in out.glob("*.out")}
    at = (out / "at").read_text() if (out / "at").exists() else "0"
    return Ran(code, int(at), output, (out / "errors").read_text(errors="replace"))


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def keys_of(value: Any) -> Any:
    """The shape of JSON: keys of objects, the shape of a list's first element, the kind of anything else."""
    if isinstance(value, dict):
        return {key: keys_of(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [keys_of(inner) for inner in value[:1]]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


@pytest.fixture(scope="session")
def pages() -> dict[str, Page]:
    """Every page that a reader follows, by path: the README and docs, but for results and decisions, which are history."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for folder in ("guides", "reference", "explanation"):
        paths += sorted((ROOT / "docs" / folder).glob("*.md"))
    return {page.name: page for page in map(read_page, paths)}


class Runner:
    """`run_page(page, folder, environment, whole)`: see run_blocks."""

    whole = IS_WHOLE
    keys_of = staticmethod(keys_of)

    def __call__(self, page: Page, folder: Path, environment: Mapping[str, str], whole: bool = IS_WHOLE) -> Ran:
        return run_blocks(page, folder, environment, whole)


@pytest.fixture
def run_page() -> Runner:
    """Runs pages."""
    return Runner()


@pytest.fixture
def page_of() -> Any:
    """`page_of(markdown)`: a page that is not in the documentation."""

    def make(text: str) -> Page:
        lines = ROOT / ".pytest_cache" / "page-of-a-test.md"
        lines.parent.mkdir(exist_ok=True)
        lines.write_text(text, encoding="utf-8")
        try:
            return read_page(lines)
        finally:
            lines.unlink()

    return make
