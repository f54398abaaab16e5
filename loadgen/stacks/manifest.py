"""What a rival stack is: `loadgen/stacks/<name>/stack.toml`, and what this machine lacks to build or to run it.

    title = "FastAPI + PyTorch"                    # as tables print it
    language = "Python"
    needs = ["python:torch", "cargo", "go", "g++", "pkg:libfoo-dev", "lib:onnxruntime"]
    build = ["cargo", "build", "--target-dir", "{build}"]   # one command; empty where nothing is built
    run = ["{build}/release/server"]               # {python}, {here} (its folder), {build} (data/stacks/<name>) are replaced
    workloads = ["card", "image-json"]             # which of WORKLOADS it answers
    workers_best = 2                               # the best STACK_WORKERS on two cores

`python:NAME` is looked for in this environment, then in the stacks' own (data/stacks/venv, which `make stacks` fills);
`lib:onnxruntime` is the library of the onnxruntime wheel, linked into {build}; `pkg:NAME` is a Debian package, never installed
from here. Looking imports nothing and starts nothing but dpkg-query.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from gocore.build import c_compiler, find_go
from gocore.errors import CoreMissing
from gocore.locate import onnxruntime_library
from loadgen.bench.children import BenchError

HERE = Path(__file__).parent
MANIFEST = "stack.toml"
BUILT = "built.json"  # in the build folder: what the last build was
DATA = Path("data/stacks")  # builds, the venv and the models, beside the other data
WORKLOADS = ("card", "image-json", "image-binary", "image-jpeg")
TOOLS = ("cargo", "go", "g++")
PLACEHOLDERS = ("{python}", "{here}", "{build}")
WORKERS_MAX = 64
NOT_SOURCES = (".md", ".lock")  # a lock is written by the build
DPKG_DEADLINE_S = 20.0


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stack.toml."""

    title: str
    language: str
    needs: list[str]
    run: list[str]
    workloads: list[str]
    build: list[str] = []
    workers_best: int = 1


class Stack(Manifest, frozen=True, kw_only=True):
    """A stack: its manifest, the name of its folder and the folder, absolute."""

    name: str
    here: Path


class Built(msgspec.Struct, frozen=True):
    """What a build left behind.

    `seconds`, `cpu_s`: of the last one that began with nothing but downloaded packages; for Python, of the installation of the
    stacks' environment. `rebuild_s`: of one since, over what was there. `sources`: their hash. `at`: UTC.
    """

    seconds: float
    cpu_s: float
    rebuild_s: float | None
    installed_bytes: int
    sources: str
    at: str


def stack_names(root: Path = HERE) -> list[str]:
    """The folders that hold a stack.toml, sorted."""
    return sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}"))


