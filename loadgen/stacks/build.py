"""Building stacks: packages into the stacks' own environment, one build command each, its time and what it takes on disk.

Only Python packages (pip), crates (cargo) and Go modules are fetched; Debian's packages are named, never installed.
"""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import Distribution, distributions, packages_distributions, requires, version
from pathlib import Path

import msgspec
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from gocore.build import c_compiler, find_go
from gocore.locate import onnxruntime_library
from loadgen.bench.children import STDERR_TAIL, BenchError
from loadgen.stacks.manifest import (
    BUILT,
    DATA,
    Built,
    Stack,
    build_dir,
    filled,
    load_built,
    missing,
    missing_to_build,
    python_of,
    sources_of,
    venv_python,
)

Say = Callable[[str], None]
EXTRA = "stacks"  # of this project's optional dependencies: what goes into the environment
LOG = "build.log"
VENV_TOOK = "venv-took.json"
LIBRARY = "libonnxruntime.so"
SONAME = "libonnxruntime.so.1"  # what a program that was linked against it asks for


class Took(msgspec.Struct, frozen=True):
    """Seconds by the clock, and of CPU: the first grow with what else runs on the machine."""

    seconds: float
    cpu_s: float


class Clock:
    """From its making to `took`: the time of this process's children that were waited for."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _children_cpu_s()

    def took(self) -> Took:
        return Took(round(time.perf_counter() - self._wall, 2), round(_children_cpu_s() - self._cpu, 2))


def build_stack(stack: Stack, say: Say, data: Path = DATA, *, again: bool = False) -> Built | None:
    """Build a stack, or only weigh it where nothing is to be built. None: it was built from these sources already.

    `again` builds from nothing, whatever is there. Raises BenchError: a need is missing, or the command failed.
    """
    built = load_built(stack, data)
    if not again and built is not None and built.sources == sources_of(stack) and missing(stack, data) is None:
        return None
    if reason := missing_to_build(stack, data):
        raise BenchError(f"{stack.name}: {reason}")
    folder = build_dir(stack, data)
    if again:
        built = None
    if built is None and stack.build and folder.exists():
        shutil.rmtree(folder)  # what an interrupted build has left would shorten the time of this one
    folder.mkdir(parents=True, exist_ok=True)
    if "lib:onnxruntime" in stack.needs:
        _link_onnxruntime(folder)
    took = _run_build(stack, folder, say, data) if stack.build else _packages_took(stack, folder, say, data)
    first = took if built is None else Took(built.seconds, built.cpu_s)
    done = Built(
        seconds=first.seconds,
        cpu_s=first.cpu_s,
        rebuild_s=None if built is None else took.seconds,
        installed_bytes=installed_bytes(stack, data),
        sources=sources_of(stack),
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    (folder / BUILT).write_bytes(msgspec.json.encode(done) + b"\n")
    return done


def make_venv(say: Say, data: Path = DATA, *, again: bool = False) -> Took:
    """The stacks' own environment with the extra `stacks`. `again` makes it from nothing. Raises BenchError."""
    python = venv_python(data)
    if again and python.parents[1].exists():
        shutil.rmtree(python.parents[1])
    wanted = wanted_packages()
    clock = Clock()
    if not python.is_file():
        say(f"making {python.parents[1]}")
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(python.parents[1])], capture_output=True, text=True, check=False
        )
        if made.returncode:
            # Debian's Python without python3-venv says so on stdout.
            raise BenchError(f"the stacks' environment: {(made.stdout + made.stderr)[-STDERR_TAIL:].strip()}")
    say(f"installing {', '.join(wanted)}")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    log = data / f"venv-{LOG}"
    if run_tool(command, data, os.environ, log):
        raise BenchError(f"the stacks' environment: pip failed: {tail(log)}")
    took = clock.took()
    (data / VENV_TOOK).write_bytes(msgspec.json.encode(took))
    return took


def _packages_took(stack: Stack, folder: Path, say: Say, data: Path) -> Took:
    """What pip took for the environment that the stack runs in; this one was there, so an empty one is filled.

    Zero: unknown, since packages can't be had here. Raises BenchError.
    """
    if python_of(stack, data) != sys.executable:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((data / VENV_TOOK).read_bytes(), type=Took)
        return Took(0.0, 0.0)
    wanted = [f"{name}=={version(name)}" for name in distributions_of(stack)]
    wheels, venv, log = folder / "wheels", folder / "venv", folder / LOG
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    say(f"installing {', '.join(wanted)} into an empty environment")
    try:
        if run_tool([sys.executable, *pip, "download", "--dest", str(wheels), *wanted], folder, os.environ, log):
            say(f"{stack.name}: its packages cannot be fetched, how long they take to install stays unknown: {tail(log)}")
            return Took(0.0, 0.0)
        clock = Clock()
        install = [str(venv / "bin/python"), *pip, "install", "--no-index", "--find-links", str(wheels), *wanted]
        for command in ([sys.executable, "-m", "venv", str(venv)], install):
            if run_tool(command, folder, os.environ, log):
                raise BenchError(f"{stack.name}: {' '.join(command[:4])} failed: {tail(log)}")
        return clock.took()
    finally:
        for path in (wheels, venv):
            shutil.rmtree(path, ignore_errors=True)


