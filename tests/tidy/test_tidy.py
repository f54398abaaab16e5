"""The style guide's countable rules: file and function sizes, one client library per module, notes with numbers."""

import ast
import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("service", "features", "gocore", "models", "loadgen")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
FILE_KIB_MAX = 512

RIVALS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "loadgen" / "stacks").glob("fastapi*/*.py")}
RIVALS |= {"loadgen/stacks/fastapi_card.py", "loadgen/stacks/fastapi_image.py"}

# Third-party clients and the modules that may import them.
CLIENTS = {
    "rocksdict": {"service/tiers/l2.py"},
    "hiredis": {"service/tiers/redis.py"},
    "redis": {"service/tiers/redis.py", "loadgen/soak/holdings.py"},
    "asyncpg": {"service/tiers/postgres.py", "loadgen/soak/holdings.py", "loadgen/stacks/seed.py", *RIVALS},
    "rbloom": {"service/tiers/bloom.py"},
    "pybloom_live": {"service/tiers/bloom.py"},
    "onnxruntime": {"models/onnx_session.py", *RIVALS},
    "cffi": {"gocore/binding.py", "loadgen/bench/scorers/ort.py"},
    "sklearn": {"models/calibrate.py", "models/fit_network.py", "models/fit_trees.py"},
    "onnx": {"models/graph.py", "loadgen/stacks/mobilenet.py"},
    "prometheus_client": {"service/metrics.py"},
    "schemathesis": {"tests/e2e/fuzz_hooks.py"},
    "opentelemetry": {"service/otel.py", "tests/e2e/test_traces.py"},
    "httptools": {"service/plain_head.py", "loadgen/sender.py", "loadgen/bench/null_server.py"},
    "msgpack": {"service/score_stream.py"},
    "tritonclient": {"tests/e2e/test_inference.py"},
}


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows or would take, below the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """Every Python file of the project, parsed once: that takes seconds."""
    return {path: ast.parse(path.read_text()) for path in tracked("*.py")}


@functools.cache
def importers() -> dict[str, set[str]]:
    """By the first word of what is imported: the files of the packages that import it."""
    found: dict[str, set[str]] = {}
    for path, tree in packaged().items():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(relative(path))
    return found


def packaged() -> dict[Path, ast.Module]:
    """The files of the packages."""
    return {path: tree for path, tree in trees().items() if path.relative_to(ROOT).parts[0] in PACKAGES}


def relative(path: Path) -> str:
    """`path` as it stands in messages."""
    return path.relative_to(ROOT).as_posix()


def test_python_files_are_short_enough() -> None:
    """No module is longer than the limit of the style guide."""
    too_long = {relative(p): n for p in trees() if (n := len(p.read_text().splitlines())) > FILE_LINES_MAX}
    assert too_long == {}


def test_functions_are_short_enough() -> None:
    """No function is longer than the limit of the style guide."""
    too_long = {}
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                n_lines = node.end_lineno - node.lineno + 1
                if n_lines > FUNCTION_LINES_MAX:
                    too_long[f"{relative(path)}:{node.name}"] = n_lines
    assert too_long == {}


@pytest.mark.parametrize("client", CLIENTS)
def test_client_library_is_imported_in_its_module_only(client: str) -> None:
    """Others see our own protocol, never the client's types."""
    assert importers().get(client, set()) <= CLIENTS[client]


def test_modules_begin_with_their_contract() -> None:
    """Every module that holds anything says in its docstring what it is for."""
    silent = [relative(path) for path, tree in packaged().items() if tree.body and ast.get_docstring(tree) is None]
    assert silent == []


def test_handlers_ask_the_front_who_calls() -> None:
    """Whoever has a session is named by it: only `Front.name_of` may look at the Authorization header for a name."""
    handlers = (ROOT / "service" / "handlers").glob("*.py")
    assert [p.name for p in handlers if p.name != "exchange.py" and "keys.name_of" in p.read_text()] == []


def test_notes_carry_an_issue_number() -> None:
    """A TODO names its issue; a FIXME does not reach main."""
    bad = []
    for path in trees():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"\bFIXME\b|\bTODO\b(?!\(#\d+\))", line):
                bad.append(f"{relative(path)}:{number}")
    assert bad == []


def test_tests_are_no_packages() -> None:
    """pytest runs in importlib mode: an __init__.py under tests would change what is imported."""
    assert [relative(p) for p in tracked("tests/**/__init__.py", "tests/__init__.py")] == []


def test_files_are_small() -> None:
    """Nothing large is committed: data is fetched or generated."""
    large = {relative(p): p.stat().st_size // 1024 for p in tracked() if p.stat().st_size > FILE_KIB_MAX * 1024}
    assert large == {}
