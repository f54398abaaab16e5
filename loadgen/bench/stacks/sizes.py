"""What an installation takes on disk, and how long its build took: rivals by their builds, Weir by packages and programs."""

import sys
from pathlib import Path

from gocore.locate import LIBRARY, SERVER, onnxruntime_library
from loadgen.bench.stacks.result import GO_SERVER, WEIR_ARMS
from loadgen.stacks.build import installed_bytes, packages_bytes
from loadgen.stacks.manifest import HERE, load_built, load_stack
from loadgen.stacks.own import load_own
from models.card import ARTIFACTS, MODEL_FILE

PACKAGES = ("service", "features", "gocore", "models", "loadgen")  # of the wheel


def size_and_build(name: str, data: Path) -> tuple[float | None, float | None, float | None]:
    """MB (10^6 bytes) installed, without Python and the system's libraries; s and CPU s of the build. None: unknown."""
    if name == GO_SERVER:
        files = (SERVER, onnxruntime_library(), ARTIFACTS / "cards" / MODEL_FILE)
        return sum(path.stat().st_size for path in files if path.is_file()) / 1e6, *_own_build(name, data)
    if name in WEIR_ARMS:
        return _weir_bytes() / 1e6, *_own_build(name, data)
    stack = load_stack(name)
    built = load_built(stack, data)
    if built is not None:
        return built.installed_bytes / 1e6, built.seconds or None, built.cpu_s or None
    return installed_bytes(stack, data) / 1e6, None, None


def _own_build(name: str, data: Path) -> tuple[float | None, float | None]:
    """Of what is compiled for it: nothing for the onnx scorer."""
    built = load_own(name, data)
    return (None, None) if built is None else (built.seconds, built.cpu_s)


def _weir_bytes() -> int:
    """The packages that Weir requires with theirs, its own sources and the Go core."""
    own = sum(
        path.stat().st_size
        for package in PACKAGES
        for path in (HERE.parents[1] / package).rglob("*")
        if path.is_file() and not {"__pycache__", "build"} & set(path.parts)
    )
    library = LIBRARY.stat().st_size if LIBRARY.is_file() else 0
    return packages_bytes(["weir"], sys.executable) + own + library