def distributions_of(stack: Stack) -> list[str]:
    """What pip calls the Python packages that it needs: Pillow for PIL."""
    owners = packages_distributions()
    modules = [need.partition(":")[2] for need in stack.needs if need.startswith("python:")]
    return sorted({owners[module][0] for module in modules if module in owners})


def wanted_packages() -> list[str]:
    """The requirements of the extra `stacks`, as pip reads them."""
    found = []
    for text in requires("weir") or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and marker.evaluate({"extra": EXTRA}) and not marker.evaluate({"extra": ""}):
            requirement.marker = None
            found.append(str(requirement))
    if not found:
        raise BenchError(f"weir as it is installed has no extra {EXTRA!r}; pip install -e '.[dev]' again")
    return found


def installed_bytes(stack: Stack, data: Path = DATA) -> int:
    """What the stack takes on disk: its folder or its program, and the Python packages that it needs with theirs.

    Python itself, libc and other libraries of the system are not counted.
    """
    python = python_of(stack, data)
    packages = [need.partition(":")[2] for need in stack.needs if need.startswith("python:")]
    if python == sys.executable:
        packages = distributions_of(stack)
    total = packages_bytes(packages, python) if packages else 0
    if stack.build:
        program = Path(filled(stack, stack.run, data)[0])
        total += program.stat().st_size if program.is_file() else 0
    else:
        total += sum(
            path.stat().st_size for path in stack.here.rglob("*") if path.is_file() and "__pycache__" not in path.parts
        )
    if "lib:onnxruntime" in stack.needs:
        total += onnxruntime_library().stat().st_size
    return total


def _run_build(stack: Stack, folder: Path, say: Say, data: Path) -> Took:
    """Run the build command. Raises BenchError."""
    say(f"building {stack.name} into {folder}")
    environment: Mapping[str, str] = os.environ
    if "go" in stack.needs:
        environment = go_environment(folder)
    clock = Clock()
    argv, log = filled(stack, stack.build, data), folder / LOG
    try:
        code = run_tool(argv, stack.here, environment, log)
    except OSError as error:
        raise BenchError(f"{stack.name}: {argv[0]} cannot be started: {error}") from None
    if code:
        raise BenchError(f"{stack.name}: the build ended with code {code}, {log}: {tail(log)}")
    return clock.took()


def go_environment(folder: Path) -> dict[str, str]:
    """What Go is run with: a cache in `folder`, or the time of a first build would depend on what else was built here."""
    go, compiler = find_go(), c_compiler()
    assert go is not None, "missing_to_build looked"
    assert compiler is not None, "missing_to_build looked"
    path = f"{Path(go).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"CGO_ENABLED": "1", "CC": compiler, "GOCACHE": str(folder / "cache"), "PATH": path}


def run_tool(argv: Sequence[str], here: Path, environment: Mapping[str, str], log: Path) -> int:
    """Run a command in `here`, its output into `log`; the exit code. Raises OSError if it cannot be started."""
    with log.open("wb") as output:
        return subprocess.run(argv, cwd=here, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False).returncode


def _link_onnxruntime(folder: Path) -> None:
    """The wheel's library under both names: one to link against, one that a program asks for."""
    for name in (LIBRARY, SONAME):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(onnxruntime_library())


def packages_bytes(names: Iterable[str], python: str) -> int:
    """Bytes of the files of these distributions and of all that they require, in the environment of `python`."""
    folders = None
    if python != sys.executable:
        folders = [str(path) for path in Path(python).parents[1].glob("lib/python3*/site-packages")]
    there = {canonicalize_name(d.name): d for d in (distributions(path=folders) if folders else distributions())}
    todo: list[tuple[NormalizedName, frozenset[str]]] = [(canonicalize_name(name), frozenset()) for name in names]
    seen: set[tuple[NormalizedName, frozenset[str]]] = set()
    while todo:
        name, extras = step = todo.pop()
        if step in seen or name not in there:
            continue
        seen.add(step)
        for requirement in map(Requirement, there[name].requires or ()):
            # Extras count: PyTorch requires most of CUDA as extras of one package.
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return sum(_distribution_bytes(there[name]) for name in {name for name, _ in seen})


def _distribution_bytes(distribution: Distribution) -> int:
    files = [Path(str(distribution.locate_file(path))) for path in distribution.files or ()]
    return sum(path.stat().st_size for path in files if path.is_file())


def tail(log: Path) -> str:
    """The end of what a tool wrote."""
    return log.read_text(encoding="utf-8", errors="replace")[-STDERR_TAIL:].strip() or "no output"


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