def load_stack(name: str, root: Path = HERE) -> Stack:
    """The stack in the folder `name`. Raises BenchError that names the file and the fix."""
    path = root / name / MANIFEST
    try:
        manifest = msgspec.toml.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        known = ", ".join(stack_names(root)) or "none"
        raise BenchError(f"no stack {name!r}: {path} is missing; there are: {known}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is a DecodeError
        raise BenchError(f"{path}: {error}") from None
    if problem := _problem(manifest):
        raise BenchError(f"{path}: {problem}")
    return Stack(**msgspec.structs.asdict(manifest), name=name, here=path.parent.absolute())


def load_stacks(root: Path = HERE) -> list[Stack]:
    """All of them, by name. Raises BenchError."""
    return [load_stack(name, root) for name in stack_names(root)]


def missing(stack: Stack, data: Path = DATA) -> str | None:
    """Why the stack cannot run here, or None if it can: not built or a package gone. Starts no server."""
    for need in stack.needs:
        if need.startswith(("python:", "lib:")) and (reason := lacking(need, data)):
            return reason
    if not stack.build:
        return None
    built = load_built(stack, data)
    if built is not None and built.sources == sources_of(stack):
        return None
    if reason := missing_to_build(stack, data):
        return reason
    return f"{'not built' if built is None else 'built from other sources'}; make stacks builds it"


def missing_to_build(stack: Stack, data: Path = DATA) -> str | None:
    """The first of its needs that is not here, as a reason with the fix, or None."""
    return next(filter(None, (lacking(need, data) for need in stack.needs)), None)


def load_built(stack: Stack, data: Path = DATA) -> Built | None:
    """What its last build left, or None if there was none, or none that can be read."""
    try:
        return msgspec.json.decode((build_dir(stack, data) / BUILT).read_bytes(), type=Built)
    except (OSError, msgspec.DecodeError):
        return None


def build_dir(stack: Stack, data: Path = DATA) -> Path:
    """Where it is built, absolute."""
    return (data / stack.name).absolute()


def venv_python(data: Path = DATA) -> Path:
    """The interpreter of the stacks' own environment, whether it is there or not."""
    return (data / "venv" / "bin" / "python").absolute()


def python_of(stack: Stack, data: Path = DATA) -> str:
    """The interpreter that has what it needs: this one if that does, else the stacks' own."""
    packages = [need.partition(":")[2] for need in stack.needs if need.startswith("python:")]
    return sys.executable if all(map(importlib.util.find_spec, packages)) else str(venv_python(data))


def filled(stack: Stack, words: list[str], data: Path = DATA) -> list[str]:
    """A command with its placeholders replaced."""
    values = (python_of(stack, data), str(stack.here), str(build_dir(stack, data)))
    for placeholder, value in zip(PLACEHOLDERS, values, strict=True):
        words = [word.replace(placeholder, value) for word in words]
    return words


def sources_of(stack: Stack) -> str:
    """A hash of all files in its folder."""
    digest = hashlib.sha256()
    for path in sorted(stack.here.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in NOT_SOURCES:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(stack.here)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _problem(manifest: Manifest) -> str | None:
    """What is wrong with a manifest of the right types."""
    if not manifest.run or not manifest.run[0]:
        return "run is empty: expected a command as a list of words"
    if unknown := [workload for workload in manifest.workloads if workload not in WORKLOADS]:
        return f"workloads holds {unknown[0]!r}: expected some of {', '.join(WORKLOADS)}"
    if not manifest.workloads:
        return f"workloads is empty: expected some of {', '.join(WORKLOADS)}"
    if not 1 <= manifest.workers_best <= WORKERS_MAX:
        return f"workers_best is {manifest.workers_best}: expected 1 to {WORKERS_MAX}"
    for need in manifest.needs:
        kind, colon, name = need.partition(":")
        if not (need in TOOLS or need == "lib:onnxruntime" or (colon and name and kind in ("python", "pkg"))):
            return f"needs holds {need!r}: expected {', '.join(TOOLS)}, python:NAME, pkg:NAME or lib:onnxruntime"
    for word in (*manifest.build, *manifest.run):
        rest = word
        for placeholder in PLACEHOLDERS:
            rest = rest.replace(placeholder, "")
        if "{" in rest or "}" in rest:
            return f"{word!r} holds an unknown placeholder: expected {', '.join(PLACEHOLDERS)}"
    return None


def lacking(need: str, data: Path = DATA) -> str | None:
    """The reason why a need of a stack.toml is not met here, or None."""
    kind, _, name = need.partition(":")
    if kind == "python":
        there = importlib.util.find_spec(name) is not None or _in_venv(name, data)
        return None if there else f"Python package {name} not installed; make stacks installs it into {data / 'venv'}"
    if kind == "pkg":
        return _lacking_debian(name)
    if kind == "lib":
        try:
            onnxruntime_library()
        except CoreMissing as error:
            return str(error)
        return None
    if need == "cargo":
        return None if shutil.which("cargo") else "cargo not on PATH; install Rust 1.88 or later"
    if need == "go":
        if find_go() is None:
            return "no Go that is new enough; make go installs one"
        return None if c_compiler() else "no C compiler that works; on Debian: apt-get install gcc libc6-dev"
    return None if shutil.which(os.environ.get("CXX", "g++")) else "g++ not on PATH; on Debian: apt-get install g++"


def _in_venv(package: str, data: Path) -> bool:
    folders = venv_python(data).parents[1].glob("lib/python3*/site-packages")
    return any((folder / package).is_dir() or (folder / f"{package}.py").is_file() for folder in folders)


def _lacking_debian(package: str) -> str | None:
    command = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DPKG_DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return f"whether {package} is installed cannot be seen: no dpkg-query here"
    if done.returncode == 0 and done.stdout.strip() == "installed":
        return None
    return f"Debian package {package} not installed; apt-get install {package}"
